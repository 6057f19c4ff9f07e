"""Where the servers are, with which options, and with which password: the same for every command.

The command line wins over the environment, and that over the file. No password is in a message of this module, or in
the ``repr`` of what it returns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from asynclock import ConfigurationError, Locker
from asynclock.options import check_options

DEFAULT_URL = "redis://127.0.0.1:6379"
PASSWORD = "ASYNCLOCK_PASSWORD"  # the environment variable

_OPTIONS: Mapping[str, Any] = Locker.__init__.__kwdefaults__ or {}  # by name, with the defaults
_OWN_KEYS = ("url", "urls", "password_file")
_URL = re.compile(r"(?P<scheme>[^:/?]*)://(?:(?P<userinfo>[^/?]*)@)?(?P<place>[^?]*)\??(?P<query>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Servers:
    """What a ``Locker`` is made of."""

    urls: tuple[str, ...] = field(repr=False)  #: they may have passwords in them
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def locker(self) -> Locker:
        """:raises ConfigurationError: a URL or an option is wrong"""
        return Locker(self.urls[0] if len(self.urls) == 1 else list(self.urls), **self.options)

    def public_urls(self) -> str:
        """The URLs without passwords, separated by spaces, as ``ASYNCLOCK_URL`` has them. For URLs that
        :meth:`locker` has accepted: in a malformed one, any part may belong to a password."""
        return " ".join(map(without_password, self.urls))


def find_servers(
    *,
    urls: Sequence[str] = (),
    config: Path | None = None,
    key_prefix: str | None = None,
    password_file: Path | None = None,
    environment: Mapping[str, str],
) -> Servers:
    """Make one of the options of the command line (``urls`` and ``config`` may also come from the environment), of the
    file ``config``, and of the password in the environment.

    :raises ConfigurationError: a file cannot be read, or something in it is wrong; the message names file and key
    """
    values = {} if config is None else _read_config(config)
    listed = [values.pop("url")] if "url" in values else values.pop("urls", [DEFAULT_URL])
    password = _password(password_file, environment, values.pop("password_file", None))
    if key_prefix is not None:
        values["key_prefix"] = key_prefix
    chosen = [*urls] or listed
    return Servers(tuple(with_password(url, password) if password else url for url in chosen), MappingProxyType(values))


def with_password(url: str, password: str) -> str:
    """The URL with this password, unless it has one. What is no URL stays as it is: ``Locker`` refuses it."""
    found = _URL.fullmatch(url)
    if found is None:
        return url
    user, _, own = (found["userinfo"] or "").partition(":")
    if own or any(option.startswith("password=") for option in found["query"].split("&")):
        return url
    return _join(found["scheme"], f"{user}:{quote(password, safe='')}", found["place"], found["query"])


def without_password(url: str) -> str:
    """The URL without any password in it, that of a TLS key included."""
    found = _URL.fullmatch(url)
    if found is None:
        return ""
    options = [option for option in found["query"].split("&") if "password" not in option.partition("=")[0]]
    return _join(found["scheme"], (found["userinfo"] or "").partition(":")[0], found["place"], "&".join(options))


def _join(scheme: str, userinfo: str, place: str, query: str) -> str:
    return f"{scheme}://{userinfo and f'{userinfo}@'}{place}{query and f'?{query}'}"


def _password(option: Path | None, environment: Mapping[str, str], configured: Path | None) -> str | None:
    if option is None and environment.get(PASSWORD):
        return environment[PASSWORD]
    path = option or configured
    if path is None:
        return None
    password = _read(path, "password file").rstrip("\r\n")
    if not password:
        raise ConfigurationError(f"password file {path}: it is empty")
    return password


def _read_config(path: Path) -> dict[str, Any]:
    """The checked contents: options of ``Locker``, and ``_OWN_KEYS``."""
    import tomllib  # here, since few have a file

    try:
        values = tomllib.loads(_read(path, "config file"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"config file {path}: not valid TOML: {error}") from None

    def wrong(key: str, what: str) -> ConfigurationError:
        return ConfigurationError(f"config file {path}: {key}: {what}")

    for key in values:
        if key not in _OWN_KEYS and key not in _OPTIONS:
            raise wrong(key, _unknown(key))  # without the value, which may be a password
    if "url" in values and "urls" in values:
        raise wrong("urls", "there is url, too; give one of them")
    if "url" in values and not isinstance(values["url"], str):
        raise wrong("url", "must be a string; for several servers, use urls")
    urls = values.get("urls", [DEFAULT_URL])
    if not isinstance(urls, list) or not urls or not all(isinstance(url, str) for url in urls):
        raise wrong("urls", "must be a list of strings, with one URL at least")
    if "password_file" in values:
        if not isinstance(values["password_file"], str) or not values["password_file"]:
            raise wrong("password_file", "must be the path of a file")
        values["password_file"] = path.parent / values["password_file"]
    options = {key: value for key, value in values.items() if key not in _OWN_KEYS}
    try:
        check_options(**{**_OPTIONS, **options}, unknown={})
    except ConfigurationError as error:
        raise ConfigurationError(f"config file {path}: {error}") from None
    return values


def _unknown(key: str) -> str:
    if "password" in key:
        return (
            "passwords are not allowed here; put it into a file of its own, and give the path of that as password_file"
        )
    import difflib

    known = [*_OWN_KEYS, *_OPTIONS]
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; there are {', '.join(known)}"


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{what} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{what} {path}: it is not UTF-8 text") from None
