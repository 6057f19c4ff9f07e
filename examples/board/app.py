"""The application: the page, its events, and the button."""

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from anyio import create_task_group
from anyio.abc import TaskGroup
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from asynclock import Locker
from asynclock.integrations.fastapi import Locks

from .board import Board
from .workers import KEY_PREFIX, steal, take_turns

WORKERS = 6


def same_origin(sec_fetch_site: Annotated[str, Header()] = "same-origin") -> None:
    """Refuse a request from another site that is open in the same browser. (curl sends no such header.)"""
    if sec_fetch_site != "same-origin":
        raise HTTPException(403, "only this page itself may do that")


def make_app(url: str, board: Board) -> FastAPI:
    locks = Locks(url, key_prefix=KEY_PREFIX)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, TaskGroup]]:
        async with create_task_group() as tasks:
            for number in range(1, WORKERS + 1):
                tasks.start_soon(take_turns, url, board, f"worker {number}")
            yield {"tasks": tasks}  # becomes request.state.tasks
            tasks.cancel_scope.cancel()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    locks.install(app)
    thieves = itertools.count(1)

    @app.get("/events")
    async def events() -> StreamingResponse:
        """Server-sent events: the board, whenever it has changed."""

        async def lines() -> AsyncIterator[str]:
            yield "retry: 1000\n\n"  # milliseconds until a browser that has lost the stream asks for it again
            async for state in board.watch():
                yield f"data: {json.dumps(state)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.post("/locks/{name}/steal", status_code=202, dependencies=[Depends(same_origin)])
    async def steal_it(name: str, request: Request, locker: Annotated[Locker, Depends(locks.locker)]) -> dict[str, str]:
        """Answers at once; the events tell what comes of it."""
        if name not in board.names:
            raise HTTPException(404, f"there is no lock {name!r}: only {', '.join(board.names)}")
        thief = f"thief {next(thieves)}"
        request.state.tasks.start_soon(steal, locker, board, name, thief)
        return {"thief": thief}

    app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
    return app
