"""Serve a review on 127.0.0.1, to one person on this machine; see `Door`."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from knowmine.client.review.door import HOST, Door
from knowmine.client.review.routes import review_app
from knowmine.client.review.session import Review
from knowmine.shared.errors import KnowmineError, UsageError


class ReviewServer:
    """Serves `review` until `close`; `url` is the address to open.

    title: of the run. running: whether the run has not ended. port: 0 takes any free one.
    Raises `UsageError` if the port is in use.
    """

    def __init__(self, review: Review, title: str, running: Callable[[], bool], port: int) -> None:
        self._review = review
        self._socket = _bound(port)
        self.port: int = self._socket.getsockname()[1]
        door = Door(review_app(review, title, running), self.port)
        self.url = f"http://{HOST}:{self.port}/?token={door.token}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                door, log_config=None, lifespan="off", access_log=False, server_header=False
            )
        )

    def run(self) -> None:
        """Serve until Ctrl-C. SAM is loaded meanwhile, so that the first click is fast."""
        threading.Thread(target=self._warm_up, name="sam", daemon=True).start()
        self._server.run(sockets=[self._socket])

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True

    def _warm_up(self) -> None:
        with suppress(KnowmineError):  # the first click reports the error to the person
            self._review.sam.warm_up()


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((HOST, port))
        made.listen()
    except OSError as error:
        made.close()
        raise UsageError(
            f"cannot listen on {HOST}:{port} ({error.strerror}): another review or program may "
            "use that port; close it, or choose another with --port (0 takes any that is free)"
        ) from error
    return made
