"""One round at a site. START HERE: predict, prompt, refine, fuse, judge, train.

```
global U-Net++ arrives
 1 predict   its probabilities on this round's unlabelled images          inference.py
 2 prompt    a box, points and a mask for each component                  prompts.py
 3 refine    SAM's best mask for each, asked again with its own logits    refine.py
 4 tune      SAM's decoder on the site's labels, before it is asked       tuning.py
 5 fuse      both models' masks, mixed as the probe set says is best      pseudo_labels.py
 6 judge     how good each is likely to be; keep the best, weigh the rest pseudo_labels.py
 7 gate      SAM is left out where it does not help on the probe set      pseudo_labels.py
 8 train     from the global weights, on labels and pseudo-labels         training.py
 9 release   weights, counts and means                                    egress.py, by app.py
```
"""

import hashlib
import json
import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knowmine.client.device import memory_for, seeded
from knowmine.client.mining.finetune import BATCH, Lessons, tune
from knowmine.client.mining.fusion import (
    Floats,
    Opinions,
    Selection,
    Verdict,
    calibrate,
    dice_of,
    fuse,
    gate,
    judge,
    select,
    share_to_keep,
    sharpen,
)
from knowmine.client.mining.prompts import ask
from knowmine.client.mining.refine import refine
from knowmine.client.review.decisions import after_review
from knowmine.client.sam.model import Tunable
from knowmine.client.site.site import Kind, Site
from knowmine.client.storage.pseudo_label_store import save_mined
from knowmine.client.storage.report_samples import save_gallery
from knowmine.client.training.distillation import distil, pooled
from knowmine.client.training.inference import MIRRORED, VARIED, predict
from knowmine.client.training.loop import Examples, train
from knowmine.shared.protocol import Calibration, EvaluateTask, Mined, Scores, TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.unetplusplus import build_model, put_weights, weights_of
from knowmine.shared.weights import write_atomically

SAM_BATCH = 8
"""Images whose prompts SAM answers in one call."""


Miner: TypeAlias = Callable[[Site, TrainTask], tuple[Examples, Mined]]
"""What makes a round's pseudo-labels; experiments put others in the place of `mine`."""


def improve(site: Site, task: TrainTask, mine: Miner | None = None) -> Update:
    """Train the global model on this site's labels and on what it mines here."""
    mine = mine or mine_images
    started = time.monotonic()
    plan = task.plan
    local = plan.training.batch_norm == "local"
    site.leave_out_withdrawn()
    site.load_model(task.weights, plan.model, task.round, local)
    site.to_mine, site.reviewed = after_review(site.unlabelled, site.folder)
    labelled = labels_of(site, plan, task.round, task.rounds)
    mining = mines(plan, task.round, task.rounds)
    site.decoders.take(task.decoder, task.round - 1)
    with memory_for("mining", "choose smaller sam.weights or model.image_px"):
        if plan.shares_decoder and not site.decoders.was_tuned(task.round - 1):
            # Before any site mines, so that those without labels have a tuned SAM by then.
            tune_sam(site, plan, task.round, teaching(site, plan, task.round, task.rounds))
        pseudo_labelled, mined = mine(site, task) if mining else (_none(site), Mined())
    site.decoders.take({}, 0)
    if not len(labelled) and not len(pseudo_labelled):
        return Update(task.round, task.weights, 0, 0, 0.0, time.monotonic() - started, mined)
    seed = draw(plan.seed, "train", site.name, task.round)
    # Some encoders drop layers at random by torch's own generator: seeded too, and put back.
    with seeded(seed, site.compute.device):
        loss = learn(site, task, labelled, pseudo_labelled, seed)
    for kind in teaching(site, plan, task.round, task.rounds):
        site.note(task.round, "trained", kind)
    weights = weights_of(site.model)
    if local:
        site.keep_batch_norm(weights, task.round)
    return Update(
        round=task.round,
        weights=weights,
        labelled=len(labelled),
        pseudo_labelled=len(pseudo_labelled),
        loss=loss,
        seconds=time.monotonic() - started,
        mined=mined,
        decoder=site.decoders.to_share(task.round, lent=bool(task.decoder))
        if plan.shares_decoder
        else {},
    )


