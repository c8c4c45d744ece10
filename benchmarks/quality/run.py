"""Run one experiment: every method on the same images, steps, batches and seeds.

    python -m benchmarks.quality.run kvasir --data kvasir-seg=FOLDER [--methods M ...]

It can be stopped at any time. Started again, it goes on after the last whole round. Each run of one
method, fraction of labels and seed ends in benchmarks/quality/results/EXPERIMENT/, from which
`tables` and `plot` make docs/results.md. No test mask is read before a model is scored.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.experiment import (
    HERE,
    Cell,
    Experiment,
    Split,
    keep,
    percent,
    prepared,
    read_experiment,
    site_data,
    split_of,
)
from knowmine.client.data.image_set import ImageSet
from knowmine.client.device import pick_compute, settle
from knowmine.client.mining.fusion import Gate, Predictions
from knowmine.client.mining.miner import Miner, Models, PseudoLabels, mine
from knowmine.client.mining.quality import Selection
from knowmine.client.settings import DataSettings, MachineSettings
from knowmine.client.site.open import opened, sam_opener
from knowmine.client.site.round import evaluate, improve
from knowmine.client.site.site import Site
from knowmine.server.journal.journal import Journal
from knowmine.server.rounds.rounds import run_rounds
from knowmine.shared.errors import KnowmineError, UsageError
from knowmine.shared.log import open_log
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.trust.countersign import Head
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import Weights

SAME_TRAINING = {
    "alone": "supervised",
    "supervised-all": "supervised",
    "oracle": "self-training",
}
"""Methods of experiments that train like a method of the product, on other data or masks."""


def main() -> None:
    """Run the cells that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--methods", nargs="+", help="default: all of the experiment")
    parser.add_argument("--labels", nargs="+", type=float, help="default: all of the experiment")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all of the experiment")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    settle(options.threads)
    name, experiment = options.experiment, read_experiment(options.experiment)
    chosen = {
        key: values for key in ("methods", "labels", "seeds") if (values := getattr(options, key))
    }
    experiment = experiment.model_validate({**experiment.model_dump(), **chosen})
    folders = prepared(experiment, folders_of(options.data), options.runs / name / "data")
    for cell in experiment.cells():
        result = options.results / name / f"{cell}.json"
        if not result.exists():
            file = HERE / "splits" / name / f"{percent(cell.labels)}-{cell.seed}.json"
            split = split_of(experiment, cell.labels, cell.seed, folders, file)
            home = options.runs / name / str(cell)
            keep(result, {"experiment": name, **run_cell(experiment, cell, split, folders, home)})


def folders_of(given: Iterable[str]) -> dict[str, Path]:
    """`NAME=FOLDER` arguments as a mapping."""
    pairs = [text.partition("=") for text in given]
    wrong = [name for name, _, folder in pairs if not folder]
    if wrong:
        raise UsageError(f"--data {wrong[0]}: expected NAME=FOLDER, as the experiment names it")
    return {name: Path(folder) for name, _, folder in pairs}


def run_cell(
    experiment: Experiment, cell: Cell, split: Split, folders: Mapping[str, Path], home: Path
) -> dict[str, Any]:
    """One method on one split, from where `home` has got to."""
    method, rounds = cell.method, experiment.run.rounds
    inner = "knowmine" if method in experiment.variants else SAME_TRAINING.get(method, method)
    mining = experiment.mining_with(experiment.variants.get(method, {}))
    plan = experiment.plan.model_copy(update={"method": inner, "seed": cell.seed, "mining": mining})
    open_sam = cache(sam_opener(experiment.sam, MachineSettings(), plan.model.image_px))

    def open_site(name: str, folder: Path) -> Site:
        folder.mkdir(parents=True, exist_ok=True)
        return opened(
            *site_data(name, split[name], folders, method),
            plan.model,
            DataSettings(),
            experiment.sam,
            folder=folder,
            open_sam=open_sam,
            compute=pick_compute(),
        )

    scores: dict[str, dict[str, float]] = {}
    site_of: dict[str, str] = {}
    per_round: list[dict[str, Any]] = []
    for names in [[name] for name in split] if method == "alone" else [list(split)]:
        folder = home / names[0] if method == "alone" else home
        sites = [open_site(name, folder / "sites" / name) for name in names]
        per_round += run_federation(sites, plan, experiment, folder, method)
        for site in sites:
            own = json.loads((site.state.folder / f"scores-{rounds:04d}.json").read_text())
            scores |= own
            site_of |= dict.fromkeys(own, site.name)
    return {
        **cell._asdict(),
        "encoder": plan.model.encoder,
        "pretrained": plan.model.pretrained,
        "steps": plan.training.steps * rounds,
        "sites": len(split),
        "per_round": per_round,
        "plan": plan.model_dump(mode="json"),
        "site_of": dict(sorted(site_of.items())),
        **{
            f"test_{measure}": {
                case_id: round(scores[case_id][measure], 5) for case_id in sorted(scores)
            }
            for measure in ("dice", "iou", "hd95")
        },
    }


