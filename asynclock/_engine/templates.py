"""Templates of lock names, as ``"user:{user_id}"``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from string import Formatter

from ..errors import ConfigurationError

__all__ = ["NameTemplate"]


class NameTemplate:
    """A name with the names of values in braces, filled in as by ``str.format``: ``"report:{day:%Y-%m-%d}"`` and
    ``"user:{user.id}"`` do what they say, and ``{{`` is a brace.

    :raises ConfigurationError: it is not a string, its braces do not match, or a value has no name (``{}``, ``{0}``)
    """

    __slots__ = ("fields", "text")

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise ConfigurationError(f"the name of a lock must be a str, as 'user:{{user_id}}', not {text!r}")
        self.text = text
        self.fields = tuple(dict.fromkeys(_fields(text, text)))  # of the values that it needs, in their order

    def __repr__(self) -> str:
        return f"NameTemplate({self.text!r})"

    def check(self, known: Collection[str], of: str) -> None:
        """
        :param known: names of the values that there will be
        :param of: whose values, for the message: ``"the arguments of pay()"``
        :raises ConfigurationError: it needs another one
        """
        for field in self.fields:
            if field not in known:
                there = ", ".join(known) or "none"
                raise ConfigurationError(f"lock name {self.text!r} needs {field!r}, which is not among {of}: {there}")

    def fill(self, values: Mapping[str, object]) -> str:
        """The name, with these values."""
        return self.text.format_map(values) if self.fields else self.text.format()


def _fields(text: str, whole: str) -> list[str]:
    found = []
    try:
        for _, field, spec, conversion in Formatter().parse(text):
            if field is None:
                continue
            name = field.partition(".")[0].partition("[")[0]
            if not name.isidentifier():
                raise ConfigurationError(f"lock name {whole!r} has a value without a name: {{{field}}}; write {{name}}")
            if conversion not in (None, "a", "r", "s"):
                raise ValueError(f"there is no conversion !{conversion}")
            found.append(name)
            if spec:
                found += _fields(spec, whole)
    except ValueError as error:
        raise ConfigurationError(f"lock name {whole!r}: {error}; write {{{{ and }}}} for braces") from None
    return found