def learn(
    site: Site, task: TrainTask, labelled: Examples, pseudo_labelled: Examples, seed: int
) -> float:
    """Step 8: train the loaded model and return its mean loss."""
    plan = task.plan
    if task.round == 1 and plan.method == "knowmine" and plan.mining.distil_steps:
        look_as_sam_does(site, plan)
    if plan.mining.restart and task.round == plan.mining.warm_up(task.rounds) + 1:
        put_weights(site.model, weights_of(build_model(plan.model, plan.seed)))
    batch = f"batches of {plan.training.batch} images of {plan.model.image_px} px"
    with memory_for(batch, "ask for a smaller training.batch"):
        return train(
            site.model,
            labelled,
            pseudo_labelled,
            plan.training,
            pseudo_share=plan.mining.share,
            pseudo_weight=plan.mining.weight * ramp(plan, task.round, task.rounds),
            strong_chance=plan.mining.strong,
            cut_mix_chance=plan.mining.cut_mix,
            renew=plan.mining.renew,
            fall=(fallen(plan, task.round - 1, task.rounds), fallen(plan, task.round, task.rounds)),
            generator=torch.Generator().manual_seed(seed),
            compute=site.compute,
            progress=site.progress,
        )


def fallen(plan: Plan, round_: int, rounds: int) -> float:
    """How far the learning rate has fallen at the end of round `round_`, in [0, 1].

    With `training.decay: mining`, and before a restart, it stays at its peak while the warm-up lasts,
    whatever the method: what is mined comes late, and a rate that falls from the first round on
    leaves less to learn from it with.
    """
    holds = plan.training.decay == "mining" or plan.mining.restart
    warm_up = min(plan.mining.warm_up(rounds), rounds - 1) if holds else 0
    return max(0, round_ - warm_up) / (rounds - warm_up)


def look_as_sam_does(site: Site, plan: Plan) -> None:
    """Before any label: the loaded model's encoder learns what SAM sees in all images here."""
    kinds = [kind for kind in (site.labelled, site.probe, site.unlabelled) if len(kind)]
    pairs = [(kind, row) for kind in kinds for row in range(len(kind))]
    if not pairs:
        return
    site.progress.start("looking with SAM", len(pairs))
    seen = list[Tensor]()
    for start in range(0, len(pairs), SAM_BATCH):
        batch = pairs[start : start + SAM_BATCH]
        for (kind, row), embedding in zip(batch, site.embeddings(batch), strict=True):
            seen.append(pooled(embedding, site.frames(kind, row)))
        site.progress.advance(len(batch))
    site.progress.done()
    distil(
        site.model,
        torch.cat([kind.images for kind in kinds]),
        torch.stack(seen),
        steps=plan.mining.distil_steps,
        learning_rate=plan.training.learning_rate,
        orientation=plan.training.orientation,
        generator=torch.Generator().manual_seed(draw(plan.seed, "distil", site.name)),
        compute=site.compute,
        progress=site.progress,
    )


def evaluate(site: Site, task: EvaluateTask) -> Scores:
    """Score the global model on this site's test images, and pseudo-labels on its probe set."""
    plan = task.plan
    site.leave_out_withdrawn()
    site.load_model(task.weights, plan.model, task.round + 1, plan.training.batch_norm == "local")
    site.progress.start("scoring", len(site.test))
    masks = predict(site.model, site.test.images, site.compute, site.progress.advance)
    by_stem = {case.stem: mask for case, mask in zip(site.test.cases, masks, strict=True)}
    scores = site.scorer.score_test(site.test.cases, lambda case: by_stem[case.stem])
    site.progress.done()
    write_atomically(
        site.folder / f"scores-{task.round:04d}.json", json.dumps(scores, indent=1).encode()
    )

    site.note(task.round, "scored", site.test)

    # Only what the model has not been trained on can judge it, and only mining rounds ask.
    judged = probe_apart(plan, task.round, task.rounds)
    site.decoders.take(task.decoder, task.round)
    calibration = probe(site, plan, task.round) if judged else Calibration()
    site.decoders.take({}, 0)

    def total(key: str) -> float:
        return float(sum(score[key] for score in scores.values()))

    return Scores(
        round=task.round,
        test_images=len(scores),
        dice=total("dice"),
        iou=total("iou"),
        hd95=total("hd95"),
        calibration=calibration,
    )


