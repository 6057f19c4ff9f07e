"""``python -m asynclock``: the same as the command ``asynclock``."""

from .cli import main

if __name__ == "__main__":
    main()
