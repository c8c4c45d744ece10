"""Networks that break on demand: a forwarder of connections, and a proxy that hospitals have."""

import select
import socket
import threading
import time
from contextlib import suppress

CHUNK = 65536


class Forwarder:
    """Forwards connections from `port` to another; can cut, stall and count them.

    up: bytes that went to the server.
    """

    def __init__(self, to: int, port: int = 0) -> None:
        self._to, self.up = to, 0
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock, self._goes = threading.Lock(), threading.Event()
        self._cut_at: int | None = None
        self._goes.set()
        self.port = port
        self.repair()

    def repair(self) -> None:
        """Take connections, and move what was stalled."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        self._goes.set()

    def cut(self) -> None:
        """End all connections and refuse new ones, until `repair`."""
        with self._lock:
            if self._listener is not None:
                with suppress(OSError):
                    self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()
                self._listener = None
            broken, self._open = self._open, set()
        for end in broken:
            reset(end)

    def cut_after(self, more: int) -> None:
        """Cut once, when so many more bytes went up; new connections are taken at once."""
        self._cut_at = self.up + more

    def stall(self) -> None:
        """Move nothing, and end nothing, until `repair`."""
        self._goes.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                site, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(site,), daemon=True).start()

    def _connect(self, site: socket.socket) -> None:
        try:
            server = self.reach(site)
        except OSError:
            site.close()
            return
        with self._lock:
            if self._listener is None:
                reset(site)
                reset(server)
                return
            self._open |= {site, server}
        try:
            self._pump(site, server)
        except (OSError, ValueError):  # cut: select says ValueError of a socket closed meanwhile
            pass
        finally:
            with self._lock:
                self._open -= {site, server}
            site.close()
            server.close()

    def reach(self, site: socket.socket) -> socket.socket:
        """The connection that a site's goes on to."""
        return socket.create_connection(("127.0.0.1", self._to), timeout=10)

    def _pump(self, site: socket.socket, server: socket.socket) -> None:
        site.settimeout(30)
        server.settimeout(30)
        while True:
            ready, _, _ = select.select([site, server], [], [], 0.5)
            self._goes.wait()
            for end in ready:
                data = end.recv(CHUNK)
                if not data:
                    return
                if end is site:
                    self.up += len(data)
                    if self._cut_at is not None and self.up >= self._cut_at:
                        self._cut_at = None
                        reset(site)
                        reset(server)
                        return
                    server.sendall(data)
                else:
                    site.sendall(data)


class ConnectProxy(Forwarder):
    """An HTTP proxy that knows CONNECT alone, as hospitals have them."""

    def __init__(self, port: int = 0) -> None:
        self.asked: list[str] = []
        super().__init__(0, port)

    def reach(self, site: socket.socket) -> socket.socket:
        head = b""
        site.settimeout(10)
        while b"\r\n\r\n" not in head:
            data = site.recv(4096)
            if not data:
                raise ConnectionError("no request")
            head += data
        method, target, _ = head.split(b"\r\n")[0].decode().split()
        self.asked.append(f"{method} {target}")
        host, _, port = target.rpartition(":")
        server = socket.create_connection((host, int(port)), timeout=10)
        site.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return server


def reset(end: socket.socket) -> None:
    """End a connection as a broken network does: no goodbye."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def silence(seconds: float) -> None:
    """How long the network is away is the point of the test, so this does wait."""
    time.sleep(seconds)
