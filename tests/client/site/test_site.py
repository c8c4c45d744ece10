"""A site holds its images in memory, asks SAM late and once, and knows its model."""

import numpy as np
import pytest
import torch
from PIL import Image

from knowmine.shared.errors import DataError, Refused
from knowmine.shared.protocol import PROTOCOL
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import digest_of, digest_of_manifest
from tests.client.small_site import MODEL, FakeSam, small_site

HEIGHT, WIDTH = 20, 40
# Of ten images two are tested, two probe, two are learnt from, and four stay unlabelled.
SPLIT = {"labelled": 4, "probe_fraction": 0.5, "test_fraction": 0.2}


@pytest.fixture
def folder(tmp_path):
    """Ten images of one level each; a lesion at the left, as class 1, or 2 in odd ones."""
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for i in range(10):
        image = np.full((HEIGHT, WIDTH, 3), 10 * i, np.uint8)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[:, : WIDTH // 2] = 1 + i % 2
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"a{i}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"a{i}.png")
    return tmp_path / "data"


TWO_CLASSES = ModelSettings(pretrained=False, decoder_channels=(8, 8, 8), image_px=64, classes=2)


@pytest.fixture
def site(folder, tmp_path):
    return small_site(folder, tmp_path, model=TWO_CLASSES, sam=FakeSam(), **SPLIT)


def test_images_are_in_the_models_frame(site):
    """Warped to a square, colours first, each with its own level."""
    assert site.unlabelled.images.shape == (4, 3, 64, 64)
    levels = [10 * int(case.stem[1:]) for case in site.unlabelled.cases]
    assert site.unlabelled.images[:, 0, 0, 0].tolist() == levels


def test_truth_has_a_plane_for_each_class(site):
    """Odd images have class 2, even ones class 1, at the left."""
    for case, truth in zip(site.labelled.cases, site.labelled.truth, strict=True):
        there = int(case.stem[1:]) % 2
        assert truth[there, :, :32].all() and not truth[there, :, 32:].any()
        assert not truth[1 - there].any()


def test_truth_is_there_for_labels_and_probe_alone(site):
    """What is hidden is not in memory either."""
    kinds = (site.labelled, site.probe, site.unlabelled, site.test)
    assert [len(kind.truth) for kind in kinds] == [2, 2, 0, 0]


def test_a_site_introduces_itself(site):
    """With counts, and with the digest of the model that it would train."""
    hello = site.hello()
    assert (hello.site, hello.protocol) == ("lyon", PROTOCOL)
    assert (hello.labelled, hello.probe, hello.unlabelled, hello.test) == (4, 2, 4, 2)
    assert hello.model_digest == digest_of_manifest(site.manifest)


def test_some_rows_of_a_kind_stay_together(site):
    """Cases, images, digests and sizes."""
    some = site.unlabelled.at([3, 1])
    assert some.cases == (site.unlabelled.cases[3], site.unlabelled.cases[1])
    assert torch.equal(some.images, site.unlabelled.images[[3, 1]])
    assert some.digests == (site.unlabelled.digests[3], site.unlabelled.digests[1])


def test_frames_know_the_original_size(site):
    """Twenty by forty, seen as 64 by 64."""
    frames = site.frames(site.unlabelled, 0)
    assert (frames.height, frames.width, frames.model_px) == (HEIGHT, WIDTH, 64)


# ------------------------------------------------------------------------- bad images


def cut(folder, stem):
    """An image whose header is sound and whose pixels are not all there."""
    file = folder / "images" / f"{stem}.png"
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:1000])


def test_an_image_that_breaks_off_is_left_out(folder, tmp_path):
    """By name; the others take part."""
    cut(folder, "a3")
    site = small_site(folder, tmp_path, model=TWO_CLASSES, **SPLIT)
    assert [reason[:3] for reason in site.left_out] == ["a3:"]
    hello = site.hello()
    assert hello.labelled + hello.unlabelled + hello.test == 9


def test_many_bad_images_are_an_error(folder, tmp_path):
    """Two of ten are more than a tenth."""
    cut(folder, "a3")
    cut(folder, "a4")
    with pytest.raises(DataError, match="2 of 10 images"):
        small_site(folder, tmp_path, model=TWO_CLASSES, **SPLIT)


def test_a_test_mask_that_cannot_be_scored_is_named(folder, tmp_path):
    """Before the first round, from its header."""
    site = small_site(folder, tmp_path, model=TWO_CLASSES, **SPLIT)
    stem = site.test.cases[0].stem
    (folder / "masks" / f"{stem}.png").write_bytes(b"garbage")
    again = small_site(folder, tmp_path, model=TWO_CLASSES, **SPLIT)
    assert not site.left_out and again.left_out[0].startswith(f"{stem}: its mask")


# -------------------------------------------------------------------------------- SAM


