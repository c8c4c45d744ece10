"""A federation of real processes on loopback: started, killed, waited for, and always cleared."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from knowmine.shared.weights import load_weights
from tests.faults.nursery import Child, Nursery
from tests.faults.tiny import initial
from tests.provisioned import Federation

ROOT = Path(__file__).parents[2]
PATIENCE_S = 90.0
"""Longest wait for anything; the machine may be busy, and nothing here takes a tenth of it."""

SERVER = {
    "listen": {"host": "127.0.0.1", "silent_s": 3.0},
    "run": {"rounds": 2, "quorum": 0.5},
    "attendance": {"gather_s": 30.0, "patience_s": 60.0, "attempts": 5},
    "deadlines": {"first_s": 60.0, "factor": 20.0, "others_factor": 100.0, "at_least_s": 30.0},
}
SITE = {"network": {"heartbeat_s": 0.3, "poll_s": 0.1, "retry_s": 0.5}, "stop_s": 20.0}


class Program:
    """A process and all that it starts; its lines are read as they come."""

    def __init__(self, process: "subprocess.Popen[str] | Child", name: str, log: Path) -> None:
        """log: where it writes what happens to it."""
        self.name, self._log = name, log
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._popen = process
        self.pid = process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, pattern: str, count: int = 1) -> str:
        """The `count`-th line that matches; fails where the process ends before."""
        wanted = re.compile(pattern)
        with self._news:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                found = [line for line in self.lines if wanted.search(line)]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    raise AssertionError(f"no line {pattern!r} among {self.lines}")
                self._news.wait(min(left, 0.2))

    def ended(self) -> int:
        """Wait for its end and return the exit code; all that it said is in `lines` then."""
        try:
            code = self._popen.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            log = self._log.read_text()[-3000:] if self._log.exists() else "no log"
            raise AssertionError(
                f"{self.name} goes on and said {self.lines[-20:]}; its log:\n{log}"
            ) from None
        self._reader.join(10)
        return code

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        try:
            self._popen.wait(0.001)
        except subprocess.TimeoutExpired:
            return True
        return False

    @property
    def text(self) -> str:
        """All that it said so far."""
        return "\n".join(self.lines)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Kill -9 of the process and its children, and wait until they are gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(PATIENCE_S)
        self._reader.join(10)

    def rss_mb(self) -> float:
        """Memory that it holds now."""
        return self._status("VmRSS") / 1e3

    def peak_mb(self) -> float:
        """The most memory that it ever held."""
        return self._status("VmHWM") / 1e3

    def threads(self) -> int:
        """Its threads."""
        return self._status("Threads")

    def files(self) -> int:
        """Its open files and sockets."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def _status(self, key: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
        assert found, key
        return int(found[1])

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


class Stage(Federation):
    """A provisioned federation whose sites are admitted, and its processes."""

    def __init__(
        self, root: Path, nursery: Nursery, *sites: str, numbers: int = 1000, **settings: Any
    ) -> None:
        """settings: of the server, merged over `SERVER`."""
        super().__init__(root)
        self._nursery = nursery
        self.sites_here, self.numbers, self.port = sites, numbers, free_port()
        self.programs: list[Program] = []
        self.server: Program | None = None
        self.provision(
            yaml.safe_dump(
                {
                    "federation": "chest",
                    "server": {"hosts": ["localhost", "127.0.0.1"], "port": self.port},
                    "sites": list(sites),
                    "plan": {"model": {"pretrained": False, "image_px": 64}},
                }
            )
        )
        change(self.folder / "server.yaml", merged(SERVER, settings))
        for site in sites:
            self.admit(site)
            change(self.home(site) / "client.yaml", SITE)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    def serve(self, *options: str, **environment: str) -> Program:
        """Start the server, and wait until it listens."""
        server = self.start("server", self.folder / "server.yaml", *options, **environment)
        until(lambda: can_connect(self.port) or not server.runs, "a server that listens")
        return server

    def join(self, site: str, *options: str, home: Path | None = None, **env: str) -> Program:
        """Start a site."""
        return self.start("site", (home or self.home(site)) / "client.yaml", *options, **env)

    def start(self, role: str, settings: Path, *options: str, **environment: str) -> Program:
        """Start one of the two programs."""
        argv = [role, str(settings), "--numbers", str(self.numbers), *options]
        child = Child(self._nursery, argv, {**clean_environment(), **environment})
        log = self.run / "run.log.jsonl"
        if role == "site":
            log = settings.parent / "state" / "site.log.jsonl"
        started = Program(child, f"{role} {settings}", log)
        self.programs.append(started)
        return started

    def program(self, command: list[str], **environment: str) -> Program:
        """Start any program; it ends with the test."""
        started = Program(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**clean_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            ),
            command[0],
            self.run / "run.log.jsonl",
        )
        self.programs.append(started)
        return started

    def through(self, site: str, port: int) -> None:
        """Have the site reach the server by another port."""
        settings = self.home(site) / "client.yaml"
        change(settings, {"network": {"server": f"localhost:{port}"}})

    def diary(self, site: str) -> list[str]:
        """What the site really worked on, a line each time."""
        path = self.home(site) / "state" / "diary"
        return path.read_text().splitlines() if path.exists() else []

    def worked(self, site: str, what: str, times: int = 1) -> None:
        """Wait until the site has begun this work so many times."""
        until(lambda: self.diary(site).count(what) >= times, f"{site} at {what}")

    def told(self, site: str, event: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait for so many lines of this event in the site's log; those lines."""
        path = self.home(site) / "state" / "site.log.jsonl"
        until(lambda: len(events(path, event)) >= times, f"{event} of {site}", path)
        return events(path, event)

    def logged(self, event: str, times: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait for so many such lines in the server's log; those lines."""
        path = self.run / "run.log.jsonl"

        def found() -> list[dict[str, Any]]:
            return [e for e in events(path, event) if fields.items() <= e.items()]

        until(lambda: len(found()) >= times, f"{event} {fields} of the server", path)
        return found()

    def summary(self) -> dict[str, Any]:
        """The run's summary."""
        value: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        return value

    def result(self) -> list[float]:
        """What was added to the model's numbers, each once: [3.0] after three rounds."""
        end, start = load_weights(self.run / "model.safetensors"), initial(self.numbers)
        added = [np.unique(end[name] - start[name]) for name in start]
        return np.unique(np.concatenate(added)).tolist()

    def clear(self) -> None:
        """End all that was started."""
        for program in self.programs:
            program.kill()


def until(true: Callable[[], bool], what: str, log: Path | None = None) -> None:
    """Return as soon as it is true; looks at files, which nobody announces."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            end = log.read_text()[-2000:] if log and log.exists() else ""
            raise AssertionError(f"waited for {what} in vain\n{end}")
        time.sleep(0.01)


def events(path: Path, event: str) -> list[dict[str, Any]]:
    """The lines of this event in a log; a last line that is not whole is left out."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0].splitlines()
    lines = [json.loads(line) for line in whole if line]
    return [line for line in lines if line["event"] == event]


def change(path: Path, settings: dict[str, Any]) -> None:
    """Merge settings into a file."""
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), settings)))


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, the new ones over the old."""
    both = dict(old)
    for key, value in new.items():
        inner = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if inner else value
    return both


def clean_environment() -> dict[str, str]:
    """This process's environment without proxies, and one thread of arithmetic."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return {**kept, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as calibration:
        calibration.bind(("127.0.0.1", 0))
        return int(calibration.getsockname()[1])


def can_connect(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True
