"""Scores at the original size, and the proof that nothing else opens hidden masks."""

import ast
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from knowmine.client.data.dataset import Case, HiddenMasks, load_images, open_site
from knowmine.client.data.scoring import Scorer, label_map, resize_probabilities

ROOT = Path(__file__).parents[3]
HEIGHT, WIDTH, PX = 20, 30, 10


def write_case(folder: Path, case_id: str, mask: np.ndarray) -> Case:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    image = folder / "images" / f"{case_id}.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(image)
    Image.fromarray(mask).save(folder / "masks" / f"{case_id}.png")
    return Case(case_id, image, None, case_id)


def hidden_of(folder: Path) -> HiddenMasks:
    return HiddenMasks({path.stem: path for path in (folder / "masks").iterdir()})


def left_half(value: int = 255, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = value
    return mask


def says(probabilities: np.ndarray) -> Any:
    """A model that predicts the same for every case: (C, S, S) float32."""
    return lambda case: probabilities.astype(np.float32)


# ---------------------------------------------------------------------------- scores


def test_a_perfect_prediction_scores_one(tmp_path):
    """The left half at 10x10 is the left half at 20x30."""
    case = write_case(tmp_path, "a", left_half())
    scores = Scorer(hidden_of(tmp_path), 1).score_test([case], says(left_half(1, PX, PX)[None]))
    assert scores == {"a": {"dice": 1.0, "iou": 1.0, "hd95": 0.0}}


def test_scores_are_in_original_pixels(tmp_path):
    """Everything is predicted, half is true: 2/3, 1/2, and the far edge is 15 columns off."""
    case = write_case(tmp_path, "a", left_half())
    scores = Scorer(hidden_of(tmp_path), 1).score_test([case], says(np.ones((1, PX, PX))))
    assert scores["a"] == pytest.approx({"dice": 2 / 3, "iou": 0.5, "hd95": 15.0})


def test_nothing_predicted_where_nothing_is(tmp_path):
    """Two empty masks agree."""
    case = write_case(tmp_path, "a", left_half(0))
    scores = Scorer(hidden_of(tmp_path), 1).score_test([case], says(np.zeros((1, PX, PX))))
    assert scores["a"] == {"dice": 1.0, "iou": 1.0, "hd95": 0.0}


def test_classes_are_scored_one_by_one(tmp_path):
    """Class 1 is found; class 2, predicted on the right, is not there: (1 + 0) / 2."""
    case = write_case(tmp_path, "a", left_half(1))
    both = np.stack([left_half(1, PX, PX), 1 - left_half(1, PX, PX)]) * 0.9
    scores = Scorer(hidden_of(tmp_path), 2).score_test([case], says(both))
    assert scores["a"]["dice"] == 0.5


def test_probabilities_are_resized_not_masks():
    """The border falls where probability passes one half, between the coarse pixels."""
    row = np.array([[[1.0, 0.4, 0.0]]], np.float32)
    assert (resize_probabilities(row, 1, 12)[0, 0] > 0.5).sum() == 5


def test_resizing_keeps_classes_apart():
    """(C, S, S) to (C, H, W)."""
    classes = np.stack([np.full((4, 4), 0.2), np.full((4, 4), 0.7)]).astype(np.float32)
    resized = resize_probabilities(classes, 3, 9)
    assert resized.shape == (2, 3, 9) and np.allclose(resized[1], 0.7)


def test_the_likeliest_class_wins_if_it_passes_half():
    """Worked by hand: background, class 2, class 1, background at exactly one half."""
    probabilities = np.array([[[0.3, 0.6, 0.9, 0.5]], [[0.4, 0.8, 0.2, 0.1]]], np.float32)
    assert label_map(probabilities).tolist() == [[0, 2, 1, 0]]


def test_truth_is_given_in_the_model_frame(tmp_path):
    """For an overlay."""
    write_case(tmp_path, "a", left_half())
    truth = Scorer(hidden_of(tmp_path), 1).truth("a", PX)
    assert truth is not None and (truth == left_half(1, PX, PX)).all()


def test_no_truth_where_no_mask_is_hidden(tmp_path):
    """An image without a mask has none to show."""
    write_case(tmp_path, "a", left_half())
    assert Scorer(hidden_of(tmp_path), 1).truth("b", PX) is None


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((HEIGHT, WIDTH + 1), np.uint8), "its mask is 31x20 pixels and its image 30x20"),
        (np.arange(600, dtype=np.uint16).reshape(HEIGHT, WIDTH), "its mask holds 600 values"),
    ],
)
def test_a_bad_hidden_mask_costs_one_image(tmp_path, mask, reason):
    """It is named, and the others are scored."""
    cases = [write_case(tmp_path, "a", mask), write_case(tmp_path, "b", left_half())]
    scorer = Scorer(hidden_of(tmp_path), 1)
    scores = scorer.score_test(cases, says(np.ones((1, PX, PX))))
    assert list(scores) == ["b"] and scorer.left_out[0].startswith(f"a: {reason}")


