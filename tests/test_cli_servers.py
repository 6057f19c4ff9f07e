"""Where the shell commands find their servers, options and passwords."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from asynclock import ConfigurationError, Locker
from asynclock.cli.servers import DEFAULT_URL, Servers, find_servers, with_password, without_password

pytestmark = [pytest.mark.serverless, pytest.mark.fast]

SECRET = "s3cret/@: "


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "asynclock.toml"


def of(config: Path, text: str) -> Servers:
    config.write_text(text)
    return find_servers(config=config, environment={})


def test_without_anything_it_is_the_server_of_this_machine() -> None:
    servers = find_servers(environment={})
    assert servers.urls == (DEFAULT_URL,)
    assert servers.options == {}


def test_the_command_line_wins_over_the_file(config: Path) -> None:
    config.write_text('urls = ["redis://a", "redis://b", "redis://c"]\nkey_prefix = "jobs"\nkey_validity = 8\n')
    servers = find_servers(config=config, environment={})
    assert servers.urls == ("redis://a", "redis://b", "redis://c")
    assert servers.options == {"key_prefix": "jobs", "key_validity": 8}
    servers = find_servers(urls=["redis://d"], key_prefix="other", config=config, environment={})
    assert servers.urls == ("redis://d",)
    assert servers.options == {"key_prefix": "other", "key_validity": 8}


def test_a_password_comes_from_the_command_line_then_the_environment_then_the_file(
    config: Path, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("from config\n")
    (tmp_path / "other").write_text("from option\r\n")
    config.write_text('url = "redis://a"\npassword_file = "password"\n')  # beside the config file

    def password(password_file: Path | None, environment: dict[str, str]) -> str:
        found = find_servers(config=config, password_file=password_file, environment=environment)
        return unquote(found.urls[0]).removeprefix("redis://:").removesuffix("@a")

    variable = {"ASYNCLOCK_PASSWORD": "from environment"}
    assert password(tmp_path / "other", variable) == "from option"
    assert password(None, variable) == "from environment"
    assert password(None, {"ASYNCLOCK_PASSWORD": ""}) == "from config"


@pytest.mark.parametrize(
    ("url", "complete"),
    [
        ("redis://host:1/2?client_name=x", "redis://:PW@host:1/2?client_name=x"),
        ("redis://user@host", "redis://user:PW@host"),
        ("redis://user:@host", "redis://user:PW@host"),
        ("redis://user:own@host", None),
        ("redis://:own@host", None),
        ("redis://host?password=own", None),
        ("unix:///run/redis.sock?db=1", "unix://:PW@/run/redis.sock?db=1"),
        ("redis+sentinel://user@a:1,b:2/name/0", "redis+sentinel://user:PW@a:1,b:2/name/0"),
        ("rediss://[::1]:6379", "rediss://:PW@[::1]:6379"),
        ("not a url", None),
    ],
)
def test_a_password_goes_to_urls_without_one(url: str, complete: str | None) -> None:
    assert with_password(url, SECRET) == (complete or url).replace("PW", "s3cret%2F%40%3A%20")
    if complete is not None:
        assert without_password(with_password(url, SECRET)) == url.replace("user:@", "user@")
        Locker(with_password(url, SECRET))


def test_redis_py_reads_the_password_back() -> None:
    locker = Locker(with_password("redis://user@host", SECRET))
    assert locker.client.get_connection_kwargs()["password"] == SECRET
    assert locker.client.get_connection_kwargs()["username"] == "user"


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("redis://user:own@host:1/2", "redis://user@host:1/2"),
        ("redis://:own@host", "redis://host"),
        ("redis://host?password=own&db=1", "redis://host?db=1"),
        ("rediss://host?ssl_password=own", "rediss://host"),
        ("unix://u:own@/run/redis.sock", "unix://u@/run/redis.sock"),
        ("redis+sentinel://:own@a,b/name", "redis+sentinel://a,b/name"),
        ("own", ""),
    ],
)
def test_no_password_is_shown(url: str, public: str) -> None:
    assert without_password(url) == public
    servers = Servers((url, "redis://host"))
    assert servers.public_urls() == f"{public} redis://host"
    assert "own" not in repr(servers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key_validty = 5", "key_validty: unknown key; did you mean key_validity?"),
        ("zzz = 5", "zzz: unknown key; there are url, urls, password_file, key_prefix, "),
        ('password = "s3cret"', "password: passwords are not allowed here"),
        ("key_validity = -1", "key_validity=-1: must be more than 0 seconds"),
        ('key_validity = "5"', "key_validity='5': must be a number of seconds or a timedelta"),
        ("key_validity = 1\nextend_interval = 2", "extend_interval=2: must be less than key_validity=1"),
        ("url = 5", "url: must be a string"),
        ("urls = []", "urls: must be a list of strings"),
        ('urls = "redis://s3cret"', "urls: must be a list of strings"),
        ('url = "redis://a"\nurls = ["redis://b"]', "urls: there is url, too"),
        ("password_file = 5", "password_file: must be the path of a file"),
        ("url = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_file_and_key(config: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        of(config, text)
    assert str(raised.value).startswith(f"config file {config}: {message}")
    assert "s3cret" not in str(raised.value)


def test_every_option_of_a_locker_may_stand_in_the_file(config: Path) -> None:
    assert Locker.__init__.__kwdefaults__ is not None
    given = {name: value for name, value in Locker.__init__.__kwdefaults__.items() if value is not None}
    text = "".join(
        f"{name} = {value!r}\n".replace("True", "true").replace("False", "false") for name, value in given.items()
    )
    servers = of(config, text.replace("'", '"'))
    assert servers.options == given
    servers.locker()


def test_files_that_cannot_be_read_are_told(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"^config file {re.escape(str(config))}: No such file or directory$"):
        find_servers(config=config, environment={})
    with pytest.raises(ConfigurationError, match=r"^password file .*/nowhere: No such file"):
        find_servers(password_file=tmp_path / "nowhere", environment={})
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigurationError, match=r"^password file .*/empty: it is empty$"):
        find_servers(password_file=tmp_path / "empty", environment={})
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"^password file .*/binary: it is not UTF-8 text$"):
        find_servers(password_file=tmp_path / "binary", environment={})
