"""What an experiment is: one settings file, and splits that all its methods share."""

import csv
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

from pydantic import Field, model_validator

from knowmine.client.data.dataset import HiddenMasks, SiteData, split_sites
from knowmine.client.data.folder import Case, scan
from knowmine.client.data.sampling import ranked
from knowmine.client.settings import SamSettings
from knowmine.server.settings import RunSettings
from knowmine.shared.errors import DataError, UsageError
from knowmine.shared.files import write_atomically
from knowmine.shared.settings import MiningSettings, Plan, Settings, read_settings

HERE = Path(__file__).parent
SETS = ("labelled", "calibration", "unlabelled", "test")
METHODS = (
    *("alone", "supervised", "self-training", "paper", "knowmine"),
    *("supervised-all", "oracle"),
)

Split: TypeAlias = dict[str, dict[str, Any]]
"""By site: `data`, the name of its data set, and the case ids of each of SETS."""


class Division(Settings):
    """How one data set is divided into sites."""

    data: str = Field(description="Name of the data set, given as --data NAME=FOLDER.")
    masks: str = Field("masks", description="Folder of the masks within the data set.")
    where: dict[str, str] = Field(
        default_factory=dict, description="Only images with these values in index.csv take part."
    )
    sites: int = Field(1, ge=1, description="Number of sites.")
    alpha: float | None = Field(None, gt=0, description="Dirichlet concentration of site sizes.")
    labelled: float | None = Field(
        None, ge=0, le=1, description="Fraction with labels; not set: the experiment's `labels`."
    )
    test: str | None = Field(None, description="List of test images within the data set.")
    test_where: dict[str, str] = Field(
        default_factory=dict, description="Column of index.csv and its value in test images."
    )
    group_by: str | None = Field(
        None, description="Column of index.csv; a group is never in training and test both."
    )
    validation: int = Field(
        0,
        ge=0,
        description="Unlabelled images of each site to score in place of its test images. Choices "
        "between settings are made on these.",
    )


class Experiment(Settings):
    """What is compared: the same images, steps and seeds for every method."""

    divisions: tuple[Division, ...] = Field(min_length=1, description="Where the images are from.")
    labels: tuple[float, ...] = Field(min_length=1, description="Fractions of labels to compare.")
    methods: tuple[str, ...] = Field(description="Methods or variants to compare.")
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Further methods: knowmine with some `mining` settings changed.",
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), description="Each draws its own labels and batches.")
    plan: Plan = Field(default_factory=Plan, description="As in a simulation; the method varies.")
    run: RunSettings = Field(default_factory=RunSettings, description="Rounds and server.")
    sam: SamSettings = Field(default_factory=SamSettings, description="SAM's weights.")

    @model_validator(mode="after")
    def _methods_exist(self) -> Self:
        for changes in self.variants.values():
            self.mining_with(changes)
        if unknown := set(self.methods) - {*METHODS, *self.variants}:
            raise ValueError(
                f"methods {sorted(unknown)} are neither in {list(METHODS)} nor in `variants`"
            )
        return self

    def mining_with(self, changes: Mapping[str, Any]) -> MiningSettings:
        """The plan's mining settings with some of them changed."""
        return MiningSettings.model_validate({**self.plan.mining.model_dump(), **changes})

    def cells(self) -> "Iterator[Cell]":
        """Every run of the experiment; all methods of one split follow each other."""
        for labels in self.labels:
            for seed in self.seeds:
                for method in self.methods:
                    yield Cell(labels, method, seed)


class Cell(NamedTuple):
    """One run of an experiment."""

    labels: float
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{percent(self.labels)}-{self.method}-{self.seed}"


def percent(labels: float) -> str:
    """A fraction of labels as file names and tables show it.

    >>> percent(0.05), percent(0.005)
    ('5', '0.5')
    """
    return f"{100 * labels:.4g}"


def read_experiment(name: str) -> Experiment:
    """The experiment of `experiments/NAME.yaml`."""
    file = HERE / "experiments" / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(f.stem for f in file.parent.glob("*.yaml")))
        raise UsageError(f"no experiment {name!r}; there are: {known}")
    return read_settings(Experiment, file, {})


def prepared(experiment: Experiment, folders: Mapping[str, Path], home: Path) -> dict[str, Path]:
    """The folder of each data set; a folder of links in `home` if a division selects from it.

    Raises `UsageError` for a data set that was not given, `DataError` where nothing is selected.
    """
    found = {}
    for division in experiment.divisions:
        if division.data not in folders:
            raise UsageError(f"this experiment needs --data {division.data}=FOLDER")
        found[division.data] = folders[division.data]
        if division.where or division.masks != "masks":
            found[division.data] = _linked(division, folders[division.data], home / division.data)
    return found


