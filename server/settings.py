"""What the coordinator decides: how long a run is and how updates become the next model."""

from typing import Literal

from pydantic import Field

from knowmine.shared.settings import Settings


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
    optimiser: ServerOptimiserSettings = Field(
        default_factory=ServerOptimiserSettings, description="The server's optimiser."
    )
