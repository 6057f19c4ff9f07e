"""docs/ says only what is there: its code, names, links and diagrams. ``mkdocs build --strict`` checks the rest, and
that a search finds every public name."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import asynclock
import asynclock.sync
import asynclock.testing
from asynclock import Locker, LockLostError, LockScope
from asynclock.options import Options

pytestmark = pytest.mark.serverless

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [textwrap.dedent(code) for _, word, code in BLOCK.findall(page.read_text()) if word == language]


def code_of(page: Path) -> list[ast.Module]:
    """Every Python block, and every ``Locker(...)`` within a line."""
    inline = re.findall(r"`(Locker\([^`…]*\))`", page.read_text())
    return [ast.parse(code, str(page)) for code in [*blocks(page, "python"), *inline]]


def faces(page: Path) -> tuple[type, type]:
    """What ``locker`` and ``scope`` are on that page."""
    return (
        (asynclock.sync.Locker, asynclock.sync.LockScope) if page.stem in ("threads", "sync") else (Locker, LockScope)
    )


def test_there_is_something_to_check() -> None:
    assert len(PAGES) >= 12
    assert sum(len(blocks(page, "python")) for page in PAGES) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_is_python_and_uses_what_exists(page: Path) -> None:
    knobs = inspect.signature(Locker).parameters
    of_locker, of_scope = faces(page)
    for tree in code_of(page):
        compile(tree, str(page), "exec")
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(module="asynclock", names=names):
                    for name in names:
                        assert name.name in asynclock.__all__
                case ast.ImportFrom(module="asynclock.testing", names=names):
                    for name in names:
                        assert name.name in asynclock.testing.__all__
                case ast.ImportFrom(module="asynclock.sync", names=names):
                    for name in names:
                        assert name.name in asynclock.sync.__all__
                case ast.Call(func=ast.Name(id="Locker"), keywords=keywords):
                    for keyword in keywords:
                        assert keyword.arg in knobs
                case ast.Attribute(value=ast.Name(id="locker"), attr=attribute):
                    assert hasattr(of_locker, attribute), attribute
                case ast.Attribute(value=ast.Name(id="scope"), attr=attribute):
                    assert hasattr(of_scope, attribute), attribute
                case ast.Attribute(value=ast.Name(id="error"), attr=attribute):
                    assert hasattr(LockLostError("x", asynclock.LossReason.DELETED), attribute), attribute


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page: Path) -> None:
    """Mostly constructors, and what they are given; whole programs have tests of their own."""
    names: dict[str, Any] = {"__name__": page.stem}  # a block may use what those before it have
    for code in blocks(page, "python"):
        if "asyncio.run" not in code:
            exec(compile(code, str(page), "exec"), names)


@pytest.mark.fast
@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"], ids=lambda page: page.stem
)
def test_links_and_images_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


BUILTIN = ("ValueError", "TimeoutError", "CancelledError", "RuntimeError")
OTHERS = ("LockError", "LockNotOwnedError", "ExitError")  # of redis-py and dishka


@pytest.mark.fast
def test_names_in_the_text_exist() -> None:
    """``scope.check()``, ``locker.client``, ``FooError``. (Go's ``locker.Close()`` has a capital.)"""
    for page in PAGES:
        text = page.read_text()
        for owner, of in zip(("locker", "scope"), faces(page), strict=True):
            for attribute in re.findall(rf"`(?:await |async with )?{owner}\.([a-z]\w*)", text):
                assert hasattr(of, attribute), f"{page.name}: {owner}.{attribute}"
        for name in re.findall(r"`(\w+Error)`", text):
            assert name in (*asynclock.__all__, *BUILTIN, *OTHERS), f"{page.name}: {name}"


@pytest.mark.fast
def test_every_option_error_and_reason_is_in_its_table() -> None:
    options = (DOCS / "options.md").read_text()
    parameters = inspect.signature(Locker).parameters
    for option in Options.__slots__:
        row = re.search(rf"^\| \[`{option}`\]\(#{option}\) \| (.*?) \|", options, re.MULTILINE)
        assert row, option
        default = parameters[option].default
        said = f"`{default!r}`".replace("'", '"')
        assert row[1].startswith("`key_validity / 2`" if option == "extend_interval" else said), option
        assert f"\n## {option}\n" in options
    errors = (DOCS / "errors.md").read_text()
    for name in asynclock.__all__:
        if name.endswith("Error"):
            assert f"| `{name}` |" in errors
    for reason in asynclock.LossReason:
        assert (f"| `{reason}` |" in errors) == (reason != "released"), reason


@pytest.mark.parametrize("module", [asynclock, asynclock.sync, asynclock.testing], ids=lambda module: module.__name__)
def test_every_public_name_stands_on_its_page_of_the_reference(module: Any) -> None:
    page = (DOCS / "reference" / f"{module.__name__.rpartition('.')[2]}.md").read_text()
    shown = re.findall(rf"^::: {re.escape(module.__name__)}\.(\w+)$", page, re.MULTILINE)
    assert sorted(shown) == sorted(module.__all__)
    for name in module.__all__:
        of = getattr(module, name)
        assert not inspect.isclass(of) or of.__doc__, name
        for member, value in inspect.getmembers(of) if inspect.isclass(of) else ():
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert value.__doc__, f"{name}.{member}"  # without it, the page would not show it


def test_every_method_is_named_by_what_it_is_for() -> None:
    """In the table at the top of the reference."""
    for module in (asynclock, asynclock.sync):
        page = (DOCS / "reference" / f"{module.__name__.rpartition('.')[2]}.md").read_text()
        table = page[: page.index(":::")]
        for of in (module.Locker, module.LockScope):
            for name, _ in inspect.getmembers(of, lambda value: callable(value) or isinstance(value, property)):
                assert name.startswith("_") or f"][{module.__name__}.{of.__name__}.{name}]" in table, name


def test_every_message_that_is_logged_is_in_the_table_of_its_level() -> None:
    rows = re.findall(r"^\| `([A-Z]+)` \| `(.+?)` \| `(\w+)` \|", (DOCS / "logging.md").read_text(), re.MULTILINE)
    logged = [call for path in (ROOT / "asynclock").rglob("*.py") for call in logs(ast.parse(path.read_text()))]
    assert len(logged) >= len(rows) > 10
    for level, message, known_as in logged:
        pattern = ".+".join(map(re.escape, re.split(r"%(?:s|r|d|g|\.\d+f)", message.removeprefix("asynclock: "))))
        said = [row for row in rows if row[0] == level and row[2] == known_as]
        assert any(re.fullmatch(pattern, text) for _, text, _ in said), f"{level} {known_as}: {message}"


def test_every_field_of_a_log_record_is_in_the_table_with_its_ids() -> None:
    section = (DOCS / "logging.md").read_text().partition("\n## Fields\n")[2].partition("\n## ")[0]
    told = {
        (field, of)
        for fields, ids in re.findall(r"^\| (`asynclock_.+?) \| (`.+?) \|", section, re.MULTILINE)
        for field in re.findall(r"`asynclock_(\w+)`", fields)
        for of in re.findall(r"`(\w+)`", ids)
    }
    sent: set[tuple[str | None, object]] = set()
    for path in (ROOT / "asynclock").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="about"), args=[ast.Constant(of)]):
                    sent |= {(keyword.arg, of) for keyword in node.keywords}
    assert sent - told == set()
    assert {field for field, _ in told} == {field for field, _ in sent}


