"""``asynclock break``: takes a lock from its holder, and gives it back."""

from __future__ import annotations

import asyncio
import sys

from asynclock import ConfigurationError, Holder, LockLostError
from asynclock.options import check_name

from .ending import Ending
from .exit_status import FREE, WRONG_USAGE
from .facts import sentence, utc_now, who
from .servers import Servers
from .texts import LONGEST, safe

HOLD = 0.25  # seconds, for the holder to read its key: once the key is gone, it shows no take-over
MAX_QUESTIONS = 10  # a lock that has another holder at each answer is not stuck


def break_lock(name: str, servers: Servers, *, yes: bool) -> int:
    """Break it. Returns the exit status."""
    ending = Ending("break")
    return ending.run(lambda: _break(name, servers, ending, yes))


async def _break(name: str, servers: Servers, ending: Ending, yes: bool) -> int:
    check_name(name)
    shown = f"'{safe(name, LONGEST)}'"
    if not yes and not sys.stdin.isatty():
        ending.say("there is no terminal to ask on: add --yes")
        return WRONG_USAGE
    agreed: Holder | None = None
    for _ in range(MAX_QUESTIONS):
        async with servers.locker() as locker:
            holder = await locker.holder(name)
            if holder is None:
                ending.say(f"nobody holds lock {shown}{' any more' if agreed else ''}; nothing was done")
                return FREE
            if yes or (agreed is not None and holder.value == agreed.value):
                try:
                    async with locker.force_with_context(name):
                        await asyncio.sleep(HOLD)
                except LockLostError:
                    pass  # somebody else has taken it meanwhile: the old holder has lost it anyhow
                ending.tell(f"Lock {shown} was taken from {sentence(holder, utc_now())}, and given back.")
                return 0
        # The connections are closed: the answer may take its time.
        if agreed is not None:
            ending.say("meanwhile, the lock has another holder")
        print(f"Lock {shown} is held by {sentence(holder, utc_now())}.", file=sys.stderr)
        if ending.ask(f"Take it from {who(holder)}, whose work under it is cancelled? [y/N]") not in ("y", "yes"):
            ending.say("nothing was done")
            return FREE
        agreed = holder
    raise ConfigurationError(f"lock {shown} changes hands faster than you answer; with --yes, you are not asked")
