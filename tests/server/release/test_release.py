"""A finished run's model leaves in formats that others run, with what is known of it, signed."""

import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from knowmine.client.data.metrics import iou
from knowmine.server.release.model_cards import overall, site_cards
from knowmine.server.release.release import export
from knowmine.shared.errors import UsageError, WeightsError
from knowmine.shared.package import open_package
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import build_model, put_weights
from knowmine.shared.weights import load_weights


def network_of(run):
    """The run's U-Net++ in PyTorch, and its settings."""
    summary = json.loads((run / "summary.json").read_text())
    settings = ModelSettings.model_validate(summary["settings"]["plan"]["model"])
    model = build_model(settings, seed=0).eval()
    put_weights(model, load_weights(run / "model.safetensors"))
    return model, settings


def pictures(run, count=12):
    """The run's first images in the model frame: (N, 3, S, S) float32 in [0, 1]."""
    files = sorted((run.parent / "data" / "images").iterdir())[:count]
    shown = [np.asarray(Image.open(file).resize((32, 32))) for file in files]
    return np.stack(shown).transpose(0, 3, 1, 2).astype(np.float32) / 255


def test_onnx_runtime_gives_pytorchs_masks(finished_run, onnx_export):
    """From RGB in [0, 1] at image_px: IoU above .999 over all images, in batches of any size."""
    model, _ = network_of(finished_run)
    images = pictures(finished_run)
    session = onnxruntime.InferenceSession(onnx_export / "model.onnx")
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy() > 0
    seen = np.concatenate(
        [session.run(["logits"], {"images": part})[0] for part in np.split(images, [1, 4])]
    )
    assert expected.any() and iou(seen > 0, expected) > 0.999


def test_the_onnx_opset_is_the_cards(onnx_export):
    """What the card says is what the file asks for."""
    opsets = {i.domain: i.version for i in onnx.load(onnx_export / "model.onnx").opset_import}
    assert opsets[""] == open_package(onnx_export).card.opset


def test_torchscript_gives_pytorchs_logits(finished_run, tmp_path):
    """The traced module is the network."""
    export(finished_run, "torchscript", tmp_path / "out")
    model, _ = network_of(finished_run)
    images = torch.from_numpy(pictures(finished_run, 3))
    with torch.inference_mode():
        traced = torch.jit.load(str(tmp_path / "out" / "model.pt"))
        assert torch.allclose(traced(images), model(images), atol=1e-4)


def test_safetensors_are_the_runs_weights(finished_run, tmp_path):
    """Tensor by tensor."""
    export(finished_run, "safetensors", tmp_path / "out")
    ours = load_weights(finished_run / "model.safetensors")
    theirs = load_weights(tmp_path / "out" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def bundle(finished_run, tmp_path_factory):
    """The run's model as a MONAI bundle."""
    out = tmp_path_factory.mktemp("bundle") / "model"
    export(finished_run, "monai", out, class_names=["disc"])
    return out


def test_monai_runs_the_bundle_to_the_same_masks(finished_run, bundle, tmp_path):
    """`python -m monai.bundle run` on a folder: masks of the images' own size, IoU above .97."""
    (tmp_path / "images").mkdir()
    for file in sorted((finished_run.parent / "data" / "images").iterdir())[:4]:
        shutil.copy(file, tmp_path / "images")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "monai.bundle", "run", "--bundle_root", bundle),
            *("--config_file", bundle / "configs/inference.json"),
            *("--meta_file", bundle / "configs/metadata.json"),
            *("--dataset_dir", tmp_path / "images", "--output_dir", tmp_path / "masks"),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]

    from knowmine.client.data.images import read_image, resize_image
    from knowmine.client.data.scoring import label_map, resize_probabilities

    model, _ = network_of(finished_run)
    seen, expected = [], []
    for file in sorted((tmp_path / "images").iterdir()):
        image = read_image(file)
        x = torch.from_numpy(resize_image(image, 32)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            probabilities = model(x).sigmoid()[0].numpy()
        expected.append(label_map(resize_probabilities(probabilities, *image.shape[:2])) > 0)
        seen.append(np.asarray(Image.open(tmp_path / "masks" / f"{file.stem}_mask.png")) > 0)
    assert np.any(expected) and iou(np.stack(seen), np.stack(expected)) > 0.97


def test_monai_finds_the_network_as_the_metadata_says(bundle):
    """MONAI's own check of channels, sizes and types; it would not find a second class."""
    from monai.bundle.scripts import verify_net_in_out

    def verify(**changes):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(bundle / "configs/metadata.json"),
            config_file=str(bundle / "configs/inference.json"),
            **changes,
        )

    verify()
    with pytest.raises(ValueError, match="doesn't match"):
        verify(**{"_meta_#network_data_format#outputs#pred#num_channels": 2})


