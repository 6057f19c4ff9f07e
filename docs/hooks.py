"""For ``mkdocs build``: ARCHITECTURE.md is a page of the site; and a search for any public name finds the heading of
the reference that explains it."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.reference")  # in a strict build, its warnings are errors

PAGES = {
    "asynclock": "reference/asynclock/",
    "asynclock.sync": "reference/sync/",
    "asynclock.testing": "reference/testing/",
}
ARCHITECTURE = Path(__file__).parent.parent / "ARCHITECTURE.md"  # where those look who have the repository
OPAQUE = ("asynclock.Acquisition", "asynclock.sync.Acquisition")  # users enter them, and call nothing of them


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri == "architecture.md":
        return ARCHITECTURE.read_text().replace("](docs/", "](")
    return markdown


def on_post_build(config: Any, **_: Any) -> None:
    index = json.loads((Path(config["site_dir"]) / "search" / "search_index.json").read_text())
    found = {entry["location"] for entry in index["docs"]}
    for module, page in PAGES.items():
        for name in public(module):
            if f"{page}#{name}" not in found:
                log.warning("%s is not in the search index, as a heading of %s", name, page)


def public(module: str) -> Iterator[str]:
    """Every public name of a module, and the members of its classes that are not inherited from elsewhere."""
    names = importlib.import_module(module)
    for name in names.__all__:
        value = getattr(names, name)
        yield f"{module}.{name}"
        if inspect.isclass(value) and f"{module}.{name}" not in OPAQUE:
            others = [base for base in value.__mro__ if not base.__module__.startswith("asynclock")]
            theirs = {member for base in others for member in vars(base)}
            for member in dir(value):
                if not member.startswith("_") and member not in theirs:
                    yield f"{module}.{name}.{member}"
