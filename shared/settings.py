"""Settings: frozen models, explained where they stand and checked once, at the door.

A `Plan` is what a federation agrees on and the server sends with each task. What belongs to
one role or one machine stands in `server/settings.py`, `client/settings.py` and
`deploy/simulation/settings.py`.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from knowmine.shared.errors import SettingsError

S = TypeVar("S", bound="Settings")
Method = Literal["supervised", "self-training", "paper", "knowmine"]
SiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")]


def _from_file(path: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {}).get("folder", Path())
    return Path.absolute(folder / path.expanduser())


FilePath = Annotated[Path, AfterValidator(_from_file)]
"""A path in a settings file, relative to that file's folder."""


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is a mistake rather than a comment."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


class ModelSettings(Settings):
    """The one network that the federation trains."""

    encoder: str = Field(
        "tu-tf_efficientnet_lite0",
        description="Encoder by its segmentation-models-pytorch name; tu- names come from timm.",
    )
    pretrained: bool = Field(
        True, description="Start from ImageNet weights; false starts from random numbers."
    )
    classes: int = Field(
        1, ge=1, le=32, description="Foreground classes; 0 in a mask is background."
    )
    decoder_channels: tuple[int, ...] = Field(
        (128, 64, 32, 16, 8),
        min_length=3,
        max_length=5,
        description="Channels of the decoder's stages, deepest first.",
    )
    image_px: int = Field(
        224,
        ge=32,
        le=2048,
        multiple_of=32,
        description="Side of the square that images are resized to, the model frame.",
    )