def mine_images(site: Site, task: TrainTask) -> tuple[Examples, Mined]:
    """Steps 1 to 7: pseudo-labels for this round's draw of the unlabelled images."""
    plan = task.plan
    kind = todays(site.to_mine, plan, task.round, task.rounds)
    if not len(kind):
        return _none(site), Mined()
    if plan.method == "knowmine":
        tune_sam(site, plan, task.round, teaching(site, plan, task.round, task.rounds))
    opinions = consult(site, kind, plan, task.round)
    return settle_labels(site, task, kind, opinions)


def settle_labels(
    site: Site, task: TrainTask, kind: Kind, opinions: Opinions
) -> tuple[Examples, Mined]:
    """Steps 5 to 7: one pseudo-label out of both opinions of each image of `kind`."""
    plan, doubts = task.plan, None
    if plan.method == "self-training":
        labels, chosen, verdict = opinions.unet, _all(opinions), Verdict("unused", 1.0)
        quality = np.ones(len(opinions))
    elif plan.method == "paper":
        labels, chosen = (opinions.sam > 0.5).astype(np.float32), _all(opinions)
        verdict, quality = Verdict("unused", 0.0), np.ones(len(opinions))
    else:
        tuned = site.decoders.was_tuned(task.round) or site.decoders.borrows()
        verdict = verdict_on_sam(plan, task.calibration, tuned=tuned, own=len(site.probe))
        labels = fuse(opinions, verdict.fuse_weight)
        if plan.mining.sharpen:
            labels = sharpen(labels)
        if plan.mining.doubt:
            doubts = plan.mining.doubt * np.abs(opinions.unet - opinions.sam)
        quality = judge(opinions, task.calibration, verdict.fuse_weight)
        share = share_to_keep(plan.mining, task.round, task.rounds)
        chosen = select(quality, share, plan.mining.min_quality)
    site.note(task.round, "mined", kind)
    for save in (save_gallery, save_mined):  # a few for the report, all for a review
        save(site.folder, task.round, kind, opinions, labels, quality, chosen.kept, seal=site.seal)
    kept = torch.from_numpy(np.flatnonzero(chosen.kept))
    return (
        Examples(
            kind.images[kept],
            _bytes(labels[chosen.kept]),
            torch.from_numpy(chosen.weights[chosen.kept]),
            None if doubts is None else _bytes(doubts[chosen.kept]),
        ),
        _report(opinions, quality, chosen, verdict),
    )


def verdict_on_sam(plan: Plan, sums: Calibration, *, tuned: bool, own: int) -> Verdict:
    """Step 7: the gate's word on SAM, or what the plan says in its place.

    own: this site's probe images; where they are too few to judge, `sums` are the federation's,
    and the word is "borrowed". A site without labels has a frozen SAM, unless the federation shares
    its decoder, and would borrow sums that others made with tuned ones: they say nothing of it.
    """
    if plan.mining.sam == "always":
        return Verdict("unused", 0.5)
    if plan.mining.sam == "never":
        return Verdict("unused", 1.0)
    if plan.mining.tune_steps and not tuned:
        return Verdict("unjudged", 1.0)
    verdict = gate(sums, plan.mining.min_probe_images)
    if verdict.gate != "unjudged" and own < plan.mining.min_probe_images:
        return Verdict("borrowed", verdict.fuse_weight)
    return verdict


def consult(site: Site, kind: Kind, plan: Plan, round_: int) -> Opinions:
    """Steps 1 to 3: what the U-Net++ and, if the method asks it, SAM see in these images."""
    ours = plan.method == "knowmine"
    site.progress.start("predicting", len(kind))
    unet = predict(
        site.model,
        kind.images,
        site.compute,
        site.progress.advance,
        views=VARIED[plan.training.orientation] if ours and plan.mining.varied_views else MIRRORED,
    )
    site.progress.done()
    if not plan.asks_sam:
        ones = np.ones(len(kind), np.float32)
        seen: NDArray[np.bool_] = np.any(unet > 0.5, axis=(1, 2, 3))
        return Opinions(unet, unet, seen, ones, ones)
    tuned = site.decoders.tuned_sam(round_) if ours and plan.mining.tune_steps else None
    return ask_sam(site, kind, unet, plan, tuned)


