"""The vault's end of the airlock stays shut and goes on answering, whatever is thrown at it."""

import threading
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from knowmine.client.settings import ClientSettings
from knowmine.client.vault import airlock_pb2 as pb
from knowmine.client.vault import codec, framing
from knowmine.client.vault.requests import AirlockWorker
from knowmine.client.vault.responses import Answers, listen
from knowmine.client.vault.sandbox import Isolation
from knowmine.shared.errors import DataError, Interrupted, KnowmineError, Refused, RunFailed
from knowmine.shared.log import Progress, Silent
from knowmine.shared.protocol import PROTOCOL, EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.settings import ModelSettings, Plan
from knowmine.shared.weights import manifest_of

WEIGHTS = {"head.weight": np.ones(5, np.float32)}
MANIFEST = manifest_of(WEIGHTS)
TASK = TrainTask(1, 3, Plan(), WEIGHTS)
IMPROVE = f"/{codec.SERVICE}/Improve"
SETTINGS = ClientSettings.model_validate(
    {
        "federation": "trial",
        "site": "lyon",
        "network": {"server": "localhost:1"},
        "data": Path("data"),
        "task_s": 20,
    }
)


class Echo:
    """A worker that gives back what it gets; `error` is raised instead, `hold` is waited for."""

    manifest = MANIFEST

    def __init__(self):
        self.error, self.rounds = None, []
        self.hold, self.begun, self.stopped = None, threading.Event(), threading.Event()
        self.progress: Progress = Silent()

    def hello(self):
        return Hello("lyon", PROTOCOL, "0" * 64, 10, 20, 2, 5)

    def improve(self, task):
        self.rounds.append(task.round)
        if self.error is not None:
            raise self.error
        if self.hold is not None:
            self.begun.set()
            try:
                while not self.hold.wait(0.01):
                    self.progress.advance()
            except Interrupted:
                self.stopped.set()
                raise
        return Update(task.round, task.weights, 4, 2, 0.5, 1.5)

    def evaluate(self, task):
        return Scores(task.round, 5, 4.0, 3.0, 9.0)


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def socket(tmp_path, echo):
    """A vault's path socket; what answers is the real thing, but for the images behind it."""
    answers = Answers(ModelSettings())
    echo.progress = answers
    server = listen(answers, tmp_path / "airlock")
    answers.open(echo, Isolation(True, True, True))
    yield tmp_path / "airlock"
    server.stop(0).wait()


@pytest.fixture
def courier(socket):
    """The courier's end."""
    with AirlockWorker(socket, SETTINGS, MANIFEST, lambda: None) as worker:
        yield worker


@pytest.fixture
def raw(socket):
    """A hostile courier: it sends any bytes, of any length."""
    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"unix:{socket}", options=unlimited) as channel:
        yield lambda parts: list(channel.stream_stream(IMPROVE)(iter(parts), timeout=60))


def wired(task=TASK):
    """A task's messages as bytes."""
    return [framing.serialised(part) for part in codec.pack_task(task, MANIFEST)]


def test_the_three_questions_are_answered(courier):
    """As a worker in this process would; only the site's own name is the courier's to say."""
    assert courier.hello().labelled == 10
    assert courier.isolation() == Isolation(True, True, True)
    update = courier.improve(TASK)
    assert (update.round, update.weights["head.weight"].tolist()) == (1, [1.0] * 5)
    assert courier.evaluate(EvaluateTask(1, 3, Plan(), WEIGHTS)).dice == 4.0


def test_another_model_is_refused_before_anything_crosses(courier, echo):
    """The courier knows what is installed."""
    other = Plan(model=ModelSettings(encoder="../../etc/passwd"))
    with pytest.raises(Refused, match="asks for model"):
        courier.improve(replace(TASK, plan=other))
    assert echo.rounds == []


