"""Run an exported model: ONNX Runtime for ONNX, PyTorch for safetensors.

Each library is imported only when it is used, because importing PyTorch takes seconds.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from knowmine.shared.errors import WeightsError
from knowmine.shared.model_card import ModelCard
from knowmine.shared.package import Package
from knowmine.shared.weights import digest_of

Network: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From images (N, 3, S, S) float32 in [0, 1] to logits (N, C, S, S) float32, model frame."""


def load_network(package: Package, threads: int = 0) -> Network:
    """The package's model on this machine's CPU. threads: 0 lets the runtime choose.

    Raises `WeightsError` if the model is not the one that its card describes.
    """
    card = package.card
    if card.model_format == "torchscript":
        raise WeightsError(
            f"{package.folder} holds TorchScript, which can contain programs and is not run "
            "here: ask the coordinator for `export --to onnx`"
        )
    content = package.read(card.model_file)
    if card.model_format == "onnx":
        return _onnx(content, card, threads)
    return _torch(content, card, threads)


def _onnx(content: bytes, card: ModelCard, threads: int) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Spinning threads cost a third of the speed on a PC that also does other work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime has one exception class for each kind of damage and no common base class.
    except Exception as error:  # noqa: BLE001 - see above
        raise WeightsError(
            f"{card.model_file} is not a model that ONNX Runtime {onnxruntime.__version__} can "
            f"load ({type(error).__name__}): get the export again, or update onnxruntime"
        ) from None
    px, classes = card.plan.model.image_px, card.plan.model.classes
    expected = [("images", [3, px, px])], [("logits", [classes, px, px])]
    seen = (
        [(i.name, list(i.shape[1:])) for i in session.get_inputs()],
        [(o.name, list(o.shape[1:])) for o in session.get_outputs()],
    )
    if seen != expected:
        raise WeightsError(
            f"{card.model_file} is not the model that its card describes: it takes {_shown(seen[0])} "
            f"and gives {_shown(seen[1])}, expected {_shown(expected[0])} and "
            f"{_shown(expected[1])}: get the export again"
        )

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
        return logits

    return run


def _torch(content: bytes, card: ModelCard, threads: int) -> Network:
    import safetensors.numpy
    import torch

    from knowmine.client.device import settle
    from knowmine.shared.unetplusplus import build_model, put_weights

    settle(threads)
    try:
        weights = safetensors.numpy.load(content)
    except SafetensorError as error:
        raise WeightsError(
            f"{card.model_file} is not a complete safetensors file ({error}): get the export again"
        ) from None
    if digest_of(weights) != card.weights_sha256:
        raise WeightsError(
            f"{card.model_file} does not hold the weights that its card names: get the export again"
        )
    model = build_model(card.plan.model.model_copy(update={"pretrained": False}), seed=0).eval()
    put_weights(model, weights)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            logits: NDArray[np.float32] = model(x).float().numpy()
        return logits

    return run


def _shown(ports: list[tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name} (N, {', '.join(map(str, shape))})" for name, shape in ports)
