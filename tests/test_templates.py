"""Lock names with values in braces."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace

import pytest

from asynclock import ConfigurationError
from asynclock._engine.templates import NameTemplate

pytestmark = [pytest.mark.fast, pytest.mark.serverless]


@pytest.mark.parametrize(
    ("text", "values", "name"),
    [
        ("plain", {}, "plain"),
        ("user:{user_id}", {"user_id": 7, "other": 1}, "user:7"),
        ("{a}:{b}:{a}", {"a": "x", "b": None}, "x:None:x"),
        ("report:{day:%Y-%m-%d}", {"day": date(2026, 11, 26)}, "report:2026-11-26"),
        ("user:{user.id}", {"user": SimpleNamespace(id=3)}, "user:3"),
        ("{row[id]}", {"row": {"id": 4}}, "4"),
        ("{n:{width}}", {"n": 5, "width": 3}, "  5"),
        ("{{{a}}}", {"a": 1}, "{1}"),
        ("{{a}}", {}, "{a}"),
        ("user:{user_id}", {"user_id": "{user_id}"}, "user:{user_id}"),
    ],
)
def test_values_are_filled_in(text: str, values: dict[str, object], name: str) -> None:
    template = NameTemplate(text)
    template.check(values, "the arguments")
    assert template.fill(values) == name


@pytest.mark.parametrize("text", ["{}", "{0}", "{0.x}", "{a", "a}", "{a!z}", "{a:{}}", 5, None, b"x"])
def test_templates_that_cannot_be_filled_in(text: object) -> None:
    with pytest.raises(ConfigurationError, match=r"name"):
        NameTemplate(text).fill({"a": 1})  # type: ignore[arg-type]


def test_a_value_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"'user:\{id\}' needs 'id', .* the arguments of pay\(\): user_id, db"):
        NameTemplate("user:{id}").check({"user_id": 1, "db": 2}, "the arguments of pay()")
