"""The command of ``asynclock run``: a process in a group of its own. Passes signals on to it, and stops and continues
with it, as a shell's job does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from .run_terminal import Terminal

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
POLL = 0.02  # seconds between two checks whether the rest of the group has ended, which nothing reports
_PR_SET_PDEATHSIG = 1


class Command:
    """The running command. Whoever starts it awaits :meth:`wait`, and :meth:`end` if that is cancelled.

    Invariant: nobody else waits for the process, and ``returncode`` changes in :meth:`_look` alone. So while it is
    ``None``, the kernel gives the number of the process group to nobody else. (Not asyncio's or anyio's subprocesses:
    these wait for the process themselves, and do not report that it was stopped.)
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        mask: Iterable[int],
        terminal: Terminal,
        held: Callable[[], bool],
    ) -> None:
        """Start it.

        :param mask: its signal mask
        :param held: are the locks held? Asked before a stopped command goes on
        :raises OSError: it cannot be started; with a ``filename`` if it is the command's fault
        """
        self._loop = asyncio.get_running_loop()
        self._terminal = terminal
        self._held = held
        self._ended = asyncio.Event()
        self._asked_to_end = False
        self._handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGCHLD: self._look,  # also if it was ignored: the kernel would forget the exit status
            signal.SIGCONT: self._go_on,
            signal.SIGWINCH: lambda: self.send(signal.SIGWINCH),  # from the terminal, if the command has not got it
        }
        if not is_ignored(signal.SIGTSTP):
            self._handlers[signal.SIGTSTP] = lambda: self.send(signal.SIGTSTP)  # likewise
        for number, act in self._handlers.items():
            self._loop.add_signal_handler(number, act)
        try:
            self._process = start(arguments, environment, mask, terminal)
        except BaseException:
            self._leave()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of ``subprocess``: -n if signal n ended it. ``None`` while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end. Returns what ``returncode`` is then."""
        await self._ended.wait()
        return self._process.returncode

    def send(self, number: int) -> None:
        """Send a signal to its process group, if it still runs."""
        if self.returncode is None:
            self._send(number)

    def ask_to_end(self) -> None:
        """Send SIGTERM to its process group, if it still runs; once, since a second one may break off its clean-up."""
        if self.returncode is None and not self._asked_to_end:
            self._asked_to_end = True
            self._send(signal.SIGTERM)
            self._send(signal.SIGCONT)  # a stopped process dies of the other one first

    async def end(self, kill_after: float) -> None:
        """End its process group, if it still runs: SIGTERM, and SIGKILL after ``kill_after`` seconds."""
        self.ask_to_end()
        if self.returncode is not None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(kill_after):
                await self._ended.wait()
                while self._send(0):  # what it has started, and what has not ended with it
                    await asyncio.sleep(POLL)
                return
        self._send(signal.SIGKILL)
        await self._ended.wait()

    def _send(self, number: int) -> bool:
        """Returns whether there is anybody in the group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # it runs as another user, as sudo does
            return True
        return True

    def _look(self) -> None:
        """Find out whether it has ended or was stopped."""
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                self._stopped(os.WSTOPSIG(status))
            else:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self._leave()
                if self._process.returncode < 0:
                    self._terminal.restore()
                self._ended.set()

    def _stopped(self, number: int) -> None:
        """The command is stopped. Be stopped with it, so that the shell gets its terminal back and tells of it."""
        terminal = self._terminal
        if number in (signal.SIGTTIN, signal.SIGTTOU) and not terminal.given and terminal.may_give():
            terminal.wanted = True  # it has asked for it
            self._continue()
        elif terminal.given or (terminal.exists and number != signal.SIGSTOP):
            terminal.take_back()
            # What stops it is not a SIGSTOP, which would also stop it where there is no shell to continue it.
            self._stop_self(signal.SIGTSTP if number == signal.SIGSTOP else number)
            self._go_on()
        # Or somebody has stopped it, and nothing else, from outside: it keeps its lock.

    def _stop_self(self, number: int) -> None:
        """Stop this process. Returns when somebody continues it, and the caller then continues the command. Our
        handlers are not set meanwhile: that of SIGCONT would continue it a second time, later, when it may have been
        stopped again."""
        own = [each for each in (signal.SIGTSTP, signal.SIGCONT) if each in self._handlers]
        for each in own:
            self._loop.remove_signal_handler(each)
        signal.raise_signal(number)
        for each in own:
            self._loop.add_signal_handler(each, self._handlers[each])

    def _go_on(self) -> None:
        """This process was continued, so continue the command. Not if the lock was lost meanwhile: the locker finds
        that in the next turn of the loop, and then ``end`` continues the command."""
        if self.returncode is None and self._held():
            self._continue()

    def _continue(self) -> None:
        if self._terminal.wanted and self._terminal.may_give():
            self._terminal.remember()
            self._terminal.give(self.pid)
        self._send(signal.SIGCONT)

    def _leave(self) -> None:
        for number in self._handlers:
            self._loop.remove_signal_handler(number)
        self._terminal.take_back()


def start(
    arguments: Sequence[str], environment: Mapping[str, str], mask: Iterable[int], terminal: Terminal
) -> subprocess.Popen[bytes]:
    """Start it in a group of its own, in the foreground if we are there, with our files, directory and ignored signals,
    and with this signal mask. On Linux it is killed when this process dies."""
    kill_with_parent = _parent_death()
    parent = os.getpid()
    give = terminal.wanted and terminal.may_give()
    if give:
        terminal.remember()

    def prepare() -> None:
        # In the new process, where there is one thread, whatever others the parent has.
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        if kill_with_parent is not None:
            kill_with_parent()
            if os.getppid() != parent:  # it died before that
                os._exit(1)
        if give:
            terminal.give(os.getpid())
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    # A signal that comes meanwhile waits: in the new process, until no handler of ours is left there; in this one,
    # until there is a command to pass it on to.
    own_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        process = subprocess.Popen(
            arguments,
            env=environment,
            process_group=0,
            close_fds=False,  # Python's own are closed by exec
            preexec_fn=prepare,
        )
        if give:
            terminal.give(process.pid)
    except BaseException:
        if give:
            terminal.give(os.getpgrp())  # the new process had it, and is dead
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, own_mask)
    return process


def is_ignored(number: int) -> bool:
    """Was it ignored when this process began, as by ``nohup``? Then the command ignores it, too."""
    return signal.getsignal(number) is signal.SIG_IGN


def _parent_death() -> Callable[[], object] | None:
    """A function that makes the kernel kill this process when its parent dies; None: this system cannot."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):  # Python without ctypes
        return None
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
