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
import zstandard
from PIL import Image
from torch import Tensor

from knowmine.client.audit.receipts import ZEROS
from knowmine.client.check.attacks import gradients_of, invert, losses_of, membership, psnr_db, ssim
from knowmine.client.check.findings import Finding, stopped
from knowmine.client.data.dataset import open_site
from knowmine.client.device import settle
from knowmine.client.egress.release import release
from knowmine.client.paths import save_picture
from knowmine.client.sam.interface import Sam
from knowmine.client.settings import ClientSettings
from knowmine.client.site import round as site_round
from knowmine.client.site.open import rehearsal
from knowmine.client.site.site import Site
from knowmine.shared.errors import KnowmineError, RunFailed
from knowmine.shared.log import Progress, Silent
from knowmine.shared.protocol import EvaluateTask, TrainTask
from knowmine.shared.settings import Plan, TrainingSettings
from knowmine.shared.trust.countersign import Head
from knowmine.shared.unetplusplus import build_model, put_weights, weights_of
from knowmine.shared.weights import Weights
from knowmine.shared.wire import codec, packing, tensors
from knowmine.shared.wire.changes import Form, pack_change

KINDS = ("labelled", "calibration", "test")
IMAGES = 32
"""Most images of each of these kinds that take part: the attacks are bounded in time."""
TRAINING_STEPS = 20
INVERSION_STEPS = 32
BATCH, CROP_PX = 2, 64
"""Of the inversion: a round sends the sum of many steps over whole images, which tells far less."""
FORMS: tuple[Form, ...] = ("bf16", "int8")
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
        data, hidden = open_site(
            settings.site, settings.data, **settings.split.arguments(), seed=settings.seed
        )
        few: dict[str, Any] = {kind: getattr(data, kind)[:IMAGES] for kind in KINDS}
        few["unlabelled"] = ()
        with rehearsal(settings, replace(data, **few), hidden, _no_sam, progress) as site:
            yield from _looked_at(site, settings, steps, progress)
    except (KnowmineError, OSError) as error:
        yield stopped("leaves", error, "a round would fail here as well")


def _looked_at(
    site: Site, settings: ClientSettings, steps: int, progress: Progress
) -> Iterator[Finding]:
    """One round of this site, listed and attacked."""
    plan = Plan(model=settings.model, training=TrainingSettings(steps=TRAINING_STEPS))
    before = weights_of(build_model(settings.model, 0))
    # In a first round nothing is mined, so SAM is not needed.
    update = release(
        site_round.improve(site, TrainTask(1, 1, plan, before)), manifest=site.models.manifest
    )
    scores = release(
        site_round.evaluate(site, EvaluateTask(1, 1, plan, update.weights)),
        manifest=site.models.manifest,
    )
    hello = release(site.hello(), manifest=site.models.manifest)
    yield _listed("hello", contents(codec.pack_reply(hello)))
    yield _listed("update", contents(beside_head(codec.pack_reply(update))))
    for form in FORMS:
        packed = pack_change(update.weights, before, form, {}, seed=0)
        held = contents(beside_head(codec.pack_reply(update, packed.data)))
        yield _listed_change(form, held)
    yield _listed("scores", contents(beside_head(codec.pack_reply(scores))))
    yield _membership(site, before, update.weights)
    yield _inversion(site, settings, before, steps, progress)


def beside_head(records: Any) -> Any:
    """The reply with what goes beside it: the number and SHA-256 of its receipt."""
    records[codec.HEAD] = codec.pack_head(Head(1, ZEROS))
    return records


def contents(records: Any) -> dict[str, Any]:
    """All that a packed reply holds: tensors as they travel, numbers, texts and bytes."""
    held: list[dict[str, Any]] = []
    numbers: dict[str, Any] = {}
    size = 0
    for group, record in records.items():
        size += record.count_bytes()
        if group in records.array_records:
            for packed in records.array_records[group].values():
                data = packed.data
                if packed.stype == tensors.CHANGE:
                    data = zstandard.ZstdDecompressor().decompress(data)
                for name, array in packing.unpack(data).items():
                    held.append(
                        {
                            "name": name,
                            "shape": list(array.shape),
                            "dtype": array.dtype.name,
                            "bytes": array.nbytes,
                        }
                    )
            continue
        numbers |= {f"{group}.{name}": value for name, value in record.items()}
    return {"tensors": held, "numbers": numbers, "bytes": size}


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