@pytest.mark.parametrize(("round_", "rounds"), [(0, 0), (1, 0), (4, 3), (1, 10**6), (-1, 3)])
def test_a_run_that_has_no_end_or_no_round_is_refused(courier, echo, round_, rounds):
    """A malicious server's run for ever, and its task of none."""
    with pytest.raises(Refused):
        courier.improve(replace(TASK, round=round_, rounds=rounds))
    assert echo.rounds == []


def test_a_message_of_a_gigabyte_is_refused_unread(raw, courier):
    """GRPC refuses it by its announced length; the vault goes on answering."""
    with pytest.raises(grpc.RpcError) as refused:
        raw([wired()[0], bytes(10**9)])
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert courier.improve(TASK).round == 1


@pytest.mark.parametrize("content", [b"\xff" * 9, b"\x0a\x02\x0a\x00", b"\xfa\x01\x01x"])
def test_bytes_that_are_no_message_are_refused(raw, courier, echo, content):
    """Nothing reaches the site's worker, and the vault goes on answering."""
    with pytest.raises(grpc.RpcError):
        raw([content])
    assert echo.rounds == []
    assert courier.improve(TASK).round == 1


def test_a_task_that_is_cut_off_is_refused(raw, echo):
    """Half of the weights train nothing."""
    with pytest.raises(grpc.RpcError) as refused:
        raw(wired()[:1])
    assert (refused.value.details(), echo.rounds) == ("refused", [])


def test_a_thousand_messages_at_once_do_not_silence_the_vault(raw, socket, courier):
    """A flood of tiny chunks ends at the first, a flood of questions at the fourth."""
    tiny = pb.TaskPart(weights=pb.Chunk(tensor=0, data=b"\0")).SerializeToString()
    with pytest.raises(grpc.RpcError):
        raw([wired()[0], *[tiny] * 1000])
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        ask = channel.unary_unary(f"/{codec.SERVICE}/Introduce")
        calls = [ask.future(pb.Question(protocol=9).SerializeToString()) for _ in range(1000)]
        said = {call.exception(timeout=60).code() for call in calls}
    assert said <= {grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert courier.improve(TASK).round == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("/data/images/mueller-anna.png is damaged"), DataError),
        (OSError(28, "no space", "/data/images/mueller-anna.png"), KnowmineError),
        (KeyError("mueller-anna"), RunFailed),
    ],
)
def test_no_word_of_an_error_leaves_the_vault(courier, echo, error, kind, capfd):
    """The courier hears a reason of a closed list; the text stays on the vault's side."""
    echo.error = error
    with pytest.raises(kind) as told:
        courier.improve(TASK)
    assert "mueller" not in str(told.value)
    assert "mueller" in capfd.readouterr().err


def test_a_task_that_takes_too_long_is_given_up_on_both_sides(socket, echo):
    """The courier says so, and the vault stops its work."""
    echo.hold = threading.Event()
    settings = SETTINGS.model_copy(update={"task_s": 0.5})
    with (
        AirlockWorker(socket, settings, MANIFEST, lambda: None) as courier,
        pytest.raises(RunFailed, match="task_s"),
    ):
        courier.improve(TASK)
    assert echo.stopped.wait(10)


def test_tasks_take_turns(courier, echo):
    """The second begins when the first has ended."""
    echo.hold = threading.Event()
    first = threading.Thread(target=courier.improve, args=(TASK,))
    first.start()
    assert echo.begun.wait(10)
    second = threading.Thread(target=courier.improve, args=(replace(TASK, round=2),))
    second.start()
    seen = list(echo.rounds)
    echo.hold.set()
    first.join(20)
    second.join(20)
    assert (seen, echo.rounds) == ([1], [1, 2])


def test_another_installed_model_is_found_at_the_introduction(socket):
    """Both ends compare a number that follows from the tensors' names, shapes and dtypes."""
    other = manifest_of({"head.weight": np.ones(6, np.float32)})
    with (
        AirlockWorker(socket, SETTINGS, other, lambda: None) as courier,
        pytest.raises(Refused, match="another model installed"),
    ):
        courier.hello()
