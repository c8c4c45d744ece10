"""The process that sees the images: it has no network and answers only through the airlock.

    python -m knowmine.client.vault.process --settings client.yaml --socket FOLDER/airlock

These are two processes, a parent and its child. The keeper loads no data. It has SAM's weights
fetched while there is a network, leaves the network, gives up the private keys, and starts the
worker, again if it dies. The worker listens on the socket, has the kernel refuse it any other
socket, and only then opens the first image. Both end with the courier, which holds the other end
of the keeper's standard input.
"""

import argparse
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from knowmine.client.settings import ClientSettings
from knowmine.client.vault.sandbox import (
    die_with_parent,
    hide_folders,
    keep_to_one_thread,
    leave_network,
    measured,
    refuse_sockets,
)
from knowmine.shared.errors import DataError, KnowmineError, Refused
from knowmine.shared.settings import read_settings

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
"""Pauses before a dead worker is started again; each is twice as long as the last."""
LIVED_S = 60.0
"""After a worker that lived this long, the pauses start from the first again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the keeper or the worker; return the exit code."""
    keep_to_one_thread()
    parser = argparse.ArgumentParser(description="the site's process that sees the images")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--part", choices=("keep", "fetch", "work"), default="keep")
    parser.add_argument("--remove", type=Path, help="the courier's folder, removed at the end")
    given = parser.parse_args(arguments)
    try:
        settings = read_settings(ClientSettings, given.settings, {})
        if given.part == "work":
            return work(settings, given.socket)
        if given.part == "fetch":
            return fetch(settings)
        command = [sys.executable, "-m", "knowmine.client.vault.process"]
        command += ["--settings", str(given.settings), "--socket", str(given.socket)]
        try:
            return keep(command, settings)
        finally:
            if given.remove:
                shutil.rmtree(given.remove, ignore_errors=True)
    except KnowmineError as error:
        _say(str(error))
        return error.exit_code


# ------------------------------------------------------------------------------ the keeper


def keep(command: list[str], settings: ClientSettings) -> int:
    """Isolate this process, then keep a worker running until the courier ends.

    command: runs this module; `--part` is added to it.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the courier handles the terminal's Ctrl-C
    if not settings.data.is_dir():
        raise DataError(f"no data folder at {settings.data}: correct `data` in the settings")
    subprocess.run([*command, "--part", "fetch"], stdin=subprocess.DEVNULL, check=False)  # noqa: S603 - ours
    if settings.isolation != "off":
        # Before the first thread starts, and before anything is read that could be hostile.
        for why_not in (leave_network(), hide_folders([settings.keys])):
            if why_not:
                _say(f"the vault has {why_not}")
    pause = FIRST_PAUSE_S
    while True:
        started = time.monotonic()
        worker = subprocess.Popen([*command, "--part", "work"], stdin=subprocess.DEVNULL)  # noqa: S603 - ours
        code = _watch(worker, stop, settings.stop_s)
        if code is None:
            return 0
        if code in (2, 4):  # its settings or its data would be just as wrong next time
            return code
        if time.monotonic() - started > LIVED_S:
            pause = FIRST_PAUSE_S
        _say(f"the vault's worker ended with {code}; it is started again in {pause:g} s")
        if _courier_left(pause) or stop.is_set():
            return 0
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _watch(worker: "subprocess.Popen[bytes]", stop: threading.Event, stop_s: float) -> int | None:
    """The worker's exit code, or None if the courier ended or asked us to stop."""
    while worker.poll() is None:
        if not (_courier_left(0.2) or stop.is_set()):
            continue
        worker.terminate()
        try:
            worker.wait(stop_s + 5)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        return None
    return worker.returncode


def _courier_left(patience_s: float) -> bool:
    """Whether the courier closed its end of our standard input."""
    ready, _, _ = select.select([0], [], [], patience_s)
    return bool(ready) and not os.read(0, 4096)


# ------------------------------------------------------------------------------ before


def fetch(settings: ClientSettings) -> int:
    """Put SAM's weights on disk; a method that needs none works without them.

    This also makes the cache folder: one made later, beside a hidden folder, could not be read.
    """
    from knowmine.client.paths import cache_of
    from knowmine.client.sam.weights import find_weights

    cache = cache_of(settings.sam)
    cache.mkdir(parents=True, exist_ok=True)
    find_weights(settings.sam.weights, cache)
    return 0


# ------------------------------------------------------------------------------ the worker


def work(settings: ClientSettings, socket: Path) -> int:
    """Listen, refuse new sockets, open the site, and answer until asked to stop."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imported here because they start threads, which the keeper must not have.
    from knowmine.client.vault.gpu import start_driver
    from knowmine.client.vault.responses import Answers, listen

    answers = Answers(settings.model)
    server = listen(answers, socket)
    try:
        start_driver(settings.machine.device)  # it opens a socket of its own
        if settings.isolation != "off" and (why_not := refuse_sockets()):
            _say(f"the vault has {why_not}")
        isolation = measured(settings.keys)
        if settings.isolation == "required" and (missing := isolation.missing()):
            raise Refused(
                f"isolation is required, and the vault is not isolated: {'; '.join(missing)}. "
                "Allow user namespaces and Landlock on this system, or set isolation: auto"
            )
        # All that is loaded and read from here on is isolated.
        from knowmine.client.site.open import open_site_of
        from knowmine.client.site.worker import SiteWorker

        answers.open(SiteWorker(open_site_of(settings, answers)), isolation)
        # Until here SIGTERM ends us at once; from here a task may continue for stop_s.
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        stop.wait()
        server.stop(settings.stop_s).wait()
    finally:
        server.stop(0)
    return 0


def _say(line: str) -> None:
    """Write to standard error, which the courier's service keeps at the site."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