def test_what_cannot_be_scored_is_known_before_the_run(tmp_path):
    """Headers are enough to find an unreadable mask and a missing one."""
    cases = [write_case(tmp_path, case_id, left_half()) for case_id in "abc"]
    (tmp_path / "masks" / "a.png").write_bytes(b"garbage")
    (tmp_path / "masks" / "b.png").unlink()
    problems = Scorer(hidden_of(tmp_path), 1).check(cases)
    assert [problem[:20] for problem in problems] == [
        "a: its mask cannot b",
        "b: has no mask to sc",
    ]


# ---------------------------------------------- hidden masks are opened by nothing else


def test_no_other_source_file_reaches_for_hidden_paths():
    """Only client/data/scoring.py reads `.paths` of HiddenMasks and the scorer's copy of it."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        if path != ROOT / "client" / "data" / "scoring.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("paths", "_paths")
    ]
    assert found == []


def test_no_other_source_file_sees_cases_before_masks_are_hidden():
    """Cases of `scan` hold all masks: only the files that hide masks may call it."""
    allowed = {ROOT / "client" / "data" / f"{name}.py" for name in ("folder", "split", "dataset")}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        if path not in allowed
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("knowmine.client.")
        and {alias.name for alias in node.names} & {"scan", "divide", "Division"}
    ]
    assert found == []


def test_hidden_masks_may_be_garbage_until_they_are_scored(tmp_path):
    """All labelled images and masks load, because hidden masks are not opened."""
    data, hidden = open_site("a", folder_of(tmp_path, 12), labelled=0.5)
    for path in hidden.paths.values():
        path.write_bytes(b"garbage")

    again, _ = open_site("a", tmp_path, labelled=0.5)
    loaded = load_images(again.labelled + again.calibration, PX, classes=1)
    assert again == data and len(loaded.cases) == 5 and not loaded.left_out


def test_no_hidden_mask_is_opened_while_a_site_is_opened_and_loaded(tmp_path):
    """Every file that Python opens is watched."""
    folder_of(tmp_path, 12)
    with opened_files() as opened:
        data, hidden = open_site("a", tmp_path, labelled=0.5)
        load_images(data.labelled + data.calibration, PX, classes=1)
        load_images(data.unlabelled + data.test, PX)
    shown = {str(case.mask) for case in data.labelled + data.calibration}
    assert shown < opened and not opened & {str(path) for path in hidden.paths.values()}


def test_the_watch_sees_the_scorer(tmp_path):
    """The test above would notice."""
    case = write_case(tmp_path, "a", left_half())
    with opened_files() as opened:
        Scorer(hidden_of(tmp_path), 1).score_test([case], says(np.ones((1, PX, PX))))
    assert str(tmp_path / "masks" / "a.png") in opened


def sources() -> list[Path]:
    files = [
        f for side in ("client", "server", "shared", "deploy") for f in (ROOT / side).rglob("*.py")
    ]
    assert len(files) > 10, f"looked for the source in the wrong place: {ROOT}"
    return files


def folder_of(folder: Path, images: int) -> Path:
    for i in range(images):
        write_case(folder, f"a{i:02}", left_half())
    return folder


_watchers: list[set[str]] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        for seen in _watchers:
            seen.add(os.fsdecode(args[0]))


sys.addaudithook(_watch)  # cannot be taken back, so it stays and idles


@contextmanager
def opened_files() -> Iterator[set[str]]:
    """Names of all files that Python opens meanwhile, in any thread."""
    seen: set[str] = set()
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)
