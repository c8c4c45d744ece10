"""Before a site joins: what one round would send, to the byte, and what two attacks make of it.

One pretend round in this process, by the same `improve`, `evaluate` and `egress.release` as a
real one; nothing is sent. What is listed is read back from the packed messages themselves.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from knowmine.client import round as site_round
from knowmine.client.attacks import gradients_of, invert, losses_of, membership, psnr_db
from knowmine.client.compute import pick_compute, settle
from knowmine.client.dataset import open_site
from knowmine.client.egress import release
from knowmine.client.findings import Finding
from knowmine.client.opening import opened
from knowmine.client.sam import Tunable
from knowmine.client.settings import ClientSettings
from knowmine.client.site import Site
from knowmine.shared import packing, wire
from knowmine.shared.errors import KnowmineError, RunFailed
from knowmine.shared.log import Progress, Silent
from knowmine.shared.protocol import EvaluateTask, TrainTask
from knowmine.shared.settings import Plan, TrainingSettings
from knowmine.shared.unetplusplus import build_model, put_weights, weights_of
from knowmine.shared.weights import Weights

IMAGES = 32
"""Most images of each kind that take part: the attacks are bounded in time."""
TRAINING_STEPS = 20
INVERSION_STEPS = 24
PROVES = (
    "a high score proves that this update tells something of its images; a low one proves only "
    "that this attack, with these steps, did not find it. Weights are not anonymous"
)


def what_leaves(
    settings: ClientSettings, *, steps: int = INVERSION_STEPS, progress: Progress | None = None
) -> Iterator[Finding]:
    """The list, then the attacks. steps: of each inversion; more take longer and see more."""
    progress = progress or Silent()
    settle(settings.machine.threads)
    try:
        site = _open(settings, progress)
        plan = Plan(model=settings.model, training=TrainingSettings(steps=TRAINING_STEPS))
        before = weights_of(build_model(settings.model, 0))
        # In a first round nothing is mined, so SAM is not needed.
        update = release(
            site_round.improve(site, TrainTask(1, 1, plan, before)), manifest=site.manifest
        )
        scores = release(
            site_round.evaluate(site, EvaluateTask(1, 1, plan, update.weights)),
            manifest=site.manifest,
        )
        hello = release(site.hello(), manifest=site.manifest)
        for reply in (hello, update, scores):
            yield _listed(type(reply).__name__.lower(), contents(wire.pack_reply(reply)))
        yield _membership(site, before, update.weights)
        yield _inversion(site, settings, before, steps, progress)
    except KnowmineError as error:
        yield Finding("leaves", "error", str(error), "a round would fail here as well")


def contents(records: Any) -> dict[str, Any]:
    """All that a packed reply holds: tensors, numbers, texts and bytes."""
    tensors: list[dict[str, Any]] = []
    numbers: dict[str, Any] = {}
    size = 0
    for group, record in records.items():
        size += record.count_bytes()
        if group in records.array_records:
            for packed in records.array_records[group].values():
                for name, array in packing.unpack(packed.data).items():
                    tensors.append(
                        {
                            "name": name,
                            "shape": list(array.shape),
                            "dtype": array.dtype.name,
                            "bytes": array.nbytes,
                        }
                    )
            continue
        numbers |= {f"{group}.{name}": value for name, value in record.items()}
    return {"tensors": tensors, "numbers": numbers, "bytes": size}


def _listed(kind: str, held: dict[str, Any]) -> Finding:
    groups: dict[str, list[int]] = {}
    for tensor in held["tensors"]:
        groups.setdefault(tensor["name"].split(".")[0], []).append(tensor["bytes"])
    said = [
        f"{len(sizes)} tensors of {name} ({sum(sizes)} bytes)" for name, sizes in groups.items()
    ]
    said += [f"{name} = {value}" for name, value in held["numbers"].items()]
    what = f"one {kind} of {held['bytes']} bytes: {'; '.join(said)}"
    return Finding("leaves", "note", what, facts={"kind": kind, **held})


def _membership(site: Site, before: Weights, after: Weights) -> Finding:
    cases = [(i, site.scorer.truth(c.stem, site.settings.image_px))
             for i, c in enumerate(site.test.cases)]  # fmt: skip
    usable = [(i, truth) for i, truth in cases if truth is not None]
    trained = [site.labelled, site.probe]
    images = torch.cat([kind.images for kind in trained])
    truth = torch.cat([kind.truth for kind in trained])
    if not usable or not len(images):
        return Finding("membership", "note", "not tried: it needs labelled and test images")
    values = torch.arange(1, site.settings.classes + 1).view(1, -1, 1, 1)
    masks = torch.from_numpy(np.stack([mask for _, mask in usable]))[:, None] == values
    held_out = site.test.images[[i for i, _ in usable]]
    found = {}
    for name, weights in (("update", after), ("unseen", before)):
        model = build_model(site.settings.model_copy(update={"pretrained": False}), 0)
        put_weights(model, weights)
        found[name] = membership(losses_of(model, images, truth), losses_of(model, held_out, masks))
    text = {k: f"{v.auc:.2f} (95 %: {v.low:.2f} to {v.high:.2f})" for k, v in found.items()}
    what = (
        f"of {len(images)} images trained on and {len(usable)} others, a loss threshold tells "
        f"them apart with AUC {text['update']}; on a model that never saw them {text['unseen']}; "
        "0.5 is a coin"
    )
    return Finding(
        "membership", "note", what, PROVES, facts={k: v._asdict() for k, v in found.items()}
    )


def _inversion(
    site: Site, settings: ClientSettings, before: Weights, steps: int, progress: Progress
) -> Finding:
    if len(site.labelled) < 2:
        return Finding("inversion", "note", "not tried: it needs two labelled images")
    model = build_model(site.settings.model_copy(update={"pretrained": False}), 0)
    put_weights(model, before)
    model.eval()
    images, truth = site.labelled.images[:2] / 255, site.labelled.truth[:2]
    progress.start("inverting gradients", 2 * steps)
    made = []
    for row in (0, 1):  # the image's own gradient, then another image's
        mask = truth[row : row + 1]
        target = [g.detach() for g in gradients_of(model, images[row : row + 1], mask)]
        made.append(
            invert(
                partial(gradients_of, model, truth=mask),
                target,
                tuple(images[:1].shape),
                steps=steps,
                generator=torch.Generator().manual_seed(settings.seed),
                advance=progress.advance,
            )
        )
    progress.done()
    own, other = (psnr_db(guess, images[:1]) for guess in made)
    file = settings.state / "what-leaves" / "inversion.png"
    side_by_side = torch.cat([images[:1], *made], 3)[0].permute(1, 2, 0)
    try:
        Image.fromarray((side_by_side * 255).round().to(torch.uint8).numpy()).save(file)
    except OSError as error:
        raise RunFailed(f"cannot write {file} ({error.strerror})") from error
    what = (
        f"{steps} steps from the gradient of one image came within {own:.1f} dB of it; from "
        f"another image's gradient, within {other:.1f} dB. Side by side (image, its inversion, the "
        f"other's) in {file}: for your eyes alone"
    )
    return Finding("inversion", "note", what, PROVES, facts={"own_db": own, "other_db": other})


def _open(settings: ClientSettings, progress: Progress) -> Site:
    data, hidden = open_site(
        settings.site, settings.data, **settings.split.arguments(), seed=settings.seed
    )
    kinds = ("labelled", "probe", "test")
    few: dict[str, Any] = {kind: getattr(data, kind)[:IMAGES] for kind in kinds}
    folder = settings.state / "what-leaves"
    folder.mkdir(parents=True, exist_ok=True)

    def no_sam() -> Tunable:
        raise RunFailed("a first round asks no SAM")

    return opened(
        replace(data, **few, unlabelled=()),
        hidden,
        settings.model,
        settings.split,
        settings.sam,
        folder=folder,
        open_sam=no_sam,
        compute=pick_compute(settings.machine.device),
        progress=progress,
    )