def logs(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """The levels, messages and ids of all that is logged."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="log"), attr="info" | "warning" | "error" | "exception" as level),
                args=[ast.Constant(str(text)), *_],
            ):
                extra = next(keyword.value for keyword in node.keywords if keyword.arg == "extra")
                assert isinstance(extra, ast.Call) and isinstance(extra.args[0], ast.Constant), text
                yield {"exception": "ERROR"}.get(level, level.upper()), text, str(extra.args[0].value)


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("example", ["failover_of_a_shard", "failover_of_a_primary"])
async def test_so_do_those_with_a_failover(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for code in blocks(DOCS / "testing.md", "python"):
        exec(compile(code, "testing.md", "exec"), names)
    await names[example]()
    assert capsys.readouterr().out.startswith(("still held", "acquired on redis://127.0.0.1:"))


def test_the_first_example_is_that_of_the_readme() -> None:
    """... which a test of its own runs."""
    assert blocks(DOCS / "index.md", "python")[0] == blocks(ROOT / "README.md", "python")[0]


def test_every_deployment_has_its_page_with_a_diagram() -> None:
    assert "](assets/loss.svg)" in (DOCS / "index.md").read_text()
    for name in ("single", "independent", "cluster", "sentinel", "existing-client", "go"):
        page = (DOCS / "deployments" / f"{name}.md").read_text()
        assert re.search(rf"!\[[^]]+\]\(\.\./assets/{name}\.svg\)", page)
        for heading in ("Where the keys live", "What it does not protect against"):
            assert f"## {heading}\n" in page, f"{name}: {heading}"


def test_the_diagrams_are_as_the_script_draws_them(tmp_path: Path) -> None:
    path = DOCS / "diagrams.py"
    spec = importlib.util.spec_from_file_location("diagrams", path)
    assert spec is not None and spec.loader is not None
    diagrams = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagrams)
    diagrams.main(tmp_path)
    drawn = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert drawn == {file.name: file.read_text() for file in (DOCS / "assets").glob("*.svg")}, "run docs/diagrams.py"


def test_pages_fetch_nothing_from_elsewhere() -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    assert "extra_javascript" not in config and "repo_url" not in config  # which would ask its host for stars
    for file in config["extra_css"]:
        assert not re.search(r"https?:|@import|url\(", (DOCS / file).read_text())
    for page in PAGES:
        assert "```mermaid" not in page.read_text()  # the theme would load it from a CDN
        assert not re.search(r"!\[[^]]*\]\(https?:", page.read_text())
