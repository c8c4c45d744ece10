"""What one round did, as people and scripts read it in `RUN/rounds/`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from knowmine.shared.protocol import Calibration, Mined, Scores, Update
from knowmine.shared.trust.countersign import Head


class RoundRecord:
    """The counts, scores and refusals of one round, noted as they come."""

    def __init__(self, round_: int) -> None:
        self.round = round_
        self.seconds = 0.0
        self.bytes_down = self.bytes_up = 0
        self.updates: dict[str, dict[str, Any]] = {}
        self.mined: dict[str, Mined] = {}
        self.scores: dict[str, Scores] = {}
        self.refused: dict[str, str] = {}
        self.heads: Mapping[str, Head] = {}

    def take(self, site: str, update: Update) -> None:
        """Note an admitted update, without its weights."""
        self.updates[site] = {
            "labelled": update.labelled,
            "pseudo_labelled": update.pseudo_labelled,
            "loss": update.loss,
            "seconds": update.seconds,
        }
        self.mined[site] = update.mined

    def as_json(self, calibrations: Mapping[str, Calibration]) -> dict[str, Any]:
        """The record; `calibrations` are the sums that the next round uses, by site."""
        gates = {mined.gate for mined in self.mined.values()}
        pooled = pool(self.scores.values())
        return {
            "round": self.round,
            "seconds": round(self.seconds, 3),
            "sites": sorted(self.updates),
            **pooled,
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "mined": {
                "kept": sum(mined.kept for mined in self.mined.values()),
                "dropped": sum(mined.dropped for mined in self.mined.values()),
                "gate": gates.pop() if len(gates) == 1 else "mixed",
            },
            "per_site": {name: pool([s]) for name, s in sorted(self.scores.items())},
            "updates": dict(sorted(self.updates.items())),
            "mined_per_site": {name: asdict(m) for name, m in sorted(self.mined.items())},
            "refused": dict(sorted(self.refused.items())),
            # Published: an audit log that is cut short later no longer holds its checkpoint.
            "heads": {name: head._asdict() for name, head in sorted(self.heads.items())},
            "calibration": {name: asdict(c) for name, c in sorted(calibrations.items())},
        }


def pool(scores: Iterable[Scores]) -> dict[str, Any]:
    """Means over all test images of all sites; null if there are none."""
    scores = list(scores)
    images = sum(s.test_images for s in scores)
    means = {
        key: round(sum(getattr(s, key) for s in scores) / images, 6) if images else None
        for key in ("dice", "iou", "hd95")
    }
    return {**means, "test_images": images}
