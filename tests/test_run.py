"""``asynclock run`` as its user runs it: real processes, signals and servers, on pipes and on a terminal."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from asynclock.cli.run_command import PASSED_ON
from asynclock.testing import Cluster, Sentinels, Server
from tests.support.family import Family
from tests.support.helpers import key
from tests.support.runs import LIMIT, RUN, URLS, Terminal, eventually, keys, run, started, terminal

pytestmark = [pytest.mark.serverless, pytest.mark.one_loop]

VALIDITY = 1.0  # seconds, where a test waits for a lock to expire
WAITING = "echo ready; exec sleep 60"
PYTHON = [sys.executable, "-ISc"]  # a shell would end its own children, too, and tell of it
STUBBORN = [*PYTHON, "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); signal.sigwait([])"]
OBEDIENT = [
    *PYTHON,
    "import signal; signal.pthread_sigmask(0, [15]); print('ready', flush=True); signal.sigwait([15]); print('told')",
]


@pytest.fixture
def env(server: Server, family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a run on ``server``. Nothing that belongs to it is left after the test."""
    rest = {name: value for name, value in family.env.items() if name not in URLS}
    return rest | {"ASYNCLOCK_URL": server.url, "COLUMNS": "80", "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A config file with which locks expire soon."""
    path = tmp_path_factory.mktemp("config") / "asynclock.toml"
    path.write_text(f"key_validity = {VALIDITY}\n")
    return str(path)


def hold(server: Server, name: str) -> None:
    """Have somebody else hold the lock."""
    server.execute("SET", key(name), "somebody", "PX", 60_000)


# The exit status


@pytest.mark.parametrize(
    ("status", "arguments", "told"),
    [
        (0, ["free", "--", "true"], ""),
        (7, ["free", "--", "sh", "-c", "exit 7"], ""),
        (143, ["free", "--", "sh", "-c", "kill -TERM $$"], ""),
        (137, ["free", "--", "sh", "-c", "kill -KILL $$"], ""),
        (1, ["-n", "taken", "--", "true"], "lock 'taken' was not acquired: "),
        (1, ["-w", "0.5", "taken", "--", "true"], "lock 'taken' was not acquired within 0.5 s: "),
        (1, ["-w", "0", "taken", "--", "true"], "lock 'taken' was not acquired: "),
        (9, ["-n", "-E", "9", "taken", "--", "true"], "lock 'taken' was not acquired: "),
        (0, ["-n", "-E", "0", "taken", "--", "true"], ""),
        (0, ["-v", "-w", "0.5", "-E", "0", "taken", "--", "true"], "lock 'taken' was not acquired within 0.5 s: "),
        (1, ["-n", "free", "taken", "--", "true"], "lock 'taken' was not acquired: "),
        (125, ["--url", "redis://:s3cret@127.0.0.1:1", "free", "--", "true"], "127.0.0.1:1"),
        (125, ["--url", "http://:s3cret@127.0.0.1", "free", "--", "true"], "not a valid URL"),
        (125, ["--config", "/nowhere", "free", "--", "true"], "config file /nowhere: No such file"),
        (125, ["-n", "-w", "1", "free", "--", "true"], "give --no-wait or --timeout, not both"),
        (125, ["-w", "nan", "free", "--", "true"], "--timeout"),
        (125, ["free"], "give a command, after --"),
        (125, ["free", "true"], "give a command, after --"),
        (125, ["--", "true"], "Missing argument"),
        (125, ["", "--", "true"], "a lock's name must not be empty"),
        (125, ["free", "other", "free", "--", "true"], "lock 'free' is given twice"),
        (125, ["--nope", "free", "--", "true"], "No such option: --nope"),
        (125, ["-E", "256", "free", "--", "true"], "--conflict-exit-code"),
        (126, ["free", "--", "/etc/passwd"], "/etc/passwd: Permission denied"),
        (126, ["free", "--", "/"], "/: Permission denied"),
        (127, ["free", "--", "no-such-command"], "no-such-command: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_exit_status(
    server: Server, env: dict[str, str], family: Family, status: int, arguments: list[str], told: str
) -> None:
    hold(server, "taken")
    done = run(*arguments, env=env)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert told in " ".join(re.sub("[│╭╮╰╯─]", "", done.stderr).split()) if told else done.stderr == ""
    assert "Traceback" not in done.stderr and "s3cret" not in done.stderr
    assert keys(server) == [key("taken").encode()]
    assert family.gone()


def test_help_is_no_error(env: dict[str, str]) -> None:
    done = run("--help", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "NAME... -- COMMAND..." in done.stdout


# Losses


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        (OBEDIENT, "told\n"),
        (["sh", "-c", 'sleep 60 & "$@" & wait', "sh", *STUBBORN], ""),
        (["sh", "-c", '(trap "" TERM; echo ready; sleep 0.3; echo soon) & sleep 60'], "soon\n"),
    ],
    ids=["obedient", "group", "group that needs a moment"],
)
def test_a_loss_ends_the_command_and_what_it_has_started(
    server: Server, env: dict[str, str], family: Family, command: list[str], rest: str
) -> None:
    with started("--kill-after", "2", "job", "--", *command, env=env) as job:
        job.until("ready")
        assert keys(server) == [key("job").encode()]
        server.execute("DEL", key("job"))
        status, output = job.end()
    assert status == 75
    (loss,) = (line for line in output.splitlines() if line.startswith("asynclock run: "))
    assert loss.startswith("asynclock run: lock 'job' was lost: another client deleted its key")
    assert key("job") in loss
    assert output.replace(f"{loss}\n", "") == rest  # which of them is first depends on the command
    assert family.gone()


def test_what_does_not_end_is_killed_after_a_while(server: Server, env: dict[str, str], family: Family) -> None:
    with started("--kill-after", "0.5", "job", "--", *STUBBORN, env=env) as job:
        job.until("ready")
        at = time.monotonic()
        server.execute("SET", key("job"), "somebody")
        status, output = job.end()
    assert time.monotonic() - at > 0.5
    assert status == 75
    assert "overwrote its key" in output
    assert family.gone()


def test_a_stopped_command_is_ended_too(server: Server, env: dict[str, str], family: Family) -> None:
    """Somebody looks into it with a debugger, so it keeps its lock for as long as that takes. But not for longer."""
    with started("job", "--", "sh", "-c", "echo $$; exec sleep 60", env=env) as job:
        pid = int(job.until(""))
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)
        assert job.process.poll() is None
        server.execute("DEL", key("job"))
        assert job.end()[0] == 75
    assert family.gone()


def test_a_server_that_is_lost(own_server: Server, env: dict[str, str], family: Family) -> None:
    env["ASYNCLOCK_URL"] = own_server.url
    with started("job", "--", "sh", "-c", WAITING, env=env) as job:
        job.until("ready")
        own_server.kill()
        status, output = job.end()
    assert status == 75
    assert output.startswith("asynclock run: lock 'job' was lost: the server is gone")
    assert output.count("\n") == 1
    assert family.gone()


def test_a_server_that_is_lost_while_it_waits(own_server: Server, env: dict[str, str]) -> None:
    """Who alone fails for the holder's sake has status 1."""
    env["ASYNCLOCK_URL"] = own_server.url
    hold(own_server, "job")
    with started("-v", "-w", "1.5", "job", "--", "true", env=env) as job:
        job.until("connected")
        own_server.kill()
        status, output = job.end()
    assert status == 125, output


def test_a_run_that_was_stopped_for_too_long(server: Server, env: dict[str, str], family: Family, short: str) -> None:
    with started("--config", short, "job", "--", "sh", "-c", WAITING, env=env) as job:
        job.until("ready")
        job.send(signal.SIGSTOP)
        eventually(lambda: keys(server) == [])
        job.send(signal.SIGCONT)
        status, output = job.end()
    assert status == 75
    assert "lock 'job' was lost: its validity ended" in output
    assert family.gone()


def test_an_error_of_its_own_leaves_nothing(server: Server, env: dict[str, str], family: Family) -> None:
    code = (
        "import asyncio; from asynclock.cli import main, run_command\n"
        "async def wait(self): await asyncio.sleep(0.3); raise RuntimeError('oops')\n"
        "run_command.Command.wait = wait; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "job", "--", "sh", "-c", WAITING],
        env=env, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 125
    assert "RuntimeError: oops" in done.stderr
    assert keys(server) == []
    assert family.gone()


# Signals


@pytest.mark.parametrize("number", PASSED_ON, ids=lambda number: number.name)
def test_a_signal_is_passed_on_and_a_second_one_too(
    server: Server, env: dict[str, str], family: Family, number: signal.Signals
) -> None:
    code = (
        "import os, signal, time\n"
        f"def once(*_): signal.signal({number:d}, signal.SIG_DFL); os.write(1, b'got {number:d}\\n')\n"
        f"signal.signal({number:d}, once); os.write(1, b'ready\\n')\n"
        "while True: time.sleep(0.02)"  # not pause(): a signal right before it would be noticed by the next one only
    )
    with started("job", "--", *PYTHON, code, env=env) as job:
        job.until("ready")
        job.send(number)
        job.until(f"got {number:d}")
        job.send(number)
        assert job.end() == (128 + number, "")
    assert keys(server) == []
    assert family.gone()


@pytest.mark.parametrize("number", PASSED_ON, ids=lambda number: number.name)
def test_a_signal_ends_the_wait(server: Server, env: dict[str, str], family: Family, number: signal.Signals) -> None:
    hold(server, "b")
    with started("-v", "a", "b", "--", "echo", "never", env=env) as job:
        job.until("waits for lock 'b'")
        job.send(number)
        status, output = job.end()
    assert status == 128 + number
    assert "never" not in output
    assert keys(server) == [key("b").encode()]
    assert family.gone()


def test_ignored_signals_stay_ignored(server: Server, env: dict[str, str]) -> None:
    """As by ``nohup``, and by a shell for what it starts in the background."""
    script = f"kill -HUP $$; kill -INT $$; {WAITING}"
    ignoring = ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *RUN, "job", "--", "sh", "-c", script]
    with subprocess.Popen(ignoring, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 143


def test_an_ignored_sigchld_hides_no_status(server: Server, env: dict[str, str]) -> None:
    ignore = lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # noqa: E731
    assert run("job", "--", "sh", "-c", "exit 7", env=env, preexec_fn=ignore).returncode == 7


def test_signals_at_any_moment_leave_nothing(server: Server, env: dict[str, str], family: Family) -> None:
    """Before there is a handler, while it connects, between the lock and the start of the command."""
    once = time.monotonic()
    run("timing", "--", "true", env=env)
    once = time.monotonic() - once

    def strike(number: int) -> None:
        with started(f"job:{number}", "--", "sh", "-c", WAITING, env=env) as job:
            time.sleep(random.random() * once * 1.3)
            job.send(signal.SIGTERM)
            status, output = job.end()
        assert status in (143, -signal.SIGTERM)
        assert output in ("", "ready\n")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(strike, range(24)))
    assert keys(server) == []
    assert family.gone()


def test_a_killed_run_takes_its_command_with_it(
    server: Server, env: dict[str, str], family: Family, short: str
) -> None:
    with started("--config", short, "job", "--", *STUBBORN, env=env) as job:
        job.until("ready")
        job.send(signal.SIGKILL)
        at = time.monotonic()
        job.process.wait()
        eventually(lambda: not family.members(STUBBORN[-1]))
        assert run("--config", short, "job", "--", "true", env=env).returncode == 0
        assert time.monotonic() - at < LIMIT
    assert family.gone()


@pytest.mark.slow
def test_killed_at_200_moments_it_leaves_nothing(
    server: Server, env: dict[str, str], family: Family, short: str
) -> None:
    def arguments(name: str) -> list[str]:
        return ["-v", "--config", short, name, "--", *STUBBORN]

    began = time.monotonic()
    with started(*arguments("timing"), env=env) as job:
        job.until("waits for lock")
        middle = time.monotonic()
        job.until("ready")
        end = time.monotonic()
        job.send(signal.SIGKILL)

    def strike(number: int) -> None:
        with started(*arguments(f"job:{number}"), env=env) as job:
            match number % 4:
                case 0:
                    time.sleep(random.random() * (end - began))
                case 1 | 2:  # from the lock to the start of the command, and a little later
                    job.until("waits for lock")
                    time.sleep(random.random() * 1.5 * (end - middle))
                case 3:
                    job.until("ready")
            job.send(signal.SIGKILL)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(strike, range(200)))
    last = time.monotonic()
    assert family.gone(within=1.0)  # every child
    eventually(lambda: keys(server) == [], max(0.1, last + VALIDITY + 0.1 - time.monotonic()))


