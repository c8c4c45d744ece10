"""The device is what was asked for, and the precision suits it."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from knowmine.client.device import Compute, in_batches, memory_for, pick_compute, seeded, settle
from knowmine.shared.errors import RunFailed, UsageError

CPU = torch.device("cpu")


def test_auto_finds_something():
    """A GPU if there is one, else this CPU."""
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_compute("auto").device.type == expected


def test_a_cpu_gets_a_precision_that_it_is_good_at():
    """Whichever that is here, convolutions run in it."""
    compute = pick_compute("cpu")
    with compute.autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == compute.dtype


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        ("banana", "device 'banana' is not one; use auto, cpu, cuda or cuda:N"),
        ("meta", "device 'meta' is not supported"),
    ],
)
def test_other_devices_are_refused(device, complaint):
    """By name, with those that would do."""
    with pytest.raises(UsageError, match=complaint):
        pick_compute(device)


def test_a_missing_gpu_is_said_at_once():
    """Not in the middle of the first round."""
    if torch.cuda.is_available():
        assert pick_compute("cuda").device.type == "cuda"
        return
    with pytest.raises(UsageError, match="this machine has no usable GPU"):
        pick_compute("cuda:0")


class Cards:
    """GPUs as torch sees them: which of them it has code for, and which have bfloat16."""

    def __init__(self, monkeypatch, usable, half):
        self.usable, self.half, self.current = usable, half, 0
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device", self.entered)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", self.has_bfloat16)
        monkeypatch.setattr(torch, "ones", self.ones)

    @contextmanager
    def entered(self, device):
        """The one that is asked now; those that are not there cannot be."""
        if (device.index or 0) not in self.usable | self.half | {0}:
            raise AssertionError("Invalid device id")
        self.current = device.index or 0
        yield

    def has_bfloat16(self, including_emulation):
        return self.current in self.half

    def ones(self, count, device):
        if self.current not in self.usable:
            raise RuntimeError("CUDA error: no kernel image is available\nmore of it")
        return torch.zeros(count)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("auto", torch.bfloat16), ("cuda:0", torch.bfloat16), ("cuda:1", torch.float32)],
)
def test_a_gpu_gets_the_precision_that_it_has_itself(monkeypatch, device, dtype):
    """The older one beside a newer one too."""
    Cards(monkeypatch, usable={0, 1}, half={0})
    compute = pick_compute(device)
    assert (compute.device.type, compute.dtype) == ("cuda", dtype)


def test_a_gpu_that_torch_has_no_code_for_is_left_alone(monkeypatch, caplog):
    """With a line that says why."""
    Cards(monkeypatch, usable=set(), half=set())
    assert pick_compute("auto").device == CPU
    assert [record.getMessage() for record in caplog.records] == [
        "the GPU cannot be used, the CPU is: CUDA error: no kernel image is available"
    ]


@pytest.mark.parametrize(
    ("device", "reason"), [("cuda:0", "no kernel image"), ("cuda:7", "Invalid device id")]
)
def test_a_gpu_asked_for_by_name_has_to_work(monkeypatch, device, reason):
    """One that is too old, one that is not there."""
    Cards(monkeypatch, usable=set(), half=set())
    with pytest.raises(UsageError, match=rf"device {device} cannot be used \(.*{reason}"):
        pick_compute(device)


def test_seeded_draws_are_alike_and_leave_no_trace():
    """Whoever draws afterwards draws what they would have drawn."""
    before = torch.get_rng_state()
    with seeded(5, CPU):
        first = torch.rand(3)
    with seeded(5, CPU):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("device", "asked"), [("cpu", []), ("cuda:1", ["cuda:1"])])
def test_no_other_gpus_generator_is_asked(monkeypatch, device, asked):
    """A GPU that is there and cannot be used would end the round."""
    seen: list[str] = []

    def fork_rng(devices):
        seen.extend(map(str, devices))
        return nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with seeded(5, torch.device(device)):
        assert seen == asked


def test_full_precision_is_left_alone():
    """float32 means no autocast at all."""
    with Compute(CPU, torch.float32).autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_it_says_what_it_is():
    """As the log has it."""
    assert str(Compute(CPU, torch.bfloat16)) == "cpu in bfloat16"


def test_threads_are_limited_on_request():
    """0 leaves their number alone."""
    before = torch.get_num_threads()
    try:
        settle(1)
        assert torch.get_num_threads() == 1
        settle(0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


class Room:
    """A device with room for so many rows at once."""

    def __init__(self, most, error):
        self.most, self.error, self.seen = most, error, []

    def work(self, rows):
        """The rows, if they fit."""
        part = list(range(10))[rows]
        if len(part) > self.most:
            raise self.error
        self.seen.append(len(part))
        return part


SHORT = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Available memory of 1024 is smaller than requested bytes of 4096"),
]


@pytest.mark.parametrize("error", SHORT, ids=["GPU", "CPU", "Python", "driver", "library", "ONNX"])
def test_where_memory_is_short_batches_are_halved_and_it_is_said_once(error, caplog):
    """Nothing is left out or done twice, and what fitted is not tried larger again."""
    room = Room(3, error)
    found = [row for part in in_batches(10, 4, room.work) for row in part]
    assert found == list(range(10)) and room.seen == [2, 2, 2, 2, 2]
    assert [record.message for record in caplog.records] == [
        "memory is short: batches of 2 from here"
    ]


def test_a_mistake_is_not_taken_for_short_memory():
    """It comes out as it is."""
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches(10, 4, Room(0, RuntimeError("shapes differ")).work))


def test_memory_too_short_for_training_says_what_to_do():
    """A batch is not halved in silence: that would be another training."""
    with pytest.raises(RunFailed, match=r"too short for a batch.*or ask for less"):  # noqa: SIM117
        with memory_for("a batch", "ask for less"):
            raise SHORT[0]