def _listed_change(form: str, held: dict[str, Any]) -> Finding:
    """The same update, where the run's plan has sites send what changed."""
    sent = held["tensors"]
    what = (
        f"the same update where the plan says transport.update: {form}: {held['bytes']} bytes, "
        f"packed, of {len(sent)} tensors ({sum(t['bytes'] for t in sent)} bytes unpacked) "
        f"and the same {len(held['numbers'])} numbers"
    )
    return Finding("leaves", "note", what, facts={"kind": "update", "form": form, **held})


def _membership(site: Site, before: Weights, after: Weights) -> Finding:
    cases = [(i, site.scorer.truth(c.case_id, site.models.settings.image_px))
             for i, c in enumerate(site.images.test.cases)]  # fmt: skip
    usable = [(i, truth) for i, truth in cases if truth is not None]
    trained = [site.images.labelled, site.images.calibration]
    images = torch.cat([kind.images for kind in trained])
    truth = torch.cat([kind.truth for kind in trained])
    if not usable or not len(images):
        return Finding("membership", "note", "not tried: it needs labelled and test images")
    values = torch.arange(1, site.models.settings.classes + 1).view(1, -1, 1, 1)
    masks = torch.from_numpy(np.stack([mask for _, mask in usable]))[:, None] == values
    held_out = site.images.test.images[[i for i, _ in usable]]
    found = {}
    for name, weights in (("update", after), ("unseen", before)):
        model = build_model(site.models.settings.model_copy(update={"pretrained": False}), 0)
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
    """A batch of two crops from its own gradient, and from that of two others."""
    if len(site.images.labelled) < 2 * BATCH:
        return Finding("inversion", "note", f"not tried: it needs {2 * BATCH} labelled images")
    model = build_model(site.models.settings.model_copy(update={"pretrained": False}), 0)
    put_weights(model, before)
    model.eval()
    middle = _middle(site.models.settings.image_px)
    images = site.images.labelled.images[: 2 * BATCH, :, middle, middle] / 255
    truth = site.images.labelled.truth[: 2 * BATCH, :, middle, middle]
    own, mask = images[:BATCH], truth[:BATCH]
    progress.start("inverting gradients", 2 * steps)
    made = []
    for batch in (slice(0, BATCH), slice(BATCH, None)):  # its own gradient, then the others'
        target = [g.detach() for g in gradients_of(model, images[batch], truth[batch])]
        made.append(
            invert(
                partial(gradients_of, model, truth=mask),
                target,
                tuple(own.shape),
                steps=steps,
                generator=torch.Generator().manual_seed(settings.seed),
                advance=progress.advance,
            )
        )
    progress.done()
    file = save_picture(settings.state, "inversion.png", _beside(own, *made))
    (db, like), (other_db, other_like) = ((psnr_db(m, own), ssim(m, own)) for m in made)
    what = (
        f"{steps} steps from the exact gradient of {BATCH} crops of {own.shape[-1]} pixels came "
        f"within {db:.1f} dB (PSNR) of them, SSIM {like:.2f}; from the gradient of {BATCH} others, "
        f"which knows nothing of them, {other_db:.1f} dB, SSIM {other_like:.2f}. Each row of {file}: "
        "the crop, its inversion, the others'. For your eyes alone"
    )
    facts = {"own_db": db, "other_db": other_db, "own_ssim": like, "other_ssim": other_like}
    return Finding("inversion", "note", what, PROVES, facts=facts)


def _middle(image_px: int) -> slice:
    start = max(0, (image_px - CROP_PX) // 2)
    return slice(start, start + CROP_PX)


def _beside(*columns: Tensor) -> Image.Image:
    rows = torch.cat(columns, 3).permute(0, 2, 3, 1).flatten(0, 1)
    return Image.fromarray((rows * 255).round().to(torch.uint8).numpy())


def _no_sam() -> Sam:
    raise RunFailed("a first round asks no SAM")
