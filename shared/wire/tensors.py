"""Weights as Flower records: packed once, read without a copy, whole or as a change."""

from collections.abc import Iterator, Mapping

from knowmine.shared.errors import Refused
from knowmine.shared.protocol import TrainTask
from knowmine.shared.weights import Array, Received, Weights
from knowmine.shared.wire import packing
from knowmine.shared.wire.changes import unpack_change
from knowmine.shared.wire.flower_objects import as_record

from flwr.app import ArrayRecord, RecordDict

STYPE = "safetensors"
"""What Flower's Array says of bytes that hold all tensors of a model."""
CHANGE = "knowmine-change"
"""What it says of a change to the weights that were sent, in the form that the plan names."""


class PackedWeights(Mapping[str, Array]):
    """Weights kept as the bytes that are sent; its arrays are read-only views of them.

    A server that keeps its model in this form has it in memory once, however many sites get it.
    """

    def __init__(self, weights: Weights) -> None:
        self.record = pack_weights(weights)
        self._views = _views_of(self.record)

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def pack_weights(weights: Weights) -> ArrayRecord:
    """Weights as a record; `PackedWeights` give the record that they are."""
    if isinstance(weights, PackedWeights):
        return weights.record
    return as_record(packing.pack(weights), STYPE)


def pack_change(change: bytes) -> ArrayRecord:
    """A packed change as a record, to be sent in place of an update's weights."""
    return as_record(change, CHANGE)


def unpack_weights(records: RecordDict) -> Weights:
    """The tensors of a task or an answer; raises for anything else."""
    return _views_of(records.array_records["weights"])


def unpack_answer(records: RecordDict, task: TrainTask | None) -> Weights:
    """An update's weights, sent whole or as a change of the task's weights."""
    (packed,) = records.array_records["weights"].values()
    if packed.stype != CHANGE:
        return unpack_weights(records)
    form = task.plan.transport.update if task else "none"
    if task is None or form == "none":
        raise Refused("an update comes as a change; the plan asks for whole weights")
    weights = Received(unpack_change(packed.data, task.weights, form))
    weights.sent_bytes = len(packed.data)
    return weights


def _views_of(record: ArrayRecord) -> dict[str, Array]:
    """The tensors as read-only views of the bytes that came: nothing is copied or unpickled."""
    (packed,) = record.values()
    if packed.stype != STYPE:
        raise Refused(f"weights come as {packed.stype!r}; expected {STYPE!r}")
    return packing.unpack(packed.data)
