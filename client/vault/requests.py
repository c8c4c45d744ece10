"""Send tasks through the airlock: the courier's end, a `Worker` whose site is in the vault.

It accepts only the messages of airlock.proto, and of an error only a key of `REASONS`. Any other
text that the vault might send ends here.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from knowmine.client.settings import ClientSettings
from knowmine.client.vault import airlock_pb2 as pb
from knowmine.client.vault import codec, framing
from knowmine.client.vault.sandbox import Isolation
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
from knowmine.shared.protocol import PROTOCOL, EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import build_model, manifest_of_model
from knowmine.shared.weights import Manifest, digest_of_manifest

R = TypeVar("R", Update, Scores)

OPENING_S = 600.0
"""How long the vault may take to open the site, at the start and after it died."""
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


def installed_manifest(model: ModelSettings) -> Manifest:
    """The tensors of the site's model, from the site's own settings and no other source."""
    fresh = model.model_copy(update={"pretrained": False})
    return manifest_of_model(build_model(fresh, seed=0))


class AirlockWorker:
    """Sends tasks to the vault at `socket`.

    manifest: of the installed model. refuse_if_ended: raises the error that the vault ended with.
    """

    def __init__(
        self,
        socket: Path,
        settings: ClientSettings,
        manifest: Manifest,
        refuse_if_ended: Callable[[], None],
    ) -> None:
        """Open the channel; nothing is sent yet."""
        self.manifest = manifest
        self._settings, self._refuse_if_ended = settings, refuse_if_ended
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                *codec.CHANNEL,
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        name = f"/{codec.SERVICE}/"
        self._introduce = self._channel.unary_unary(
            name + "Introduce", pb.Question.SerializeToString, framing.strictly(pb.Introduction)
        )
        self._improve = self._channel.stream_stream(
            name + "Improve", framing.serialised, framing.strictly(pb.UpdatePart)
        )
        self._evaluate = self._channel.stream_unary(
            name + "Evaluate", framing.serialised, framing.strictly(pb.Scores)
        )

    def close(self) -> None:
        """Close the channel and give up any task that is under way."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hello(self) -> Hello:
        """The site's introduction; waits until the vault has opened the site."""
        seen = self._introduction()
        return Hello(
            site=self._settings.site,
            protocol=PROTOCOL,
            model_digest=digest_of_manifest(self.manifest),
            labelled=seen.labelled,
            unlabelled=seen.unlabelled,
            calibration=seen.calibration,
            test=seen.test,
        )

    def isolation(self) -> Isolation:
        """How the vault is isolated, as it found when it tested that."""
        shut = self._introduction().isolation
        return Isolation(shut.no_network, shut.no_sockets, shut.no_keys)

    def improve(self, task: TrainTask) -> Update:
        """Train one round in the vault."""
        self._same_model(task)

        def ask() -> Update:
            parts = codec.pack_task(task, self.manifest)
            call: Iterator[codec.UpdatePart] = self._improve(parts, timeout=self._settings.task_s)
            return codec.unpack_update(call, self.manifest)

        return self._answered(task.round, ask)

    def evaluate(self, task: EvaluateTask) -> Scores:
        """Evaluate in the vault."""
        self._same_model(task)

        def ask() -> Scores:
            parts = codec.pack_task(task, self.manifest)
            answer: pb.Scores = self._evaluate(parts, timeout=self._settings.task_s)
            return codec.unpack_scores(answer)

        return self._answered(task.round, ask)

    # ------------------------------------------------------------ helpers

    def _same_model(self, task: TrainTask | EvaluateTask) -> None:
        if task.plan.model != self._settings.model:
            raise Refused(
                f"the server asks for model {task.plan.model.model_dump()}, this site was set up "
                f"for {self._settings.model.model_dump()}: make the settings equal on both sides"
            )

    def _introduction(self) -> Any:
        """The vault's introduction, as soon as it gives one."""
        give_up = time.monotonic() + OPENING_S
        question = pb.Question(protocol=PROTOCOL)
        while True:
            try:
                seen = self._introduce(question, timeout=2, wait_for_ready=True)
                break
            except grpc.RpcError as error:
                self._refuse_if_ended()
                patient = (
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.StatusCode.UNAVAILABLE,
                )
                if error.code() not in patient:
                    raise self._error_of(error) from None
                if time.monotonic() > give_up:
                    raise RunFailed(
                        f"the vault did not open the site within {OPENING_S:g} s; its messages "
                        "are on standard error"
                    ) from None
        codec.check_protocol(seen.protocol)
        if seen.model_fingerprint != codec.fingerprint(self.manifest):
            raise Refused("the vault has another model installed; start the site again")
        return seen

    def _answered(self, round_: int, ask: Callable[[], R]) -> R:
        """The answer to a task; if the vault dies over it, ask once more when it is back."""
        for attempt in range(ATTEMPTS):
            try:
                answer = ask()
            except grpc.RpcError as error:
                self._refuse_if_ended()
                died = error.code() == grpc.StatusCode.UNAVAILABLE
                if not died or attempt == ATTEMPTS - 1:
                    raise self._error_of(error) from None
                self._introduction()
                continue
            if (seen := answer.round) != round_:
                raise Refused(f"the vault answered for round {seen}; it was asked for {round_}")
            return answer
        raise AssertionError("every attempt returns or raises")

    def _error_of(self, error: Any) -> KnowmineError:
        """Our error for gRPC's; of the vault's words only a key of `REASONS` is accepted."""
        code, said = error.code(), error.details()
        if code == grpc.StatusCode.ABORTED and said in REASONS:
            kind = _ERRORS.get(said, RunFailed)
            return kind(f"the vault: {REASONS[said]}; its messages are on standard error")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return RunFailed(
                f"a task took longer than task_s ({self._settings.task_s:g} s): raise task_s, or "
                "give the site a faster machine"
            )
        if code == grpc.StatusCode.UNAVAILABLE:
            return RunFailed(f"the vault died {ATTEMPTS} times over one task; see standard error")
        return Refused(f"the airlock refused a message ({code.name})")
