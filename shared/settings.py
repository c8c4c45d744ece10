"""Settings: frozen models, explained where they are defined and checked once, when they are read.

A `Plan` is what a federation agrees on; the server sends it with each task. Settings of one role
or one machine are in `server/settings.py`, `client/settings.py` and
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
)

from knowmine.shared.errors import SettingsError

S = TypeVar("S", bound="Settings")

FOLLOWS = "pseudo-labels count fully, from the first round that mines"
REMOVED = {
    "mining.share": "use mining.fraction",
    "mining.weight": FOLLOWS,
    "mining.ramp_rounds": FOLLOWS,
    "mining.keep_first": "all pseudo-labels of sufficient quality are kept",
    "mining.keep_last": "all pseudo-labels of sufficient quality are kept",
    "mining.refinements": "SAM is prompted once",
    "mining.join_parts": "each component is prompted alone",
    "mining.tune_steps": "SAM stays frozen",
    "mining.tune_again": "SAM stays frozen",
    "mining.false_alarms": "SAM stays frozen",
    "mining.share_decoder": "SAM stays frozen and at the site",
    "mining.distil_steps": "start from model.pretrained: true",
    "mining.sharpen": "pseudo-labels stay soft",
    "mining.doubt": "all pixels count alike",
    "mining.consolidate_rounds": "all rounds after the warm-up mine",
    "mining.restart": "training goes on from the global model",
    "mining.min_quality": "it is .5, MIN_QUALITY in client/mining/quality.py",
    "mining.min_probe_images": "it is 8, MIN_CALIBRATION_IMAGES in shared/protocol.py",
    "mining.probe_rounds": "it is 1, CALIBRATION_ROUNDS in client/site/schedule.py",
    "mining.varied_views": "predictions always use four views",
    "mining.dense_prompts": "prompts always have the probabilities as a mask",
    "mining.count_weight": "it is .25, PSEUDO_LABEL_WEIGHT in server/rounds/aggregation.py",
    "training.weight_decay": "it is .01, WEIGHT_DECAY in client/training/loop.py",
    "training.decay": "the learning rate falls from the first round to the last",
    "sam_decoder": "SAM never leaves a site",
    "split.probe": "use split.calibration",
    "split.max_bad_share": "use split.max_bad_fraction",
}
"""Keys that older settings files may have, and what takes their place."""

Method = Literal["supervised", "self-training", "paper", "knowmine"]
SiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")]


def _from_file(path: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {}).get("folder", Path())
    return Path.absolute(folder / path.expanduser())


FilePath = Annotated[Path, AfterValidator(_from_file)]
"""A path in a settings file, relative to that file's folder."""


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

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
    fedprox: float = Field(
        0.0, ge=0, le=10, description="Pull towards the global weights, FedProx's mu; 0 is off."
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
        description="First rounds that train on labels alone: an untrained model has nothing to "
        "prompt with. Not set: two fifths of the run's rounds, one at least.",
    )
    images: int = Field(
        160,
        ge=0,
        description="Unlabelled images that a site mines a round, each once before any comes twice; "
        "0 takes all.",
    )
    fraction: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Part of each batch that is pseudo-labelled; less if pseudo-labels are a "
        "smaller part of all images.",
    )
    sam: Literal["gated", "always", "never"] = Field(
        "gated",
        description="gated: SAM's masks are used if they help on the calibration set. always: an "
        "even mean with the U-Net++, whatever the calibration set shows. never: the U-Net++'s masks "
        "alone; SAM is not loaded.",
    )
    strong: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Chance that a pseudo-labelled view gets twice the change of colours that a "
        "labelled one gets, and blur and noise.",
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
        description="Weight of a moving average of the model in training within pseudo-labels, "
        "beside the masks that were mined before the round; 0 is off.",
    )

    def warm_up(self, rounds: int) -> int:
        """How many of a run's `rounds` train on labels alone, before the first that mines.

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
        description="none: a site sends its weights as they are. bf16, int8: it sends the change, "
        "rounded, in half or a quarter of the bytes or fewer; the residual of rounding is added to "
        "its next update.",
    )


class Plan(Settings):
    """What is the same for all sites of a run; the server sends it with each task."""

    method: Method = Field(
        "knowmine",
        description="supervised: labels alone. self-training: the U-Net++'s own soft masks. "
        "paper: hard masks of a frozen SAM, unfiltered. knowmine: SAM and the U-Net++ together, "
        "weighted by their estimated quality.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="All random draws follow from it.")
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

    @property
    def uses_sam(self) -> bool:
        """Whether sites need SAM."""
        return self.method == "paper" or (self.method == "knowmine" and self.mining.sam != "never")


def read_settings(kind: type[S], file: Path | None, flags: Mapping[str, Any]) -> S:
    """Settings of `kind` from a YAML file, overridden by `flags` that are not None.

    A flag's name is the dotted key: `{"plan.seed": 3}`.
    A `FilePath` in the file is relative to the file's folder, and in a flag to the current folder.
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
    """One line for each mistake: where it is, what was seen, how to repair it."""
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        where = f"{file}: " if file else ""
        key = ".".join(path) or "settings"
        if problem["type"] == "extra_forbidden":
            if instead := REMOVED.get(".".join(path[-2:])):
                lines.append(f"{where}`{key}` was removed: {instead}")
                continue
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
