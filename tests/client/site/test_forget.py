"""What a site keeps of a case or of a project is destroyed on request, and a receipt says so."""

from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from knowmine.client.audit.log import Chain
from knowmine.client.audit.report import rounds_of
from knowmine.client.paths import VAULT_KEYS, audit_log_of
from knowmine.client.review.decisions import Decision, append_decision, read_decisions, save_label
from knowmine.client.sam.embeddings import EmbeddingStore
from knowmine.client.settings import ClientSettings
from knowmine.client.site.forget import forget_case, forget_project
from knowmine.client.site.round import evaluate, improve
from knowmine.client.storage.encryption import Seal
from knowmine.client.storage.pseudo_label_store import load_mined
from knowmine.client.storage.report_samples import load_gallery
from knowmine.shared.errors import UsageError
from knowmine.shared.files import FolderLock
from knowmine.shared.protocol import EvaluateTask
from knowmine.shared.trust.keys import audit_line, load_audit_key, make_audit_key
from tests.client.small_site import MODEL, FakeSam, plan, seeing_weights, small_site, task

PLAN = plan(images=0)


@pytest.fixture
def home(tmp_path):
    """A data folder of eight images, keys, and settings."""
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(8):
        image = draw.integers(0, 255, (40, 40, 3), np.uint8)
        mask = np.zeros((40, 40), np.uint8)
        mask[:20] = 1
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"a{i}.png")
        if i < 5:
            Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"a{i}.png")
    (tmp_path / "keys").mkdir(mode=0o700)
    make_audit_key(tmp_path / "keys" / "audit.key")
    return tmp_path


@pytest.fixture
def settings(home):
    values = {
        "federation": "chest",
        "site": "lyon",
        "network": {"server": "localhost:1"},
        "keys": str(home / "keys"),
        "state": str(home / "state"),
        "data": str(home / "data"),
        "sam": {"cache": str(home)},
    }
    return ClientSettings.model_validate(values)


@pytest.fixture
def seal(settings):
    return Seal(settings.state / VAULT_KEYS)


@pytest.fixture
def site(home, settings, seal):
    """A sealed site that has worked one round."""
    site = small_site(
        home / "data", home / "state", sam=FakeSam(), seal=seal, cache=home, test_fraction=0.2
    )
    weights = seeing_weights(site.images.unlabelled.images)
    improve(site, task(weights, PLAN, round_=2))
    evaluate(site, EvaluateTask(2, 4, PLAN, weights))
    return site


def embedded(home, seal, digests):
    store = EmbeddingStore(home / "embeddings", FakeSam(), seal=seal)
    return [store.has(digest) for digest in digests]


def last_receipt(settings):
    key = load_audit_key(settings.keys / "audit.key")
    assert Chain.verify(audit_log_of(settings.state), [audit_line(key)]).ok
    with Chain.open(audit_log_of(settings.state), key) as chain:
        return chain.last


def test_a_round_is_remembered_by_case(site, settings):
    """Trained on, mined, or scored, looked up by case id."""
    as_ = {
        purpose: [
            took.as_ for took in rounds_of(settings, getattr(site.images, purpose).cases[0].case_id)
        ]
        for purpose in ("labelled", "unlabelled", "test")
    }
    assert as_ == {"labelled": ["trained"], "unlabelled": ["mined"], "test": ["scored"]}


def test_a_withdrawn_case_takes_no_part_from_the_next_round(site, settings, home):
    """It was in round 2 and is not in round 3."""
    case_id = site.images.unlabelled.cases[0].case_id
    (home / "data" / "withdrawn.txt").write_text(case_id)
    improve(site, task(seeing_weights(site.images.unlabelled.images), PLAN, round_=3))
    assert [took.round for took in rounds_of(settings, case_id)] == [2]
    assert [
        took.round for took in rounds_of(settings, site.images.unlabelled.cases[0].case_id)
    ] == [
        2,
        3,
    ]


