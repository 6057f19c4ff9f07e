"""Makes Markdown of the reStructuredText in docstrings, which editors and ``help()`` show as it is."""

from __future__ import annotations

import re
from typing import Any

import griffe

ATTRIBUTES = {"name": "The name of the lock."}  # of scopes: set in ``__init__``, without a docstring
COMMENT = re.compile(r"#: (.+)$")
FIELD = re.compile(r"(?<=\S)\s+(?=:(?:raises [\w.]+|returns?):)")
LITERAL = re.compile(r"::\n\n((?:(?: {4}.*)?\n)*(?: {4}.*)?)")
ROLE = re.compile(r":(?:class|meth|attr|func|data|exc):`~?([\w.]+)`")
SPAN = re.compile(r"(?<!`)``([^`]+)``(?!`)")  # not within the three of a code block


class Docstrings(griffe.Extension):
    """A role such as ``:class:`Locker``` becomes a link, a field at the end of a sentence a field, an indented block a
    code block, and the ``#:`` comment of a value its docstring. What users do not call is left out of signatures."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if cls.name in ("Acquisition", "LockScope") or cls.name.endswith("Error"):
            cls.members.pop("__init__", None)  # not for users to make; what it sets is found by now
        if cls.name.endswith("Error") and cls.docstring is not None:  # its attributes in a list, not each by itself
            for name in [name for name, member in cls.members.items() if member.is_attribute]:
                del cls.members[name]
            cls.docstring.value = fields_last(cls.docstring.value)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        for parameter in list(func.parameters):
            if str(parameter.annotation) == "Never":  # takes what is misspelt, to tell what was meant
                del func.parameters[parameter.name]

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None and obj.is_attribute and (comment := COMMENT.search("".join(obj.lines))):
            obj.docstring = griffe.Docstring(comment[1], lineno=obj.lineno, parent=obj)
        if obj.docstring is None and (said := ATTRIBUTES.get(obj.name)) and "testing" not in obj.path:
            obj.docstring = griffe.Docstring(said, parent=obj)
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, obj)


def markdown(text: str, where: griffe.Object) -> str:
    def link(match: re.Match[str]) -> str:
        path = resolved(match[1], where)
        return f"`{match[1]}`" if path is None else f"[`{match[1]}`][{path}]"

    text = FIELD.sub("\n\n", text)
    text = LITERAL.sub(lambda match: ":\n\n```python\n" + re.sub("(?m)^ {4}", "", match[1]).strip() + "\n```\n\n", text)
    return fields_last(SPAN.sub(r"`\1`", ROLE.sub(link, text)))


def fields_last(text: str) -> str:
    """What stands after a field would be taken for a part of it."""
    paragraphs = text.split("\n\n")
    fields = [paragraph for paragraph in paragraphs if paragraph.startswith(":")]
    return "\n\n".join([*(each for each in paragraphs if each not in fields), "\n".join(fields)])


def resolved(name: str, where: griffe.Object) -> str | None:
    """Where the reference shows it: public names stand in the package, wherever they are defined."""
    first = name.partition(".")[0]
    if first in ("asyncio", "redis", "threading"):
        return None  # others' documentation is not fetched
    if first == "asynclock":
        return name
    package = "asynclock"
    if where.path.startswith("asynclock.testing"):
        package = "asynclock.testing"
    elif where.path.startswith("asynclock.sync") and not first.endswith(("Error", "Reason")):  # it raises the same ones
        package = "asynclock.sync"
    owner: griffe.Object | None = where
    while owner is not None and not owner.is_module:
        if owner.is_class and (first in owner.members or f"self.{first}" in "".join(owner.lines)):
            return f"{package}.{owner.name}.{name}"
        owner = owner.parent
    return f"{package}.{name}"
