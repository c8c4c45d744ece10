"""What the coordinator decides: how long a run is, who takes part, how long they may take."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from knowmine.shared.settings import FilePath, Plan, Settings, SiteName


class ServerOptimiserSettings(Settings):
    """What happens to the averaged update."""

    name: Literal["mean", "sgd", "adam", "adamw", "adagrad"] = Field(
        "mean",
        description="mean: the average is the next model (FedAvg). Otherwise that torch.optim "
        "optimiser steps on the averaged change (FedOpt).",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Step size; mean ignores it. Not set: 1 for sgd, 0.01 for the adaptive ones.",
    )
    momentum: float = Field(
        0.9, ge=0, lt=1, description="Momentum of sgd, beta 1 of adam and adamw; others ignore it."
    )


class RunSettings(Settings):
    """One run of the federation."""

    rounds: int = Field(5, ge=1, le=100_000, description="Rounds of the run.")
    quorum: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the sites whose updates must be admitted for a round to count.",
    )
    aggregation: Literal["mean", "clipped", "trimmed", "median"] = Field(
        "mean",
        description="How updates become one. mean: by images (FedAvg). clipped: no site moves the "
        "model further than half of them do. trimmed, median: per number, without the extremes, "
        "every site alike; slower, against sites that may be wrong or hostile.",
    )
    optimiser: ServerOptimiserSettings = Field(
        default_factory=ServerOptimiserSettings, description="The server's optimiser."
    )


class ListenSettings(Settings):
    """Where sites reach this server."""

    host: str = Field("0.0.0.0", description="Address of this machine to listen on.")  # noqa: S104
    port: int = Field(9443, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_body_mb: float = Field(
        8, ge=6, le=1000, description="Largest request; a model travels in parts of 5 MB."
    )
    silent_s: float = Field(
        45, gt=0, description="Seconds of silence after which a site counts as gone."
    )


class AttendanceSettings(Settings):
    """Which sites a round waits for."""

    expected: tuple[SiteName, ...] = Field(
        (), description="Sites that a round waits for at first. Empty: all that are admitted."
    )
    minimum: int = Field(
        1, ge=1, le=10_000, description="Sites without which no round begins or counts."
    )
    gather_s: float = Field(
        60, ge=0, description="Seconds that a round waits for expected sites beyond the minimum."
    )
    patience_s: float = Field(
        24 * 3600,
        gt=0,
        description="Seconds without the minimum after which the run pauses; it can go on later.",
    )
    attempts: int = Field(
        1,
        ge=1,
        le=100,
        description="Times that a round is asked for before a missed quorum ends the run.",
    )


class DeadlineSettings(Settings):
    """How long a site may work on one task; what comes later is left out of the round."""

    first_s: float = Field(
        4 * 3600, gt=0, description="Seconds for a site whose speed is not known yet."
    )
    factor: float = Field(
        3, ge=1, description="Later: this many times the slowest of the site's last five tasks."
    )
    others_factor: float = Field(
        10,
        ge=1,
        description="With the quorum reached, the last are waited for this many times as long as "
        "the slowest that answered took.",
    )
    at_least_s: float = Field(60, gt=0, description="But never fewer seconds than this.")


class ServerSettings(Settings):
    """A coordinating server: one federation, one run."""

    federation: SiteName = Field(
        description="Name of the federation: lower-case letters, digits, hyphens."
    )
    listen: ListenSettings = Field(default_factory=ListenSettings, description="The network.")
    keys: FilePath = Field(Path("keys"), description="Folder of server.key and server.crt.")
    sites: FilePath = Field(
        Path("sites"), description="Folder of admitted sites, one file each: the allow-list."
    )
    out: FilePath = Field(Path("run"), description="The run's folder.")
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
    def _enough_expected(self) -> "ServerSettings":
        expected = self.attendance.expected
        if expected and len(expected) < self.attendance.minimum:
            raise ValueError(
                f"attendance.minimum is {self.attendance.minimum} and attendance.expected names "
                f"{len(expected)} sites: name more, or lower the minimum"
            )
        return self
