"""What tests of both sides share: one finished run, and its exports."""

from pathlib import Path

import hypothesis
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from knowmine.deploy.simulation.progress import Display
from knowmine.deploy.simulation.simulate import simulate
from knowmine.server.release.release import export
from tests.deploy.small_runs import draw_data, small

# A slow disk is no counterexample.
hypothesis.settings.register_profile("knowmine", deadline=None)
hypothesis.settings.load_profile("knowmine")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A finished run on bright discs, trained long enough to find them."""
    folder: Path = tmp_path_factory.mktemp("finished")
    settings = small(
        {
            "plan": {"training": {"steps": 15, "batch": 4, "learning_rate": 0.005}},
            "sites": {"data": str(draw_data(folder / "data", 40)), "count": 2},
        }
    )
    simulate(settings, folder / "run", resume=False, display=Display())
    return folder / "run"


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory) -> Path:
    """A coordinator's private key; its public half is beside it, ending in .pub."""
    return make_key(tmp_path_factory.mktemp("keys") / "coordinator.pem")


@pytest.fixture(scope="session")
def onnx_export(finished_run, signing_key, tmp_path_factory) -> Path:
    """The run's model as signed ONNX; never write into it."""
    out: Path = tmp_path_factory.mktemp("exported") / "onnx"
    export(finished_run, "onnx", out, signing_key, class_names=["disc"])
    return out


def make_key(file: Path) -> Path:
    """Write a new Ed25519 key pair as `file` and `file` ending in .pub."""
    key = Ed25519PrivateKey.generate()
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    file.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return file
