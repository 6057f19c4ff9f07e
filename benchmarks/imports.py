"""What ``import asynclock`` costs, beyond ``import redis.asyncio`` that it stands on."""

from __future__ import annotations

import asyncio

from .figures import at_most
from .others import PATIENCE, python
from .run import Run

CODE = "import time; since = time.perf_counter(); import {}; print(time.perf_counter() - since)"


async def fresh(module: str) -> float:
    """ms, in an interpreter that has nothing yet."""
    process = await asyncio.create_subprocess_exec(*python(CODE.format(module)), stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    if process.returncode:
        raise RuntimeError(f"import {module} failed")
    return float(said) * 1000


async def imports(run: Run) -> None:
    """import asynclock, in fresh interpreters"""
    rounds = run.times(21, 2)
    theirs, ours = [], []
    for module in ("redis.asyncio", "asynclock"):
        await fresh(module)  # compiled, and in the file system's cache
    for done in range(rounds):
        run.step("import", done, rounds)
        theirs.append(await fresh("redis.asyncio"))
        ours.append(await fresh("asynclock"))
    beyond = [own - base for own, base in zip(ours, theirs, strict=True)]
    run.record("import redis.asyncio", "ms", theirs, by="redis-py")
    run.record("import asynclock", "ms", ours)
    run.record("import asynclock, beyond that", "ms", beyond, at_most(15))
