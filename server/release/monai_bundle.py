"""Write the finished model as a MONAI bundle, which MONAI's tools can run, check and fine-tune.

The configs name MONAI's transforms and the network of segmentation-models-pytorch, so the bundle
works without knowmine. Weights are safetensors, so nothing is unpickled:

    python -m monai.bundle run --bundle_root MODEL --config_file MODEL/configs/inference.json
        --meta_file MODEL/configs/metadata.json --dataset_dir IMAGES --output_dir MASKS
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from knowmine.server.release.formats import write_safetensors
from knowmine.shared.model_card import ModelCard
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import UnetPlusPlus, normalisation_of

MODEL_FILE = "models/model.safetensors"
_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
# The version that the bundle is tested with. The coordinator does not need MONAI.
_MONAI = "1.6.1"


def write_bundle(folder: Path, model: UnetPlusPlus, card: ModelCard, page: str) -> None:
    """Write `configs/`, `models/` and `docs/` as in MONAI's bundle specification."""
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir()
    write_safetensors(folder / "models", model)
    for name, content in (
        ("metadata", metadata_of(card)),
        ("inference", inference_of(card.plan.model)),
    ):
        text = json.dumps(content, indent=4) + "\n"
        (folder / "configs" / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / "docs" / "README.md").write_text(page, encoding="utf-8")


def inference_of(settings: ModelSettings) -> dict[str, Any]:
    """`configs/inference.json`: from a folder of images to a folder of masks of equal size."""
    mean, std = normalisation_of(settings.encoder)
    px = settings.image_px
    label_map = (
        "$lambda p: torch.where(p.amax(0, keepdim=True) > 0.5, "
        "p.argmax(0, keepdim=True) + 1, 0)" + (" * 255" if settings.classes == 1 else "")
    )
    return {
        "imports": [
            "$import glob",
            "$import os",
            "$import torch",
            "$from safetensors.torch import load_file",
            "$from torch.nn.functional import interpolate",
        ],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "pattern": "*.[pjbtPJBT][npmiNPMI]*",
        "image_files": "$sorted(glob.glob(os.path.join(@dataset_dir, @pattern)))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "segmentation_models_pytorch.UnetPlusPlus",
            "encoder_name": settings.encoder,
            "encoder_depth": len(settings.decoder_channels),
            "encoder_weights": None,
            "decoder_channels": list(settings.decoder_channels),
            "classes": settings.classes,
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged",
                    "keys": "image",
                    "reader": "PILReader",
                    "converter": "$lambda image: image.convert('RGB')",
                    "ensure_channel_first": True,
                },
                # MONAI loads images as (C, W, H); the network was trained on (C, H, W).
                {"_target_": "Transposed", "keys": "image", "indices": [0, 2, 1]},
                # Only this antialiased resize of bytes gives the pixels of the training images.
                # MONAI's Resized blurs first, which changed masks by 4 % of their area in a trial.
                {
                    "_target_": "Lambdad",
                    "keys": "image",
                    "func": f"$lambda image: interpolate(image[None].to(torch.uint8), "
                    f"size=({px}, {px}), mode='bilinear', antialias=True)[0]",
                },
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": 0.0,
                    "a_max": 255.0,
                    "b_min": 0.0,
                    "b_max": 1.0,
                    "clip": True,
                },
                {
                    "_target_": "NormalizeIntensityd",
                    "keys": "image",
                    "subtrahend": mean,
                    "divisor": std,
                    "channel_wise": True,
                },
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': file} for file in @image_files]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
                # Resize to the original size, and transpose to (C, W, H).
                {
                    "_target_": "Lambdad",
                    "keys": "pred",
                    "func": "$lambda p: interpolate(p[None].transpose(2, 3), "
                    "size=[int(n) for n in p.meta['spatial_shape']], mode='bilinear', "
                    "antialias=True)[0]",
                },
                {"_target_": "Lambdad", "keys": "pred", "func": label_map},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_ext": ".png",
                    "output_dtype": "$'uint8'",
                    "output_postfix": "mask",
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "initialize": [
            f"$@network_def.load_state_dict(load_file(os.path.join(@bundle_root, '{MODEL_FILE}')))"
        ],
        "run": ["$@evaluator.run()"],
    }


def metadata_of(card: ModelCard) -> dict[str, Any]:
    """`configs/metadata.json`, as in MONAI's metadata specification."""
    settings = card.plan.model
    labels = {"0": "background"}
    labels |= {str(value): name for value, name in enumerate(card.class_names, 1)}
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported {card.exported}"},
        "name": card.name,
        "monai_version": _MONAI,
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            name: version(name) for name in ("segmentation-models-pytorch", "safetensors", "pillow")
        }
        | {"pytorch-ignite": "0.5.0"},
        "supported_apps": {},
        "task": "2D segmentation: " + ", ".join(card.class_names),
        "description": f"U-Net++ that {len(card.sites)} sites trained together without sharing "
        f"images, in {card.rounds} rounds. {card.limits[0]}",
        "authors": "the sites of the federation, with knowmine",
        "copyright": card.licence,
        "data_source": "the sites' own images, which stayed with them",
        "data_type": "2D images",
        "image_classes": "RGB, normalised as the encoder expects",
        "label_classes": "one class a value, 0 is background",
        "pred_classes": "one logit a class",
        "eval_metrics": {"mean_dice": card.dice, "mean_iou": card.iou},
        "intended_use": card.limits[0],
        "references": ["https://arxiv.org/abs/1807.10165"],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": ", ".join(card.modalities) or "n/a",
                    "num_channels": 3,
                    "spatial_shape": [settings.image_px, settings.image_px],
                    "dtype": "float32",
                    "value_range": [-3, 3],
                    "is_patch_data": False,
                    "channel_def": {"0": "red", "1": "green", "2": "blue"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": settings.classes,
                    "spatial_shape": [settings.image_px, settings.image_px],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {
                        str(value - 1): labels[str(value)]
                        for value in range(1, settings.classes + 1)
                    },
                }
            },
        },
    }
