"""Random programs that do with a lock's scope what asyncio and anyio let them do, and a judge for each scope's end."""