def ask_sam(site: Site, kind: Kind, unet: Floats, plan: Plan, tuned: Tunable | None) -> Opinions:
    """Steps 2 and 3: SAM's opinion, tuned or this site's frozen one's, beside the U-Net++'s `unet`."""
    ours = plan.method == "knowmine"
    dense, join = ours and plan.mining.dense_prompts, ours and plan.mining.join_parts
    frames = [site.frames(kind, row) for row in range(len(kind))]
    asked = [ask(unet[row], frames[row], dense=dense, join=join) for row in range(len(kind))]
    prompted = np.array([question.prompts is not None for question in asked], bool)
    sam = np.zeros_like(unet)
    iou, stability = np.zeros((2, len(kind)), np.float32)
    rows = np.flatnonzero(prompted).tolist()
    site.progress.start("asking SAM", len(rows))
    for start in range(0, len(rows), SAM_BATCH):
        batch = rows[start : start + SAM_BATCH]
        answers = refine(
            tuned or site.sam,
            site.embeddings((kind, row) for row in batch),
            [asked[row] for row in batch],
            [frames[row] for row in batch],
            classes=plan.model.classes,
            by_agreement=ours,
            refinements=plan.mining.refinements if ours and not tuned else 0,
        )
        for row, answer in zip(batch, answers, strict=True):
            sam[row], iou[row], stability[row] = answer.masks, answer.iou, answer.stability
            if ours:
                silent = asked[row].left_open(unet[row], answer.heard.numpy())
                sam[row][silent] = unet[row][silent]
        site.progress.advance(len(batch))
    site.progress.done()
    return Opinions(unet, sam, prompted, iou, stability)


def probe(site: Site, plan: Plan, round_: int) -> Calibration:
    """How good pseudo-labels made with the loaded model are where this site knows the truth."""
    if not len(site.probe):
        return Calibration()
    if not site.decoders.borrows():  # that one is judged, and it has learnt from all sites' labels
        tune_sam(site, plan, round_, [site.labelled])
    return calibrate(consult(site, site.probe, plan, round_), site.probe.truth.numpy())


def tune_sam(site: Site, plan: Plan, round_: int, kinds: list[Kind]) -> None:
    """Step 4: go on tuning this site's SAM on its labels, unless it is done for this round."""
    if not plan.asks_sam or not plan.mining.tune_steps or site.decoders.has_tuned(round_):
        return
    tuned = site.decoders.was_tuned(round_ - 1)
    steps = plan.mining.tune_again if tuned else plan.mining.tune_steps
    if not steps:
        return
    pairs = [(kind, row) for kind in kinds for row in range(len(kind))]
    if not pairs:
        return
    # SAM's encoder is slow: whatever the round, it looks at no more labelled images than these.
    most = max(plan.mining.tune_steps, plan.mining.tune_again) * BATCH
    drawn = [draw(plan.seed, "lessons", kind.cases[row].stem) for kind, row in pairs]
    lessons = lessons_of(site, kinds, torch.tensor(drawn).argsort()[:most].sort().values)
    sam = site.decoders.tuned_sam(round_ - 1) or site.sam
    generator = torch.Generator().manual_seed(draw(plan.seed, "tune", site.name, round_))
    decoder = tune(
        sam,
        lessons,
        steps=steps,
        dense=plan.mining.dense_prompts,
        false_alarms=plan.mining.false_alarms,
        generator=generator,
        progress=site.progress,
    )
    site.decoders.keep(decoder, round_)


