"""Starts the processes of tiny.py in milliseconds: one that has imported everything forks them.

    python -m tests.faults.nursery SOCKET

Each child is a process of its own as any other: its own session, output, environment and end.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import traceback

PR_SET_PDEATHSIG = 1


class Child:
    """A forked process, as far as `subprocess.Popen` is known to the tests."""

    def __init__(self, nursery: "Nursery", argv: list[str], environment: dict[str, str]) -> None:
        said, say = os.pipe()
        report, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"argv": argv, "environment": environment}).encode()
        socket.send_fds(nursery.door, [len(request).to_bytes(4, "big")], [say, told.fileno()])
        nursery.door.sendall(request)
        os.close(say)
        told.close()
        self._report = report
        self.pid = int(report.recv(32))
        self.stdout = os.fdopen(said, "r", errors="replace")
        self.returncode: int | None = None

    def wait(self, timeout: float) -> int:
        """The exit code, negative for a signal."""
        if self.returncode is None:
            self._report.settimeout(timeout)
            try:
                self.returncode = os.waitstatus_to_exitcode(int(self._report.recv(32)))
                self._report.close()
            except TimeoutError:
                raise subprocess.TimeoutExpired("tiny", timeout) from None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it ended."""
        if self.returncode is None:
            os.kill(self.pid, number)


class Nursery:
    """The process that forks; `close` ends it."""

    def __init__(self, root: str, environment: dict[str, str]) -> None:
        self.door, other = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery", str(other.fileno())],
            cwd=root,
            env=environment,
            pass_fds=[other.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        other.close()

    def close(self) -> None:
        """End it; its children end by themselves or were ended."""
        self.door.close()
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Import what both roles need, then fork for each request until the door is closed."""
    import knowmine.client.federation.service
    import knowmine.server.federation  # noqa: F401 - for the children

    door = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        head, files, _, _ = socket.recv_fds(door, 4, 2)
        if not head:
            return
        size, request = int.from_bytes(head, "big"), b""
        while len(request) < size:
            request += door.recv(size - len(request))
        if os.fork() == 0:
            say, told = files
            _keep(json.loads(request), say, told, door)
        for file in files:
            os.close(file)


def _keep(request: dict, say: int, told: int, door: socket.socket) -> None:
    """Fork the child and report its number and its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _end_with_parent()
    door.close()
    child = os.fork()
    if child == 0:
        os.close(told)
        _become(request, say)
    os.close(say)
    os.write(told, str(child).encode())
    _, status = os.waitpid(child, 0)
    os.write(told, str(status).encode())
    os._exit(0)


def _become(request: dict, say: int) -> None:
    os.setsid()
    _end_with_parent()
    os.dup2(say, 1)
    os.dup2(say, 2)
    os.close(say)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["tiny", *request["argv"]]
    code = 1
    try:
        from tests.faults.tiny import main as tiny

        tiny()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException:  # noqa: BLE001 - as Python itself does at the end
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    """A test run that is killed itself leaves nobody behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
