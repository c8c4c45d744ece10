"""Export a finished run's model with its card and a signature.

The steps of `export`: read the run, write the card, write the model, list the files and sign the
list.
"""

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from knowmine.server.release.finished_run import read_summary, weights_of_run
from knowmine.server.release.model_cards import limits_of, overall, page_of, site_cards
from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.model_card import ModelCard, ModelFormat
from knowmine.shared.package import read_signing_key, write_package
from knowmine.shared.settings import Plan
from knowmine.shared.weights import Array, digest_of

FORMATS = get_args(ModelFormat)
MODEL_FILES: Mapping[ModelFormat, str] = {
    "onnx": "model.onnx",
    "torchscript": "model.pt",
    "monai": "models/model.safetensors",
    "safetensors": "model.safetensors",
}


def export(
    run: Path,
    to: ModelFormat,
    out: Path,
    signing_key: Path | None = None,
    *,
    name: str = "knowmine U-Net++",
    class_names: Sequence[str] = (),
    modalities: Sequence[str] = (),
    licence: str = "not stated: ask the coordinator",
) -> ModelCard:
    """Write the run's model to the new folder `out` and return its card.

    signing_key: a private Ed25519 key in PEM; without it, the export is not signed.
    class_names: one per class, in the order of values; by default "class 1" and so on.
    modalities: DICOM modalities that `predict` accepts; empty: any.

    The folder appears whole or not at all. Raises `UsageError` if there is no finished run, if `out`
    exists or if the key cannot be used, and `CannotWrite` for a full disk.
    """
    if to not in FORMATS:
        raise UsageError(f"--to {to!r} is not known; use one of {', '.join(FORMATS)}")
    if out.exists():
        raise UsageError(f"{out} is already there: name a new folder for the export")
    key = read_signing_key(signing_key) if signing_key else None
    summary, plan = read_summary(run)
    if summary["status"] != "done":
        raise UsageError(
            f"{run} is {summary['status']} after {summary['rounds']} rounds, expected done: "
            f"go on with `--resume {run}` first"
        )
    weights = weights_of_run(run, summary)
    card = _card(
        summary,
        plan,
        to,
        digest_of(weights),
        name=name,
        class_names=tuple(class_names) or _class_names(plan.model.classes),
        modalities=tuple(modality.upper() for modality in modalities),
        licence=licence,
    )
    unfinished = out.with_name(out.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        _write_model(unfinished, weights, card)
        (unfinished / "MODEL_CARD.md").write_text(page_of(card), encoding="utf-8")
        write_package(unfinished, card, key)
        unfinished.rename(out)
    except OSError as error:
        raise CannotWrite(
            f"cannot write {out} ({error.strerror or error}): make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return card


def _write_model(folder: Path, weights: dict[str, Array], card: ModelCard) -> None:
    # Imported late: they take seconds, and a wrong path should not.
    from knowmine.server.release.formats import write_onnx, write_safetensors, write_torchscript
    from knowmine.server.release.monai_bundle import write_bundle
    from knowmine.shared.unetplusplus import build_model, put_weights

    settings = card.plan.model
    model = build_model(settings.model_copy(update={"pretrained": False}), seed=0).eval()
    put_weights(model, weights)
    if card.model_format == "onnx":
        write_onnx(folder, model, settings)
    elif card.model_format == "torchscript":
        write_torchscript(folder, model, settings)
    elif card.model_format == "safetensors":
        write_safetensors(folder, model)
    else:
        write_bundle(folder, model, card, page_of(card))


def _class_names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {value}" for value in range(1, classes + 1))


def _card(
    summary: Mapping[str, Any],
    plan: Plan,
    to: ModelFormat,
    weights_sha256: str,
    *,
    name: str,
    class_names: tuple[str, ...],
    modalities: tuple[str, ...],
    licence: str,
) -> ModelCard:
    from knowmine.server.release.formats import OPSET

    classes = plan.model.classes
    if len(class_names) != classes:
        raise UsageError(
            f"{len(class_names)} class names for a model of {classes}: give one --class for each, "
            "in the order of the masks' values"
        )
    sites = site_cards(summary)
    sam = summary.get("sam")
    try:
        return ModelCard(
            name=name,
            exported=datetime.now(UTC).date().isoformat(),
            model_format=to,
            model_file=MODEL_FILES[to],
            opset=OPSET if to == "onnx" else None,
            weights_sha256=weights_sha256,
            class_names=class_names,
            modalities=modalities,
            licence=licence,
            rounds=summary["rounds"],
            sites=sites,
            **overall(sites),
            plan=plan,
            sam={key: str(sam[key]) for key in ("name", "sha256")} if sam else None,
            versions={**summary.get("versions", {}), "knowmine (export)": version("knowmine")},
            limits=limits_of(summary, plan, sites),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{first['loc'][0]}: {first['msg']}") from None
