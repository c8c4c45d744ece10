"""Which image is used for what, what is left out, and what is said about a bad data folder."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from knowmine.client.data.dataset import (
    HiddenMasks,
    SiteData,
    load_images,
    open_site,
    refuse_many_bad,
    scan,
    split_sites,
)
from knowmine.client.data.sampling import deal, ranked, whole_groups
from knowmine.shared.errors import DataError, SettingsError

Site = tuple[SiteData, HiddenMasks]


def write_image(path: Path, height: int = 6, width: int = 10, value: int = 100) -> None:
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def write_mask(path: Path, height: int = 6, width: int = 10, value: int = 255) -> None:
    mask = np.zeros((height, width), np.uint8)
    mask[1:3, 1:4] = value
    Image.fromarray(mask).save(path)


def make_folder(folder: Path, masked: int = 10, unmasked: int = 0) -> Path:
    """Images a00, a01, ..., the first `masked` of them with masks."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for i in range(masked + unmasked):
        write_image(folder / "images" / f"a{i:02}.png", value=i)
        if i < masked:
            write_mask(folder / "masks" / f"a{i:02}.png")
    return folder


def write_groups(folder: Path, size: int, column: str = "sequence") -> None:
    """Runs of `size` images are a group: s0, s1, ..."""
    case_ids = sorted(path.stem for path in (folder / "images").iterdir())
    lines = [f"{case_id},s{i // size}" for i, case_id in enumerate(case_ids)]
    (folder / "index.csv").write_text("\n".join([f"stem,{column}", *lines]))


def case_ids(cases) -> set[str]:
    return {case.case_id for case in cases}


def everything(data: SiteData) -> list[str]:
    """Case ids of all four sets, one after the other."""
    return [
        c.case_id
        for part in (data.labelled, data.calibration, data.unlabelled, data.test)
        for c in part
    ]


# ------------------------------------------------------------------------- one site


def test_every_image_is_in_one_set(tmp_path):
    """None is lost, none is used twice."""
    data, _ = open_site("a", make_folder(tmp_path, 20, 5), labelled=0.5)
    assert sorted(everything(data)) == [f"a{i:02}" for i in range(25)]


def test_a_fraction_of_the_labels_is_shown(tmp_path):
    """20 masks, 4 in the test set, half of 16 shown, a fifth of those (rounded down) probe."""
    data, _ = open_site("a", make_folder(tmp_path, 20), labelled=0.5)
    sizes = [len(part) for part in (data.test, data.labelled, data.calibration, data.unlabelled)]
    assert sizes == [4, 7, 1, 8]


def test_hidden_masks_are_withheld_from_the_cases(tmp_path):
    """A test image and an image that plays unlabelled do not know their masks."""
    data, _ = open_site("a", make_folder(tmp_path, 20), labelled=0.5)
    assert all(case.mask is None for case in data.test + data.unlabelled)


def test_hidden_masks_are_those_not_shown(tmp_path):
    """All masks but the labelled and calibration images' own."""
    data, hidden = open_site("a", make_folder(tmp_path, 20, 5), labelled=0.5)
    shown = case_ids(data.labelled + data.calibration)
    assert hidden.paths.keys() == {f"a{i:02}" for i in range(20)} - shown


def test_the_paths_of_hidden_masks_are_not_printed(tmp_path):
    """Not even by accident, in a log or a traceback."""
    _, hidden = open_site("a", make_folder(tmp_path), labelled=1)
    assert "masks" not in repr(hidden)


@pytest.mark.parametrize(("few", "many"), [(0.1, 0.25), (0.25, 0.75), (2, 3)])
def test_few_labels_are_part_of_many(tmp_path, few, many):
    """A curve over label counts adds images and never swaps them."""
    make_folder(tmp_path, 30)
    less, _ = open_site("a", tmp_path, labelled=few)
    more, _ = open_site("a", tmp_path, labelled=many)
    assert case_ids(less.labelled + less.calibration) < case_ids(more.labelled + more.calibration)


def test_the_test_set_does_not_depend_on_the_labels(tmp_path):
    """Two label fractions are scored on the same images."""
    make_folder(tmp_path, 30)
    assert open_site("a", tmp_path, labelled=0.1)[0].test == open_site("a", tmp_path)[0].test


def test_file_names_may_be_no_utf8():
    """Linux allows any bytes; Python shows them as surrogates."""
    assert ranked(["\udce9"], 0, "test") == ["\udce9"]


