"""Do once what several methods do alike: rounds on labels alone, from the same weights.

Until mining begins, a round follows from the weights, the seed, the site's images and the training
settings; of the method only whether it keeps its probe set apart is in it. Weights and scores are
kept in a folder under a digest of all these, for the next method. So is SAM's decoder once tuned.
Images are told apart by their paths, and the code is not in it: after a change of either, remove it.
"""

import copy
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from knowmine.client.site.round import Miner, evaluate, improve, probe_apart, teaching
from knowmine.client.site.site import Kind, Site
from knowmine.shared.protocol import Calibration, EvaluateTask, Mined, Scores, TrainTask, Update
from knowmine.shared.unetplusplus import put_weights, weights_of
from knowmine.shared.weights import digest_of, load_weights, save_weights, write_atomically


class Once:
    """Rounds on labels alone, kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def improve(self, site: Site, task: TrainTask, miner: Miner | None) -> Update:
        """`round.improve`, or what it gave before."""
        if not _alike(task):
            return improve(site, task, miner)
        kinds = teaching(site, task.plan, task.round, task.rounds)
        file = self._file("trained", [*_round_of(site, task), task.rounds], kinds)
        if not file.exists():
            update = improve(site, task)
            save_weights(file.with_suffix(".safetensors"), update.weights)
            found = asdict(update) | {"weights": None, "mined": None}
            write_atomically(file, json.dumps(found).encode())
            return update
        found = json.loads(file.read_text())
        weights = load_weights(file.with_suffix(".safetensors"))
        return Update(**{**found, "weights": weights, "mined": Mined()})

    def evaluate(self, site: Site, task: EvaluateTask) -> Scores:
        """`round.evaluate`, or what it gave before; the scores of each image are there as well."""
        if probe_apart(task.plan, task.round, task.rounds):
            return self._with_tuned_sam(site, task)
        if not _alike(task):
            return evaluate(site, task)
        file = self._file("scored", _round_of(site, task), [site.test])
        own = site.folder / f"scores-{task.round:04d}.json"
        if not file.exists():
            scores = evaluate(site, task)
            sums = asdict(scores) | {"calibration": None}
            kept = {"sums": sums, "each": json.loads(own.read_text())}
            write_atomically(file, json.dumps(kept).encode())
            return scores
        found = json.loads(file.read_text())
        write_atomically(own, json.dumps(found["each"], indent=1).encode())
        return Scores(**{**found["sums"], "calibration": Calibration()})

    def _with_tuned_sam(self, site: Site, task: EvaluateTask) -> Scores:
        plan, steps = task.plan, task.plan.mining.tune_steps
        if not plan.asks_sam or plan.shares_decoder or site.decoders.was_tuned(task.round - 1):
            return evaluate(site, task)
        # SAM's decoder learns from truths and cached embeddings: no weights of the U-Net++ are in it.
        frame, dense = plan.model.model_dump(mode="json"), plan.mining.dense_prompts
        alarms, precision = plan.mining.false_alarms, str(site.sam.compute)
        told = [site.name, task.round, plan.seed, frame, steps, dense, alarms, precision]
        file = self._file("tuned", told, [site.labelled]).with_suffix(".safetensors")
        if steps and file.exists():
            decoder = copy.deepcopy(site.sam.mask_decoder)
            put_weights(decoder, load_weights(file))
            site.decoders.keep(decoder, task.round)
        scores = evaluate(site, task)
        if not file.exists() and (sam := site.decoders.tuned_sam(task.round)):
            save_weights(file, weights_of(sam.mask_decoder))
        return scores

    def _file(self, what: str, told: list[Any], kinds: list[Kind]) -> Path:
        told = [what, *told, *(str(case.image) for kind in kinds for case in kind.cases)]
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}.json"


def _round_of(site: Site, task: TrainTask | EvaluateTask) -> list[Any]:
    """What a round on labels alone follows from, but for its images."""
    plan = task.plan.model_dump(mode="json", exclude={"method", "mining"})
    # The learning rate may stay up while the warm-up lasts.
    mining = task.plan.mining
    falls = [mining.warm_up(task.rounds), mining.restart]
    return [site.name, task.round, plan, falls, str(site.compute), digest_of(task.weights)]


def _alike(task: TrainTask | EvaluateTask) -> bool:
    """Whether the method and its mining settings leave no trace in this round."""
    plan = task.plan
    if plan.training.batch_norm == "local" or plan.mining.distil_steps or plan.shares_decoder:
        return False
    return task.round <= plan.mining.warm_up(task.rounds)
