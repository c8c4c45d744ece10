"""Rounds continue with the sites that answer well, and say why the others were refused."""

import dataclasses
import json
import re
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from knowmine.server.journal.journal import Journal
from knowmine.server.rounds.rounds import run_rounds
from knowmine.server.settings import RunSettings
from knowmine.shared.errors import Refused, RunFailed, UsageError
from knowmine.shared.log import open_log, silent
from knowmine.shared.protocol import FEATURES, PROTOCOL, Calibration, Hello, Mined, Scores, Update
from knowmine.shared.settings import Plan
from knowmine.shared.trust.countersign import Head
from knowmine.shared.weights import digest_of, digest_of_manifest, load_weights, manifest_of

START = {"w": np.zeros(2, np.float32), "bn.num_batches_tracked": np.array(0)}
DIGEST = digest_of_manifest(manifest_of(START))
PLAN = Plan()


@dataclasses.dataclass
class Fake:
    """A site whose training adds `step` to every weight.

    spoil: what becomes of its update on the way, from its round's number and the update.
    """

    name: str
    step: float = 1.0
    labelled: int = 10
    pseudo: int = 0
    calibration: int = 0
    spoil: Callable[[int, Update], Update | Refused] | None = None
    spoil_scores: Callable[[int, Scores], Scores] | None = None
    hello: Hello | Refused | None = None

    def greet(self):
        return self.hello or Hello(
            self.name, PROTOCOL, DIGEST, self.labelled, 9, self.calibration, 4
        )

    def improve(self, task):
        weights = {
            "w": task.weights["w"] + np.float32(self.step),
            "bn.num_batches_tracked": np.array(task.weights["bn.num_batches_tracked"] + 40),
        }
        mined = Mined(kept=self.pseudo, dropped=2, gate="on" if self.pseudo else "unused")
        update = Update(task.round, weights, self.labelled, self.pseudo, 0.5, 1.0, mined)
        return self.spoil(task.round, update) if self.spoil else update

    def score(self, task):
        scores = Scores(task.round, 4, 2.0, 1.0, 40.0, probed(self.calibration))
        return self.spoil_scores(task.round, scores) if self.spoil_scores else scores


class Federation:
    """Fakes as `Sites`, which answer in the order given; keeps the tasks that they got."""

    def __init__(self, *fakes):
        self.fakes = {fake.name: fake for fake in fakes}
        self.tasks, self.questions = [], []
        self.greeted = set()

    def greet(self):
        for fake in self.fakes.values():
            if fake.name not in self.greeted:
                self.greeted.add(fake.name)
                yield fake.name, fake.greet()

    def here(self):
        return set(self.greeted)

    def wait(self, seconds):
        raise AssertionError("everyone is here")

    def hold(self, weights):
        return weights

    def heads(self):
        return {name: Head(3 * len(self.tasks), "ab" * 32) for name in self.fakes}

    def train(self, tasks):
        self.tasks.append(tasks)
        for name, fake in self.fakes.items():
            if name in tasks:
                yield name, fake.improve(tasks[name])

    def evaluate(self, tasks):
        self.questions.append(tasks)
        for name, fake in self.fakes.items():
            if name in tasks:
                yield name, fake.score(tasks[name])


class Watching:
    """Collects records; `stop` raises before that round, as Ctrl-C would."""

    def __init__(self, stop=0):
        self.records, self.stop = [], stop

    def round_started(self, round_, rounds):
        if round_ == self.stop:
            raise KeyboardInterrupt

    def round_done(self, record):
        self.records.append(record)


def probed(images):
    """Calibration sums that are valid for so many images; empty for none."""
    if not images:
        return Calibration()
    sums = (float(images),)
    return Calibration(images, sums * 5, sums * len(FEATURES) ** 2, sums * (5 * len(FEATURES)))