def test_another_seed_draws_others(tmp_path):
    """The seed matters."""
    make_folder(tmp_path, 30)
    assert open_site("a", tmp_path, seed=0)[0].test != open_site("a", tmp_path, seed=1)[0].test


@given(names=st.permutations([f"a{i}" for i in range(12)]), extra=st.text(min_size=1))
def test_a_draw_depends_on_seed_and_name_alone(names, extra):
    """Neither the order of files nor a new file changes the order of the others."""
    order = [name for name in ranked([*names, extra], 5, "test") if name != extra]
    assert order == [name for name in ranked(sorted(names), 5, "test") if name != extra]


def test_the_draw_of_today_is_the_draw_of_tomorrow():
    """Pinned: a changed hash would change every published split."""
    assert ranked(["a", "b", "c", "d"], 0, "test") == ["b", "c", "a", "d"]


@pytest.mark.parametrize("labelled", [0, 0.0])
def test_a_site_may_have_no_labels(tmp_path, labelled):
    """It mines only; its masks still score its test set."""
    data, _ = open_site("a", make_folder(tmp_path), labelled=labelled)
    assert (len(data.labelled), len(data.calibration), len(data.unlabelled)) == (0, 0, 8)


def test_a_site_may_have_no_masks_at_all(tmp_path):
    """No masks/ folder, no test set, everything unlabelled."""
    make_folder(tmp_path, 0, 4)
    (tmp_path / "masks").rmdir()
    data, hidden = open_site("a", tmp_path, labelled=0.1)
    assert (len(data.unlabelled), len(data.test), dict(hidden.paths)) == (4, 0, {})


def test_a_site_may_have_nothing_unlabelled(tmp_path):
    """It trains only."""
    data, _ = open_site("a", make_folder(tmp_path))
    assert (len(data.labelled) + len(data.calibration), len(data.unlabelled)) == (8, 0)


def test_a_calibration_set_is_no_larger_than_it_need_be(tmp_path):
    """Half of 120 labels would judge; 48 do, and the others are learnt from."""
    folder = make_folder(tmp_path, 120)
    data, _ = open_site("a", folder, test_fraction=0, calibration_fraction=0.5)
    assert (len(data.labelled), len(data.calibration)) == (72, 48)


@pytest.mark.parametrize("calibration_fraction", [0.2, 1.0])
def test_the_calibration_set_never_takes_the_last_label(tmp_path, calibration_fraction):
    """One labelled image is for training."""
    data, _ = open_site(
        "a", make_folder(tmp_path), labelled=1, calibration_fraction=calibration_fraction
    )
    assert (len(data.labelled), len(data.calibration)) == (1, 0)


def test_a_tiny_fraction_is_one_label(tmp_path):
    """A hundredth of ten images would be none."""
    data, _ = open_site("a", make_folder(tmp_path), labelled=0.01)
    assert len(data.labelled) == 1


def test_all_labelled_names_the_images_without_mask(tmp_path):
    """Who says that all are labelled wants to hear of a lost mask."""
    with pytest.raises(DataError, match=r"2 images have no mask \(a10, a11\)"):
        open_site("a", make_folder(tmp_path, 10, 2), labelled=1.0)


def test_too_many_labels_asked_for(tmp_path):
    """A count is a promise, not a wish."""
    with pytest.raises(DataError, match="asked for 9 labelled images, but only 8 have masks"):
        open_site("a", make_folder(tmp_path), labelled=9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"labelled": 1.5},
        {"labelled": -1},
        {"labelled": float("nan")},
        {"calibration_fraction": -0.1},
        {"test_fraction": 2.0},
        {"max_bad_fraction": float("nan")},
    ],
)
def test_impossible_numbers_are_refused(tmp_path, wrong):
    """By their key."""
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        open_site("a", make_folder(tmp_path), **wrong)


# ------------------------------------------------------------------- lists and groups


def test_test_txt_is_the_test_set(tmp_path):
    """One case id a line; extensions, blank lines, Windows line ends and a BOM are tolerated."""
    (make_folder(tmp_path) / "test.txt").write_bytes(b"\xef\xbb\xbfa03\r\n\r\na05.png\r\n a07 \r\n")
    data, _ = open_site("a", tmp_path)
    assert case_ids(data.test) == {"a03", "a05", "a07"}


