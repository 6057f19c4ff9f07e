"""The options that say where the servers are: the same for every command. ``servers.py`` evaluates them."""

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
        "and disconnect_grace.",
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
