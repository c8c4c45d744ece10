"""What each round of a run does: which rounds mine, on which images, at which learning rate."""

import hashlib

from knowmine.client.data.image_set import ImageSet
from knowmine.shared.settings import Plan

CALIBRATION_ROUNDS = 1
"""First rounds that do not train on the calibration set. Labels are few: once it has measured the
pseudo-labels, it is worth more as labels (docs/findings.md)."""


def is_mining_round(plan: Plan, round_: int, rounds: int) -> bool:
    """Whether round `round_` of `rounds` makes pseudo-labels."""
    return plan.method != "supervised" and round_ > plan.mining.warm_up(rounds)


def measures(plan: Plan, round_: int, rounds: int) -> bool:
    """Whether round `round_` of `rounds` measures on the calibration set, and so leaves it out of
    training. The last round never does.
    """
    return plan.method == "knowmine" and round_ <= CALIBRATION_ROUNDS and round_ < rounds


def part_of_run(round_: int, rounds: int) -> tuple[float, float]:
    """Where in the run round `round_` begins and ends, in [0, 1].

    >>> part_of_run(1, 4)
    (0.0, 0.25)
    """
    return (round_ - 1) / rounds, round_ / rounds


def images_of_round(images: ImageSet, plan: Plan, round_: int, rounds: int) -> ImageSet:
    """This round's images to mine: a window that moves over one shuffle of them all.

    Each image comes once before any comes twice. The shuffle depends on seed and case id alone.
    """
    count = min(plan.mining.images or len(images), len(images))
    rows = range(len(images))
    shuffled = sorted(rows, key=lambda i: seed_for(plan.seed, "mine", images.cases[i].case_id))
    start = (round_ - plan.mining.warm_up(rounds) - 1) * count
    return images.at(sorted(shuffled[(start + i) % len(images)] for i in range(count)))


def seed_for(seed: int, purpose: str, name: str, round_: int = 0) -> int:
    """A random number that depends on its arguments alone, on any machine and in any order."""
    text = f"{seed}|{purpose}|{name}|{round_}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:7])
