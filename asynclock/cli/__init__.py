"""The command ``asynclock``. Importing this needs neither typer nor rich; running it says so if they are missing."""

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from types import FrameType

__all__ = ["check_installed", "handle_sigint", "main"]


def main() -> None:
    """Run the command line. Ends with ``SystemExit``: 2 if a package is missing or the arguments are wrong."""
    # During the imports Ctrl-C just ends this. As an exception it would show a traceback, and Python loses some there.
    handle_sigint(signal.SIG_DFL)
    check_installed("typer", "rich")
    from .app import app

    app(prog_name="asynclock")


def handle_sigint(how: signal.Handlers | Callable[[int, FrameType | None], object]) -> None:
    """Set what SIGINT does, unless it was ignored when this process began."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, how)


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