class TrainingSettings(Settings):
    """One site's training in one round."""

    steps: int = Field(40, ge=1, le=10_000, description="Optimiser steps a round at each site.")
    batch: int = Field(8, ge=2, le=512, description="Images a step.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="AdamW's peak learning rate.")
    weight_decay: float = Field(1e-2, ge=0, le=1, description="AdamW's weight decay.")
    fedprox: float = Field(
        0.0, ge=0, le=10, description="Pull towards the global weights, FedProx's mu; 0 is off."
    )
    decay: Literal["run", "mining"] = Field(
        "run",
        description="run: the learning rate falls along a cosine from the first round to the last. "
        "mining: it stays at its peak while the warm-up lasts, and falls over the rounds after it.",
    )
    batch_norm: Literal["average", "local"] = Field(
        "average",
        description="Batch-norm layers: averaged like all else, or each site keeps its own.",
    )
    orientation: Literal["upright", "any"] = Field(
        "upright",
        description="upright: images have an up and a down (X-ray), mirrored left to right and "
        "turned slightly; any: they have none (endoscopy, microscopy), flipped and turned freely.",
    )


class MiningSettings(Settings):
    """How pseudo-labels are made and used."""

    warmup_rounds: int | None = Field(
        None,
        ge=0,
        description="First rounds that train on labels alone: a model that knows nothing yet "
        "has nothing to prompt with. Not set: two fifths of the run's rounds, one at least.",
    )
    images: int = Field(
        160,
        ge=0,
        description="Unlabelled images that a site mines a round, each once before any comes twice; "
        "0 takes all.",
    )
    share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Part of each batch that is pseudo-labelled; less where pseudo-labels are a "
        "smaller part of all images.",
    )
    weight: float = Field(
        1.0, ge=0, le=10, description="Weight of the pseudo-labelled loss beside the labelled."
    )
    ramp_rounds: int = Field(
        1,
        ge=1,
        description="Mining rounds until that weight is reached, in even steps.",
    )
    count_weight: float = Field(
        0.25,
        ge=0,
        le=1,
        description="What a pseudo-labelled image counts beside a labelled one when sites are "
        "averaged.",
    )
    keep_first: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the mined images kept in the first mining round, the best-judged; what is "
        "kept counts by its quality.",
    )
    keep_last: float = Field(
        1.0, gt=0, le=1, description="Share kept in the last round; between, it grows evenly."
    )
    min_quality: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Pseudo-labels judged below this are dropped whatever their rank.",
    )
    min_probe_images: int = Field(
        8,
        ge=1,
        description="Probe images needed to judge SAM; with fewer, a site borrows the "
        "federation's sums.",
    )
    probe_rounds: int = Field(
        1,
        ge=1,
        description="First rounds that keep the probe images apart. After them they are trained "
        "on, for labels are few, and the last sums go on judging.",
    )
    sam: Literal["gated", "always", "never"] = Field(
        "gated",
        description="gated: SAM has its say where the probe set says that it helps. always: in an "
        "even mix with the U-Net++, whatever the probe set says. never: the U-Net++'s masks, judged "
        "and selected alone; SAM is not loaded.",
    )
    varied_views: bool = Field(
        True,
        description="Mine with the mean over views that differ much, turned by quarters where "
        "`training.orientation` allows it, two of the four a fifth larger as far as steps of 32 px "
        "come near it; false: the image and its mirror image.",
    )
    dense_prompts: bool = Field(
        True, description="Show SAM the U-Net++'s probabilities too, beside a box and points."
    )
    refinements: int = Field(
        1, ge=0, le=2, description="Times that a frozen SAM is prompted again with its own logits."
    )
    join_parts: bool = Field(
        False,
        description="Ask SAM about near components as one object too; the better answer stays.",
    )
    tune_steps: int = Field(
        96,
        ge=0,
        description="Steps of two labelled images in which SAM's mask decoder is tuned the first "
        "time; 0 leaves SAM frozen.",
    )
    tune_again: int = Field(
        0,
        ge=0,
        description="Steps that each later round adds in which SAM is asked, once its decoder has "
        "been tuned.",
    )
    false_alarms: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Chance that a labelled image teaches SAM's decoder what a false alarm is too: a "
        "question about a place without a lesion, whose right answer is an empty mask.",
    )
    share_decoder: bool = Field(
        False,
        description="Sites send SAM's mask decoder beside the model when they have tuned it: 16 MB, "
        "always whole, whatever transport.update says; in each round that mines unless tune_again is "
        "0. The server averages it by labelled images and sends it back, so that a site without labels "
        "asks a tuned SAM too. All sites need the same sam.weights. Without tuning it does nothing.",
    )
    distil_steps: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Steps of sixteen images at the start of the first round in which the encoder "
        "alone learns to foretell SAM's embeddings of all the site's images; for encoders without "
        "pretrained weights. SAM then looks at all of them in that round.",
    )
    sharpen: bool = Field(
        False, description="Push soft pseudo-labels towards 0 and 1; doubt stays at one half."
    )
    doubt: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How far a pixel on which U-Net++ and SAM disagree counts less: 0 as any "
        "other, 1 nothing where one says yes and the other no.",
    )
    strong: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Chance that a pseudo-labelled view gets twice the change of colours that a "
        "labelled one gets, and blur and noise; for long runs on large images.",
    )
    cut_mix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Chance that a pseudo-labelled view gets a box of another image of its batch; "
        "0 is off.",
    )
    renew: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share that a moving average of the model in training has in pseudo-labels, "
        "beside what was mined before the round; 0 is off.",
    )
    consolidate_rounds: int = Field(
        0, ge=0, description="Last rounds that train on labels alone, as the warm-up does."
    )
    restart: bool = Field(
        False,
        description="Start the first mining round from fresh weights, with the learning rate at "
        "its peak; worth trying only where that round has most of a thousand steps or more, for "
        "the rounds after it mine with the restarted model.",
    )

    def warm_up(self, rounds: int) -> int:
        """How many of a run's `rounds` train on labels alone before the first that mines.

        >>> [MiningSettings().warm_up(rounds) for rounds in (1, 3, 5, 10, 50)]
        [1, 1, 2, 4, 20]
        """
        if self.warmup_rounds is not None:
            return self.warmup_rounds
        return max(1, round(0.4 * rounds))


