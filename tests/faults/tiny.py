"""Server and sites as processes of their own, with a model of a few numbers in place of torch.

    python -m tests.faults.tiny server FED/server.yaml [--numbers N] [--die MOMENT]
    python -m tests.faults.tiny site HOME/client.yaml [--numbers N] [--work SECONDS] [--fault NAME]

All but the arithmetic is the real thing: TLS, keys, Flower's messages, journal and locks.
"""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from knowmine.shared.errors import KnowmineError
from knowmine.shared.protocol import PROTOCOL, Hello, Scores, Update
from knowmine.shared.settings import read_settings
from knowmine.shared.weights import bytes_of_manifest, digest_of_manifest, manifest_of


def initial(numbers):
    """A model of so many float32, in tensors of a million; tensor n holds the number n.

    They differ, for Flower sends equal ones once.
    """
    parts: dict[str, np.ndarray] = {}
    while numbers > 0:
        number = len(parts)
        parts[f"layer{number}.weight"] = np.full(min(numbers, 1_000_000), number, np.float32)
        numbers -= 1_000_000
    return parts


class TinyWorker:
    """Adds 1 to every number. Says so in a file, once for each time that it really works."""

    def __init__(self, site, numbers, work_s, fault, diary):
        self._site, self._work_s, self._fault, self._diary = site, work_s, fault, diary
        self.manifest = manifest_of(initial(numbers))

    def hello(self):
        return Hello(self._site, PROTOCOL, digest_of_manifest(self.manifest), 8, 8, 2, 4)

    def improve(self, task):
        self._note(f"train {task.round}")
        time.sleep(self._work_s)
        weights = {name: value + np.float32(1) for name, value in task.weights.items()}
        labelled = 8
        if self._fault == "nan":
            next(iter(weights.values()))[0] = np.nan
        if self._fault == "shape":
            weights = {name: value[:-1] for name, value in weights.items()}
        if self._fault == "count":
            labelled = 10**12
        round_ = task.round - 1 if self._fault == "old" else task.round
        return Update(round_, weights, labelled, 0, 0.5, self._work_s)

    def evaluate(self, task):
        self._note(f"score {task.round}")
        return Scores(task.round, 4, 2.0, 1.0, 40.0)

    def _note(self, line):
        with self._diary.open("a") as file:
            file.write(f"{line}\n")


def serve(options):
    """The coordinator's process."""
    from knowmine.server.federation import run_federation
    from knowmine.server.settings import ServerSettings

    class Watch:
        def round_started(self, round_, rounds):
            print(f"begin {round_}", flush=True)

        def round_done(self, record):
            print(f"done {record['round']} {' '.join(record['sites'])}", flush=True)

    settings = read_settings(ServerSettings, options.settings, {})
    if options.die:
        die_at(*options.die.split())
    if options.fault:
        swell(options.fault)
    run_federation(settings, Watch(), lambda: initial(options.numbers))


def swell(how):
    """Have this server send 100 MB more with each task, in parts that differ or in one named often."""
    from knowmine.shared.wire import codec, tensors

    from flwr.app import Array, ArrayRecord

    size = 100_000_000
    data = {
        "swollen": lambda: np.random.default_rng(0).bytes(size),
        "repeated": lambda: bytes(size),
    }
    more = ArrayRecord({"all": Array("uint8", (size,), tensors.STYPE, data[how]())})
    real = codec.pack_tasks

    def swollen(*arguments):
        packed = real(*arguments)
        for records in packed.values():
            records["more"] = more
        return packed

    codec.pack_tasks = swollen


def die_at(moment, count):
    """End this process by kill -9 when it comes to the moment for the `count`-th time."""
    from knowmine.server import federation
    from knowmine.server.journal import journal
    from knowmine.server.rounds import aggregation, app, rounds

    owner, name, before = {
        "mean": (aggregation.RunningMean, "add", False),  # one update is in the mean
        "step": (rounds.ServerOptimiser, "step", True),  # all are
        "evaluate": (app.GridSites, "evaluate", True),
        "checkpoint": (journal, "digest_of", True),  # nothing of the round is on disk
        "record": (journal, "_save_json", True),  # the checkpoint is
        "committed": (journal.Journal, "commit_round", False),
        "finished": (journal.Journal, "finish", False),  # the model is there, the goodbye unsaid
        "goodbye": (federation.GridSites, "dismiss", False),  # said, and the summary unwritten
    }[moment]
    real, left = getattr(owner, name), [int(count)]

    def dying(*arguments, **more):
        left[0] -= 1
        if before and left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **more)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


def _anything(self, reply, asked, manifest):
    return reply


def take_part(options):
    """A site's process."""
    if options.fault:  # what must never leave: the guard is taken away to see the server's
        from knowmine.client.egress.porter import Porter

        Porter.let_out = _anything  # type: ignore[method-assign]
    from knowmine.client.federation.service import Resident
    from knowmine.client.settings import ClientSettings

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = read_settings(ClientSettings, options.settings, {})
    diary = options.diary or settings.state / "diary"
    worker = TinyWorker(settings.site, options.numbers, options.work, options.fault, diary)
    expected = bytes_of_manifest(worker.manifest)
    resident = Resident(settings, lambda: worker, weights_bytes=expected)
    print(resident.run(stop), flush=True)
    if resident.working:
        os._exit(130)


def main():
    """Run one of the two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("server", "site"))
    parser.add_argument("settings", type=Path)
    parser.add_argument("--numbers", type=int, default=1000)
    parser.add_argument("--work", type=float, default=0.0)
    parser.add_argument("--fault", default="")
    parser.add_argument("--diary", type=Path, help="elsewhere than in the site's state")
    parser.add_argument("--die", default="", help="moment and count, see die_at")
    options = parser.parse_args()
    try:
        serve(options) if options.role == "server" else take_part(options)
    except KnowmineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