def test_a_named_list_is_looked_for_in_the_folder(tmp_path):
    """`splits/val.txt` means the data folder's own."""
    (make_folder(tmp_path) / "splits").mkdir()
    (tmp_path / "splits" / "val.txt").write_text("a01\n")
    data, _ = open_site("a", tmp_path, test=Path("splits/val.txt"))
    assert case_ids(data.test) == {"a01"}


def test_a_missing_list_is_an_error(tmp_path):
    """A mistyped name must not draw another test set in silence."""
    with pytest.raises(DataError, match=r"cannot read .*vall\.txt"):
        open_site("a", make_folder(tmp_path), test=Path("vall.txt"))


@pytest.mark.parametrize("name", ["test.txt", "labelled.txt"])
def test_unknown_case_ids_in_a_list_are_named(tmp_path, name):
    """Three of them, with the file."""
    (make_folder(tmp_path) / name).write_text("b1\nb2\nb3\nb4\na01\n")
    with pytest.raises(DataError, match=rf"{name} names 4 cases .*\(b1, b2, b3, \.\.\.\)"):
        open_site("a", tmp_path)


def test_labelled_txt_limits_the_labels(tmp_path):
    """Other masks are hidden; a listed test image stays a test image."""
    (make_folder(tmp_path) / "labelled.txt").write_text("a01\na02\na03\n")
    (tmp_path / "test.txt").write_text("a03\na04\n")
    data, hidden = open_site("a", tmp_path, calibration_fraction=0)
    assert case_ids(data.labelled) == {"a01", "a02"} and len(hidden.paths) == 8


def test_labelled_txt_needs_the_masks(tmp_path):
    """A listed image without a mask is a mistake in the folder."""
    (make_folder(tmp_path, 5, 2) / "labelled.txt").write_text("a01\na06\n")
    with pytest.raises(DataError, match=r"labelled\.txt names 1 images without a mask \(a06\)"):
        open_site("a", tmp_path)


def test_a_test_image_without_mask_is_left_out(tmp_path):
    """It can neither be scored nor trained on, and is no reason to stop."""
    (make_folder(tmp_path, 2, 2) / "test.txt").write_text("a01\na03\n")
    data, _ = open_site("a", tmp_path)
    assert case_ids(data.test) == {"a01"}
    assert not data.left_out and data.warnings == ("1 test images have no mask and are not used",)


def test_all_images_in_the_test_set(tmp_path):
    """Then there is nothing to learn from."""
    (make_folder(tmp_path, 2) / "test.txt").write_text("a00\na01\n")
    with pytest.raises(DataError, match="all 2 images are test images"):
        open_site("a", tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_groups_do_not_straddle_the_test_set(tmp_path, seed):
    """Frames of one video are on one side."""
    write_groups(make_folder(tmp_path, 24), 4)
    data, _ = open_site("a", tmp_path, group_by="sequence", seed=seed, test_fraction=0.4)
    rest = data.labelled + data.calibration + data.unlabelled
    assert data.test and not {c.group for c in data.test} & {c.group for c in rest}


def test_groups_do_not_straddle_the_calibration_set(tmp_path):
    """A judge that trained on the next frame would be too kind."""
    write_groups(make_folder(tmp_path, 24), 2)
    data, _ = open_site("a", tmp_path, group_by="sequence", calibration_fraction=0.3)
    assert data.calibration and not {c.group for c in data.calibration} & {
        c.group for c in data.labelled
    }


def test_an_empty_calibration_set_of_large_groups_is_said(tmp_path):
    """One group holds all labels, so none is left to judge."""
    write_groups(make_folder(tmp_path), 10)
    data, _ = open_site("a", tmp_path, group_by="sequence")
    assert not data.calibration and "calibration set, which stays empty" in data.warnings[-1]


def test_a_list_that_cuts_a_group_is_refused(tmp_path):
    """The list and the grouping contradict each other."""
    write_groups(make_folder(tmp_path, 8), 4)
    (tmp_path / "test.txt").write_text("a00\n")
    with pytest.raises(DataError, match=r"1 groups of sequence \(s0\)"):
        open_site("a", tmp_path, group_by="sequence")


def test_a_missing_column_names_those_there_are(tmp_path):
    """So that the right one can be picked."""
    write_groups(make_folder(tmp_path), 4)
    with pytest.raises(DataError, match="no column 'patient'; it has: stem, sequence"):
        open_site("a", tmp_path, group_by="patient")


def test_grouping_needs_an_index(tmp_path):
    """The file that is missing is named."""
    with pytest.raises(DataError, match=r"cannot read .*index\.csv"):
        open_site("a", make_folder(tmp_path), group_by="sequence")


def test_two_groups_for_one_image_are_refused(tmp_path):
    """Either could put it on the wrong side."""
    write_groups(make_folder(tmp_path), 4)
    with (tmp_path / "index.csv").open("a") as index:
        index.write("\na03.png,s9\n")
    with pytest.raises(DataError, match="gives a03 two values of sequence: s0 and s9"):
        open_site("a", tmp_path, group_by="sequence")


def test_an_image_without_group_is_named(tmp_path):
    """Guessing one could leak it into the test set."""
    write_groups(make_folder(tmp_path), 4)
    write_image(tmp_path / "images" / "late.png")
    with pytest.raises(DataError, match=r"no sequence for 1 images \(late\)"):
        open_site("a", tmp_path, group_by="sequence")


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 9), max_size=12), st.integers(0, 40))
def test_whole_groups_never_exceed_the_count(sizes, count):
    """A calibration set is never larger than its fraction."""
    assert sum(sizes[name] for name in whole_groups(sizes, count, 0, "calibration")) <= count


