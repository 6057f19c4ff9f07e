"""asynclock in other libraries and frameworks. Each module needs the extra of its name: ``asynclock[fastapi]``."""
