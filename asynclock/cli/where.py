"""The options that say where the servers are: the same for every command. ``servers.py`` evaluates them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .servers import Servers

WHERE = "Where the servers are"
Urls = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        envvar="ASYNCLOCK_URL",
        metavar="URL",
        help="URL of a server, of a node of a cluster, or of Sentinels. Repeat it for independent servers. "
        "Default: redis://127.0.0.1:6379",
        rich_help_panel=WHERE,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        envvar="ASYNCLOCK_CONFIG",
        metavar="FILE",
        help="A TOML file with url or urls, password_file, and options of Locker, such as key_validity, owner "
        "and spread_keys.",
        rich_help_panel=WHERE,
    ),
]
KeyPrefix = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Prefix of the keys, the same for all who share locks. Default: asynclock",
        rich_help_panel=WHERE,
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with the password for URLs without one. Or set ASYNCLOCK_PASSWORD.",
        rich_help_panel=WHERE,
    ),
]


def servers_or_exit(
    command: str,
    status: int,
    url: list[str] | None,
    config: Path | None,
    key_prefix: str | None,
    password_file: Path | None,
) -> Servers:
    """What the options say. If they are wrong, the command ends with a line on stderr and this exit status."""
    from asynclock import ConfigurationError

    from .servers import find_servers
    from .stderr import write_line

    try:
        return find_servers(
            urls=url or (),
            config=config,
            key_prefix=key_prefix,
            password_file=password_file,
            environment=os.environ,
        )
    except ConfigurationError as error:
        write_line(f"asynclock {command}: {error}")
        raise typer.Exit(status) from None
