"""A real Redis or Valkey server in its own process, for tests to kill, pause and restart."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .executables import KINDS, find_executable, major_version
from .guard import Guard
from .ports import HeldPort
from .resp import Reply, encode_command, read_reply
from .started import Started

__all__ = ["KINDS", "Server"]

_START_LIMIT = 10.0  # seconds, like the next two
_STOP_LIMIT = 5.0
_EXECUTE_LIMIT = 5.0
_PORT_TRIES = 5


class Server(Started):
    """One server on 127.0.0.1. It ends with the ``with`` block, with :meth:`close`, or with this Python process.

    :param kind: one of :data:`KINDS`, or the name or path of an executable
    :param port: the port to listen on; default: a free one
    :param unix_socket: also listen on a unix socket, see :attr:`unix_url`
    :param persist: write each change to disk before answering it; by default nothing is written, and the server is
        empty after a restart
    :param config: lines of ``valkey.conf``, which override all other settings, as in
        ``{"maxclients": "10", "replicaof": "127.0.0.1 6379"}``; a key may span several words of the line, as in
        ``{"sentinel monitor mymaster": "127.0.0.1 6379 2"}``. Written once, at the first start: later changes
        that the server makes to its own file stay
    :param sentinel: start it as a Sentinel
    :param environment: environment variables for its process, on top of those of this process

    All methods block, mostly for milliseconds: call slow ones (:meth:`start`, :meth:`restart`) outside of the event
    loop, or with ``asyncio.to_thread``. After :meth:`stop` or :meth:`kill`, :meth:`start` brings the server back on
    the same port with the same data directory; :meth:`close` removes the directory.
    """

    def __init__(
        self,
        kind: str | os.PathLike[str] = "valkey-9.1",
        *,
        port: int | None = None,
        unix_socket: bool = False,
        persist: bool = False,
        config: Mapping[str, str] | None = None,
        sentinel: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._kind = os.fspath(kind)
        self._port = port
        self._port_is_given = port is not None
        self._unix_socket = unix_socket
        self._persist = persist
        self._config = dict(config or {})
        self._sentinel = sentinel
        self._environment = dict(environment or {})
        self._paused = False
        self._held_port: HeldPort | None = None
        self._guard: Guard | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers. Does nothing if it is running.

        :raises RuntimeError: the server does not answer within 10 s (the message shows the end of its log), its
            package is not installed, or this is Windows
        :raises ValueError: there is no such kind of server
        """
        if self.running:
            return
        if not hasattr(os, "killpg"):
            raise RuntimeError("asynclock.testing starts no servers on Windows; test against one that is there")
        executable = find_executable(self._kind)
        is_first = self._guard is None  # a restart keeps the port, and the file
        self._guard = self._guard or Guard()
        for tries_left in reversed(range(_PORT_TRIES if is_first and not self._port_is_given else 1)):
            self._hold_port()
            file = self._guard.directory / "server.conf"
            if is_first or not file.exists():
                self._write_config(executable, file)
            process = self._launch(executable, self._guard)
            if self._wait_until_ready(process):
                return
            code = process.poll()
            why = "it does not answer" if code is None else f"exit code {code}"
            log = "\n".join(self.log.splitlines()[-15:])
            self.kill()
            # Another process may have taken the free port before the server did. Then try another one.
            if not (tries_left and code and "Address already in use" in log):
                raise RuntimeError(f"{executable} did not start on port {self._port}: {why}. Its log ends\n{log}")
            self._release_port()
            self._port = None

    def stop(self) -> None:
        """Ask the server to end (SIGTERM), and kill it if it still runs after 5 s. Works on a paused server too."""
        if self._process is not None:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_LIMIT)
            self.kill()

    def kill(self) -> None:
        """End the server as a crash does (SIGKILL)."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._paused = False
            if self._guard is not None:
                self._guard.watch(None)

    def restart(self) -> None:
        """Stop the server if it is running, and start it again: same port, same data directory. Raises as
        :meth:`start`."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Delete what the server has written to disk, so that it is empty when it starts again.

        :raises RuntimeError: the server is running
        """
        if self.running:
            raise RuntimeError("the server is running: stop() or kill() it before wipe()")
        if self._guard is not None:
            shutil.rmtree(self._guard.directory / "appendonlydir", ignore_errors=True)
            for pattern in ("*.rdb", "*.aof"):
                for file in self._guard.directory.glob(pattern):
                    file.unlink()

    def pause(self) -> None:
        """Suspend the process (SIGSTOP): connections stay open and new ones succeed, but nothing is answered.

        :raises RuntimeError: the server is not running
        """
        pid = self.pid
        self._signal(signal.SIGSTOP)
        if sys.platform == "linux":
            # Wait until it has stopped. WNOWAIT does not consume the event, so a second pause() sees it too.
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        self._paused = True

    def resume(self) -> None:
        """Resume a paused server (SIGCONT)."""
        self._signal(signal.SIGCONT)
        self._paused = False

    def close(self) -> None:
        """Kill the server and remove its data directory. Does nothing the second time."""
        self.kill()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        self._release_port()

    @property
    def port(self) -> int:
        """The TCP port; it stays the same over restarts. :raises RuntimeError: the server was never started"""
        if self._port is None:
            raise RuntimeError("the server has no port before start()")
        return self._port

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:PORT/0``, for a ``Locker`` or a client. :raises RuntimeError: as :attr:`port`"""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """``unix://PATH``. :raises RuntimeError: the server was made without ``unix_socket=True``, or never started"""
        if not self._unix_socket or self._guard is None:
            raise RuntimeError("no unix socket: it takes Server(unix_socket=True) and start()")
        return f"unix://{self._guard.directory}/server.sock"

    @property
    def pid(self) -> int:
        """The process id. :raises RuntimeError: the server is not running"""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Does its process exist, paused or not?"""
        return self._process is not None and self._process.poll() is None

    @property
    def awake(self) -> bool:
        """Does it run, and is it not paused? Then it can be expected to answer."""
        return self.running and not self._paused

    @property
    def log(self) -> str:
        """Everything the server has logged since its first start; empty after :meth:`close`."""
        if self._guard is None:
            return ""
        return (self._guard.directory / "server.log").read_text(errors="replace")

    def execute(self, *command: str | bytes | int | float) -> Reply:
        """Run one command over a connection of its own, and return the reply: ``server.execute("DEL", "key")`` is
        0 or 1.

        Bulk strings are ``bytes``, statuses ``str``. Logs in first if ``config`` has a ``requirepass``.

        :raises RuntimeError: the server replied with an error
        :raises OSError: the server is not running, or did not answer within 5 s (``TimeoutError``)
        """
        return self._execute(command)[0]

    def transaction(self, *commands: Sequence[str | bytes | int | float]) -> list[Reply]:
        """Run commands in one ``MULTI`` … ``EXEC``, and return their replies: nobody sees the state in between.

        Raises as :meth:`execute`.
        """
        replies = self._execute(("MULTI",), *commands, ("EXEC",))[-1]
        assert isinstance(replies, list)
        return replies

    def _execute(self, *commands: Sequence[str | bytes | int | float]) -> list[Reply]:
        with (
            socket.create_connection(("127.0.0.1", self.port), _EXECUTE_LIMIT) as connection,
            connection.makefile("rb") as stream,
        ):
            if password := self._config.get("requirepass"):
                connection.sendall(encode_command("AUTH", password))
                read_reply(stream)
            connection.sendall(b"".join(encode_command(*command) for command in commands))
            return [read_reply(stream) for _ in commands]

    def _hold_port(self) -> None:
        if self._held_port is None:
            try:
                self._held_port = HeldPort(self._port or 0)
            except OSError as error:
                raise RuntimeError(f"port {self._port} of 127.0.0.1 is not free: {error}") from error
            self._port = self._held_port.number

    def _release_port(self) -> None:
        if self._held_port is not None:
            self._held_port.close()
            self._held_port = None

    def _write_config(self, executable: str, file: Path) -> None:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "protected-mode": "no",
            "dir": f'"{file.parent}"',
            "save": "",
            "appendonly": "yes" if self._persist else "no",
            "appendfsync": "always",
            "loglevel": "notice",
        }
        if major_version(executable) >= 7:
            settings["enable-debug-command"] = "yes"  # older ones do not know this setting, and allow DEBUG anyway
        if self._unix_socket:
            settings["unixsocket"] = f'"{file.parent}/server.sock"'
        nothing = '""'
        lines = [f"{key} {value or nothing}\n" for key, value in (settings | self._config).items()]
        file.write_text("".join(lines))

    def _launch(self, executable: str, guard: Guard) -> subprocess.Popen[bytes]:
        # The log is its output, so it also has what the server prints before it has read its configuration.
        # A session of its own keeps the terminal's Ctrl-C away, and makes one process group of it and its forks.
        with (guard.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [executable, str(guard.directory / "server.conf"), *(["--sentinel"] if self._sentinel else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment,
                start_new_session=True,
            )
        guard.watch(self._process.pid)
        return self._process

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + _START_LIMIT
        while process.poll() is None and time.monotonic() < deadline:
            if self._answers(process.pid):
                return True
            time.sleep(0.005)
        return False

    def _answers(self, pid: int) -> bool:
        """Does this very process answer? Another one may have taken the port."""
        try:
            self.execute("PING")
            info = self.execute("INFO", "server")
        except RuntimeError as error:
            return not str(error).startswith("LOADING")  # another error, such as a missing password, is an answer
        except OSError:
            return False
        return isinstance(info, bytes) and f"process_id:{pid}\r\n".encode() in info

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