def test_monai_misses_no_property_of_the_bundle(bundle):
    """MONAI's own list of what a bundle for inference has."""
    from monai.bundle.workflows import ConfigWorkflow

    workflow = ConfigWorkflow(
        workflow_type="infer",
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(bundle),
    )
    workflow.initialize()
    assert not workflow.check_properties()


def test_an_export_is_signed_by_its_key(onnx_export, signing_key):
    """The coordinator's public key opens it, as the trusted one."""
    assert open_package(onnx_export, signing_key.with_suffix(".pub")).trusted


def test_openssl_checks_the_signature_without_us(onnx_export, signing_key):
    """The signature is plain Ed25519 over the list of files."""
    done = subprocess.run(
        [
            *("openssl", "pkeyutl", "-verify", "-pubin", "-rawin"),
            *("-inkey", signing_key.with_suffix(".pub")),
            *("-in", "manifest.json", "-sigfile", "manifest.json.sig"),
        ],
        cwd=onnx_export,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_card_names_no_path_of_the_run(onnx_export, finished_run):
    """The images' folder is private."""
    for name in ("model_card.json", "MODEL_CARD.md"):
        assert str(finished_run.parent) not in (onnx_export / name).read_text()


SUMMARY = {
    "sites": ["bergen", "lyon", "turin"],
    "per_site": {
        "bergen": {"dice": 0.8, "iou": 0.7, "test_images": 10},
        "lyon": {"dice": 0.1, "iou": 0.1, "test_images": 4},
        "turin": {"dice": 0.6, "iou": 0.5, "test_images": 30},
    },
    "per_round": [
        {"updates": {"lyon": {"labelled": 3, "pseudo_labelled": 0}}},
        {"updates": {"bergen": {"labelled": 20, "pseudo_labelled": 5}}},
    ],
}


def test_small_counts_and_their_scores_are_not_published():
    """Four images could point at four people; a site that left early keeps its last counts."""
    lyon = next(card for card in site_cards(SUMMARY) if card.site == "lyon")
    assert (lyon.test_images, lyon.dice, lyon.iou, lyon.labelled) == (None, None, None, None)
    assert lyon.pseudo_labelled == 0


def test_the_overall_score_does_not_give_the_small_site_away():
    """Worked by hand: (10 * .8 + 30 * .6) / 40, without lyon."""
    assert overall(site_cards(SUMMARY)) == {"dice": 0.65, "iou": 0.55, "test_images": 40}


def copied(run, folder):
    shutil.copytree(run, folder / "run")
    return folder / "run"


def test_a_run_that_is_not_done_is_not_exported(finished_run, tmp_path):
    """A paused run goes on first."""
    run = copied(finished_run, tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(copy.copy(summary) | {"status": "paused"}))
    with pytest.raises(UsageError, match="is paused after 2 rounds, expected done"):
        export(run, "safetensors", tmp_path / "out")


def test_a_model_swapped_after_the_run_is_not_exported(finished_run, tmp_path):
    """The last round's record holds the digest of its weights."""
    run = copied(finished_run, tmp_path)
    shutil.copy(run / "checkpoints" / "0001.safetensors", run / "model.safetensors")
    with pytest.raises(WeightsError, match="does not match the record of round 2"):
        export(run, "safetensors", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"to": "keras"}, "'keras' is not known; use one of onnx, torchscript"),
        ({"class_names": ["a", "b"]}, "2 class names for a model of 1"),
        ({"name": "x" * 65}, "--name: .* at most 64"),
    ],
)
def test_what_cannot_be_exported_is_said_before_anything_is_written(
    finished_run, tmp_path, changes, words
):
    """The folder is not there afterwards."""
    arguments = {"run": finished_run, "to": "safetensors", "out": tmp_path / "out"} | changes
    with pytest.raises(UsageError, match=words):
        export(**arguments)
    assert not list(tmp_path.iterdir())


def test_a_key_of_another_kind_is_refused(finished_run, tmp_path):
    """An RSA or EC key cannot make this signature; the message says how to make one that can."""
    key = tmp_path / "ec.pem"
    subprocess.run(
        [
            *("openssl", "genpkey", "-algorithm", "EC"),
            *("-pkeyopt", "ec_paramgen_curve:P-256", "-out", key),
        ],
        check=True,
        capture_output=True,
    )
    with pytest.raises(UsageError, match="expected an Ed25519 key; make one with: openssl"):
        export(finished_run, "safetensors", tmp_path / "out", key)


def test_an_export_replaces_nothing(finished_run, tmp_path):
    """A folder that is there stays as it is."""
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="is already there: name a new folder"):
        export(finished_run, "safetensors", tmp_path / "out")
