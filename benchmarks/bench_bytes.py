"""Bytes and seconds of one update in each form, for the default U-Net++ after a little training.

    python -m benchmarks.bench_bytes [--quick]

The update is what three steps of AdamW on random images make of the model; theirs is the same
update as Flower sends it, float32 tensors whole. Seconds are those of packing and unpacking.
Writes benchmarks/results/bytes.json and its rows in docs/performance.md.
"""

import time
from typing import Any

import torch

from benchmarks.measuring import arguments, machine, row, write
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import bytes_of
from knowmine.shared.wire.changes import Form, pack_change, unpack_change

STEPS = 3


def main() -> None:
    """Train a little, then pack the change in each form."""
    quick = arguments(__doc__, "the same").parse_args().quick
    where = machine()
    model = build_model(ModelSettings(), 0)
    before = {name: value.copy() for name, value in weights_of(model).items()}
    train(model)
    after = weights_of(model)
    rows = [measured(form, before, after) for form in ("bf16", "int8")]
    write("bytes", rows, where, quick=quick)


def train(model: torch.nn.Module) -> None:
    """A few steps on random images with a blob each."""
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-4)
    for _ in range(STEPS):
        images = torch.rand(2, 3, 96, 96)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(images), (images[:, :1] > 0.5).float()
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()


def measured(form: Form, before: Any, after: Any) -> dict[str, Any]:
    """One form against whole float32."""
    began = time.perf_counter()
    change = pack_change(after, before, form, {}, 0)
    unpack_change(change.data, before, form)
    seconds = time.perf_counter() - began
    goal = 4 if form == "int8" else 2
    whole = bytes_of(before) / 1e6
    note = f"{seconds:.2f} s to pack and unpack"
    return row(
        f"bytes of an update, {form}", [len(change.data) / 1e6], [whole], "MB", goal, note=note
    )


if __name__ == "__main__":
    main()
