"""What befalls the connections between the two."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from asynclock.testing import Proxy

from .faults import kind
from .field import Field


@kind("connections cut", "wires", harmless=True)
async def cut(field: Field, chance: random.Random, name: str) -> None:
    await _at_once(field, chance, name, Proxy.cut)


@kind("connections reset", "wires", harmless=True)
async def reset(field: Field, chance: random.Random, name: str) -> None:
    await _at_once(field, chance, name, Proxy.reset)


@kind("connections reset and refused", "wires")
async def refused(field: Field, chance: random.Random, name: str) -> None:
    def begin(proxy: Proxy) -> None:
        proxy.refuse()
        proxy.reset()

    await _for_a_while(field, chance, name, begin, Proxy.accept)


@kind("wire silent", "wires")
async def frozen(field: Field, chance: random.Random, name: str) -> None:
    await _for_a_while(field, chance, name, Proxy.freeze, Proxy.thaw)


@kind("wire delayed", "wires")
async def delayed(field: Field, chance: random.Random, name: str) -> None:
    await _attribute(field, chance, name, "delay", chance.choice((0.005, 0.03, 0.15)), 0.0)


@kind("wire throttled", "wires")
async def throttled(field: Field, chance: random.Random, name: str) -> None:
    await _attribute(field, chance, name, "rate", chance.choice((3_000.0, 30_000.0)), 0.0)


@kind("bytes split", "wires", harmless=True)
async def split(field: Field, chance: random.Random, name: str) -> None:
    await _attribute(field, chance, name, "split", chance.choice((1, 7)), 0)


@kind("pushes swallowed", "wires")
async def deaf(field: Field, chance: random.Random, name: str) -> None:
    await _attribute(field, chance, name, "swallow_pushes", True, False)


@kind("replies swallowed", "wires")
async def mute(field: Field, chance: random.Random, name: str) -> None:
    """Ends with a reset: after that, requests and replies would not match any more."""

    def end(proxy: Proxy) -> None:
        proxy.swallow_replies = False
        proxy.reset()

    await _for_a_while(field, chance, name, lambda proxy: setattr(proxy, "swallow_replies", True), end)


async def _at_once(field: Field, chance: random.Random, name: str, do: Callable[[Proxy], None]) -> None:
    proxies = field.wires(chance)
    async with field.fault(name, len(proxies)):
        for proxy in proxies:
            do(proxy)


async def _attribute(
    field: Field, chance: random.Random, name: str, attribute: str, value: object, after: object
) -> None:
    def end(proxy: Proxy) -> None:
        setattr(proxy, attribute, after)
        proxy.deliver()  # or the fault would not be over yet

    await _for_a_while(
        field,
        chance,
        f"{name}",
        lambda proxy: setattr(proxy, attribute, value),
        end,
        f"{value}",
    )


async def _for_a_while(
    field: Field,
    chance: random.Random,
    name: str,
    begin: Callable[[Proxy], None],
    end: Callable[[Proxy], None],
    *about: object,
) -> None:
    proxies = field.wires(chance)
    seconds = chance.choice((0.1, 0.5, 1.5)) * field.validity
    async with field.fault(name, len(proxies), *about, f"{seconds:.1f} s"):
        for proxy in proxies:
            begin(proxy)
        try:
            await asyncio.sleep(seconds)
        finally:
            for proxy in proxies:
                end(proxy)
