"""What an experiment is: a settings file, and a split that is fixed by a file beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from knowmine.client.data.dataset import HiddenMasks, SiteData
from knowmine.client.data.folder import Case, read_stems, scan
from knowmine.client.data.sampling import ranked
from knowmine.server.settings import RunSettings
from knowmine.shared.errors import DataError, UsageError
from knowmine.shared.settings import MiningSettings, Plan, Settings, read_settings
from knowmine.shared.weights import write_atomically

HERE = Path(__file__).parent
KINDS = ("labelled", "probe", "unlabelled", "test")

Setting = Literal["federated", "pooled", "local"]
METHODS = ("supervised", "supervised-all", "self-training", "paper", "knowmine", "oracle")


class Division(Settings):
    """How a split file is drawn, once; runs read the file alone."""

    data: str = Field(description="Name of the data set, a folder given as --data NAME=FOLDER.")
    sites: int = Field(1, ge=1, description="Sites that it is divided into.")
    labelled: float = Field(ge=0, le=1, description="Share of the images with labels.")
    test: str | None = Field(None, description="List of test stems in the folder.")
    test_where: dict[str, str] = Field(
        default_factory=dict, description="Column of index.csv and the value that test images have."
    )
    group_by: str | None = Field(None, description="Column of index.csv; groups stay together.")
    validation: int = Field(
        0,
        ge=0,
        description="Images of each site that would be unlabelled and are scored instead; its test "
        "images then take no part. For choices, which no test image may see.",
    )
    probe: float = Field(0.2, ge=0, lt=1, description="Part of the labels that judge at first.")
    alpha: float | None = Field(None, gt=0, description="Dirichlet concentration of site sizes.")


class Experiment(Settings):
    """One line of the results: the same images, steps and seeds for every method."""

    divisions: tuple[Division, ...] = Field(min_length=1, description="Where the images are from.")
    setting: Setting = Field(description="federated, all data in one place, or each site alone.")
    methods: tuple[str, ...] = Field(description="What is compared.")
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Further methods: knowmine with some of its mining settings changed.",
    )
    seeds: tuple[int, ...] = Field((0,), description="Each runs every method once.")
    plan: Plan = Field(default_factory=Plan, description="As in a simulation; the method varies.")
    run: RunSettings = Field(default_factory=RunSettings, description="Rounds and server.")
    labels: float = Field(ge=0, le=1, description="Share of labels, as it is reported.")

    @model_validator(mode="after")
    def _methods_exist(self) -> Self:
        for changes in self.variants.values():
            self.mining_with(changes)
        if unknown := set(self.methods) - {*METHODS, *self.variants}:
            raise ValueError(
                f"methods: {sorted(unknown)} are neither of {list(METHODS)} nor in `variants`"
            )
        return self

    def mining_with(self, changes: Mapping[str, Any]) -> MiningSettings:
        """The plan's mining settings with some of them changed."""
        return MiningSettings.model_validate({**self.plan.mining.model_dump(), **changes})


def read_experiment(name: str) -> Experiment:
    """The experiment of `experiments/NAME.yaml`."""
    file = HERE / "experiments" / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(f.stem for f in file.parent.glob("*.yaml")))
        raise UsageError(f"no experiment {name!r}; there are: {known}")
    return read_settings(Experiment, file, {})


def split_file(name: str, seed: int) -> Path:
    """Where the split of an experiment and seed is kept."""
    return HERE / "splits" / f"{name}-{seed}.json"


def read_split(file: Path) -> dict[str, dict[str, Any]]:
    """Site name to its data set and its stems by kind."""
    try:
        split: dict[str, dict[str, Any]] = json.loads(file.read_text())["sites"]
    except FileNotFoundError:
        raise UsageError(
            f"no split at {file}; draw it once with `python -m benchmarks.quality.make_splits`"
        ) from None
    return split


def pooled(split: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """All sites' images as those of one, where they are of one data set."""
    sets = {site["data"] for site in split.values()}
    if len(sets) != 1:
        raise UsageError(f"cannot pool {sorted(sets)}: one site reads one folder")
    kinds = {kind: sorted(stem for site in split.values() for stem in site[kind]) for kind in KINDS}
    return {"pooled": {"data": sets.pop(), **kinds}}


def site_data(
    name: str, site: Mapping[str, Any], folders: Mapping[str, Path], method: str
) -> tuple[SiteData, HiddenMasks]:
    """A site as its split says. All masks that a method may not learn from are hidden.

    `supervised-all` alone has the masks of the images that others call unlabelled.
    """
    if site["data"] not in folders:
        raise UsageError(f"this experiment needs --data {site['data']}=FOLDER")
    cases = {case.stem: case for case in scan(folders[site["data"]])}
    missing = sorted(stem for kind in KINDS for stem in site[kind] if stem not in cases)
    if missing:
        raise DataError(
            f"{folders[site['data']]} lacks {len(missing)} images of site {name}'s split, "
            f"{missing[0]} first: it is not the data that the split was drawn from"
        )
    lists = {kind: list(site[kind]) for kind in KINDS}
    if method == "supervised-all":
        lists["labelled"] += lists.pop("unlabelled")
        lists["unlabelled"] = []
    seen = {*lists["labelled"], *lists["probe"]}

    def of(kind: str) -> tuple[Case, ...]:
        chosen = [cases[stem] for stem in lists[kind]]
        return tuple(
            case if case.stem in seen else Case(case.stem, case.image, None, case.group)
            for case in chosen
        )

    hidden = {
        stem: mask
        for kind in ("unlabelled", "test")
        for stem in lists[kind]
        if (mask := cases[stem].mask) is not None
    }
    data = SiteData(name, of("labelled"), of("probe"), of("unlabelled"), of("test"))
    return data, HiddenMasks(hidden)


def keep_result(file: Path, found: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(found, indent=1) + "\n").encode())


def training_split(
    data: Path, train_list: str, draw: str, labelled: int, unlabelled: int
) -> dict[str, Any]:
    """One site of so many labelled and unlabelled training images, drawn in the name of `draw`.

    Nothing is kept to probe or to test: what chooses a recipe looks at training images alone.
    """
    stems = ranked(read_stems(data / train_list, scan(data)), 0, draw)
    return {
        "data": "data",
        "labelled": stems[:labelled],
        "probe": [],
        "unlabelled": stems[labelled : labelled + unlabelled],
        "test": [],
    }