class TransportSettings(Settings):
    """How updates travel."""

    update: Literal["none", "bf16", "int8"] = Field(
        "none",
        description="none: a site sends its weights as they are. bf16, int8: it sends what "
        "changed, rounded, in a half or a quarter of the bytes or less; what rounding took is "
        "added to its next update.",
    )


class Plan(Settings):
    """What all sites of one run do alike; the server sends it with each task."""

    method: Method = Field(
        "knowmine",
        description="supervised: labels alone. self-training: the U-Net++'s own soft masks. "
        "paper: hard masks of a frozen SAM, unfiltered. knowmine: fused, judged and gated.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Every random draw follows from it.")
    model: ModelSettings = Field(default_factory=ModelSettings, description="The network.")
    training: TrainingSettings = Field(
        default_factory=TrainingSettings, description="One site's training in one round."
    )
    mining: MiningSettings = Field(
        default_factory=MiningSettings, description="How pseudo-labels are made and used."
    )
    transport: TransportSettings = Field(
        default_factory=TransportSettings, description="How updates travel."
    )

    @model_validator(mode="after")
    def _selection_grows(self) -> "Plan":
        if self.mining.keep_last < self.mining.keep_first:
            raise ValueError(
                f"mining.keep_last ({self.mining.keep_last}) is below mining.keep_first "
                f"({self.mining.keep_first}): the selection grows, so give it at least as much"
            )
        return self

    @model_validator(mode="after")
    def _distils_what_it_loads(self) -> "Plan":
        if self.mining.sam == "never" and self.mining.distil_steps:
            raise ValueError(
                "mining.distil_steps learns from SAM, and mining.sam is never: set one of them back"
            )
        return self

    @property
    def asks_sam(self) -> bool:
        """Whether sites need SAM at all."""
        return self.method == "paper" or (self.method == "knowmine" and self.mining.sam != "never")

    @property
    def shares_decoder(self) -> bool:
        """Whether SAM's decoder, as sites tune it, travels beside the model."""
        tunes = self.method == "knowmine" and self.asks_sam and self.mining.tune_steps > 0
        return tunes and self.mining.share_decoder


def read_settings(kind: type[S], file: Path | None, flags: Mapping[str, Any]) -> S:
    """Settings of `kind` from a YAML file, overridden by `flags` that are not None.

    A flag's name is the dotted key: `{"plan.seed": 3}`.
    A `FilePath` in the file is relative to the file's folder, in a flag to the current one.
    Raises `SettingsError` with file, key and repair.
    """
    values = _read_yaml(file) if file else {}
    for dotted, value in flags.items():
        if value is not None:
            put = value.absolute() if isinstance(value, Path) else value
            _put(values, dotted.split("."), put)
    try:
        return kind.model_validate(values, context={"folder": file.parent} if file else None)
    except ValidationError as error:
        raise SettingsError(_explain(kind, error, file)) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read settings file {file}: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: expected `key: value` lines, found a {type(values).__name__}")
    return values


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.get(key)
        if not isinstance(inner, dict):
            inner = values[key] = {}
        values = inner
    values[keys[-1]] = value


def _explain(kind: type[Settings], error: ValidationError, file: Path | None) -> str:
    """One line for each mistake: where, what was seen, how to mend it."""
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        where = f"{file}: " if file else ""
        key = ".".join(path) or "settings"
        if problem["type"] == "extra_forbidden":
            known = _known_keys(kind, path[:-1])
            near = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"{where}unknown key `{key}`; {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            seen = problem.get("input")
            shown = f" (found {seen!r})" if isinstance(seen, str | int | float | bool) else ""
            lines.append(f"{where}`{key}`: {message[0].lower() + message[1:]}{shown}")
    return "\n".join(lines)


def _known_keys(kind: type[Settings], path: list[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type):
            return []
        kind = field.annotation
    return sorted(kind.model_fields)
