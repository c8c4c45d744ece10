"""Draw the splits of experiments, once; they are kept under version control.

python -m benchmarks.quality.make_splits --data kvasir-seg=KVASIR [EXPERIMENT ...]
"""

import argparse
import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.quality.experiment import (
    HERE,
    KINDS,
    Division,
    Experiment,
    read_experiment,
    split_file,
)
from benchmarks.quality.run import folders_of
from knowmine.client.data.dataset import SiteData, split_sites
from knowmine.client.data.sampling import ranked


def main() -> None:
    """Draw what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    options = parser.parse_args()
    names = options.experiments or [f.stem for f in (HERE / "experiments").glob("*.yaml")]
    for name in sorted(names):
        experiment = read_experiment(name)
        for seed in experiment.seeds:
            file = split_file(name, seed)
            if not file.exists():
                sites = draw(experiment, folders_of(options.data), seed)
                file.write_text(json.dumps({"experiment": name, "seed": seed, "sites": sites}))
                print(f"{file.name}: {len(sites)} sites")


def draw(
    experiment: Experiment, folders: dict[str, Path], seed: int
) -> dict[str, dict[str, str | list[str]]]:
    """Stems of each kind for each site; sites of later divisions are counted on."""
    sites: dict[str, dict[str, str | list[str]]] = {}
    for division in experiment.divisions:
        for data in _drawn(division, folders[division.data], seed):
            stems = {kind: sorted(case.stem for case in getattr(data, kind)) for kind in KINDS}
            sites[f"site-{len(sites) + 1}"] = {"data": division.data, **stems}
    return sites


def _drawn(division: Division, folder: Path, seed: int) -> list[SiteData]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        test = Path(division.test) if division.test else None
        if division.test_where:
            ((column, value),) = division.test_where.items()
            with (folder / "index.csv").open(newline="") as table:
                stems = [row["stem"] for row in csv.DictReader(table) if row[column] == value]
            listed.write("\n".join(stems))
            listed.flush()
            test = Path(listed.name)
        drawn = split_sites(
            folder,
            division.sites,
            dirichlet_alpha=division.alpha,
            labelled=division.labelled,
            probe_fraction=division.probe,
            test=test,
            group_by=division.group_by,
            seed=seed,
        )
    sites = [data for data, _ in drawn.values()]
    return [_validated(site, division.validation, seed) for site in sites]


def _validated(site: SiteData, count: int, seed: int) -> SiteData:
    """The site with `count` of its unlabelled images in the place of its test images; 0 changes nothing."""
    if not count:
        return site
    chosen = set(ranked([case.stem for case in site.unlabelled], seed, "validation")[:count])
    return replace(
        site,
        test=tuple(case for case in site.unlabelled if case.stem in chosen),
        unlabelled=tuple(case for case in site.unlabelled if case.stem not in chosen),
    )


if __name__ == "__main__":
    main()