def _linked(division: Division, folder: Path, links: Path) -> Path:
    """A data folder of links to the images that `where` selects and to their masks."""
    rows = [
        row
        for row in _index(folder)
        if all(row.get(column) == value for column, value in division.where.items())
    ]
    if not rows:
        raise DataError(f"{folder / 'index.csv'} has no row with {division.where}")
    chosen = {row["stem"] for row in rows}
    for source, name in (("images", "images"), (division.masks, "masks")):
        (links / name).mkdir(parents=True, exist_ok=True)
        for file in (folder / source).iterdir():
            link = links / name / file.name
            if file.stem in chosen and not link.exists():
                link.symlink_to(file.resolve())
    with (links / "index.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return links


def _index(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def split_of(
    experiment: Experiment, labels: float, seed: int, folders: Mapping[str, Path], file: Path
) -> Split:
    """The split kept in `file`, or one that is drawn now and kept there for all methods."""
    if not file.exists():
        keep(file, draw(experiment, labels, seed, folders), indent=None)
    split: Split = json.loads(file.read_text())
    return split


def draw(experiment: Experiment, labels: float, seed: int, folders: Mapping[str, Path]) -> Split:
    """Draw test images, labels and calibration images; the sites of all divisions are counted."""
    sites: Split = {}
    for division in experiment.divisions:
        fraction = labels if division.labelled is None else division.labelled
        for data in _drawn(division, fraction, seed, folders[division.data]):
            ids = {name: sorted(case.case_id for case in getattr(data, name)) for name in SETS}
            sites[f"site-{len(sites) + 1}"] = {"data": division.data, **ids}
    return sites


def _drawn(division: Division, labels: float, seed: int, folder: Path) -> list[SiteData]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        test = Path(division.test) if division.test else None
        if division.test_where:
            ((column, value),) = division.test_where.items()
            rows = [row["stem"] for row in _index(folder) if row[column] == value]
            listed.write("\n".join(rows))
            listed.flush()
            test = Path(listed.name)
        drawn = split_sites(
            folder,
            division.sites,
            dirichlet_alpha=division.alpha,
            labelled=labels,
            test=test,
            group_by=division.group_by,
            seed=seed,
        )
    return [_validated(data, division.validation, seed) for data, _ in drawn.values()]


def _validated(data: SiteData, count: int, seed: int) -> SiteData:
    """The site with `count` of its unlabelled images in place of its test images; 0: as it is."""
    if not count:
        return data
    chosen = set(ranked([case.case_id for case in data.unlabelled], seed, "validation")[:count])
    return replace(
        data,
        test=tuple(case for case in data.unlabelled if case.case_id in chosen),
        unlabelled=tuple(case for case in data.unlabelled if case.case_id not in chosen),
    )


def site_data(
    name: str, site: Mapping[str, Any], folders: Mapping[str, Path], method: str
) -> tuple[SiteData, HiddenMasks]:
    """A site by its split. Masks that a method may not learn from are hidden.

    Only `supervised-all` sees the masks of the images that are unlabelled for the others.
    Raises `DataError` where the folder lacks images of the split.
    """
    folder = folders[site["data"]]
    cases = {case.case_id: case for case in scan(folder)}
    missing = sorted(case_id for key in SETS for case_id in site[key] if case_id not in cases)
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} images of the split of {name}, {missing[0]} first: the "
            "split was drawn from other data"
        )
    ids = {key: list(site[key]) for key in SETS}
    if method == "supervised-all":
        ids["labelled"] += ids["unlabelled"]
        ids["unlabelled"] = []
    seen = {*ids["labelled"], *ids["calibration"]}

    def of(key: str) -> tuple[Case, ...]:
        found = (cases[case_id] for case_id in ids[key])
        return tuple(case if case.case_id in seen else replace(case, mask=None) for case in found)

    hidden = {
        case_id: mask
        for key in ("unlabelled", "test")
        for case_id in ids[key]
        if (mask := cases[case_id].mask) is not None
    }
    labelled, calibration, unlabelled, test = map(of, SETS)
    return SiteData(name, labelled, calibration, unlabelled, test), HiddenMasks(hidden)


def keep(file: Path, found: Any, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(found, indent=indent) + "\n").encode())
