"""All that a simulation needs to know, in one file; and what a site needs on a stock SuperNode."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from knowmine.client.settings import DataSettings, MachineSettings, SamSettings
from knowmine.server.settings import RunSettings
from knowmine.shared.settings import FilePath, ModelSettings, Plan, Settings, SiteName

# A run may be resumed from another folder, so paths are kept whole.
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

    @model_validator(mode="after")
    def _one_way(self) -> "SitesSettings":
        if self.data and self.folders:
            raise ValueError("give either data (divided into sites) or folders (one a site)")
        return self


class SimulationSettings(Settings):
    """One simulation: what is learnt, from whose data, on which machine."""

    plan: Plan = Field(default_factory=Plan, description="What all sites do alike.")
    run: RunSettings = Field(default_factory=RunSettings, description="What the server does.")
    sites: SitesSettings = Field(default_factory=SitesSettings, description="Whose data.")
    split: DataSettings = Field(
        default_factory=DataSettings, description="How each folder is divided."
    )
    sam: SamSettings = Field(default_factory=SamSettings, description="The model that is mined.")
    machine: MachineSettings = Field(
        default_factory=MachineSettings, description="What of this machine is used."
    )


class NodeSettings(Settings):
    """One hospital on a stock SuperNode: what stands in `--node-config` or a file it names."""

    site: SiteName = Field(description="This site's name in the federation.")
    data: FilePath = Field(description="Folder of images/ and masks/; it is only read.")
    state: FilePath = Field(
        Path("knowmine-state"), description="Folder of what the site keeps between messages."
    )
    model: ModelSettings = Field(
        default_factory=ModelSettings, description="The network that this site agreed to train."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Draws the probe and test images.")
    split: DataSettings = Field(
        default_factory=DataSettings, description="How the folder is divided."
    )
    sam: SamSettings = Field(default_factory=SamSettings, description="The model that is mined.")
    machine: MachineSettings = Field(
        default_factory=MachineSettings, description="What of this machine is used."
    )
