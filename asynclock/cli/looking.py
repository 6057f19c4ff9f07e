"""The commands that look at locks, and the one that breaks them."""

from __future__ import annotations

from typing import Annotated

import typer

from .exit_status import WRONG_USAGE
from .where import Config, KeyPrefix, PasswordFile, Urls, servers_or_exit

STATUS_EXAMPLES = """[bold]Examples[/bold]

Who holds it, and since when?\n
  asynclock status report

Does anybody?\n
  asynclock status report > /dev/null && echo "already running"

All locks of three independent servers:\n
  asynclock status --url redis://a --url redis://b --url redis://c

Locks held for more than an hour:\n
  asynclock status --json | jq '.locks[] | select(.age > 3600) | .name'
"""

WATCH_EXAMPLES = """[bold]Examples[/bold]

All locks, in a table that stays on the terminal:\n
  asynclock watch

Who has had the lock today?\n
  asynclock watch report >> report.log

Wait until it is free:\n
  asynclock watch --json report | grep -m1 '"event": "free"'
"""

BREAK_EXAMPLES = """[bold]Examples[/bold]

The holder hangs, and its process cannot be killed:\n
  asynclock break report

From a script:\n
  asynclock break --yes report
"""

AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON, for tools.")]


def register(app: typer.Typer) -> None:
    """Add them to the application."""
    app.command(epilog=STATUS_EXAMPLES)(status)
    app.command(epilog=WATCH_EXAMPLES)(watch)
    app.command("break", epilog=BREAK_EXAMPLES)(break_lock)


def status(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Of locks. Default: all", show_default=False)
    ] = None,
    as_json: AsJSON = False,
    values: Annotated[
        bool, typer.Option("--values", help="Show what is in the keys. Whoever knows it can release them.")
    ] = False,
    url: Urls = None,
    config: Config = None,
    key_prefix: KeyPrefix = None,
    password_file: PasswordFile = None,
) -> None:
    """Show who holds locks now, and since when.

    With NAME, show each key of the lock, too. Without, find all locks by SCAN,
    which goes through all keys of the servers.

    The exit status is 0 held (several names: all of them; no name: any lock),
    1 free, 2 wrong usage, 125 servers unavailable.
    """
    from .status import status as show

    servers = servers_or_exit("status", WRONG_USAGE, url, config, key_prefix, password_file)
    raise typer.Exit(show(names or (), servers, as_json=as_json, values=values))


def watch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Of locks. Default: all", show_default=False)
    ] = None,
    as_json: AsJSON = False,
    url: Urls = None,
    config: Config = None,
    key_prefix: KeyPrefix = None,
    password_file: PasswordFile = None,
) -> None:
    """Show who holds locks, and each change as soon as a server tells of it.

    On a terminal, this is a table that stays; elsewhere, a line for each change.
    Ctrl-C ends it. Without NAME, it finds new locks by SCAN every 5 s, which goes
    through all keys of the servers. If a server goes away, it waits for it.

    The exit status is 130 after Ctrl-C, 143 after SIGTERM, 0 if nobody reads the
    output any more, 2 wrong usage, 125 servers unavailable at the start.
    """
    from .watch import watch as show

    servers = servers_or_exit("watch", WRONG_USAGE, url, config, key_prefix, password_file)
    raise typer.Exit(show(names or (), servers, as_json=as_json))


def break_lock(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the lock.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Urls = None,
    config: Config = None,
    key_prefix: KeyPrefix = None,
    password_file: PasswordFile = None,
) -> None:
    """Take a lock from its holder, and give it back, so that the next one gets it.

    It says who holds the lock, and asks. The holder loses the lock as "taken
    over", so its work is cancelled. A process that hangs does not notice that:
    make sure first that it does no harm.

    The exit status is 0 done, 1 nobody holds it or you said no, 2 wrong usage or
    no terminal to ask on, 125 servers unavailable.
    """
    from .breaking import break_lock as take

    servers = servers_or_exit("break", WRONG_USAGE, url, config, key_prefix, password_file)
    raise typer.Exit(take(name, servers, yes=yes))
