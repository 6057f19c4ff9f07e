"""The command ``asynclock``. Importing this needs neither typer nor rich; running it says so if they are missing."""

import sys
from importlib import import_module

__all__ = ["check_installed", "main"]


def main() -> None:
    """Run the command line. Ends with ``SystemExit``: 2 if a package is missing or the arguments are wrong."""
    try:
        check_installed("typer", "rich")
        from .app import app

        app(prog_name="asynclock")
    except KeyboardInterrupt:  # during the imports
        sys.exit(130)


def check_installed(*packages: str) -> None:
    """Check that these packages can be imported.

    :raises SystemExit: one cannot; a line on stderr says which, and the status is 2
    """
    missing: list[str] = []
    for package in packages:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            missing.append(error.name or package)
    if missing:
        print(
            f"asynclock: this needs {' and '.join(missing)}: pip install 'asynclock[cli,embedded]'",
            file=sys.stderr,
        )
        sys.exit(2)
