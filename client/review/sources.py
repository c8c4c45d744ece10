"""Find the files of a run that a review needs, in each layout that a run can have."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from knowmine.client.data.folder import images_in
from knowmine.client.paths import VAULT_KEYS, cache_of
from knowmine.client.settings import SITE_LOG, ClientSettings, MachineSettings, SamSettings
from knowmine.client.storage.encryption import PROJECT, Seal
from knowmine.client.storage.pseudo_label_store import index_file
from knowmine.shared.errors import DataError, UsageError
from knowmine.shared.settings import ModelSettings, read_settings

_LAST_BYTES = 1 << 16
"""How much of the end of a log is read; its last line is shorter."""


@dataclass(frozen=True)
class SiteFiles:
    """One site's own folder in a run, and the images of its data folder by case id.

    seal: decrypts what the site encrypted; None if it did not encrypt.
    """

    name: str
    folder: Path
    images: Mapping[str, Path]
    seal: Seal | None = None


@dataclass(frozen=True)
class RunFiles:
    """The sites of one run that are reviewed together.

    running: the run has not ended. machine: what the settings let a review use; a round may use the
    rest at the same time. image_px: side of the model frame.
    """

    title: str
    sites: tuple[SiteFiles, ...]
    sam: SamSettings
    running: bool
    machine: MachineSettings
    image_px: int

    @property
    def cache(self) -> Path:
        """Folder of SAM's weights and embeddings."""
        return cache_of(self.sam)


class _Sites(BaseModel):
    data: Path | None = None
    folders: dict[str, Path] = {}


class _Model(BaseModel):
    image_px: int = ModelSettings().image_px


class _Plan(BaseModel):
    model: _Model = _Model()


class _Simulated(BaseModel):
    """The part of a simulation's settings.json that a review needs."""

    plan: _Plan = _Plan()
    sites: _Sites = _Sites()
    sam: SamSettings = SamSettings()
    machine: MachineSettings = MachineSettings()


def find_run(run: Path, data: Path | None = None, sam: str | None = None) -> RunFiles:
    """The files of `run`: a simulation's folder, a site's client.yaml, or its state folder.

    data: folder of the images; None takes it from the run's settings. If the images are not found,
    the review shows the small copies that the round kept. sam: weights to use instead.
    Raises `UsageError` if there is no pseudo-label.
    """
    if run.is_file():
        found = _of_settings(run)
    elif (run / "sites").is_dir():
        found = _of_simulation(run, data)
    else:
        folder = _site_folder(run)
        found = RunFiles(
            folder.absolute().parent.name,
            (_site(folder.name, folder, data),),
            SamSettings(),
            is_running(run),
            MachineSettings(),
            ModelSettings().image_px,
        )
    if not any(index_file(site.folder, site.seal).exists() for site in found.sites):
        raise UsageError(
            f"no pseudo-labels in {run}: expected a simulation's run folder, a site's client.yaml "
            "or its state folder, after a round that mined. Rounds mine from the second on at the "
            "earliest, and method supervised never mines"
        )
    if sam is not None:
        found = replace(found, sam=found.sam.model_copy(update={"weights": sam}))
    return found


def is_running(run: Path) -> bool:
    """Whether the run has not ended. Fast: images are not listed."""
    if run.is_file():
        return not _has_ended(read_settings(ClientSettings, run, {}).state / SITE_LOG)
    if (run / "sites").is_dir():
        return not (run / "summary.json").is_file()
    return not _has_ended(_site_folder(run).parent / SITE_LOG)


def _site_folder(state: Path) -> Path:
    """The site's own folder, given the state folder or that folder itself."""
    return state / "site" if (state / "site").is_dir() else state


def _has_ended(log: Path) -> bool:
    """Whether the last line of the site's log says that the run ended."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST_BYTES))
            last = file.read().splitlines()[-1]
        return bool(json.loads(last)["event"] == "end")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _of_settings(file: Path) -> RunFiles:
    settings = read_settings(ClientSettings, file, {})
    site = _site(settings.site, settings.state / "site", settings.data)
    title = f"{settings.federation}, {settings.site}"
    return RunFiles(
        title, (site,), settings.sam, is_running(file), settings.machine, settings.model.image_px
    )


def _of_simulation(run: Path, data: Path | None) -> RunFiles:
    try:
        settings = _Simulated.model_validate_json((run / "settings.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{run / 'settings.json'} cannot be read: {error}") from None
    folders = sorted(folder for folder in (run / "sites").iterdir() if folder.is_dir())
    common = data or settings.sites.data
    images = _images(common)
    sites = tuple(
        SiteFiles(
            folder.name,
            folder,
            images if common else _images(settings.sites.folders.get(folder.name)),
        )
        for folder in folders
    )
    return RunFiles(
        run.absolute().name,
        sites,
        settings.sam,
        is_running(run),
        settings.machine,
        settings.plan.model.image_px,
    )


def _site(name: str, folder: Path, data: Path | None) -> SiteFiles:
    keys = folder.parent / VAULT_KEYS
    seal = Seal(keys) if (keys / PROJECT).exists() else None
    return SiteFiles(name, folder, _images(data), seal)


def _images(data: Path | None) -> dict[str, Path]:
    """The images of a data folder by case id; empty if the folder is missing or has errors."""
    try:
        return images_in(data) if data else {}
    except (DataError, OSError):
        return {}
