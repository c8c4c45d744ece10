"""Training on this machine: against a plain PyTorch loop, and against the network alone.

    python -m benchmarks.bench_speed [--quick]

Ours is `client.training.loop.train`, as a site runs it: images decoded once and kept in memory, augmented as
tensors, channels_last, bfloat16 where the CPU has AMX or AVX512-BF16. Theirs is the loop of many a
README: smp's U-Net++ in float32 and NCHW, a DataLoader of two workers that decode, resize and flip,
AdamW. The limit is forward and backward of our network at our precision on tensors that lie ready:
no data, no augmentation, no optimiser. All three have the same images of 224 px, batches of 8, loss
and starting weights, and take turns, each in a process of its own: what ours sets for its process
(`client.device.settle`) does not help the plain loop.
Writes benchmarks/results/speed.json and its rows in docs/performance.md.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measuring import Apart, arguments, machine, row, serve_turns, write
from knowmine.client.device import pick_compute, settle
from knowmine.client.training.loop import Examples, train
from knowmine.client.training.losses import segmentation_losses
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.log import Silent
from knowmine.shared.settings import MiningSettings, ModelSettings, TrainingSettings
from knowmine.shared.unetplusplus import build_model

BATCH, STEPS, PX = 8, 8, 224


def main() -> None:
    """Measure the three, in turns."""
    parser = arguments(__doc__, "one turn each")
    parser.add_argument("--side", choices=SIDES, help="of the processes that this one starts")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        serve_turns(SIDES[options.side](Pictures(options.folder)))
    else:
        compare(options.quick)


def compare(quick: bool) -> None:
    """All sides in turns, the rows and the table."""
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), BATCH * STEPS)
        words = ("benchmarks.bench_speed", "--folder", folder, "--side")
        sides = {name: Apart(*words, name) for name in SIDES}
        times: dict[str, list[float]] = {name: [] for name in SIDES}
        for turn in range(2 if quick else 9):  # the first warms up
            for name in list(SIDES)[:: -1 if turn % 2 else 1]:
                took = sides[name]() / (BATCH * STEPS) * 1000
                if turn:
                    times[name].append(took)
            print(turn, *(found[-1:] for found in times.values()), flush=True)
        memory = {name: side.close() for name, side in sides.items()}
    note = f"ours: {pick_compute()}"
    rows = [
        row(
            f"training, an image, against {what}",
            times["ours"],
            times[name],
            "ms",
            goal,
            memory_mb=(memory["ours"], memory[name]),
            note=note,
        )
        for name, what, goal in (
            ("theirs", "a plain loop", 1.2),
            ("limit", "forward and backward alone", 0.95),
        )
    ]
    write("speed", rows, before, quick=quick)


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """A folder's images and masks, decoded when they are asked for, flipped at random."""

    def __init__(self, folder: Path) -> None:
        self.images = sorted((folder / "images").iterdir())
        self.masks = [folder / "masks" / f"{image.stem}.png" for image in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.images[number]).convert("RGB").resize((PX, PX))
        mask = Image.open(self.masks[number]).resize((PX, PX), Image.Resampling.NEAREST)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        y = torch.from_numpy(np.array(mask))[None].float() / 255
        return (x.flip(2), y.flip(2)) if torch.rand(()) < 0.5 else (x, y)


def stacked(pictures: Pictures, count: int) -> tuple[Tensor, Tensor]:
    """The first images and masks as tensors."""
    pairs = [pictures[number] for number in range(count)]
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def ours(pictures: Pictures) -> Callable[[], object]:
    """A round's training at a site."""
    settle()
    images, masks = stacked(pictures, len(pictures))
    examples = Examples((images * 255).byte(), (masks * 255).byte(), torch.ones(len(images)))
    nothing = Examples(examples.images[:0], examples.targets[:0], examples.weights[:0])
    model, compute = build_model(ModelSettings(image_px=PX), 0), pick_compute()
    generator = torch.Generator().manual_seed(0)
    return lambda: train(
        model,
        examples,
        nothing,
        TrainingSettings(steps=STEPS, batch=BATCH),
        MiningSettings(),
        part=(0.0, 1.0),
        generator=generator,
        compute=compute,
        progress=Silent(),
    )


def theirs(pictures: Pictures) -> Callable[[], object]:
    """One epoch of a plain loop."""
    model = smp.UnetPlusPlus(
        "tu-tf_efficientnet_lite0", encoder_weights=None, decoder_channels=(128, 64, 32, 16, 8)
    ).train()
    model.load_state_dict(build_model(ModelSettings(image_px=PX), 0).state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    loader = DataLoader(pictures, BATCH, shuffle=True, num_workers=2, persistent_workers=True)

    def epoch() -> None:
        for images, masks in loader:
            loss = segmentation_losses(model((images - 0.5) / 0.5), masks).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimiser.step()

    return epoch


def limit(pictures: Pictures) -> Callable[[], object]:
    """As many forward and backward passes of our network, and nothing else."""
    settle()
    compute, model = pick_compute(), build_model(ModelSettings(image_px=PX), 0).train()
    model.to(compute.device)
    images, masks = (part.to(compute.device) for part in stacked(pictures, BATCH))
    images = images.contiguous(memory_format=torch.channels_last)

    def passes() -> None:
        for _ in range(STEPS):
            with compute.autocast():
                logits = model(images)
            segmentation_losses(logits, masks).mean().backward()  # type: ignore[no-untyped-call]
            model.zero_grad()

    return passes


SIDES = {"ours": ours, "theirs": theirs, "limit": limit}


if __name__ == "__main__":
    main()
