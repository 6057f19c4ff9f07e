"""One command: a lock server, the workers, and the page."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys

import uvicorn

from asynclock.testing import Server

from .app import make_app
from .board import Board

LOCKS = ("reports", "invoices", "thumbnails")


class PageServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, board: Board) -> None:
        super().__init__(config)
        self._board = board

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._board.close()  # ends the event streams: uvicorn would wait for them
        await super().shutdown(sockets)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.board", description=__doc__)
    parser.add_argument("--url", help="URL of your lock server; without it, an embedded one is started")
    parser.add_argument("--port", type=int, default=8000, help="port of the page, on 127.0.0.1; 0: any free one")
    arguments = parser.parse_args()
    # uvicorn raises the signal again after its shutdown. By default, SIGTERM would then end this process before the
    # lock server is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        try:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", arguments.port)))
        except OSError as error:
            sys.exit(f"port {arguments.port} cannot be used: {error.strerror}; choose another one with --port")
        url = arguments.url or stack.enter_context(Server()).url
        board = Board(LOCKS)
        # A browser that does not read cannot be sent the end of its stream; it is cut off after 2 s.
        config = uvicorn.Config(make_app(url, board), lifespan="on", log_level="warning", timeout_graceful_shutdown=2)
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/ shows the locks; Ctrl-C ends it", flush=True)
        PageServer(config, board).run(sockets=[listening])


if __name__ == "__main__":
    main()
