"""Answer the airlock's three questions, one at a time, and give no text of an error away.

An error crosses as one key of `REASONS`. Its text, which may name a file, stays here.
"""

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from knowmine.client.vault import airlock_pb2 as pb
from knowmine.client.vault import codec, framing
from knowmine.client.vault.sandbox import Isolation
from knowmine.shared.errors import Interrupted, KnowmineError, Refused, RunFailed, reason_of
from knowmine.shared.protocol import PROTOCOL
from knowmine.shared.settings import ModelSettings

if TYPE_CHECKING:  # torch comes with it, and is loaded only once the vault is isolated
    from knowmine.client.site.worker import Worker

T = TypeVar("T")

NEWS_S = 1.0
"""How long a question waits for the site to open before the courier has to ask again."""
TURN_S = 60.0
"""How long a task waits for the end of the one before, which its courier has given up."""


class _NotYet(Exception):
    """The site is not open."""


class Answers:
    """The vault's end of the airlock.

    It is also the site's `Progress`, so that work stops if the courier no longer waits for it.
    """

    def __init__(self, model: ModelSettings) -> None:
        """Questions wait until `open`."""
        self._model = model
        self._opened, self._turn = threading.Event(), threading.Lock()
        self._worker: Worker | None = None
        self._isolation = Isolation(False, False, False)
        self._awaited: Callable[[], bool] = lambda: True

    def open(self, worker: "Worker", isolation: Isolation) -> None:
        """Answer for this worker's site from now on."""
        self._worker, self._isolation = worker, isolation
        self._opened.set()

    def introduce(self, question: pb.Question, context: grpc.ServicerContext) -> pb.Introduction:
        """How many images the site has, and how the vault is isolated."""
        with _reasons_only(context):
            codec.check_protocol(question.protocol)
            worker = self._ready()
            hello = worker.hello()
            return pb.Introduction(
                protocol=PROTOCOL,
                model_fingerprint=codec.fingerprint(worker.manifest),
                labelled=hello.labelled,
                unlabelled=hello.unlabelled,
                calibration=hello.calibration,
                test=hello.test,
                isolation=pb.Isolation(**self._isolation._asdict()),
            )

    def improve(
        self, parts: Iterator[codec.TaskPart], context: grpc.ServicerContext
    ) -> Iterator[codec.UpdatePart]:
        """Read and check the whole task, train, and give the update back in chunks."""
        with _reasons_only(context):
            worker = self._ready()
            task = codec.unpack_train_task(_until_cut(parts), self._model, worker.manifest)
            with self._my_turn(context):
                update = worker.improve(task)
            del task
            yield from codec.pack_update(update, worker.manifest)

    def evaluate(self, parts: Iterator[codec.TaskPart], context: grpc.ServicerContext) -> pb.Scores:
        """Read and check the whole task, evaluate, and give the scores back."""
        with _reasons_only(context):
            worker = self._ready()
            task = codec.unpack_evaluate_task(_until_cut(parts), self._model, worker.manifest)
            with self._my_turn(context):
                return codec.pack_scores(worker.evaluate(task))

    # ------------------------------------------------------------ the site's Progress

    def start(self, step: str, total: int) -> None:
        """A step begins."""
        self.advance(0)

    def advance(self, n: int = 1) -> None:
        """Stop if the courier no longer waits for the answer."""
        if not self._awaited():
            raise Interrupted("the courier no longer waits for this task")

    def done(self) -> None:
        """A step ends."""

    # ------------------------------------------------------------ helpers

    def _ready(self) -> "Worker":
        if not self._opened.wait(NEWS_S):
            raise _NotYet
        assert self._worker is not None
        return self._worker

    @contextmanager
    def _my_turn(self, context: grpc.ServicerContext) -> Iterator[None]:
        if not self._turn.acquire(timeout=TURN_S):
            raise RunFailed("another task is under way; the vault takes one at a time")
        try:
            self._awaited = context.is_active
            yield
        finally:
            self._awaited = lambda: True
            self._turn.release()


def listen(answers: Answers, socket: Path) -> grpc.Server:
    """A server on a path socket in a folder that is ours alone."""
    handlers = grpc.method_handlers_generic_handler(
        codec.SERVICE,
        {
            "Introduce": grpc.unary_unary_rpc_method_handler(
                answers.introduce, framing.strictly(pb.Question), pb.Introduction.SerializeToString
            ),
            "Improve": grpc.stream_stream_rpc_method_handler(
                answers.improve, framing.strictly(pb.TaskPart), framing.serialised
            ),
            "Evaluate": grpc.stream_unary_rpc_method_handler(
                answers.evaluate, framing.strictly(pb.TaskPart), pb.Scores.SerializeToString
            ),
        },
    )
    server = grpc.server(
        ThreadPoolExecutor(4, "airlock"),
        maximum_concurrent_rpcs=4,
        options=[
            *codec.CHANNEL,
            ("grpc.max_metadata_size", 4096),
        ],
    )
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return server


@contextmanager
def _reasons_only(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn each error into a key of `REASONS`; its own text goes to the vault's standard error."""
    try:
        yield
    except GeneratorExit:
        raise
    except _NotYet:
        context.abort(grpc.StatusCode.UNAVAILABLE, "")
    except BaseException as error:  # noqa: BLE001 - any error's text could name a patient
        if isinstance(error, KnowmineError):
            text = f"{type(error).__name__}: {error}"
        else:
            text = "".join(traceback.format_exception(error))
        sys.stderr.write(f"vault: {text}\n")
        sys.stderr.flush()
        context.abort(grpc.StatusCode.ABORTED, reason_of(error))


def _until_cut(parts: Iterator[T]) -> Iterator[T]:
    """The parts as they come; gRPC's exceptions become ours."""
    try:
        yield from parts
    except grpc.RpcError as error:
        raise Refused(
            "a task that was cut off, or holds what airlock.proto does not list"
        ) from error
