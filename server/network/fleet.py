"""Listen for the sites of a closed federation, on a thread of its own, for one run.

`routes.py` says what a site may request, `run_state.py` holds what is shared, and the `FleetGrid`
that `start` returns is how the rounds reach the sites. Those three files hold every Flower internal
of the server side; tests/server/network/test_fleet.py covers them.
"""

import logging
import socket
import threading

import uvicorn

from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.network.grid import FleetGrid
from knowmine.server.network.guard import SeesCertificate
from knowmine.server.network.memory import keep_small
from knowmine.server.network.presence import Presence
from knowmine.server.network.routes import fleet_app
from knowmine.server.network.run_state import RunState
from knowmine.server.network.trust import Trust
from knowmine.server.settings import ListenSettings
from knowmine.shared.errors import RunFailed, UsageError
from knowmine.shared.log import RunLog


class Fleet:
    """The listener, from `start` to `close`.

    port: where it listens. presence: which sites are here.
    """

    def __init__(
        self, listen: ListenSettings, trust: Trust, allow_list: AllowList, log: RunLog
    ) -> None:
        """Take the address; raise `UsageError` if that is impossible."""
        self._state = RunState(allow_list, listen.silent_s)
        self._socket = _bound(listen.host, listen.port)
        self.port: int = self._socket.getsockname()[1]
        app = fleet_app(self._state, allow_list, log, max_bytes=int(listen.max_body_mb * 1e6))
        config = uvicorn.Config(
            app,
            http=SeesCertificate,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
        )
        config.load()
        config.ssl = trust.context
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="fleet", daemon=True)
        # Below this level, Flower logs addresses and keys.
        logging.getLogger("flwr").setLevel(logging.CRITICAL)

    @property
    def presence(self) -> Presence:
        """Which sites are here."""
        return self._state.presence

    def start(self) -> FleetGrid:
        """Listen and open a run; raise `RunFailed` if the listener does not start."""
        keep_small()
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            if not self._thread.is_alive():
                raise RunFailed("the listener did not start; see the lines above")
        self._state.follow_allow_list()
        return FleetGrid(self._state, *self._state.open_run())

    def close(self) -> None:
        """End the run and stop listening; doing it twice is harmless."""
        self._server.should_exit = True
        self._state.close()
        if self._thread.is_alive():
            self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}): stop the program that uses the "
            "port, or choose another listen.port"
        ) from error