def run(folder, *fakes, rounds=1, watch=None, log=None, sites=None, plan=PLAN, **settings):
    """Run the federation in `folder`, going on where a run is; weights and records."""
    watch = watch or Watching()
    opened = Journal.open(folder) if folder.exists() else Journal.create(folder, {})
    with opened as journal:
        weights = run_rounds(
            sites or Federation(*fakes),
            journal,
            plan,
            RunSettings.model_validate({"rounds": rounds, **settings}),
            lambda: START,
            log=log or silent(),
            watch=watch,
        )
    return weights, watch.records


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_sites_weigh_as_many_images_as_they_trained_on(folder):
    """Three labels that say 1, and four pseudo-labels at 1/4 that say 5: (3 + 5) / 4."""
    weights, _ = run(folder, Fake("a", 1, labelled=3), Fake("b", 5, labelled=0, pseudo=4))
    assert weights["w"].tolist() == [2, 2]


def test_with_the_median_one_wild_site_moves_nothing(folder):
    """Two add 1, one adds a thousand and claims most of the images."""
    sites = (Fake("a"), Fake("b"), Fake("c", 1000, labelled=1000))
    weights, _ = run(folder, *sites, aggregation="median")
    assert weights["w"].tolist() == [1, 1]


def test_batch_counters_are_averaged_as_whole_numbers(folder):
    """Both counted forty batches."""
    weights, _ = run(folder, Fake("a"), Fake("b"))
    assert weights["bn.num_batches_tracked"] == 40


def test_a_site_that_trained_on_nothing_changes_nothing(folder):
    """Its weights count zero."""
    weights, _ = run(folder, Fake("a", 1), Fake("b", 100, labelled=0))
    assert weights["w"].tolist() == [1, 1]


def test_a_round_in_which_no_site_trained_keeps_the_model(folder):
    """All labels are in the calibration set, so the weights stay as they were."""
    idle = Fake("a", hello=Hello("a", PROTOCOL, DIGEST, 1, 2, 1, 0), labelled=0)
    weights, _ = run(folder, idle)
    assert weights["w"].tolist() == [0, 0]


def test_the_order_of_sites_does_not_matter(folder, tmp_path):
    """Where the sums are exact the result is the same whoever answers first."""
    fakes = [Fake("a", 1, labelled=1), Fake("b", 2, labelled=1), Fake("c", 4, labelled=2)]
    forwards, _ = run(folder, *fakes)
    backwards, _ = run(tmp_path / "other", *reversed(fakes))
    assert forwards["w"].tolist() == backwards["w"].tolist() == [2.75, 2.75]


def bent(**changes):
    return lambda round_, update: dataclasses.replace(update, **changes)


def with_w(array):
    return lambda round_, update: dataclasses.replace(
        update, weights={**update.weights, "w": array}
    )


SPOILS = {
    "NaN": (with_w(np.array([0, np.nan], np.float32)), "site 'bad' sent w as a tensor holding nan"),
    "another shape": (with_w(np.zeros(3, np.float32)), r"sent w as \(3,\); expected shape \(2,\)"),
    "absurd count": (bent(labelled=10**9), "site 'bad' sent labelled as 1000000000"),
    "late": (bent(round=0), "sent round as 0; expected round 1: it answers late"),
    "failed": (lambda round_, update: Refused("the disk is on fire"), "the disk is on fire"),
}


@pytest.mark.parametrize("case", SPOILS)
def test_a_bad_reply_is_refused_by_name_and_the_round_goes_on(folder, case):
    """The others are averaged without it, and the record says why."""
    spoil, words = SPOILS[case]
    weights, [record] = run(folder, Fake("a", 1), Fake("bad", 100, spoil=spoil), Fake("c", 3))
    assert weights["w"].tolist() == [2, 2] and record["sites"] == ["a", "c"]
    assert list(record["refused"]) == ["bad"]
    assert re.search(words, record["refused"]["bad"])


def test_a_refused_site_is_asked_again_next_round(folder):
    """One bad reply costs one round."""
    first_only = lambda round_, update: Refused("power cut") if round_ == 1 else update
    _, records = run(folder, Fake("a"), Fake("b", spoil=first_only), rounds=2)
    assert [record["sites"] for record in records] == [["a"], ["a", "b"]]


