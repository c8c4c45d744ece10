"""A round over the network, against stock Flower; the server's memory; the start of each program.

    python -m benchmarks.bench_federation [--quick]

Two sites on loopback add 1 to every number of the model and score it; the server averages. Ours
is the closed federation (TLS 1.3, client certificates, node keys, a journal on disk); theirs is
`flwr run` on a stock SuperLink and two SuperNodes, without TLS. A round is the time from one
round's end to the next one's; `flwr run` itself is what a user waits for beyond that, so the row
"a run of one round" has all of it on both sides, with the programs running already on theirs.
The server's memory is the peak resident size of its process, sites in another one.
Writes benchmarks/results/federation.json and its rows in docs/performance.md.
"""

import argparse
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measuring import HERE, arguments, machine, peak_mb, row, write
from benchmarks.stock_flower import BIN, quiet_environment

TINY, LARGE = 1_000, 26_000_000
PATIENCE_S = 600.0
STOCK = HERE / "stock_app"


def main() -> None:
    """Measure all rows, or take the part of the sites."""
    parser = arguments(__doc__, "tiny models")
    parser.add_argument("--sites", nargs="+", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", type=int, default=TINY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sites:
        take_turns(options.sites, options.numbers)
        return
    before, rows = machine(), []
    with tempfile.TemporaryDirectory() as folder:
        tools = Path(folder)
        rows += rounds(tools, "tiny", TINY, 6, 8)
        if not options.quick:
            rows += rounds(tools, "26 M", LARGE, 3, 2)
            rows += memory(tools)
        rows += starts(tools)
    write("federation", rows, before, quick=options.quick)


def rounds(folder: Path, size: str, numbers: int, count: int, goal: float) -> list[dict[str, Any]]:
    """A round of two sites on both sides, in turns; one round of each is warming up."""
    ours: list[float] = []
    theirs: list[float] = []
    peaks: list[tuple[float, float]] = []
    for turn in range(2):
        mine, peak = our_rounds(folder / f"ours-{size}-{turn}".replace(" ", ""), numbers, count, 2)
        stock, stock_peak = stock_rounds(
            folder / f"stock-{size}-{turn}".replace(" ", ""), numbers, min(count, 3)
        )
        ours, theirs = ours + mine, theirs + stock
        peaks.append((peak, stock_peak))
        print(size, turn, mine, stock, peaks[-1], flush=True)
    memory_mb = (max(p[0] for p in peaks), max(p[1] for p in peaks))
    rows = [row(f"a round of two sites, {size}", ours, theirs, "s", goal, memory_mb=memory_mb)]
    if size == "tiny":
        rows.append(row("fixed cost of a round of two tiny sites", ours, [], "s", note="goal .7 s"))
    return rows


def memory(folder: Path) -> list[dict[str, Any]]:
    """The server's peak with more and more sites, which take turns in one other process."""
    found = []
    for sites in (2, 8, 32):
        seconds, peak = our_rounds(folder / f"memory-{sites}", LARGE, 2, sites, turns=True)
        print("memory", sites, seconds, peak, flush=True)
        found.append(row(f"server's memory, {sites} sites of 26 M", [peak], [], "MB",
                         memory_mb=(peak, None), note="goal 1200 MB"))  # fmt: skip
    return found


def our_rounds(
    folder: Path, numbers: int, count: int, sites: int, *, turns: bool = False
) -> tuple[list[float], float]:
    """Seconds of each round after the first, and the server's peak in MB."""
    home, names = federation(folder, sites, count)
    with ExitStack() as programs:
        module = ("-m", "tests.faults.tiny")
        server = programs.enter_context(
            running(folder / "server.log", *module, "server", home, "--numbers", str(numbers))
        )
        files = [folder / f"home-{name}" / "client.yaml" for name in names]
        if turns:
            command = ("-m", "benchmarks.bench_federation", "--numbers", numbers, "--sites", *files)
            programs.enter_context(running(folder / "sites.log", *command))
        else:
            for file in files:
                programs.enter_context(
                    running(file.with_suffix(".log"), *module, "site", file, "--numbers", numbers)
                )
        peak, ends, log = 0.0, list[float](), folder / "server.log"
        while server.poll() is None and len(ends) <= count:
            time.sleep(0.02)
            with suppress(OSError):
                peak = max(peak, peak_mb(server.pid))
            done = log.read_text().count("done ")
            ends += [time.monotonic()] * (done - len(ends))
        server.wait(PATIENCE_S)
        if len(ends) < count:
            raise SystemExit(f"our side failed: {log.read_text()[-2000:]}")
    return [later - earlier for earlier, later in itertools.pairwise(ends)], peak


def federation(folder: Path, sites: int, count: int) -> tuple[Path, list[str]]:
    """A provisioned federation with its sites enrolled and admitted; server.yaml and names."""
    from tests.provisioned import Federation

    folder.mkdir()
    names, port = [f"site-{n:02}" for n in range(sites)], free_port()
    made = Federation(folder)
    made.provision(
        yaml.safe_dump(
            {
                "federation": "bench",
                "server": {"hosts": ["127.0.0.1", "localhost"], "port": port},
                "sites": names,
            }
        )
    )
    for name in names:
        made.admit(name)
    settings = yaml.safe_load((made.folder / "server.yaml").read_text())
    settings["listen"] = {**settings.get("listen", {}), "host": "127.0.0.1", "port": port}
    settings["run"] = {"rounds": count}
    (made.folder / "server.yaml").write_text(yaml.safe_dump(settings))
    for name in names:
        file = made.home(name) / "client.yaml"
        client = yaml.safe_load(file.read_text())
        client["network"]["server"] = f"127.0.0.1:{port}"
        client["isolation"] = "off"
        file.write_text(yaml.safe_dump(client))
        (made.home(name) / "state").mkdir(exist_ok=True)
    return made.folder / "server.yaml", names


def take_turns(files: list[Path], numbers: int) -> None:
    """All these sites in one process; one at a time fetches, works and sends.

    So many models would not fit in one machine's memory, and the server's peak is asked for.
    """
    from knowmine.client.federation.app import client_app
    from knowmine.client.federation.keys import SiteKeys
    from knowmine.client.federation.link import Link
    from knowmine.client.settings import ClientSettings
    from knowmine.client.site.worker import Worker
    from knowmine.shared.log import silent
    from knowmine.shared.settings import read_settings
    from knowmine.shared.weights import bytes_of_manifest
    from tests.faults.tiny import TinyWorker

    turn = threading.Semaphore()

    class Patient(Link):
        """A site that waits for its turn before it fetches a question."""

        def _fetch(self, *question: Any) -> Any:
            turn.acquire()
            return super()._fetch(*question)

        def _send(self, *reply: Any) -> None:
            try:
                super()._send(*reply)
            finally:
                turn.release()

    def one(file: Path) -> None:
        settings = read_settings(ClientSettings, file, {})
        keys = SiteKeys.load(settings.keys, settings.site)
        diary = settings.state / "diary"
        worker: Worker = TinyWorker(settings.site, numbers, 0, "", diary)  # type: ignore[no-untyped-call] # a test's
        link = Patient(
            settings.network, settings.site, keys, settings.keys, settings.state, silent()
        )
        size = bytes_of_manifest(worker.manifest)
        link.serve(client_app(lambda _: worker), threading.Event(), 0, lambda: size)

    threads = [threading.Thread(target=one, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stock_rounds(folder: Path, numbers: int, count: int) -> tuple[list[float], float]:
    """Seconds of each round after the first on stock programs; peak of SuperLink and ServerApp."""
    folder.mkdir()
    with stock_federation(folder) as (environment, link):
        times = folder / "times"
        config = f'numbers={numbers} rounds={count} times="{times}"'
        run = subprocess.Popen(
            [BIN / "flwr", "run", STOCK, "here", "--stream", "--run-config", config],
            env=environment, stdout=(folder / "run.log").open("wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        peak, last = 0.0, time.monotonic() + PATIENCE_S
        while run.poll() is None and time.monotonic() < last:
            time.sleep(0.1)
            with suppress(OSError):
                peak = max(peak, sum(peak_mb(pid) for pid in [link, *children(link)]))
        run.kill()
        ends = [float(line.split()[1]) for line in times.read_text().splitlines()]
        if len(ends) < count + 1:
            raise SystemExit(f"stock side failed: {(folder / 'run.log').read_text()[-2000:]}")
    return [later - earlier for earlier, later in itertools.pairwise(ends[1:])], peak


@contextmanager
def stock_federation(folder: Path) -> Iterator[tuple[dict[str, str], int]]:
    """A stock SuperLink with two SuperNodes: the environment for `flwr run`, the link's pid."""
    port, control = free_port(), free_port()
    environment = quiet_environment(folder)
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    with ExitStack() as programs:
        link = programs.enter_context(
            running(
                folder / "superlink.log",
                BIN / "flower-superlink",
                *("--insecure", "--disable-runtime-dependency-installation"),
                *("--host", "127.0.0.1", "--port", port),
                *("--control-api-address", f"127.0.0.1:{control}"),
                environment=environment,
            )
        )
        until_open(port)
        for name in ("one", "two"):
            programs.enter_context(
                running(
                    folder / f"{name}.log",
                    BIN / "flower-supernode",
                    *("--insecure", "--superlink", f"127.0.0.1:{port}"),
                    *("--host", "127.0.0.1", "--port", free_port()),
                    environment=environment,
                )
            )
        yield environment, link.pid


def starts(folder: Path) -> list[dict[str, Any]]:
    """Seconds from the start of each program until it listens, or has joined."""
    servers, sites, stock = list[float](), list[float](), list[float]()
    for turn in range(3):
        home, (name, *_) = federation(folder / f"start-{turn}", 2, 1)
        began, program = time.monotonic(), BIN / "knowmine-server"
        with running(folder / "start.log", program, "run", home):
            log = home.parent / "run" / "run.log.jsonl"
            until_said(log, "listening")
            servers.append(time.monotonic() - began)
            file = folder / f"start-{turn}" / f"home-{name}" / "client.yaml"
            began = time.monotonic()
            with running(folder / "site.log", BIN / "knowmine-client", "run", file):
                until_said(file.parent / "state" / "site.log.jsonl", '"joined"')
                sites.append(time.monotonic() - began)
        port, began = free_port(), time.monotonic()
        with running(
            folder / "stock.log", BIN / "flower-superlink", "--insecure",
            "--port", port, "--host", "127.0.0.1",
            "--control-api-address", f"127.0.0.1:{free_port()}",
            environment=quiet_environment(folder),
        ):  # fmt: skip
            until_open(port)
            stock.append(time.monotonic() - began)
    print("starts", servers, sites, stock, flush=True)
    return [
        row("start of the server until it listens", servers, stock, "s", note="goal 3 s"),
        row("start of a site until it has joined", sites, [], "s", note="goal 3 s"),
    ]


@contextmanager
def running(
    log: Path, *command: Any, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program and all that it starts, until the end of the block; a module runs by Python."""
    words = [str(word) for word in command]
    if words[0] == "-m":
        words = [sys.executable, *words]
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env=environment, cwd=HERE.parent,
        )  # fmt: skip
        try:
            yield process
        finally:
            for how in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, how)
                    process.wait(10)


def children(pid: int) -> list[int]:
    """All processes below `pid`."""
    found = [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]
    return found + [below for child in found for below in children(child)]


def until_open(port: int) -> None:
    """Return once somebody listens there."""
    last = time.monotonic() + 60
    while time.monotonic() < last:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise SystemExit(f"nobody listens on port {port}")


def until_said(log: Path, word: str) -> None:
    """Return once `word` is in a log."""
    last = time.monotonic() + 60
    while time.monotonic() < last:
        if log.exists() and word in log.read_text():
            return
        time.sleep(0.02)
    raise SystemExit(f"{log} does not say {word}")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
