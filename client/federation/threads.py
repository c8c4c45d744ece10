"""The two threads beside a site's connection: one runs the task, one sends the heartbeat."""

import ssl
import threading
from collections.abc import Callable
from contextlib import suppress

import httpx

from knowmine.shared.errors import Refused
from knowmine.shared.wire import quiet_flower  # noqa: F401 - before Flower is imported

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp


class TaskThread(threading.Thread):
    """One task at work. The process can end without waiting for it.

    done: set when the task is over. reply or error: how it ended.
    """

    NAME = "work"

    def __init__(self, app: ClientApp, message: Message, node_id: int) -> None:
        super().__init__(name=self.NAME, daemon=True)
        self._app, self._message, self._node_id = app, message, node_id
        self.done = threading.Event()
        self.reply: Message | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Run the app on the message; keep its reply, or its error."""
        context = Context(
            run_id=self._message.metadata.run_id,
            node_id=self._node_id,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        try:
            self.reply = self._app(message=self._message, context=context)
        except BaseException as error:  # noqa: BLE001 - it becomes the reply
            self.error = error
        self.done.set()

    @classmethod
    def is_running(cls) -> bool:
        """Whether this process still works on a task."""
        return any(thread.name == cls.NAME for thread in threading.enumerate())


class Heartbeat:
    """Calls `beat` every `every_s` seconds, from `with` to its end.

    A beat that fails is no error here: the next request on the main thread meets the same failure.
    """

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        self._beat, self._every_s, self._stop = beat, every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            with suppress(httpx.HTTPError, ssl.SSLError, Refused):
                self._beat()
