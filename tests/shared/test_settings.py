"""Settings: wrong ones are refused with file, key and repair."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from knowmine.shared.errors import SettingsError
from knowmine.shared.settings import ModelSettings, Plan, Settings, read_settings


class Role(Settings):
    """A role's settings, as server, client and deploy have them."""

    rounds: int = 3
    plan: Plan = Plan()


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return file


def test_nothing_given_means_the_defaults():
    """An empty start is a usable one."""
    assert read_settings(Plan, None, {}) == Plan()


def test_an_empty_file_means_the_defaults(tmp_path):
    """A file of comments alone changes nothing."""
    assert read_settings(Plan, written(tmp_path, "# nothing\n"), {}) == Plan()


def test_a_file_sets_nested_keys(tmp_path):
    """YAML's nesting is the settings' nesting."""
    plan = read_settings(Plan, written(tmp_path, "training:\n  steps: 7\n"), {})
    assert plan.training.steps == 7


def test_a_flag_overrides_the_file(tmp_path):
    """What was typed last counts, and its neighbours in the file stay."""
    file = written(tmp_path, "plan:\n  seed: 1\n  method: paper\n")
    role = read_settings(Role, file, {"plan.seed": 2})
    assert (role.plan.seed, role.plan.method) == (2, "paper")


def test_a_flag_that_is_none_was_not_given():
    """An absent flag leaves the default alone."""
    assert read_settings(Plan, None, {"seed": None}).seed == 0


def test_an_unknown_key_gets_the_nearest_known_one(tmp_path):
    """A misspelling is answered with file, key and the right spelling."""
    file = written(tmp_path, "plan:\n  training:\n    learning_rte: 0.1\n")
    expected = (
        r"run\.yaml: unknown key `plan\.training\.learning_rte`; did you mean `learning_rate`"
    )
    with pytest.raises(SettingsError, match=expected):
        read_settings(Role, file, {})


def test_an_unknown_key_like_no_other_gets_the_list():
    """Without a near one, all known keys are named."""
    with pytest.raises(SettingsError, match="unknown key `zzz`; known keys: method, mining, model"):
        read_settings(Plan, None, {"zzz": 1})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", -1, r"`seed`: .*greater than or equal to 0 \(found -1\)"),
        ("model.image_px", 100, r"`model\.image_px`: .*multiple of 32 \(found 100\)"),
        ("training.learning_rate", float("nan"), r"`training\.learning_rate`"),
        ("training.steps", "many", r"`training\.steps`: .*\(found 'many'\)"),
        ("method", "magic", r"`method`: .*'supervised', .*\(found 'magic'\)"),
        ("mining.keep_last", 0.1, "keep_last.*below mining.keep_first"),
    ],
)
def test_an_impossible_value_is_named_with_what_was_found(key, value, words):
    """The message holds key, expectation and finding."""
    with pytest.raises(SettingsError, match=words):
        read_settings(Plan, None, {key: value})


def test_every_mistake_is_named_at_once(tmp_path):
    """One run of the command shows all there is to mend."""
    file = written(tmp_path, "seed: -1\nmodel:\n  classes: 0\n")
    with pytest.raises(SettingsError) as caught:
        read_settings(Plan, file, {})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1", "not valid YAML"),
        ("- a\n- b\n", "expected `key: value` lines, found a list"),
        ("just text", "found a str"),
    ],
)
def test_a_file_that_is_no_settings_is_refused(tmp_path, content, words):
    """The file is named, with what was found in it."""
    with pytest.raises(SettingsError, match=words):
        read_settings(Plan, written(tmp_path, content), {})


def test_a_missing_file_is_named(tmp_path):
    """The path in the message is the one that was asked for."""
    with pytest.raises(SettingsError, match=r"cannot read settings file .*gone\.yaml"):
        read_settings(Plan, tmp_path / "gone.yaml", {})


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["seed", "model", "steps", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["seed", "model", "training.steps", "x"]), yaml_values))
@settings(max_examples=100)
def test_any_values_are_settings_or_refused(flags):
    """Junk is answered in words, never by a crash."""
    with suppress(SettingsError):
        assert isinstance(read_settings(Plan, None, flags), Plan)


@given(st.binary(max_size=60))
@settings(max_examples=100)
def test_any_file_is_settings_or_refused(tmp_path_factory, content):
    """So is any file."""
    file = tmp_path_factory.mktemp("settings") / "s.yaml"
    file.write_bytes(content)
    with suppress(SettingsError):
        assert isinstance(read_settings(Plan, file, {}), Plan)


@pytest.mark.parametrize(
    ("method", "sam", "asks"),
    [
        ("supervised", "gated", False),
        ("self-training", "always", False),
        ("paper", "never", True),
        ("knowmine", "gated", True),
        ("knowmine", "never", False),
    ],
)
def test_a_plan_knows_whether_it_needs_sam(method, sam, asks):
    """The paper's recipe always, two methods never, knowmine as it is told."""
    assert Plan.model_validate({"method": method, "mining": {"sam": sam}}).asks_sam == asks


def test_nothing_is_distilled_from_a_sam_that_is_not_there():
    """Two settings that contradict each other are refused, not chosen from."""
    with pytest.raises(ValidationError, match=r"distil_steps.*sam is never"):
        Plan.model_validate({"mining": {"sam": "never", "distil_steps": 5}})


def test_settings_are_frozen():
    """What was checked at the door stays as it was checked."""
    with pytest.raises(ValidationError, match="frozen"):
        ModelSettings().classes = 2  # type: ignore[misc]  # the point of the test


def test_a_plan_survives_its_json():
    """A task carries the plan as JSON, and the site reads the same plan."""
    plan = Plan(seed=5, method="paper")
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({}, True),
        ({"method": "paper"}, False),
        ({"mining": {"share_decoder": False}}, False),
        ({"mining": {"share_decoder": True, "tune_steps": 0}}, False),
        ({"mining": {"share_decoder": True, "sam": "never"}}, False),
    ],
)
def test_a_decoder_is_shared_where_one_is_tuned(changes, shares):
    """A plan of another method may leave the switch on: the harness compares methods so."""
    plan = Plan.model_validate({"mining": {"share_decoder": True}, **changes})
    assert plan.shares_decoder == shares