def lessons_of(site: Site, kinds: list[Kind], rows: Tensor | None = None) -> Lessons:
    """What SAM's decoder learns from: these labelled images, or some `rows` of them all."""
    pairs = [(kind, row) for kind in kinds for row in range(len(kind))]
    rows = torch.arange(len(pairs)) if rows is None else rows
    met = [pairs[row] for row in rows]
    truth = torch.cat([kind.truth for kind in kinds])[rows]
    return Lessons(site.embeddings(met), truth, [site.frames(kind, row) for kind, row in met])


def teaching(site: Site, plan: Plan, round_: int, rounds: int) -> list[Kind]:
    """The labelled images to learn from: the site's own, those of a review at the site, and the
    probe set unless it is kept apart.
    """
    reviewed = [site.reviewed] if site.reviewed is not None else []
    probe = [] if probe_apart(plan, round_, rounds) else [site.probe]
    return [site.labelled, *reviewed, *probe]


def labels_of(site: Site, plan: Plan, round_: int, rounds: int) -> Examples:
    """The labelled images of this round, ready to train on."""
    kinds = teaching(site, plan, round_, rounds)
    images = torch.cat([kind.images for kind in kinds])
    truth = torch.cat([kind.truth for kind in kinds])
    return Examples(images, truth.to(torch.uint8) * 255, torch.ones(len(images)))


def mines(plan: Plan, round_: int, rounds: int) -> bool:
    """Whether round `round_` of `rounds` makes pseudo-labels."""
    mining = plan.mining
    between = mining.warm_up(rounds) < round_ <= rounds - mining.consolidate_rounds
    return plan.method != "supervised" and between


def probe_apart(plan: Plan, round_: int, rounds: int) -> bool:
    """Whether round `round_` of `rounds` leaves the probe images out of training.

    Labels are few: once the probe set has judged, and at the latest in the last round, it is
    worth more as labels. What it says early holds later, as far as it is about what the signs
    of a good mask are worth; it is pessimistic about the U-Net++, which goes on learning.
    """
    return plan.method == "knowmine" and round_ <= plan.mining.probe_rounds and round_ < rounds


def ramp(plan: Plan, round_: int, rounds: int) -> float:
    """Part of the full weight of pseudo-labels in round `round_` of `rounds`."""
    mined = max(0, round_ - plan.mining.warm_up(rounds))
    return min(1.0, mined / plan.mining.ramp_rounds)


def todays(kind: Kind, plan: Plan, round_: int, rounds: int) -> Kind:
    """This round's images to mine: a window that moves over one shuffle of them all.

    Each image comes once before any comes twice; the shuffle follows from seed and stem alone.
    """
    count = min(plan.mining.images or len(kind), len(kind))
    shuffled = sorted(range(len(kind)), key=lambda i: draw(plan.seed, "mine", kind.cases[i].stem))
    start = (round_ - plan.mining.warm_up(rounds) - 1) * count
    ranked = [shuffled[(start + i) % len(kind)] for i in range(count)]
    return kind.at(sorted(ranked))


def draw(seed: int, purpose: str, name: str, round_: int = 0) -> int:
    """A number that follows from its arguments alone, on any machine and in any order."""
    text = f"{seed}|{purpose}|{name}|{round_}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:7])


def _report(
    opinions: Opinions, quality: NDArray[np.float64], chosen: Selection, verdict: Verdict
) -> Mined:
    agreement = dice_of(opinions.unet > 0.5, opinions.sam > 0.5)
    return Mined(
        kept=int(chosen.kept.sum()),
        dropped=int((~chosen.kept).sum()),
        empty=int((~opinions.prompted).sum()),
        gate=verdict.gate,
        fuse_weight=verdict.fuse_weight,
        mean_agreement=float(agreement.mean()),
        mean_quality=float(quality.mean()),
    )


def _bytes(masks: Floats) -> Tensor:
    return torch.from_numpy((masks * 255 + 0.5).astype(np.uint8))


def _all(opinions: Opinions) -> Selection:
    return Selection(np.ones(len(opinions), bool), np.ones(len(opinions), np.float32))


def _none(site: Site) -> Examples:
    px, classes = site.settings.image_px, site.settings.classes
    return Examples(
        torch.zeros((0, 3, px, px), dtype=torch.uint8),
        torch.zeros((0, classes, px, px), dtype=torch.uint8),
        torch.zeros(0),
    )