# --------------------------------------------------------------------------- many sites


def union(split: dict[str, Site]) -> list[str]:
    return sorted(case_id for data, _ in split.values() for case_id in everything(data))


@pytest.mark.parametrize("alpha", [None, 0.2, 5.0])
def test_a_split_gives_every_image_to_one_site(tmp_path, alpha):
    """Even or uneven, nothing is lost or shared."""
    split = split_sites(make_folder(tmp_path, 20, 7), 4, dirichlet_alpha=alpha, labelled=0.5)
    assert union(split) == [f"a{i:02}" for i in range(27)]


def test_an_even_split_differs_by_one(tmp_path):
    """In all images, in labelled ones and in test images."""
    split = split_sites(make_folder(tmp_path, 20, 5), 3)
    parts = [(d.labelled + d.calibration, everything(d), d.test) for d, _ in split.values()]
    sizes = np.array([[len(cases) for cases in part] for part in parts])
    assert np.ptp(sizes, axis=0).tolist() == [1, 1, 1]


def test_sites_are_called_by_number(tmp_path):
    """From one."""
    assert list(split_sites(make_folder(tmp_path), 2)) == ["site-1", "site-2"]


@pytest.mark.parametrize("alpha", [None, 0.05])
def test_every_site_gets_an_image(tmp_path, alpha):
    """Even where the Dirichlet draw leaves a site next to nothing."""
    split = split_sites(make_folder(tmp_path, 6, 6), 8, dirichlet_alpha=alpha, test_fraction=0.1)
    assert all(data.labelled or data.unlabelled for data, _ in split.values())


def test_more_sites_than_images(tmp_path):
    """10 images, 2 of them test images."""
    with pytest.raises(DataError, match="8 images outside the test set, too few for 9 sites"):
        split_sites(make_folder(tmp_path), 9)


def test_more_sites_than_groups(tmp_path):
    """Groups are not cut to fill sites."""
    write_groups(make_folder(tmp_path, 8), 4)
    with pytest.raises(DataError, match="1 groups of sequence outside the test set"):
        split_sites(tmp_path, 2, group_by="sequence", test_fraction=0.5)


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_groups_do_not_straddle_sites(tmp_path, alpha):
    """Two hospitals do not share a patient's video."""
    write_groups(make_folder(tmp_path, 36), 3)
    split = split_sites(tmp_path, 3, group_by="sequence", dirichlet_alpha=alpha)
    of_site = [{c.group for c in d.labelled + d.calibration + d.test} for d, _ in split.values()]
    assert sum(map(len, of_site)) == len(set.union(*of_site)) == 12


def test_the_test_set_is_that_of_the_whole_folder(tmp_path):
    """Sites divide it, so that any number of sites is scored on the same images."""
    make_folder(tmp_path, 30)
    whole = case_ids(open_site("a", tmp_path)[0].test)
    assert set.union(*(case_ids(d.test) for d, _ in split_sites(tmp_path, 3).values())) == whole