def test_sam_is_not_loaded_to_say_that_it_was_not_asked(folder, tmp_path):
    """A method without SAM opens none."""
    assert small_site(folder, tmp_path, model=TWO_CLASSES, **SPLIT).encoded == 0


def test_sam_sees_the_original_image(site):
    """Not the square one."""
    embedding = site.embeddings([(site.unlabelled, 0)])[0]
    assert site.sam.embedded == [(HEIGHT, WIDTH, 3)]
    assert (embedding.shape, embedding.dtype) == ((256, 64, 64), torch.float16)


def test_an_embedding_is_the_images_own(site):
    """Row by row; the fake embeds the mean level."""
    for row, case in enumerate(site.unlabelled.cases):
        assert site.embeddings([(site.unlabelled, row)])[0][0, 0, 0] == 10 * int(case.stem[1:])


def test_an_image_is_embedded_once(site, folder, tmp_path):
    """Neither twice in a run, nor again after the site was opened anew."""
    for _ in range(2):
        site.embeddings([(site.unlabelled, 0)])
    again = small_site(folder, tmp_path, model=TWO_CLASSES, sam=FakeSam(), **SPLIT)
    again.embeddings([(again.unlabelled, 0)])
    assert (site.encoded, again.encoded) == (1, 0)


# ------------------------------------------------------------------------------ model


def test_the_global_weights_are_loaded(site):
    """All of them."""
    weights = weights_of(build_model(TWO_CLASSES, seed=5))
    site.load_model(weights, TWO_CLASSES, 1, local=False)
    assert digest_of(weights_of(site.model)) == digest_of(weights)


def test_another_model_is_refused(site):
    """Its settings are shown beside the site's own."""
    with pytest.raises(Refused, match=r"'classes': 1.*this site was set up for.*'classes': 2"):
        site.load_model({}, MODEL, 1, local=False)


# ------------------------------------------------------------------------- withdrawn cases


def stems_of(kind):
    return [case.stem for case in kind.cases]


def test_withdrawn_cases_leave_every_kind(site, folder):
    """With image, truth, digest and size; the others keep theirs."""
    gone = [stems_of(kind)[0] for kind in (site.labelled, site.probe, site.unlabelled, site.test)]
    stays = {stem: site.labelled.truth[i] for i, stem in enumerate(stems_of(site.labelled))}
    (folder / "withdrawn.txt").write_text("\n".join(gone))
    site.leave_out_withdrawn()
    kinds = (site.labelled, site.probe, site.unlabelled, site.test)
    assert [len(kind) for kind in kinds] == [1, 1, 3, 1]
    assert not {stem for kind in kinds for stem in stems_of(kind)} & set(gone)
    for kind in kinds:
        assert len(kind.images) == len(kind.digests) == len(kind.sizes) == len(kind)
    (left,) = stems_of(site.labelled)
    assert torch.equal(site.labelled.truth[0], stays[left])


def test_a_site_introduces_itself_without_withdrawn_cases(site, folder):
    """The list is read whenever the server asks."""
    (folder / "withdrawn.txt").write_text(stems_of(site.test)[0])
    assert site.hello().test == 1


def test_withdrawing_draws_nothing_anew(folder, tmp_path):
    """The probe and test images stay what they were, so nothing leaks from one to the other."""
    before = small_site(folder, tmp_path, model=TWO_CLASSES, **SPLIT)
    (folder / "withdrawn.txt").write_text(stems_of(before.unlabelled)[0])
    after = small_site(folder, tmp_path, model=TWO_CLASSES, **SPLIT)
    after.leave_out_withdrawn()
    assert stems_of(after.test) == stems_of(before.test)
    assert stems_of(after.probe) == stems_of(before.probe)


def test_a_site_that_rested_has_the_same_images_again(site):
    """Pixels are let go and read again; who the site is needs none of them."""
    before = {name: getattr(site, name) for name in ("labelled", "probe", "unlabelled", "test")}
    hello = site.hello()
    site.rest()
    assert (site.pixel_bytes, site.hello()) == (0, hello)
    for name, kind in before.items():
        again = getattr(site, name)
        assert torch.equal(again.images, kind.images) and torch.equal(again.truth, kind.truth)
        assert (again.digests, again.sizes) == (kind.digests, kind.sizes)


def test_two_sites_may_share_one_network(folder, tmp_path):
    """Each task brings all of its weights, so nothing of the other site is left in it."""
    one = small_site(folder, tmp_path, model=TWO_CLASSES, **SPLIT)
    other = small_site(folder, tmp_path, model=TWO_CLASSES, network=one.model, **SPLIT)
    assert other.model is one.model and other.manifest == one.manifest


def test_copies_of_an_image_are_embedded_once(site):
    """Also when they are asked for at the same time, by two threads."""
    both = site.embeddings([(site.unlabelled, 0), (site.unlabelled, 0)])
    assert site.encoded == 1 and torch.equal(both[0], both[1])
