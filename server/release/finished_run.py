"""Read the folder of a run that has ended; refuse what another version of knowmine wrote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from knowmine.shared.errors import UsageError, WeightsError
from knowmine.shared.settings import Plan
from knowmine.shared.weights import Array, digest_of, load_weights

NEEDED = ("status", "rounds", "sites", "global", "per_site", "per_round", "settings", "versions")


def read_summary(run: Path) -> tuple[dict[str, Any], Plan]:
    """The summary of a run that has ended, and its plan.

    Raises `UsageError` if there is none, if it is damaged, or if it has another layout.
    """
    file = run / "summary.json"
    try:
        summary = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"{run} holds no run that has ended (there is no {file.name}): check the path, or wait "
            "until the run has ended"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is damaged ({error}): put it back from a copy") from None
    try:
        missing = [key for key in NEEDED if key not in summary]
        if missing:
            raise _another_version(file, f"it has no `{missing[0]}`")
        return summary, Plan.model_validate(summary["settings"]["plan"])
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise _another_version(file, f"its setting `plan.{key}` is not valid here") from None
    except (KeyError, TypeError):
        raise _another_version(file, "its settings have no `plan`") from None


def weights_of_run(run: Path, summary: Mapping[str, Any]) -> dict[str, Array]:
    """The final weights; raise `WeightsError` if they are not those of the last round."""
    weights = load_weights(run / "model.safetensors")
    record = run / "rounds" / f"{summary['rounds']:04}.json"
    try:
        expected = json.loads(record.read_bytes())["checkpoint"]["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(
            f"{record} is missing or damaged, so {run / 'model.safetensors'} cannot be checked "
            "against it: put the run folder back from a copy"
        ) from None
    if digest_of(weights) != expected:
        raise WeightsError(
            f"{run / 'model.safetensors'} does not match the record of round {summary['rounds']}: "
            "the file was changed after the run; put it back from a copy"
        )
    return weights


def _another_version(file: Path, what: str) -> UsageError:
    return UsageError(
        f"{file} was written by another version of knowmine ({what}): use that version, or start "
        "a new run"
    )