@pytest.mark.parametrize("wrong", [{"sites": 0}, {"sites": 2, "dirichlet_alpha": 0.0}])
def test_impossible_splits_are_refused(tmp_path, wrong):
    """By number of sites or by alpha."""
    with pytest.raises(SettingsError, match="expected"):
        split_sites(make_folder(tmp_path), **wrong)


@given(
    st.lists(st.integers(1, 20), min_size=4, max_size=40),
    st.lists(st.floats(0.001, 1), min_size=1, max_size=4),
)
def test_dealing_loses_nothing_and_leaves_none_empty(sizes, weights):
    """Each group goes to exactly one site, each site has at least one."""
    named = {f"g{i}": size for i, size in enumerate(sizes)}
    dealt = deal(named, [weight / sum(weights) for weight in weights], none_empty=True)
    assert sorted(name for names in dealt for name in names) == sorted(named) and all(dealt)


def test_large_groups_are_balanced():
    """7 + 2 against 5 + 4: nine images each."""
    assert deal({"a": 7, "b": 5, "c": 4, "d": 2}, [0.5, 0.5], none_empty=True) == [
        ["a", "d"],
        ["b", "c"],
    ]


# ------------------------------------------------------------------------ bad folders


def test_no_folder_of_images(tmp_path):
    """The layout is told."""
    with pytest.raises(DataError, match="has no folder images/; expected images/ and"):
        scan(tmp_path)


def test_no_image_in_the_folder(tmp_path):
    """What was found instead is told."""
    (make_folder(tmp_path, 0) / "images" / "a.nii").touch()
    with pytest.raises(DataError, match=r"holds no image \(found: \.nii\)"):
        scan(tmp_path)


@pytest.mark.parametrize("part", ["images", "masks"])
def test_two_files_with_one_case_id(tmp_path, part):
    """Which of them would it be?"""
    write_image(make_folder(tmp_path, 2) / part / "a01.bmp")
    with pytest.raises(DataError, match=r"a01\.bmp and a01\.png, two files with one case id"):
        scan(tmp_path)


def test_masks_without_images_are_named(tmp_path):
    """As with masks called a01_mask.png."""
    write_mask(make_folder(tmp_path, 2) / "masks" / "a01_mask.png")
    with pytest.raises(DataError, match=r"1 masks have no image .*\(a01_mask\)"):
        scan(tmp_path)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    """Thumbnails and backups are not images of the site."""
    make_folder(tmp_path, 2)
    (tmp_path / "images" / ".a02.png").touch()
    (tmp_path / "images" / "old.png").mkdir()
    assert case_ids(scan(tmp_path)) == {"a00", "a01"}


def test_files_that_are_no_images_are_counted(tmp_path):
    """Someone may have hoped that they are read."""
    (make_folder(tmp_path) / "images" / "a.webp").touch()
    assert "1 files" in open_site("a", tmp_path)[0].warnings[0]


def test_a_link_to_an_image_elsewhere_is_an_image(tmp_path):
    """A site may keep its images on another disk."""
    make_folder(tmp_path / "data", 2)
    write_image(tmp_path / "far.png")
    (tmp_path / "data" / "images" / "b.png").symlink_to(tmp_path / "far.png")
    assert "b" in case_ids(scan(tmp_path / "data"))


# ----------------------------------------------------------------------- bad images


def spoil_unreadable(folder: Path) -> None:
    (folder / "images" / "a04.png").write_bytes(b"nothing")


def spoil_huge(folder: Path) -> None:
    write_image(folder / "images" / "a04.png", 40, 40)
    write_mask(folder / "masks" / "a04.png", 40, 40)


def spoil_mask_size(folder: Path) -> None:
    write_mask(folder / "masks" / "a04.png", 6, 9)


def spoil_mask(folder: Path) -> None:
    (folder / "masks" / "a04.png").write_bytes(b"nothing")


def spoil_link(folder: Path) -> None:
    (folder / "images" / "a04.png").unlink()
    (folder / "images" / "a04.png").symlink_to(folder / "gone.png")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_unreadable, "cannot be read"),
        (spoil_huge, "1600 pixels, expected at most 1000"),
        (spoil_mask_size, "its mask is 9x6 pixels and its image 10x6"),
        (spoil_mask, "its mask cannot be read"),
        (spoil_link, "no such file"),
    ],
)
def test_a_single_bad_image_is_named_and_left_out(tmp_path, spoil, says):
    """The other nine go on."""
    spoil(make_folder(tmp_path))
    data, _ = open_site("a", tmp_path, test_fraction=0, max_image_px=1000)
    (left_out,) = data.left_out
    assert left_out.startswith("a04: ") and says in left_out and len(everything(data)) == 9