def test_a_forgotten_case_is_gone_and_the_others_stay(site, settings, home, seal):
    """Its embedding and the pseudo-labels that show it; the receipt names it only by its alias."""
    digests, case_id = site.images.unlabelled.digests, site.images.unlabelled.cases[0].case_id
    listed = [one.case_id for one in load_mined(site.state.folder, seal)]
    forget_case(settings, case_id)
    assert embedded(home, Seal(seal._folder), digests) == [False] + [True] * (len(digests) - 1)
    assert load_gallery(site.state.folder, 9, seal=seal) == []
    left = [one.case_id for one in load_mined(site.state.folder, Seal(seal._folder))]
    assert case_id in listed and left == [one for one in listed if one != case_id] != []
    about = last_receipt(settings).about
    assert (about["what"], about["case"]) == ("case", seal.alias("case", case_id))
    assert f'"{case_id}"' not in audit_log_of(settings.state).read_text()


def test_a_case_whose_image_is_gone_is_forgotten_too(site, settings, home, seal):
    """The record of who took part has the alias of its embedding."""
    digest, case = site.images.unlabelled.digests[0], site.images.unlabelled.cases[0]
    case.image.unlink()
    assert forget_case(settings, case.case_id) >= 1
    assert embedded(home, Seal(seal._folder), [digest]) == [False]


def test_a_forgotten_test_image_leaves_its_scores(site, settings):
    """Its line in them goes."""
    case_id = site.images.test.cases[0].case_id
    (file,) = site.state.folder.glob("scores-*.json")
    assert case_id in file.read_text()
    forget_case(settings, case_id)
    assert f'"{case_id}"' not in file.read_text()


def test_a_forgotten_case_leaves_its_review(site, settings):
    """Mask, strokes and decisions; another case's decision stays."""
    gone, stays = (case.case_id for case in site.images.unlabelled.cases[:2])
    for case_id in (gone, stays):
        digest = save_label(site.state.folder, case_id, b"png")
        decision = Decision(
            id=case_id, case_id=case_id, verdict="accepted", role="reader", when=datetime.now(UTC), round=2,
            image_sha256="", mask_sha256=digest, sam_sha256=None, window="0" * 16,
        )  # fmt: skip
        append_decision(site.state.folder, decision)
    forget_case(settings, gone)
    assert list(read_decisions(site.state.folder)) == [stays]
    assert [
        path.name.split(".")[0] for path in (site.state.folder / "masks_reviewed").iterdir()
    ] == [stays]


@pytest.mark.parametrize("forget", [lambda s: forget_case(s, "a0"), forget_project])
@pytest.mark.parametrize("name", ["site/pictures/sheet.png", "site/rehearsal/mined.npz"])
def test_what_shows_many_cases_goes_with_any(site, settings, forget, name):
    """A picture of many cases cannot lose one of them."""
    left = settings.state / name
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"pixels")
    forget(settings)
    assert not left.exists()


def test_a_forgotten_project_leaves_receipts_alone(site, settings, home):
    """Key, embeddings, pseudo-labels and scores are gone."""
    assert forget_project(settings) > 3
    left = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
    assert left == {("data", "images"), ("data", "masks"), ("keys", "audit.key"), ("state", "audit"), ("state", ".lock")}  # fmt: skip
    assert last_receipt(settings).about["what"] == "project"
    with pytest.raises(UsageError, match="the project was forgotten"):
        rounds_of(settings, "a0")


@pytest.mark.parametrize("name", ["answers", "feedback"])
def test_a_forgotten_project_leaves_no_answer_and_no_residual(site, settings, name):
    """They are the courier's."""
    file = settings.state / "courier" / name / "x.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    forget_project(settings)
    assert not file.parent.exists()


def test_nothing_is_forgotten_while_the_site_runs(site, settings):
    """The site would make again what was destroyed."""
    lock = FolderLock(settings.state)
    with pytest.raises(UsageError, match="another process"):
        forget_project(settings)
    lock.release()


def test_nothing_is_forgotten_during_a_review(site, settings):
    """The next stroke would keep what was destroyed."""
    lock = FolderLock(site.state.folder)
    for forget in (lambda: forget_case(settings, "a0"), lambda: forget_project(settings)):
        with pytest.raises(UsageError, match=r"another process .* works in .*site"):
            forget()
    lock.release()
    assert forget_project(settings) > 3


def test_the_small_model_is_the_one_that_is_trained():
    """Else the weights above would not fit."""
    assert PLAN.model == MODEL
