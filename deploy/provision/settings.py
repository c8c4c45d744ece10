"""Settings of a federation before it exists: federation.yaml."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from knowmine.server.settings import AttendanceSettings, DeadlineSettings, RunSettings
from knowmine.shared.settings import Plan, Settings, SiteName
from knowmine.shared.trust.certificates import checked_host

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
        "0.0.0.0",  # noqa: S104 - sites are elsewhere, and TLS refuses strangers
        description="Address of the server's machine to listen on.",
    )

    @property
    def first(self) -> str:
        """host:port for the sites' settings; an IPv6 address is in brackets."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class FederationSettings(Settings):
    """A federation before it exists: who takes part, what is trained, where the server is."""

    federation: SiteName = Field(
        description="Name of the federation: lower-case letters, digits, hyphens."
    )
    server: AddressSettings = Field(description="Where the sites find the server.")
    sites: tuple[SiteName, ...] = Field(
        min_length=1, max_length=10_000, description="Names of the sites; each gets a kit."
    )
    plan: Plan = Field(default_factory=Plan, description="What all sites have in common.")
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
            raise ValueError(f"sites names {', '.join(twice)} twice: give each site its own name")
        strangers = sorted(set(self.attendance.expected) - set(self.sites))
        if strangers:
            raise ValueError(f"attendance.expected names {', '.join(strangers)}, not in sites")
        if len(self.sites) < self.attendance.minimum:
            raise ValueError(
                f"attendance.minimum is {self.attendance.minimum} and sites names "
                f"{len(self.sites)}: name more, or lower the minimum"
            )
        return self
