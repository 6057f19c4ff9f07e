"""Random programs that combine a lock's scope with everything that asyncio and anyio offer. A judge checks how each
block ends."""
