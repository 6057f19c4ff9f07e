"""The options that say where the servers are: the same for every command. `servers.find_servers` makes one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WHERE = "Where the servers are"
Urls = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        envvar="ASYNCLOCK_URL",
        metavar="URL",
        help="Of a server, a node of a cluster, or Sentinels. Several times for independent servers. "
        "Default: redis://127.0.0.1:6379",
        rich_help_panel=WHERE,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        envvar="ASYNCLOCK_CONFIG",
        metavar="FILE",
        help="A TOML file with url or urls, password_file, and options of Locker, such as key_validity.",
        rich_help_panel=WHERE,
    ),
]
KeyPrefix = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="As all who share the locks have it. Default: asynclock", rich_help_panel=WHERE),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Has the password for URLs without one. Or set ASYNCLOCK_PASSWORD.",
        rich_help_panel=WHERE,
    ),
]
