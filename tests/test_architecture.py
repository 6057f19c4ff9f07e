"""ARCHITECTURE.md and its pictures say only what is there: files, names, and which way imports go."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from html import unescape
from pathlib import Path

import pytest

pytestmark = [pytest.mark.serverless, pytest.mark.fast]

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "asynclock"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
PICTURES = re.findall(r"!\[[^]]+\]\((docs/assets/\w+\.svg)\)", TEXT)
CODE = re.findall(r"`([^`\n]+)`", TEXT)
DRAWN = [
    unescape(words) for picture in PICTURES for words in re.findall(r"<text[^>]*>(.*?)<", (ROOT / picture).read_text())
]
SOURCES = {
    path: ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if not {"cli", "testing"} & set(path.parts)  # which stand beside the rest
}
CLASSES = {
    node.name: node
    for _, tree in sorted(
        SOURCES.items(), key=lambda each: "sync" not in each[0].relative_to(PACKAGE).parts
    )  # a Locker is the other one
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
}
NOT_OURS = {"await", "f", "my_lock", "n"}


def members(name: str) -> set[str]:
    """What the class and its bases have, as far as can be read."""
    found: set[str] = set()
    for node in CLASSES[name].body:
        match node:
            case ast.FunctionDef(name=member) | ast.AsyncFunctionDef(name=member):
                found.add(member)
            case ast.AnnAssign(target=ast.Name(id=member)) | ast.Assign(targets=[ast.Name(id=member)]):
                found.add(member)
        for inside in ast.walk(node):
            match inside:
                case ast.Attribute(value=ast.Name(id="self"), attr=member, ctx=ast.Store()):
                    found.add(member)
    for base in CLASSES[name].bases:
        if isinstance(base, ast.Name) and base.id in CLASSES:
            found |= members(base.id)
    return found


def names() -> set[str]:
    """Every name that the sources use."""
    found: set[str] = set()
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            for field in ("name", "id", "attr", "arg"):
                if isinstance(value := getattr(node, field, None), str):
                    found.add(value)
    return found


def spoken() -> set[str]:
    """Every word in capitals of the protocol, as ``wire/`` sends and receives it: commands, their options, errors."""
    found: set[str] = set()
    for path, tree in SOURCES.items():
        if path.parent == PACKAGE / "wire":
            for node in ast.walk(tree):
                match node:
                    case ast.Constant(value=bytes(sent)):
                        found.update(re.findall(r"[A-Z]+", sent.decode()))
                    case ast.Constant(value=str(word)) if re.fullmatch(r"[A-Z]+ ?", word):
                        found.add(word.strip())
    return found


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 250
    glossary = TEXT.partition("## Glossary")[2]
    assert 15 <= len(re.findall(r"^\| (?!word|---)", glossary, re.MULTILINE)) <= 25


def test_every_file_that_is_named_exists() -> None:
    files = [code for code in CODE if re.fullmatch(r"[\w./-]+(/|\.py|\.md)|(\w+/)+\w+", code)]
    assert len(files) > 50
    for file in files:
        assert any((place / file).exists() for place in (PACKAGE, ROOT)), file


def test_every_file_is_named() -> None:
    """By its path, or by a pattern where nobody looks for one file by itself."""
    patterns = [code for code in CODE if code.endswith(".py")]
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        assert path.name == "__init__.py" or any(fnmatch(name, pattern) for pattern in patterns), name


def test_only_those_log_who_know_servers() -> None:
    logging = {
        path.relative_to(PACKAGE).parts[0]
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and any(alias.name == "logging" for alias in node.names)
    }
    assert logging == {"_engine", "integrations", "leader.py", "topology", "wire"}


def test_every_change_names_its_tests() -> None:
    table = TEXT.partition("## Where to change what")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 20
    for change, files, tests in rows:
        assert "`" in files and "`tests/" in tests, change


def test_every_name_exists() -> None:
    known = names()
    dotted = [found for words in (*CODE, *DRAWN) for found in re.findall(r"\b([A-Z]\w*[a-z]\w*)\.(\w+)", words)]
    assert len(dotted) > 80
    for owner, member in dotted:
        assert member in members(owner), f"{owner}.{member}"
    words = spoken()
    for code in CODE:
        if re.fullmatch(r"\w+", code) and code not in NOT_OURS:
            assert code in known or code in words or (PACKAGE / code).is_dir(), code


def test_pictures_show_what_they_say() -> None:
    assert len(PICTURES) == 3
    shown = " ".join(DRAWN)
    for name in ("Room", "Lease", "LockManager", "Node", "Request", "Connection", "LockScope"):
        assert name in CLASSES and name in shown


LEVELS = {
    "core": 0,
    **dict.fromkeys(("errors", "events", "messages", "options", "statistics", "_version"), 1),
    "wire": 2,
    "topology": 3,
    "_engine": 4,
}
FACE = 5


def level(parts: tuple[str, ...]) -> int:
    return LEVELS.get(parts[0], FACE)


def imports(path: Path, tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """The modules that it imports from asynclock, as parts of their names."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(level=0, module=str(module)):
                assert not module.startswith("asynclock"), "imports inside of the package are relative"
            case ast.ImportFrom(level=up, module=module, names=aliases) if up:
                where = package[: len(package) + 1 - up] + tuple((module or "").split(".") if module else ())
                yield from [where] if where else [(alias.name,) for alias in aliases]


def test_imports_go_down() -> None:
    seen = 0
    for path, tree in SOURCES.items():
        own = path.relative_to(PACKAGE).with_suffix("").parts
        for module in imports(path, tree):
            seen += 1
            assert level(module) <= level(own), f"{'.'.join(own)} imports {'.'.join(module)}"
    assert seen > 200


def test_in_the_rules_each_object_writes_only_its_own_fields() -> None:
    """State has one owner there: what happens to an object is a method of it. (A class method makes a new one.)"""
    written: list[str] = []
    fields = 0
    for path, tree in SOURCES.items():
        if path.parent.name == "core":
            makers = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and is_class_method(node)]
            making = {id(inside) for maker in makers for inside in ast.walk(maker)}
            for node in ast.walk(tree):
                field = node.value if isinstance(node, ast.Subscript) else node
                if not isinstance(field, ast.Attribute) or isinstance(getattr(node, "ctx", None), ast.Load):
                    continue
                fields += 1
                if ast.unparse(field.value) != "self" and id(node) not in making:
                    written.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not written and fields > 100


def is_class_method(function: ast.FunctionDef) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "classmethod" for each in function.decorator_list)
