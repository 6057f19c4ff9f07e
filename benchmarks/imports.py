"""What ``import asynclock`` costs, beyond ``import redis.asyncio`` that it stands on."""

from __future__ import annotations

import asyncio
import os
import tempfile

from .figures import at_most
from .others import PATIENCE, python
from .run import Run

# Both in the same interpreter: the difference of two runs would be mostly noise.
CODE = """
import time
start = time.perf_counter()
import redis.asyncio
middle = time.perf_counter()
import asynclock
print(middle - start, time.perf_counter() - middle)
"""


async def fresh(cache: str) -> tuple[float, float]:
    """ms for each import in a new interpreter, with the compiled files in ``cache``."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    process = await asyncio.create_subprocess_exec(
        *python(CODE), stdout=asyncio.subprocess.PIPE, env=environment | {"PYTHONPYCACHEPREFIX": cache}
    )
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    if process.returncode:
        raise RuntimeError("an import failed")
    theirs, ours = map(float, said.split())
    return theirs * 1000, ours * 1000


async def imports(run: Run) -> None:
    """import asynclock, in fresh interpreters"""
    rounds = run.times(21, 2)
    values = []
    with tempfile.TemporaryDirectory(prefix="asynclock-") as cache:
        await fresh(cache)  # compiles everything
        for done in range(rounds):
            run.step("import", done, rounds)
            values.append(await fresh(cache))
    run.record("import redis.asyncio", "ms", [theirs for theirs, _ in values], by="redis-py")
    run.record("import asynclock, after that", "ms", [ours for _, ours in values], at_most(15))
