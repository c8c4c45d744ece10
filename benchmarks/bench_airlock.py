"""What the hop between courier and vault costs: 104 MB of weights there and back.

    python -m benchmarks.bench_airlock [--quick]

Two processes, the real airlock on a path socket: the server's end shut in as a vault's worker is,
every tensor checked on arrival at both ends. The worker behind it gives back what it is sent, so
that nothing but the hop is timed. One thread, for a process that has several may not leave the
network. Median of the repeats, to benchmarks/results/airlock.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import arguments
from knowmine.client.settings import ClientSettings
from knowmine.client.vault.codec import CHUNK_BYTES
from knowmine.client.vault.responses import Answers, listen
from knowmine.client.vault.sandbox import leave_network, measured, refuse_sockets
from knowmine.shared.protocol import PROTOCOL, EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.settings import ModelSettings, Plan
from knowmine.shared.weights import Manifest, bytes_of, manifest_of

RESULT = Path(__file__).parent / "results" / "airlock.json"
REPEATS, TENSORS, NUMBERS = 15, 400, 65_000
"""400 tensors of 65 000 float32: 104 MB, as many tensors as a U-Net++ has."""
LIMIT_S = 0.3


class Echo:
    """A `Worker` that does no work."""

    def __init__(self, manifest: Manifest) -> None:
        """Behind the airlock of this manifest."""
        self.manifest = manifest

    def hello(self) -> Hello:
        """A site with one image of each kind."""
        return Hello("echo", PROTOCOL, "0" * 64, 1, 1, 1, 1)

    def improve(self, task: TrainTask) -> Update:
        """The weights as they came."""
        return Update(task.round, task.weights, 1, 0, 0.0, 0.0)

    def evaluate(self, task: EvaluateTask) -> Scores:
        """Nothing to score."""
        return Scores(task.round, 0, 0.0, 0.0, 0.0)


def main() -> None:
    """Start the other end, send and receive, write the result."""
    parser = arguments(__doc__, "the same")
    parser.add_argument("--vault", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    socket = options.vault
    rng = np.random.default_rng(0)
    weights = {
        f"tensor.{place:03d}": rng.standard_normal(NUMBERS, np.float32) for place in range(TENSORS)
    }
    if socket is not None:
        serve(socket, manifest_of(weights))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "airlock"
        command = [sys.executable, "-m", "benchmarks.bench_airlock", "--vault", str(path)]
        # As the vault's own entry point does: a process with several threads gets no namespace.
        one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        vault = subprocess.Popen(command, stdin=subprocess.PIPE, env=one_thread)
        try:
            seconds, isolation = measure(path, TrainTask(1, 1, Plan(), weights))
        finally:
            vault.kill()
            vault.wait()
    result = {
        "name": "airlock",
        "command": "OMP_NUM_THREADS=1 python -m benchmarks.bench_airlock",
        "machine": f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        "bytes_each_way": bytes_of(weights),
        "chunk_bytes": CHUNK_BYTES,
        "vault_shut_in": isolation,
        "median_s": round(statistics.median(seconds), 3),
        "spread_s": [round(min(seconds), 3), round(max(seconds), 3)],
        "limit_s": LIMIT_S,
    }
    if not options.quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def serve(socket: Path, manifest: Manifest) -> None:
    """The vault's end, until killed."""
    leave_network()
    answers = Answers(ModelSettings())
    server = listen(answers, socket)
    refuse_sockets()
    answers.open(Echo(manifest), measured(socket.parent / "nowhere"))
    server.wait_for_termination()


def measure(socket: Path, task: TrainTask) -> tuple[list[float], dict[str, bool]]:
    """Seconds of each hop, and how the vault is shut in."""
    from knowmine.client.vault.requests import AirlockWorker

    settings = ClientSettings.model_validate(
        {"federation": "x", "site": "x", "network": {"server": "x:1"}, "data": Path("x")}
    )
    seconds = []
    with AirlockWorker(socket, settings, manifest_of(task.weights), lambda: None) as worker:
        isolation = worker.isolation()._asdict()
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            worker.improve(task)
            seconds.append(time.perf_counter() - started)
    return seconds[1:], isolation


if __name__ == "__main__":
    main()
