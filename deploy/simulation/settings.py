"""What one file says of a simulation, of a federation to be provisioned, of a stock SuperNode."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from knowmine.client.settings import DataSettings, MachineSettings, SamSettings
from knowmine.server.settings import AttendanceSettings, DeadlineSettings, RunSettings
from knowmine.shared.settings import FilePath, ModelSettings, Plan, Settings, SiteName
from knowmine.shared.trust.certificates import checked_host

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

    memory_gb: float = Field(
        0,
        ge=0,
        description="Memory for the sites' decoded images. Sites beyond it read theirs again for "
        "each turn. 0 takes half of what is free.",
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


Host = Annotated[str, AfterValidator(checked_host)]


class AddressSettings(Settings):
    """Where the sites find the coordinator's server."""

    hosts: tuple[Host, ...] = Field(
        min_length=1,
        max_length=20,
        description="Host names and addresses of the server, all in its certificate. Kits name "
        "the first.",
    )
    port: int = Field(9443, ge=1, le=65535, description="Port that the server listens on.")
    listen: str = Field(
        "0.0.0.0",  # noqa: S104 - sites are elsewhere; TLS turns strangers away
        description="Address of the server's machine to listen on.",
    )

    @property
    def first(self) -> str:
        """host:port as sites are told it, an IPv6 address in brackets."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class FederationSettings(Settings):
    """A federation before it exists: who takes part, what is learnt, where they meet."""

    federation: SiteName = Field(
        description="Name of the federation: lower-case letters, digits, hyphens."
    )
    server: AddressSettings = Field(description="Where the sites find the server.")
    sites: tuple[SiteName, ...] = Field(
        min_length=1, max_length=10_000, description="Names of the sites; each gets a kit."
    )
    plan: Plan = Field(default_factory=Plan, description="What all sites do alike.")
    run: RunSettings = Field(default_factory=RunSettings, description="What the server does.")
    attendance: AttendanceSettings = Field(
        default_factory=lambda: AttendanceSettings(attempts=5),
        description="Which sites a round waits for.",
    )
    deadlines: DeadlineSettings = Field(
        default_factory=DeadlineSettings, description="How long a site may take."
    )

    @model_validator(mode="after")
    def _sites_are_named_once(self) -> "FederationSettings":
        twice = sorted({site for site in self.sites if self.sites.count(site) > 1})
        if twice:
            raise ValueError(f"sites names {', '.join(twice)} twice: give each a name of its own")
        strangers = sorted(set(self.attendance.expected) - set(self.sites))
        if strangers:
            raise ValueError(f"attendance.expected names {', '.join(strangers)}, not in sites")
        if len(self.sites) < self.attendance.minimum:
            raise ValueError(
                f"attendance.minimum is {self.attendance.minimum} and sites names "
                f"{len(self.sites)}: name more, or lower the minimum"
            )
        return self


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
