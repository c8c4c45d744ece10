"""Settings of a simulation: what is trained, from whose images, on which machine."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from knowmine.client.settings import DataSettings, MachineSettings, SamSettings
from knowmine.server.settings import RunSettings
from knowmine.shared.settings import Plan, Settings, SiteName

# A run may be resumed from another folder, so paths are made absolute.
FullPath = Annotated[Path, AfterValidator(Path.absolute)]


class SitesSettings(Settings):
    """The simulated hospitals: one folder divided, or a folder for each."""

    data: FullPath | None = Field(None, description="Folder that is divided into `count` sites.")
    count: int = Field(3, ge=1, le=10_000, description="Sites that `data` is divided into.")
    alpha: float | None = Field(
        None,
        gt=0,
        description="Dirichlet concentration of uneven sizes: 0.3 is very uneven, 10 nearly even. "
        "Not set: even.",
    )
    folders: dict[SiteName, FullPath] = Field(
        default_factory=dict,
        description="Name of each site (lower-case letters, digits, hyphens) and its own folder.",
    )
    memory_gb: float = Field(
        0,
        ge=0,
        description="Memory for the sites' decoded images. Sites that do not fit read theirs again "
        "for each turn. 0 takes half of what is free.",
    )

    @property
    def memory_bytes(self) -> int:
        """`memory_gb` in bytes."""
        return int(self.memory_gb * 1e9)

    @model_validator(mode="after")
    def _one_way(self) -> "SitesSettings":
        if self.data and self.folders:
            raise ValueError("give either data (divided into sites) or folders (one a site)")
        return self


class SimulationSettings(Settings):
    """One simulation."""

    plan: Plan = Field(default_factory=Plan, description="What all sites have in common.")
    run: RunSettings = Field(default_factory=RunSettings, description="What the server does.")
    sites: SitesSettings = Field(
        default_factory=SitesSettings, description="The simulated hospitals and their images."
    )
    split: DataSettings = Field(
        default_factory=DataSettings, description="How each folder is divided."
    )
    sam: SamSettings = Field(default_factory=SamSettings, description="The large model.")
    machine: MachineSettings = Field(
        default_factory=MachineSettings, description="How the machine is used."
    )
