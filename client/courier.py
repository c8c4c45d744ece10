"""The process that has the network: it starts the vault and asks it through the airlock.

`open_vault` is to be called before anything starts a thread: from then on this process cannot
read the images either. It is a `Worker`, so to the rest of the client it is a site like any
other.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from knowmine.client.isolation import Isolation, can_list, hide_folders
from knowmine.client.settings import ClientSettings
from knowmine.shared.errors import (
    REASONS,
    CannotWrite,
    DataError,
    Interrupted,
    KnowmineError,
    Refused,
    RunFailed,
    SettingsError,
    UsageError,
    WeightsError,
)
from knowmine.shared.log import RunLog
from knowmine.shared.protocol import PROTOCOL, EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.weights import Manifest, digest_of_manifest, write_atomically

T = TypeVar("T")

OPENING_S = 600.0
"""How long the vault may take to look at all images, at the start and after a death."""
ATTEMPTS = 2

_ERRORS: dict[str, type[KnowmineError]] = {
    "settings": SettingsError,
    "data": DataError,
    "weights": WeightsError,
    "usage": UsageError,
    "cannot-write": CannotWrite,
    "refused": Refused,
    "interrupted": Interrupted,
}


@contextlib.contextmanager
def open_vault(settings: ClientSettings, log: RunLog) -> Iterator["AirlockWorker"]:
    """Start the vault, give up the images, and give a `Worker` that asks the vault.

    Call it before any thread is started, and before torch is imported, which starts some: the
    kernel hides the images from threads that start later. Raises the error that the vault ended
    with, and `Refused` where `isolation: required` cannot be had.
    """
    folder = Path(tempfile.mkdtemp(prefix="knowmine-"))  # only its owner may enter
    settings.state.mkdir(parents=True, exist_ok=True)
    file, socket = folder / "settings.yaml", folder / "airlock"
    write_atomically(file, json.dumps(settings.model_dump(mode="json")).encode())
    command = [sys.executable, "-m", "knowmine.client.vault"]
    command += ["--settings", str(file), "--socket", str(socket)]
    # The vault ends when the other end of its standard input closes: with us, however we end.
    vault = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 - ours
    try:
        _give_up_images(settings, log)
        worker = AirlockWorker(socket, settings, alive=lambda: vault.poll())
        try:
            isolation = worker.isolation()
            missing = isolation.missing()
            log.event("vault", level="warning" if missing else "info", missing=missing)
            yield worker
        finally:
            worker.close()
    finally:
        vault.terminate()
        assert vault.stdin is not None
        vault.stdin.close()
        try:
            vault.wait(settings.stop_s + 10)
        except subprocess.TimeoutExpired:
            vault.kill()
            vault.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _give_up_images(settings: ClientSettings, log: RunLog) -> None:
    if settings.isolation == "off":
        return
    places = [settings.data, settings.data / "images", settings.data / "masks"]
    why_not = hide_folders(places)
    readable = can_list(settings.data)
    if settings.isolation == "required" and readable:
        raise Refused(
            f"isolation is required, and the courier still reads the images: {why_not}. Let the "
            "system give it Landlock (Linux 5.13), or set isolation: auto"
        )
    log.event("courier", level="warning" if readable else "info", reads_images=readable)


class AirlockWorker:
    """A `Worker` whose site is behind the airlock.

    alive: the vault's exit code, None while it runs.
    """

    def __init__(
        self, socket: Path, settings: ClientSettings, alive: Callable[[], int | None]
    ) -> None:
        """Open the channel; nothing is asked yet."""
        import grpc

        from knowmine.client import airlock
        from knowmine.client import airlock_pb2 as pb
        from knowmine.shared.unetplusplus import build_model, manifest_of_model

        self._grpc, self._airlock, self._pb = grpc, airlock, pb
        self._settings, self._alive = settings, alive
        # The manifest is built here from the site's own settings; nobody is believed about it.
        fresh = settings.model.model_copy(update={"pretrained": False})
        self.manifest: Manifest = manifest_of_model(build_model(fresh, seed=0))
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.max_receive_message_length", airlock.MESSAGE_BYTES),
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        name = f"/{airlock.SERVICE}/"
        self._introduce = self._channel.unary_unary(
            name + "Introduce", pb.Question.SerializeToString, airlock.strictly(pb.Introduction)
        )
        self._improve = self._channel.stream_stream(
            name + "Improve", pb.TaskPart.SerializeToString, airlock.strictly(pb.UpdatePart)
        )
        self._evaluate = self._channel.stream_unary(
            name + "Evaluate", pb.TaskPart.SerializeToString, airlock.strictly(pb.Scores)
        )

    def close(self) -> None:
        """Give up whatever is asked."""
        self._channel.close()

    def hello(self) -> Hello:
        """Who this site is and what it has; waits until the vault has opened it."""
        seen = self._introduction()
        return Hello(
            site=self._settings.site,
            protocol=PROTOCOL,
            model_digest=digest_of_manifest(self.manifest),
            labelled=seen.labelled,
            unlabelled=seen.unlabelled,
            probe=seen.probe,
            test=seen.test,
        )

    def isolation(self) -> Isolation:
        """How the vault is shut in, as it found when it tried."""
        shut = self._introduction().isolation
        return Isolation(shut.no_network, shut.no_sockets, shut.no_keys)

    def improve(self, task: TrainTask) -> Update:
        """One round in the vault."""
        self._same_model(task)

        def ask() -> Update:
            parts = self._airlock.pack_task(task, self.manifest)
            call = self._improve(parts, timeout=self._settings.task_s)
            return self._airlock.unpack_update(call, self.manifest)

        return self._answered(task.round, ask)

    def evaluate(self, task: EvaluateTask) -> Scores:
        """Score in the vault."""
        self._same_model(task)

        def ask() -> Scores:
            parts = self._airlock.pack_task(task, self.manifest)
            answer = self._evaluate(parts, timeout=self._settings.task_s)
            return self._airlock.unpack_scores(answer)

        return self._answered(task.round, ask)

    # ------------------------------------------------------------ helpers

    def _same_model(self, task: TrainTask | EvaluateTask) -> None:
        if task.plan.model != self._settings.model:
            raise Refused(
                f"the server asks for model {task.plan.model.model_dump()}, this site was set up "
                f"for {self._settings.model.model_dump()}: make the settings equal on both sides"
            )

    def _introduction(self) -> Any:
        """What the vault says of itself, as soon as it can."""
        give_up = time.monotonic() + OPENING_S
        question = self._pb.Question(protocol=PROTOCOL)
        while True:
            try:
                seen = self._introduce(question, timeout=2, wait_for_ready=True)
                break
            except self._grpc.RpcError as error:
                self._still_alive()
                patient = (
                    self._grpc.StatusCode.DEADLINE_EXCEEDED,
                    self._grpc.StatusCode.UNAVAILABLE,
                )
                if error.code() not in patient:
                    raise self._error_of(error) from None
                if time.monotonic() > give_up:
                    raise RunFailed(
                        f"the vault did not open the site within {OPENING_S:g} s; its messages "
                        "are on standard error"
                    ) from None
        self._airlock.check_protocol(seen.protocol)
        if seen.model_fingerprint != self._airlock.fingerprint(self.manifest):
            raise Refused("the vault has another model installed; start the site again")
        return seen

    def _answered(self, round_: int, ask: Callable[[], T]) -> T:
        """The answer to a task; a vault that dies over it is asked once more when it is back."""
        for attempt in range(ATTEMPTS):
            try:
                answer = ask()
            except self._grpc.RpcError as error:
                self._still_alive()
                died = error.code() == self._grpc.StatusCode.UNAVAILABLE
                if not died or attempt == ATTEMPTS - 1:
                    raise self._error_of(error) from None
                self._introduction()
                continue
            if (seen := answer.round) != round_:  # type: ignore[attr-defined]
                raise Refused(f"the vault answered for round {seen}; it was asked for {round_}")
            return answer
        raise AssertionError("every attempt returns or raises")

    def _still_alive(self) -> None:
        code = self._alive()
        if code is not None:
            kind = {2: UsageError, 4: Refused}.get(code, RunFailed)
            raise kind(f"the vault ended with {code}; what it said is on standard error")

    def _error_of(self, error: Any) -> KnowmineError:
        """Our error for gRPC's: of the vault's words only a key of `REASONS` is taken."""
        code, said = error.code(), error.details()
        if code == self._grpc.StatusCode.ABORTED and said in REASONS:
            kind = _ERRORS.get(said, RunFailed)
            return kind(f"the vault: {REASONS[said]}; what it said is on standard error")
        if code == self._grpc.StatusCode.DEADLINE_EXCEEDED:
            return RunFailed(
                f"a task took longer than task_s ({self._settings.task_s:g} s): give it more, or "
                "the site a faster machine"
            )
        if code == self._grpc.StatusCode.UNAVAILABLE:
            return RunFailed(f"the vault died {ATTEMPTS} times over one task; see standard error")
        return Refused(f"the airlock refused a message ({code.name})")