def run_federation(
    sites: list[Site], plan: Plan, experiment: Experiment, folder: Path, method: str
) -> list[dict[str, Any]]:
    """All rounds of these sites, after those in `folder`; the records of all rounds."""
    begun = (folder / "settings.json").exists()
    settings = {"plan": plan.model_dump(mode="json"), "run": experiment.run.model_dump()}
    with (
        Journal.open(folder) if begun else Journal.create(folder, settings) as journal,
        open_log(folder / "run.log.jsonl") as log,
    ):
        if journal.settings != json.loads(json.dumps(settings)):
            raise UsageError(f"{folder} was begun with other settings: remove it to begin again")
        run_rounds(
            Direct(sites, true_masks=method == "oracle"),
            journal,
            plan,
            experiment.run,
            lambda: weights_of(build_model(plan.model, plan.seed)),
            log=log,
            watch=Prints(method),
        )
        return [
            {
                **{key: record[key] for key in ("round", "dice", "mined")},
                "seconds": {site: update["seconds"] for site, update in record["updates"].items()},
            }
            for record in journal.records()
        ]


def oracle(site: Site) -> Miner:
    """A miner that finds the truth: the hidden masks of the images of the round."""

    def true_masks(images: ImageSet, models: Models, plan: Plan, *_: object) -> PseudoLabels:
        px, classes = plan.model.image_px, plan.model.classes
        masks = np.zeros((len(images), classes, px, px), np.float32)
        known, ones = np.zeros(len(images), bool), np.ones(len(images), np.float32)
        for row, case in enumerate(images.cases):
            truth = site.scorer.truth(case.case_id, px)
            if truth is not None:
                known[row] = True
                masks[row] = [truth == value for value in range(1, classes + 1)]
        seen = Predictions(masks, masks, known, ones, ones)
        quality = ones.astype(np.float64)
        return PseudoLabels(
            images, seen, Gate("unused", 1.0), masks, quality, Selection(known, ones)
        )

    return true_masks


class Direct:
    """The `Sites` of a run in this process, without a transport."""

    def __init__(self, sites: Iterable[Site], *, true_masks: bool) -> None:
        self._sites = {site.name: site for site in sites}
        self._miners = {
            name: oracle(site) if true_masks else mine for name, site in self._sites.items()
        }

    def here(self) -> set[str]:
        """All sites."""
        return set(self._sites)

    def wait(self, seconds: float) -> None:
        """No site comes or goes."""

    def greet(self) -> Iterator[tuple[str, Hello | KnowmineError]]:
        """Each site introduces itself."""
        for name, site in self._sites.items():
            yield name, site.hello()

    def hold(self, weights: Weights) -> Weights:
        """The same weights: nothing is sent."""
        return weights

    def heads(self) -> Mapping[str, Head]:
        """No audit log is kept."""
        return {}

    def train(self, tasks: Mapping[str, TrainTask]) -> Iterator[tuple[str, Update | KnowmineError]]:
        """One site after the other; an error ends the experiment, not only the site's round."""
        for name, task in tasks.items():
            yield name, improve(self._sites[name], task, self._miners[name])

    def evaluate(
        self, tasks: Mapping[str, EvaluateTask]
    ) -> Iterator[tuple[str, Scores | KnowmineError]]:
        """One site after the other."""
        for name, task in tasks.items():
            yield name, evaluate(self._sites[name], task)


class Prints:
    """Prints one line a round."""

    def __init__(self, method: str) -> None:
        self._method = method

    def round_started(self, round_: int, rounds: int) -> None:
        """Prints nothing."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """The Dice after this round, and what was mined."""
        print(
            f"{self._method} round {record['round']}: Dice {record['dice']:.4f}, "
            f"{record['seconds']:.0f} s, mined {record['mined']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
