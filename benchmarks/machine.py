"""Describes where the figures were measured: machine, server, versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import asynclock
from asynclock.testing import Server

from .contestants import PEERS, version
from .figures import COMPILED, PURE
from .others import Outsider

Machine = dict[str, str | int]


def describe(kind: str, quick: bool) -> Machine:
    """:raises OSError, RuntimeError, ValueError: there is no such server"""
    with Server(kind) as server, Outsider.of(server) as outsider:
        try:
            its_version = f"Valkey {outsider.info('valkey_version')}"
        except RuntimeError:
            its_version = f"Redis {outsider.info('redis_version')}"
    return {
        "cpu": cpu(),
        "cpus": os.cpu_count() or 0,
        "memory": memory(),
        "os": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "server": its_version,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "asynclock": asynclock.__version__,
        "build": COMPILED if asynclock.compiled else PURE,
        **{name: version(name) for name in ("uvloop", "hiredis", *(peer.package for peer in PEERS))},
        **({"aioredis": version("aioredis")} if installed("aioredis") else {}),
        "date": datetime.date.today().isoformat(),
        **({"quick": "yes: these figures say nothing"} if quick else {}),
    }


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (OSError, ValueError):
        return "unknown"


def in_a_line(machine: Machine) -> str:
    """Hardware, operating system, Python, server and build, as a part of a sentence."""
    return (
        f"{machine['cpus']} cores ({machine['cpu']}), {machine['memory']}, {machine['os']}, {machine['python']}, "
        f"{machine['server']}, asynclock {machine.get('build', PURE)}, load before {machine['load before']}, "
        f"{machine['date']}"
    )
