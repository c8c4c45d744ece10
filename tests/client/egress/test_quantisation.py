"""What rounding takes from one update is in the next, whatever crashes between."""

import numpy as np
import pytest

from knowmine.client.egress.quantisation import Feedback
from knowmine.shared.errors import Refused
from knowmine.shared.protocol import TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.weights import sent_bytes_of
from knowmine.shared.wire import codec

BEFORE = {"w": np.zeros(50, np.float32)}
CHANGE = np.linspace(0, 1, 50, dtype=np.float32) ** 3
PLAN = Plan.model_validate({"transport": {"update": "int8"}})


def task(round_, plan=PLAN):
    return TrainTask(round_, 9, plan, BEFORE)


def packed(feedback, round_, plan=PLAN):
    update = Update(round_, {"w": CHANGE}, 8, 0, 0.5, 1.0)
    return feedback.pack(update, task(round_, plan), "int8")


def files(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.fixture(params=["disk", "memory"])
def feedback(request, tmp_path):
    return Feedback(tmp_path if request.param == "disk" else None)


def test_the_sum_of_rounds_is_right(feedback):
    """What is still missing after many is one round's residual."""
    rounds = [packed(feedback, r) for r in range(1, 31)]
    total = sum(made.weights["w"].astype(np.float64) for made in rounds)
    assert np.allclose(total + rounds[-1].residual["w"], 30 * CHANGE, atol=1e-4)


def test_a_round_that_is_asked_again_is_answered_alike(feedback):
    """A crash between packing and sending adds nothing twice."""
    packed(feedback, 1)
    assert packed(feedback, 2).data == packed(feedback, 2).data


def test_a_new_process_goes_on(tmp_path):
    """From what the one before left on disk."""
    for feedback in (alive := Feedback(), Feedback(tmp_path)):
        packed(feedback, 1)
    assert packed(Feedback(tmp_path), 2).data == packed(alive, 2).data


def test_half_a_file_is_not_believed(tmp_path):
    """The update begins without a residual, as in a first round."""
    packed(Feedback(tmp_path), 1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert packed(Feedback(tmp_path), 2).data == packed(Feedback(), 2).data


def test_another_runs_residual_is_left_out(tmp_path):
    """It belongs to another model's path."""
    other = PLAN.model_copy(update={"seed": 9})
    packed(Feedback(tmp_path), 1, other)
    assert packed(Feedback(tmp_path), 2).data == packed(Feedback(), 2).data


def test_two_files_are_kept_at_most(tmp_path):
    """This round's, and the one that it began from."""
    for round_ in range(1, 6):
        packed(Feedback(tmp_path), round_)
    assert files(tmp_path) == ["residual-000004.safetensors", "residual-000005.safetensors"]


def records(round_=1):
    change = packed(Feedback(), round_)
    update = Update(round_, change.weights, 8, 0, 0.5, 1.0)
    return change, codec.pack_reply(update, change.data)


def test_the_server_has_what_left_the_site():
    """Bit for bit, and knows what it took on the way."""
    change, sent = records()
    arrived = codec.unpack_update(sent, task(1)).weights
    assert np.array_equal(arrived["w"], change.weights["w"])
    assert sent_bytes_of(arrived) == len(change.data)


@pytest.mark.parametrize("asked", [None, task(1, Plan())])
def test_a_change_that_was_not_asked_for_is_refused(asked):
    """The plan says how updates travel."""
    with pytest.raises(Refused, match="the plan asks for whole weights"):
        codec.unpack_update(records()[1], asked)
