"""Faults of the connections between workers and servers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from asynclock.testing import Proxy

from .deployments import QUIET, SILENT
from .faults import PUSH, kind
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


@kind("connections forgotten", "wires")
async def forgotten(field: Field, chance: random.Random, name: str) -> None:
    """As by a NAT or a load balancer, which drops idle connections silently: no packet ever arrives again."""
    await _for_a_while(field, chance, name, Proxy.forget, Proxy.reset)


@kind("idle connection forgotten, DEL", "servers", told=SILENT + PUSH, only=("long",))
async def forgotten_while_idle(field: Field, chance: random.Random, name: str) -> None:
    """A client whose connection is idle finds out that it is dead."""
    place = chance.choice(QUIET)
    lost = [(lock, 0) for lock in field.deployment.names if lock.startswith("long")]
    async with field.fault(name, field.crew.name(place)) as forgot:
        forgot.update(lost)
        for proxy in field.wires_of(place):
            proxy.forget()
        for key in lost:
            await field.on_key(key, "DEL", field.deployment.key(key))
        await asyncio.sleep(SILENT + 2.0)
        for proxy in field.wires_of(place):
            proxy.reset()


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
    """Ends with a reset, since requests and replies would be out of step after it."""

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
        proxy.deliver()  # else packets would still be late after the fault

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
    seconds = chance.choice((0.1, 0.5, 1.5)) * field.pace
    async with field.fault(name, len(proxies), *about, f"{seconds:.1f} s"):
        for proxy in proxies:
            begin(proxy)
        try:
            await asyncio.sleep(seconds)
        finally:
            for proxy in proxies:
                end(proxy)