# What the command gets


def test_the_command_has_the_files_of_run(
    server: Server, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    extra = tmp_path_factory.mktemp("files") / "extra"
    extra.write_text("three")
    script = 'cat; cat <&3; echo; echo err >&2; ls /proc/$$/fd; [ "$(pwd)" = / ]'
    run_in_shell = ["sh", "-c", 'exec "$@" 3<"$0"', str(extra), *RUN, "job", "--", "sh", "-c", script]
    done = subprocess.run(
        run_in_shell, env=env, input="typed\n", capture_output=True, text=True, timeout=LIMIT, check=True, cwd="/"
    )
    assert done.stdout.split() == ["typed", "three", "0", "1", "2", "3"]
    assert done.stderr == "err\n"


@pytest.mark.parametrize("closed", ["<&-", "</dev/null", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_without_a_terminal_and_standard_files_as_cron_and_systemd_run_it(
    server: Server, env: dict[str, str], family: Family, tmp_path_factory: pytest.TempPathFactory, closed: str
) -> None:
    done = tmp_path_factory.mktemp("files") / "done"
    code = "import signal, sys, os, time; sys.stdin and sys.stdin.read()\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
    code += f"os.write(1, b'out'); os.write(2, b'err'); open({str(done)!r}, 'x')\nwhile True: time.sleep(0.02)"
    with subprocess.Popen(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *RUN, "job", "--", *PYTHON, code],
        env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        eventually(done.exists)
        assert keys(server) == [key("job").encode()]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 3
    assert out == ("" if ">&- " in f"{closed} ".replace("2>&-", "") else "out")
    assert err == ("" if "2>&-" in closed else "err")
    assert keys(server) == []
    assert family.gone()


def test_environment(server: Server, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    script = 'echo "$ASYNCLOCK_NAME|$ASYNCLOCK_URL|$ASYNCLOCK_PASSWORD"'
    shown = [run(*names, "--", "sh", "-c", script, env=env).stdout for names in (["a b"], ["b", "a"])]
    assert shown == [f"a b|{server.url}|\n", f"b\na|{server.url}|\n"]


def test_fencing_tokens(server: Server, env: dict[str, str]) -> None:
    script = 'echo "$ASYNCLOCK_FENCING_TOKEN"'
    shown = [run(*names, "--", "sh", "-c", script, env=env).stdout for names in (["b", "a"], ["b"], ["b", "a"])]
    first, second, third = ([int(token) for token in tokens.split()] for tokens in shown)
    assert first[0] < second[0] < third[0] and first[1] < third[1]
    counters = [server.execute("GET", f"asynclock:f0:{{asynclock:0:{name}}}") for name in "ba"]
    assert third == [int(token) for token in counters if isinstance(token, bytes)]


def test_no_fencing_tokens_where_the_user_may_not_have_them(server: Server, env: dict[str, str]) -> None:
    """Most commands need none: it runs. That of another run around it is not passed on."""
    server.execute("ACL", "SETUSER", "fenceless", "reset", "on", ">secret", "~asynclock:*", "+@all", "-time")
    try:
        url = server.url.replace("redis://", "redis://fenceless:secret@")
        done = run(
            *("-v", "job", "--", "sh", "-c", "echo ${ASYNCLOCK_FENCING_TOKEN-none}"),
            env=env | {"ASYNCLOCK_URL": url, "ASYNCLOCK_FENCING_TOKEN": "7"},
        )
        assert (done.returncode, done.stdout) == (0, "none\n")
        assert "no fencing tokens: " in done.stderr and "need EVAL, GET, SET and TIME" in done.stderr
        assert "secret" not in done.stderr
    finally:
        server.execute("ACL", "DELUSER", "fenceless")


def test_passwords(env: dict[str, str], kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    password = tmp_path_factory.mktemp("files") / "password"
    password.write_text("s3cret\n")
    script = 'echo "$ASYNCLOCK_URL|$ASYNCLOCK_PASSWORD"; tr "\\0" " " < /proc/$PPID/cmdline'
    with Server(kind, config={"requirepass": "s3cret"}) as server:
        url = env["ASYNCLOCK_URL"] = server.url.replace(":s3cret@", "")
        refused = run("-v", "job", "--", "sh", "-c", script, env=env)
        assert refused.returncode == 125
        assert "authentication re" in refused.stderr
        by_file = run("-v", "--password-file", str(password), "job", "--", "sh", "-c", script, env=env)
        assert by_file.returncode == 0
        assert by_file.stdout.startswith(f"{url}|\n")
        assert "s3cret" not in by_file.stdout + by_file.stderr
        by_variable = run("-v", "job", "--", "sh", "-c", script, env=env | {"ASYNCLOCK_PASSWORD": "s3cret"})
        assert by_variable.stdout.startswith(f"{url}|s3cret\n")  # it is the caller's environment, as it was
        assert "s3cret" not in by_variable.stderr
        in_url = run("-v", "--url", url.replace("//", "//:s3cret@"), "job", "--", "sh", "-c", script, env=env)
        assert in_url.stdout.startswith(f"{url}|\n")
        assert "s3cret" not in in_url.stderr


def test_progress_is_told_when_asked_for(server: Server, env: dict[str, str]) -> None:
    quiet = run("job", "--", "true", env=env)
    assert (quiet.stdout, quiet.stderr) == ("", "")
    done = run("-v", "job", "--", "sh", "-c", "exit 3", env=env)
    assert done.stdout == ""
    expected = (
        rf"asynclock run: waits for lock 'job' on {server.url}\n"
        r"asynclock: connected to \S+\n"
        r"asynclock run: acquired lock 'job' after \d+\.\d\d\d s\n"
        r"asynclock run: command started, with pid \d+\n"
        r"asynclock run: command ended, with status 3\n"
    )
    assert re.fullmatch(expected, done.stderr), done.stderr


def test_nobody_reads_what_is_told(server: Server, env: dict[str, str]) -> None:
    with subprocess.Popen([*RUN, "-v", "job", "--", "sh", "-c", "exit 3"], env=env, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(LIMIT) == 3


# Several locks, and longer ones


def test_several_locks_are_acquired_in_one_order(server: Server, env: dict[str, str]) -> None:
    done = run("-v", "b", "ä", "a", "--", "true", env=env)
    assert re.findall(r"acquired lock '(.)'", done.stderr) == ["a", "b", "ä"]
    assert keys(server) == []


def test_several_locks_have_one_timeout(server: Server, env: dict[str, str]) -> None:
    hold(server, "b")
    server.execute("SET", key("a"), "somebody", "PX", 700)
    began = time.monotonic()
    done = run("-w", "1", "a", "b", "--", "true", env=env)
    assert done.returncode == 1
    assert "lock 'b' was not acquired within 1 s" in done.stderr
    assert time.monotonic() - began < 5  # and the start of Python, on a busy machine
    assert keys(server) == [key("b").encode()]


def test_one_of_several_locks_is_lost(server: Server, env: dict[str, str], family: Family) -> None:
    for name in ("a", "b"):
        with started("a", "b", "--", "sh", "-c", WAITING, env=env) as job:
            job.until("ready")
            server.execute("DEL", key(name))
            status, output = job.end()
        assert status == 75
        assert f"lock {name!r} was lost" in output
        assert output.count("\n") == 1
        assert keys(server) == []
    assert family.gone()


def test_a_lock_stays_for_a_time_though_its_command_has_ended(server: Server, env: dict[str, str]) -> None:
    began = time.monotonic()
    done = run("-v", "--at-least", "5", "job", "--", "sh", "-c", "exit 3", env=env)
    assert done.returncode == 3
    assert "the lock stays for 4.9 s more" in done.stderr or "the lock stays for 5.0 s more" in done.stderr
    assert time.monotonic() - began < 4.5, "it waits for nothing"
    assert run("-n", "job", "--", "true", env=env).returncode == 1
    assert run("-w", "20", "job", "--", "true", env=env).returncode == 0
    assert time.monotonic() - began > 5
    assert keys(server) == []


def test_a_command_that_takes_longer_than_that_time_frees_its_lock(server: Server, env: dict[str, str]) -> None:
    done = run("-v", "--at-least", "0.1", "job", "--", "sleep", "0.3", env=env)
    assert done.returncode == 0
    assert "stays" not in done.stderr
    assert keys(server) == []


def test_several_locks_stay_for_that_time(server: Server, env: dict[str, str]) -> None:
    assert run("--at-least", "60", "a", "b", "--", "true", env=env).returncode == 0
    for name in ("a", "b"):
        assert 50_000 < server.execute("PTTL", key(name)) <= 60_000


def test_a_signal_that_ends_the_command_does_not_end_that_time(server: Server, env: dict[str, str]) -> None:
    with started("--at-least", "60", "job", "--", "sh", "-c", WAITING, env=env) as job:
        job.until("ready")
        job.send(signal.SIGTERM)
        assert job.end()[0] == 128 + signal.SIGTERM
    assert 50_000 < server.execute("PTTL", key("job")) <= 60_000


@pytest.mark.parametrize("command", ["/nowhere/to/be/found", "/"])
def test_where_the_command_cannot_be_run_nothing_stays(server: Server, env: dict[str, str], command: str) -> None:
    assert run("--at-least", "60", "a", "b", "--", command, env=env).returncode in (126, 127)
    assert keys(server) == []


def test_if_one_of_several_locks_is_not_acquired_nothing_stays(server: Server, env: dict[str, str]) -> None:
    hold(server, "b")
    assert run("-n", "--at-least", "60", "a", "b", "--", "true", env=env).returncode == 1
    assert keys(server) == [key("b").encode()]
    with started("-v", "--at-least", "60", "a", "b", "--", "true", env=env) as job:
        job.until("waits for lock 'b'")
        job.send(signal.SIGTERM)
        assert job.end()[0] == 128 + signal.SIGTERM
    assert keys(server) == [key("b").encode()]


def test_a_lost_lock_does_not_stay(server: Server, env: dict[str, str]) -> None:
    with started("--at-least", "60", "a", "b", "--", "sh", "-c", WAITING, env=env) as job:
        job.until("ready")
        server.execute("DEL", key("a"))
        assert job.end()[0] == 75
    assert server.execute("EXISTS", key("a")) == 0


# Every deployment


def held_by_run(urls: list[str], env: dict[str, str], servers: list[Server]) -> None:
    """One run holds the lock, another one does not get it, and a loss ends the first."""
    arguments = [option for url in urls for option in ("--url", url)]
    assert run(*arguments, "job", "--", "sh", "-c", "exit 4", env=env).returncode == 4
    with started(*arguments, "job", "--", "sh", "-c", WAITING, env=env) as job:
        job.until("ready")
        assert run("-n", "job", "--", "true", env=env | {"ASYNCLOCK_URL": " ".join(urls)}).returncode == 1
        for server in servers:
            server.execute("FLUSHALL")
        assert job.end()[0] == 75


def test_on_three_independent_servers(env: dict[str, str], kind: str, short: str) -> None:
    env["ASYNCLOCK_CONFIG"] = short  # a server has no vote until that long after its start
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(kind)) for _ in range(3)]
        urls = [server.url for server in servers]
        arguments = [option for url in urls for option in ("--url", url)]
        with started(*arguments, "job", "--", "sh", "-c", WAITING, env=env) as job:
            job.until("ready")
            eventually(lambda: all(keys(server) == [key("job", i).encode()] for i, server in enumerate(servers)))
            assert run("-n", "job", "--", "true", env=env | {"ASYNCLOCK_URL": " ".join(urls)}).returncode == 1
            servers[0].kill()
            time.sleep(0.5)
            assert job.process.poll() is None  # a majority is left
            servers[1].kill()
            status, output = job.end()
        assert status == 75
        assert "lock 'job' was lost" in output


def test_on_a_cluster(cluster: Cluster, env: dict[str, str]) -> None:
    held_by_run([cluster.url], env, [cluster.primary_of(key("job", index)) for index in range(3)])


def test_behind_sentinels(env: dict[str, str], kind: str) -> None:
    with Sentinels(kind, replicas=1) as sentinels:
        held_by_run([sentinels.url], env, [sentinels.primary])


def test_on_a_host_with_a_name(server: Server, env: dict[str, str]) -> None:
    """Which is resolved in a thread, so that there is one when the command is started."""
    url = server.url.replace("127.0.0.1", "localhost")
    assert run("--url", url, "job", "--", "sh", "-c", "exit 4", env=env).returncode == 4


def test_on_a_unix_socket(env: dict[str, str], kind: str) -> None:
    with Server(kind, unix_socket=True) as server:
        held_by_run([server.unix_url], env, [server])


# On a terminal

CHILD = """
import os, signal, sys, time
def say(*words): os.write(1, " ".join(map(str, words)).encode() + b"\\n")
def told(number, frame): say(signal.Signals(number).name, *os.get_terminal_size())
for number in (signal.SIGWINCH, signal.SIGCONT): signal.signal(number, told)
say("foreground" if os.tcgetpgrp(2) == os.getpgrp() else "background")
if "mute" in sys.argv:
    while True: time.sleep(0.02)
if "raw" in sys.argv:
    import tty
    tty.setraw(0)
    say("raw")
while line := os.read(0, 1000):
    say("read", line.decode().strip())
    if line == b"stop\\n": os.kill(0, signal.SIGSTOP)
"""


@pytest.fixture
def on_terminal(server: Server, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a shell: ``$RUN`` and ``$CHILD`` are commands there, ``$RUN_CHILD`` both."""
    path = tmp_path_factory.mktemp("script") / "child.py"
    path.write_text(CHILD)
    run, child = " ".join(RUN), f"{sys.executable} -IS {path}"
    return env | {"PS1": "prompt> ", "RUN": run, "CHILD": child, "RUN_CHILD": f"{run} job -- {child}"}


def state(pid: int) -> str:
    """Of a process, as ``ps`` has it; T: stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@contextlib.contextmanager
def alone(env: dict[str, str]) -> Iterator[Terminal]:
    """The command on a terminal, without a shell."""
    with terminal(*env["RUN_CHILD"].split(), env=env) as screen:
        screen.until("foreground")
        yield screen


@contextlib.contextmanager
def shell(env: dict[str, str], *commands: str) -> Iterator[Terminal]:
    """A shell that runs these commands."""
    with terminal("bash", "--norc", "--noprofile", "--noediting", "-i", env=env) as screen:
        screen.until("prompt> ")
        for command in commands:
            screen.type(f"{command}\n")
            screen.until(r"\n")
        yield screen


def test_on_a_terminal_the_command_has_it(server: Server, on_terminal: dict[str, str], family: Family) -> None:
    with alone(on_terminal) as screen:
        screen.type("typed\n")
        screen.until("read typed")
        screen.resize(30, 100)
        screen.until("SIGWINCH 100 30")
        screen.type("\x03")
        assert screen.end() == 130
    assert keys(server) == []
    assert family.gone()


def test_the_end_of_input_is_the_command_s(on_terminal: dict[str, str]) -> None:
    with alone(on_terminal) as screen:
        screen.type("\x04")
        assert screen.end() == 0


def test_without_a_shell_nobody_stays_stopped(on_terminal: dict[str, str]) -> None:
    """Since nobody could continue it. The kernel has the same rule."""
    with alone(on_terminal) as screen:
        screen.type("\x1a")
        screen.until("SIGCONT")
        screen.type("typed\n")
        screen.until("read typed")
        screen.type("\x04")
        assert screen.end() == 0


def test_a_hang_up_ends_the_command(server: Server, on_terminal: dict[str, str], family: Family) -> None:
    with alone(on_terminal) as screen:
        screen.hang_up()
        screen.process.wait(LIMIT)
    assert keys(server) == []
    assert family.gone()


def test_ctrl_z_and_fg(server: Server, on_terminal: dict[str, str], family: Family) -> None:
    with shell(on_terminal, "$RUN_CHILD") as screen:
        screen.until("foreground")
        for _ in range(2):
            screen.type("\x1a")
            screen.until("Stopped")
            screen.until("prompt> ")
            assert screen.foreground == screen.process.pid
            screen.type("fg\n")
            screen.until("SIGCONT")
            screen.type("typed\n")
            screen.until("read typed")
        screen.resize(30, 100)
        screen.until("SIGWINCH 100 30")
        screen.type("\x03")
        screen.until("prompt> ")
        screen.type("echo status $?\n")
        screen.until("status 130")
    assert family.gone()


def test_a_command_that_stops_itself(server: Server, on_terminal: dict[str, str]) -> None:
    """As some editors do it, with a SIGSTOP."""
    with shell(on_terminal, "$RUN_CHILD") as screen:
        screen.until("foreground")
        screen.type("stop\n")
        screen.until("Stopped")
        screen.until("prompt> ")
        screen.type("fg\n")
        screen.until("SIGCONT")
        screen.type("typed\n")
        screen.until("read typed")
        screen.type("\x04")
        screen.until("prompt> ")


def test_ctrl_z_while_it_waits(server: Server, on_terminal: dict[str, str]) -> None:
    hold(server, "job")
    with shell(on_terminal, "ASYNCLOCK_URL=$ASYNCLOCK_URL $RUN -v job -- $CHILD; echo status $?") as screen:
        screen.until("waits for lock")
        screen.type("\x1a")
        screen.until("status 148")
        screen.until("prompt> ")
        screen.type("fg\n")
        eventually(lambda: screen.foreground != screen.process.pid)
        server.execute("DEL", key("job"))
        screen.until("foreground")
        screen.type("\x04")
        screen.until("prompt> ")


def test_bg_and_fg(server: Server, on_terminal: dict[str, str]) -> None:
    with shell(on_terminal, "$RUN_CHILD") as screen:
        screen.until("foreground")
        screen.type("\x1a")
        screen.until("Stopped")
        screen.type("set -b; bg\n")
        screen.until("SIGCONT")
        screen.until("Stopped")  # it reads, which is not for those in the background
        screen.type("fg\n")
        screen.until("SIGCONT")
        screen.type("typed\n")
        screen.until("read typed")
        screen.type("\x04")
        screen.until("prompt> ")


def test_started_in_the_background(server: Server, on_terminal: dict[str, str]) -> None:
    with shell(on_terminal, "$RUN_CHILD mute &") as screen:
        screen.until("background")
        screen.type("fg\n")
        eventually(lambda: screen.foreground != screen.process.pid)
        screen.type("\x03")
        screen.until("prompt> ")
        screen.type("echo status $?\n")
        screen.until("status 130")


def test_a_lock_that_expires_while_the_command_is_stopped(
    server: Server, on_terminal: dict[str, str], family: Family, short: str
) -> None:
    """Then it is not continued, but ended."""
    on_terminal["ASYNCLOCK_CONFIG"] = short
    with shell(on_terminal, "$RUN_CHILD") as screen:
        screen.until("foreground")
        screen.type("\x1a")
        screen.until("Stopped")
        eventually(lambda: keys(server) == [])
        screen.type("fg; echo status $?\n")
        shown = screen.until(r"(?s)was lost.*?status (\d+)\s")
        assert shown[1] == "75"
        assert "SIGCONT" not in shown[0]
        screen.until("prompt> ")
    assert family.gone()


def test_a_command_that_is_killed_leaves_the_terminal_as_it_was(server: Server, on_terminal: dict[str, str]) -> None:
    with shell(on_terminal, "cat") as screen:  # which does not change the modes
        before = screen.modes
        screen.type("\x04")
        screen.until("prompt> ")
        screen.type("$RUN_CHILD raw; cat\n")  # a shell at its prompt would set its own
        screen.until("\nraw\n")
        assert screen.modes != before
        server.execute("DEL", key("job"))
        screen.until("was lost")
        eventually(lambda: screen.modes == before)


def test_a_command_that_is_killed_while_it_is_stopped_too(
    server: Server, on_terminal: dict[str, str], short: str
) -> None:
    on_terminal["ASYNCLOCK_CONFIG"] = short
    with shell(on_terminal, "cat") as screen:
        before = screen.modes
        screen.type("\x04")
        screen.until("prompt> ")
        screen.type("$RUN_CHILD raw\n")
        screen.until("\nraw\n")
        screen.type("stop\n")
        screen.until("Stopped")
        screen.until("prompt> ")
        eventually(lambda: keys(server) == [])
        screen.type("fg; cat\n")
        screen.until("was lost")
        eventually(lambda: screen.modes == before)


def test_in_a_script_ctrl_c_and_ctrl_z_are_for_all_of_it(
    server: Server, on_terminal: dict[str, str], family: Family
) -> None:
    script = "bash -c '$RUN_CHILD mute; echo never'; echo status $?"
    with shell(on_terminal, script) as screen:
        screen.until("background")
        screen.resize(30, 100)
        screen.until("SIGWINCH 100 30")
        screen.type("\x1a")
        screen.until("Stopped")
        screen.until("status 148")
        screen.until("prompt> ")
        # The shell waits for its own child, and that is the script.
        eventually(lambda: all(state(pid) == "T" for pid in family.members("job\0--")))
        screen.type("fg; echo status $?\n")
        screen.until("SIGCONT")
        screen.type("\x03")
        shown = screen.until("(?s).*?prompt> ")
        assert "never" not in shown[0]
    assert keys(server) == []
    assert family.gone()


def test_in_a_script_the_command_can_read(server: Server, on_terminal: dict[str, str], family: Family) -> None:
    with shell(
        on_terminal, "bash -c '$RUN tty -- stty tostop; $RUN_CHILD; read line; echo script read $line'"
    ) as screen:
        screen.until("background")
        screen.type("typed\n")
        screen.until("read typed")
        screen.type("\x04")
        eventually(lambda: not family.members("child.py"))
        screen.type("more\n")
        screen.until("script read more")
        screen.until("prompt> ")


def test_in_a_pipeline_the_others_keep_the_terminal(
    server: Server, on_terminal: dict[str, str], family: Family
) -> None:
    reader = "read line </dev/tty; echo reader read $line; exec cat"
    with shell(on_terminal, f"$RUN_CHILD mute | bash -c '{reader}'; echo status ${{PIPESTATUS[0]}}") as screen:
        screen.type("typed\n")
        screen.until("reader read typed")
        screen.until("background")
        screen.type("\x03")
        screen.until("prompt> ")
    assert keys(server) == []
    assert family.gone()


# Elsewhere


def test_not_on_windows(env: dict[str, str]) -> None:
    code = (
        "import sys; from types import SimpleNamespace; from asynclock.cli import app\n"
        "app.sys = SimpleNamespace(platform='win32', stderr=sys.stderr); app.app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "job", "--", "true"],
        env=env, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr == "asynclock run: not available on Windows, which has no process groups and signals\n"