def test_a_refusal_is_logged(folder, tmp_path):
    """The log names round, site and reason."""
    with open_log(tmp_path / "log") as log:
        run(folder, Fake("a"), Fake("b", spoil=bent(loss=-1.0)), log=log)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    [refused] = [line for line in lines if line["event"] == "refused"]
    assert (refused["round"], refused["site"]) == (1, "b") and "sent loss" in refused["reason"]


def test_bad_scores_are_refused_and_the_training_counts(folder):
    """A site that lies about its Dice is left out of the mean of scores alone."""
    boast = lambda round_, scores: dataclasses.replace(scores, dice=5.0)
    weights, [record] = run(folder, Fake("a", 1), Fake("b", 3, spoil_scores=boast))
    assert weights["w"].tolist() == [2, 2]
    assert list(record["per_site"]) == ["a"] and "sent dice as 5.0" in record["refused"]["b"]


def from_round_2(round_, update):
    return Refused("it is gone") if round_ >= 2 else update


def test_a_missed_quorum_ends_the_run_with_the_reasons(folder):
    """One of three is less than half."""
    gone = [Fake(name, spoil=from_round_2) for name in ("b", "c")]
    words = r"round 2 got 1 of 3 updates, needs 2 .*b: it is gone; c: it is gone.*go on"
    with pytest.raises(RunFailed, match=words):
        run(folder, Fake("a"), *gone, rounds=3)


def test_a_missed_quorum_keeps_the_rounds_before(folder):
    """Round 1 is on disk with its weights."""
    with pytest.raises(RunFailed):
        run(folder, Fake("a", spoil=from_round_2), rounds=3)
    with Journal.open(folder) as journal:
        last = journal.last()
    assert last is not None and (last.round, last.weights["w"].tolist()) == (1, [1, 1])


def test_a_quorum_that_is_just_met_suffices(folder):
    """One of two is half."""
    _, records = run(folder, Fake("a"), Fake("b", spoil=from_round_2), rounds=2)
    assert len(records) == 2


def test_no_labels_anywhere_is_wrong_use(folder):
    """There is nothing to learn from."""
    with pytest.raises(UsageError, match="none of the 2 sites has a labelled image"):
        run(folder, Fake("a", labelled=0), Fake("b", labelled=0))


def test_a_site_with_another_model_is_left_out(folder):
    """It is not asked to train."""
    other = Hello("b", PROTOCOL, "0" * 64, 10, 9, 0, 4)
    sites = Federation(Fake("a"), Fake("b", hello=other))
    run(folder, sites=sites)
    assert list(sites.tasks[0]) == ["a"]


def test_without_any_site_the_run_fails(folder):
    """The message says what was wrong with each."""
    strange = Fake("b", hello=Hello("b", 99, DIGEST, 10, 9, 0, 4))
    silent_one = Fake("c", hello=Refused("no answer within 5 s"))
    with pytest.raises(RunFailed, match=r"b: .*sent protocol as 99.*; c: no answer within 5 s"):
        run(folder, strange, silent_one)


def test_too_small_a_calibration_set_uses_the_federations(folder):
    """8 images are enough; 3 are not, and get the 11 of all."""
    sites = Federation(Fake("a", calibration=8), Fake("b", calibration=3), Fake("c", calibration=0))
    run(folder, sites=sites, rounds=2)
    lent = {name: task.calibration for name, task in sites.tasks[1].items()}
    assert (lent["a"], lent["b"], lent["c"]) == (probed(8), probed(11), probed(11))


def test_the_first_round_has_no_calibration_sums(folder):
    """Nothing was measured yet."""
    sites = Federation(Fake("a", calibration=8))
    run(folder, sites=sites)
    assert sites.tasks[0]["a"].calibration == Calibration()


