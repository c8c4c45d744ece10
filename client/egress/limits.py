"""Limit how far weights may have moved and how few cases a number may be about."""

import math
from dataclasses import dataclass, replace

import numpy as np

from knowmine.shared.checks import Door
from knowmine.shared.protocol import Calibration, Hello, Mined, Scores, Update
from knowmine.shared.weights import Array, Manifest, Weights

MAX_STEPS = 100_000
"""Most batches that batch norm can count in one round."""
PIECE = 65_536
"""Elements that are compared at once."""
STATISTICS = ("running_mean", "running_var")
"""Batch norm's statistics: they follow the images' range, not an optimiser's steps."""


@dataclass(frozen=True)
class Move:
    """How far trained weights moved: the norm over all, the largest single change, its tensor."""

    norm: float = 0.0
    largest: float = 0.0
    where: str = ""


def move_of(weights: Weights, sent: Weights) -> Move:
    """The move from the weights that were sent to those that would leave."""
    squares, largest, where = 0.0, 0.0, ""
    for name, array in weights.items():
        if not _is_trained(name, array):
            continue
        after, before = array.reshape(-1), sent[name].reshape(-1)
        for start in range(0, after.size, PIECE):  # a piece stays in the processor's cache
            piece = slice(start, start + PIECE)
            change = np.subtract(after[piece], before[piece], dtype=np.float64)
            squares += float(np.vdot(change, change))
            if (most := max(float(change.max()), -float(change.min()))) > largest:
                largest, where = most, name
    return Move(math.sqrt(squares), largest, where)


def check_move(
    door: Door, weights: Weights, sent: Weights, *, max_norm: float, max_change: float
) -> None:
    """Refuse weights that moved farther than the policy allows, and counters that jumped."""
    repair = "lower training.learning_rate, or raise the limit in policy.yaml if this is honest"
    move = move_of(weights, sent)
    # NaN and infinity were refused before; not <= would catch them here too.
    if not move.largest <= max_change:
        raise door.refuse(
            move.where, f"a change of {move.largest:.4g}", f"at most {max_change:g}", repair
        )
    if not move.norm <= max_norm:
        raise door.refuse(
            "weights", f"an update of norm {move.norm:.4g}", f"at most {max_norm:g}", repair
        )
    for name, array in weights.items():
        if array.dtype.kind in "iu" and array.size:
            steps = array.astype(np.int64) - sent[name].astype(np.int64)
            if steps.min() < 0 or steps.max() > MAX_STEPS:
                raise door.refuse(
                    name,
                    f"a counter that moved by {steps.min()} to {steps.max()}",
                    f"0 to {MAX_STEPS}",
                    "its batch-norm state is damaged; start the site again",
                )


def check_sent(door: Door, sent: Weights, manifest: Manifest) -> None:
    """Refuse weights from the server that are not the installed model's: no limit fits them."""
    door.names(sent, manifest)
    for name, spec in manifest.items():
        door.shape(name, np.asarray(sent[name]), spec)
        door.dtype(name, np.asarray(sent[name]), spec)
        door.finite(name, np.asarray(sent[name]))
        door.bounded(name, np.asarray(sent[name]))


def suppress_hello(hello: Hello, fewest: int) -> Hello:
    """Replace counts below `fewest` by 0."""
    return replace(
        hello,
        labelled=_many(hello.labelled, fewest),
        unlabelled=_many(hello.unlabelled, fewest),
        calibration=_many(hello.calibration, fewest),
        test=_many(hello.test, fewest),
    )


def suppress_scores(scores: Scores, fewest: int) -> Scores:
    """Leave out sums over fewer images than `fewest`, as if there were no such images."""
    sums = scores.calibration
    sums = sums if sums.images >= fewest else Calibration()
    sums = replace(
        sums,
        empty=_many(sums.empty, fewest),
        empty_predicted=_many(sums.empty_predicted, fewest),
        empty_right=_many(sums.empty_right, fewest),
    )
    if scores.test_images < fewest:
        return Scores(scores.round, 0, 0.0, 0.0, 0.0, sums)
    return replace(scores, calibration=sums)


def suppress_update(update: Update, fewest: int, sent: Weights) -> Update:
    """Replace counts below `fewest` by 0.

    If all images together are fewer, the weights that were sent go back with zeros. By the
    protocol this says that the site had nothing to train on.
    """
    if 0 < update.labelled + update.pseudo_labelled < fewest:
        return Update(update.round, sent, 0, 0, 0.0, update.seconds)
    mined = update.mined
    if mined.kept + mined.dropped < fewest:
        mined = Mined(gate=mined.gate, fuse_weight=mined.fuse_weight)
    return replace(
        update,
        labelled=_many(update.labelled, fewest),
        pseudo_labelled=_many(update.pseudo_labelled, fewest),
        mined=replace(
            mined,
            kept=_many(mined.kept, fewest),
            dropped=_many(mined.dropped, fewest),
            empty=_many(mined.empty, fewest),
        ),
    )


def _many(count: int, fewest: int) -> int:
    return count if count >= fewest else 0


def _is_trained(name: str, array: Array) -> bool:
    return array.dtype.kind == "f" and not name.endswith(STATISTICS)