def test_too_many_bad_images_stop_the_site(tmp_path):
    """Two of ten, where a tenth is allowed."""
    spoil_unreadable(make_folder(tmp_path))
    (tmp_path / "images" / "a05.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)2 of 10 images \(20%\).*at most 10%.*a04: .*a05: "):
        open_site("a", tmp_path)


def test_the_share_of_bad_images_can_be_set(tmp_path):
    """Two of ten, where a fifth is allowed."""
    spoil_unreadable(make_folder(tmp_path))
    (tmp_path / "images" / "a05.png").write_bytes(b"")
    assert len(open_site("a", tmp_path, max_bad_fraction=0.2)[0].left_out) == 2


def test_a_site_of_bad_images_only_is_refused(tmp_path):
    """Whatever share is allowed."""
    spoil_unreadable(make_folder(tmp_path, 0, 1))
    (tmp_path / "images" / "a00.png").unlink()
    with pytest.raises(DataError, match=r"no usable image.*\n.*a04: "):
        open_site("a", tmp_path, max_bad_fraction=1)


def test_a_bad_image_does_not_move_the_others(tmp_path):
    """Draws come before anything is opened."""
    make_folder(tmp_path)
    before, _ = open_site("a", tmp_path, labelled=0.5)
    spoil_unreadable(tmp_path)
    after, _ = open_site("a", tmp_path, labelled=0.5)
    assert case_ids(after.test) == case_ids(before.test) - {"a04"}


def test_the_share_counts_what_is_said_later_too():
    """Decoding finds what headers hide; the same rule serves."""
    with pytest.raises(DataError, match=r"site 'x': 1 of 5 images \(20%\)"):
        refuse_many_bad("x", ["a: damaged"], 5, 0.1)


# --------------------------------------------------------------------------- loading


def test_loaded_images_are_in_the_model_frame(tmp_path):
    """Squares, in the order of the cases, each with the size and digest it had."""
    cases = scan(make_folder(tmp_path, 3))
    loaded = load_images(cases, 8)
    assert loaded.images.shape == (3, 8, 8, 3) and loaded.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert loaded.sizes.tolist() == [[6, 10]] * 3 and len(set(loaded.digests)) == 3


def test_what_the_header_hid_is_left_out_when_loading(tmp_path):
    """A truncated image has a good header; rows and cases stay together."""
    cases = scan(make_folder(tmp_path, 3))
    content = cases[1].image.read_bytes()
    cases[1].image.write_bytes(content[:-30])
    loaded = load_images(cases, 8)
    assert case_ids(loaded.cases) == {"a00", "a02"} and loaded.images[:, 0, 0, 0].tolist() == [0, 2]
    assert loaded.left_out[0].startswith("a01: cannot be read")


def test_loading_with_masks_needs_both(tmp_path):
    """A mask of strange values takes its image out."""
    cases = scan(make_folder(tmp_path, 3))
    write_mask(tmp_path / "masks" / "a01.png", value=7)
    write_mask(tmp_path / "masks" / "a00.png", value=1)
    write_mask(tmp_path / "masks" / "a02.png", value=2)
    loaded = load_images(cases, 8, classes=2)
    assert loaded.masks is not None and loaded.masks.max((1, 2)).tolist() == [1, 2]
    assert "its mask holds the values 7, expected 0 to 2" in loaded.left_out[0]


def test_empty_masks_are_worth_a_warning(tmp_path):
    """One empty mask is an image without lesion; all of them are a mistake."""
    cases = scan(make_folder(tmp_path, 3))
    for case in cases:
        write_mask(tmp_path / "masks" / f"{case.case_id}.png", value=0)
    assert "all 3 masks are empty" in load_images(cases, 8, classes=1).warnings[0]


def test_no_case_at_all_is_no_image(tmp_path):
    """A site without test images has an empty test set of the right shape."""
    assert load_images([], 8, classes=1).images.shape == (0, 8, 8, 3)


def test_masks_are_loaded_in_the_model_frame(tmp_path):
    """As zeros and ones."""
    masks = load_images(scan(make_folder(tmp_path, 2)), 12, classes=1).masks
    assert masks is not None and masks.shape == (2, 12, 12) and set(np.unique(masks)) == {0, 1}