def test_a_record_has_what_people_and_scripts_read(folder):
    """The keys of the contract, and scores as means over images."""
    _, [record] = run(folder, Fake("b", pseudo=3), Fake("a"))
    assert record["sites"] == ["a", "b"]
    assert (record["round"], record["dice"], record["iou"], record["hd95"]) == (1, 0.5, 0.25, 10)
    assert record["mined"] == {"kept": 3, "dropped": 4, "gate": "mixed"}
    assert record["per_site"]["a"] == {"dice": 0.5, "iou": 0.25, "hd95": 10, "test_images": 4}
    assert record["updates"]["b"]["pseudo_labelled"] == 3
    # Down twice: to train, and to score what became of it.
    assert record["bytes_up"] == 2 * (2 * 4 + 8) and record["bytes_down"] == 2 * record["bytes_up"]
    assert record["refused"] == {} and record["seconds"] >= 0


def test_the_record_on_disk_is_the_one_shown(folder):
    """Beside what only a resumed run needs."""
    _, [shown] = run(folder, Fake("a", calibration=8))
    written = json.loads((folder / "rounds" / "0001.json").read_text())
    assert {key: written[key] for key in shown if key != "calibration"} == {
        key: value for key, value in shown.items() if key != "calibration"
    }


def test_the_finished_model_is_written(folder):
    """It is what the run returns."""
    weights, _ = run(folder, Fake("a"), rounds=2)
    assert digest_of(load_weights(folder / "model.safetensors")) == digest_of(weights)


@pytest.mark.parametrize("optimiser", ["mean", "sgd", "adam"])
def test_an_interrupted_run_ends_like_an_undisturbed_one(folder, tmp_path, optimiser):
    """Rounds 3 and 4 follow from what is on disk, the server optimiser's memory included."""
    settings = {"rounds": 4, "optimiser": {"name": optimiser, "learning_rate": 0.3}}
    fakes = Fake("a", 1, calibration=8), Fake("b", 3, calibration=2)
    undisturbed, _ = run(tmp_path / "whole", *fakes, **settings)
    with pytest.raises(KeyboardInterrupt):
        run(folder, *fakes, watch=Watching(stop=3), **settings)
    resumed, _ = run(folder, *fakes, **settings)
    assert digest_of(resumed) == digest_of(undisturbed)


def test_a_resumed_run_does_only_what_is_left(folder):
    """Two of four rounds are left, with the calibration sums of round 2."""
    with pytest.raises(KeyboardInterrupt):
        run(folder, Fake("a", calibration=9), watch=Watching(stop=3), rounds=4)
    sites = Federation(Fake("a", calibration=9))
    _, records = run(folder, sites=sites, rounds=4)
    assert [record["round"] for record in records] == [3, 4]
    assert sites.tasks[0]["a"].calibration == probed(9)


def test_a_finished_run_has_nothing_left_to_do(folder):
    """Resuming it sends no task."""
    before, _ = run(folder, Fake("a"))
    sites = Federation(Fake("a"))
    after, _ = run(folder, sites=sites)
    assert not sites.tasks and digest_of(after) == digest_of(before)


class Counting(Federation):
    """Sites that note whether the update before theirs is still in memory."""

    held = 0

    def train(self, tasks):
        before = None
        for name, fake in self.fakes.items():
            self.held += before is not None and before() is not None
            update = fake.improve(tasks[name])
            before = weakref.ref(update.weights["w"])
            yield name, update
            del update


def test_one_update_at_a_time_is_held(folder):
    """Memory does not grow with the number of sites."""
    sites = Counting(*(Fake(f"site-{n}") for n in range(5)))
    run(folder, sites=sites)
    assert sites.held == 0


def test_a_site_that_calibrates_no_more_keeps_its_last_sums(folder):
    """Its calibration images are trained on by then."""

    def once(round_, scores):
        kept = scores.calibration if round_ == 1 else Calibration()
        return dataclasses.replace(scores, calibration=kept)

    sites = Federation(Fake("a", calibration=9, spoil_scores=once))
    run(folder, sites=sites, rounds=3)
    assert sites.tasks[2]["a"].calibration == probed(9)
