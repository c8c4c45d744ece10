"""Where the pseudo-labels, images and embeddings of a run are, whichever way it was run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from knowmine.client.data.folder import images_in
from knowmine.client.settings import SITE_LOG, ClientSettings, MachineSettings, SamSettings
from knowmine.client.site.open import cache_of
from knowmine.client.storage.encryption import PROJECT, VAULT_KEYS, Seal
from knowmine.client.storage.pseudo_label_store import index_file
from knowmine.client.storage.report_samples import mined_files
from knowmine.shared.errors import DataError, UsageError
from knowmine.shared.settings import read_settings

_LAST_BYTES = 1 << 16
"""Of a log that may be long: its last line is shorter."""


@dataclass(frozen=True)
class Place:
    """One site's own folder in a run, and the images of its data folder by stem.

    seal: opens what the site encrypted; None where it did not.
    """

    site: str
    folder: Path
    images: Mapping[str, Path]
    seal: Seal | None = None


@dataclass(frozen=True)
class Places:
    """What is reviewed together. going: the run has not said that it is over.

    machine: what the site's own settings let it use; a round may be using the rest.
    """

    title: str
    places: tuple[Place, ...]
    sam: SamSettings
    going: bool
    machine: MachineSettings

    @property
    def cache(self) -> Path:
        """Where SAM's weights and embeddings are."""
        return cache_of(self.sam)


class _Sites(BaseModel):
    data: Path | None = None
    folders: dict[str, Path] = {}


class _Simulated(BaseModel):
    """As much as a review needs of a simulation's settings.json."""

    sites: _Sites = _Sites()
    sam: SamSettings = SamSettings()
    machine: MachineSettings = MachineSettings()


def find_places(run: Path, data: Path | None = None, sam: str | None = None) -> Places:
    """The sites of `run`: a simulation's folder, a site's client.yaml, or its state folder.

    data: where the images are; not set: what the run's settings say. Without it pseudo-labels
    are shown on the small images that the round kept. sam: other weights.
    Raises `UsageError` where there is nothing to look at.
    """
    if run.is_file():
        found = _of_settings(run)
    elif (run / "sites").is_dir():
        found = _of_simulation(run, data)
    else:
        folder = run / "site" if (run / "site").is_dir() else run
        found = Places(
            folder.absolute().parent.name,
            (_place(folder.name, folder, data),),
            SamSettings(),
            is_going(run),
            MachineSettings(),
        )
    if not any(
        index_file(place.folder, place.seal).exists() or mined_files(place.folder, place.seal)
        for place in found.places
    ):
        raise UsageError(
            f"no pseudo-labels in {run}: expected a simulation's run folder, a site's client.yaml "
            "or its state folder, after a round that mined. Rounds mine from the second on, and "
            "method supervised never does"
        )
    if sam is not None:
        settings = found.sam.model_copy(update={"weights": sam})
        found = replace(found, sam=settings)
    return found


def is_going(run: Path) -> bool:
    """Whether the run has not said that it is over; as `find_places`, without looking at images."""
    if run.is_file():
        return not _has_ended(read_settings(ClientSettings, run, {}).state / SITE_LOG)
    if (run / "sites").is_dir():
        return not (run / "summary.json").is_file()
    folder = run / "site" if (run / "site").is_dir() else run
    return not _has_ended(folder.parent / SITE_LOG)


def _of_settings(file: Path) -> Places:
    settings = read_settings(ClientSettings, file, {})
    place = _place(settings.site, settings.state / "site", settings.data)
    title = f"{settings.federation}, {settings.site}"
    return Places(title, (place,), settings.sam, is_going(file), settings.machine)


def _has_ended(log: Path) -> bool:
    """Whether the last thing that the site's client wrote is that the run is over."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST_BYTES))
            last = file.read().splitlines()[-1]
        return bool(json.loads(last)["event"] == "end")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _of_simulation(run: Path, data: Path | None) -> Places:
    try:
        settings = _Simulated.model_validate_json((run / "settings.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{run / 'settings.json'} cannot be read: {error}") from None
    sites = sorted(folder for folder in (run / "sites").iterdir() if folder.is_dir())
    common = data or settings.sites.data
    images = _images(common)
    places = tuple(
        Place(
            folder.name,
            folder,
            images if common else _images(settings.sites.folders.get(folder.name)),
        )
        for folder in sites
    )
    return Places(run.absolute().name, places, settings.sam, is_going(run), settings.machine)


def _place(site: str, folder: Path, data: Path | None) -> Place:
    keys = folder.parent / VAULT_KEYS
    seal = Seal(keys) if (keys / PROJECT).exists() else None
    return Place(site, folder, _images(data), seal)


def _images(data: Path | None) -> dict[str, Path]:
    """The images of a data folder by stem; none where it is gone or in disorder."""
    try:
        return images_in(data) if data else {}
    except (DataError, OSError):
        return {}
