"""Prints the public interface as JSON: signatures, docs, kinds, and what wrong calls raise. For both builds."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

import asynclock


def described(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"doc": inspect.getdoc(value), "coroutine": inspect.iscoroutinefunction(value)}
    if isinstance(value, property):
        found["kind"] = "property"
    elif callable(value):
        found["kind"] = "class" if inspect.isclass(value) else "function"
        try:
            found["signature"] = str(inspect.signature(value))
        except ValueError:
            found["signature"] = None
    return found


NOT_FOR_CALLERS = {"Acquisition", "LockScope"}  # nobody makes one


def interface() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in asynclock.__all__:
        value = getattr(asynclock, name)
        if not inspect.isclass(value):
            continue
        found[name] = described(value) | {
            "bases": [base.__name__ for base in value.__mro__ if base.__module__ != "abc"]
        }
        if name in NOT_FOR_CALLERS:
            del found[name]["signature"]
        for attribute in sorted(dir(value)):
            if attribute in vars(object) or (attribute.startswith("_") and not attribute.startswith("__a")):
                continue
            found[f"{name}.{attribute}"] = described(inspect.getattr_static(value, attribute))
    return found


async def refusals() -> dict[str, str]:
    """What wrong calls raise, without a server."""
    found = {}

    async def attempt(what: str, call: Callable[[], Any]) -> None:
        try:
            result = call()
            if inspect.isawaitable(result):
                await result
            elif hasattr(result, "__aenter__"):
                await result.__aenter__()
            found[what] = "nothing"
        except Exception as error:
            found[what] = f"{type(error).__name__}: {error}"

    locker = asynclock.Locker("redis://127.0.0.1:1", key_validity=2)
    names: list[Any] = ["", 5, None, b"bytes", "x" * 70000, "\udc80"]
    for name in names:
        await attempt(f"acquire({str(name)[:9]!r})", lambda name=name: locker.acquire(name))
        await attempt(f"with_context({str(name)[:9]!r})", lambda name=name: locker.with_context(name))
    timeouts: list[Any] = [-1, "soon", float("nan"), True, [], b""]
    for timeout in timeouts:
        await attempt(f"timeout={timeout!r}", lambda timeout=timeout: locker.with_context("a", timeout=timeout))
    await attempt("no name", lambda: locker.with_context())  # type: ignore[call-arg]
    await attempt("unknown", lambda: locker.with_context("a", patience=3))  # type: ignore[call-arg]
    await attempt("no server", lambda: locker.with_context("a"))
    context = locker.with_context("a")
    await attempt("first use", context.__aenter__)
    await attempt("second use", context.__aenter__)
    await locker.aclose()
    await attempt("closed", lambda: locker.acquire("a"))
    return found


if __name__ == "__main__":
    print(json.dumps({"compiled": asynclock.compiled, "interface": interface(), "refusals": asyncio.run(refusals())}))
