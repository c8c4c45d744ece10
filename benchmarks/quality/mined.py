"""How good the pseudo-labels of a finished run were, round by round, against the hidden truth.

    python -m benchmarks.quality.mined kvasir-10 --seed 0 --data kvasir-seg=KVASIR

Reads what a run of `benchmarks.quality.run` has left at its sites: of each image the newest round's
masks. Nothing is trained. A result goes to results/mined/.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.quality.experiment import (
    HERE,
    keep_result,
    pooled,
    read_experiment,
    read_split,
    site_data,
    split_file,
)
from benchmarks.quality.run import folders_of
from knowmine.client.data.scoring import Scorer
from knowmine.client.mining.fusion import dice_of
from knowmine.client.storage.pseudo_label_store import load_mined, load_pixels

READERS = ("unet", "sam", "label")


def main() -> None:
    """Score each round's masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    options = parser.parse_args()
    experiment = read_experiment(options.experiment)
    split = read_split(split_file(options.experiment, options.seed))
    split = pooled(split) if experiment.setting == "pooled" else split
    px = experiment.plan.model.image_px
    run = options.runs / f"{options.experiment}-knowmine-{options.seed}"
    rounds: dict[int, dict[str, list[float]]] = {}
    for name, site in split.items():
        _, hidden = site_data(name, site, folders_of(options.data), "knowmine")
        scorer, folder = Scorer(hidden, classes=1), run / "sites" / name
        for mined in load_mined(folder):
            truth = scorer.truth(mined.stem, px)
            if truth is None:
                continue
            pixels = load_pixels(folder, mined)
            # Where SAM was not asked, the U-Net++ stands alone.
            masks = (pixels.unet, pixels.unet if pixels.sam is None else pixels.sam, pixels.label)
            dice = dice_of(np.stack(masks)[:, None] > 0.5, np.stack([truth == 1] * 3)[:, None])
            of = rounds.setdefault(mined.round, {reader: [] for reader in READERS})
            for reader, value in zip(READERS, dice.tolist(), strict=True):
                of[reader].append(value)
    found = {
        "name": f"{options.experiment}-{options.seed}",
        "rounds": {
            str(round_): {
                "images": len(of["unet"]),
                **{reader: round(float(np.mean(of[reader])), 4) for reader in READERS},
            }
            for round_, of in sorted(rounds.items())
        },
    }
    keep_result(HERE / "results" / "mined" / f"{found['name']}.json", found)
    print(found)


if __name__ == "__main__":
    main()
