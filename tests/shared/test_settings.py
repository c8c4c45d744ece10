"""Settings: wrong ones are refused with file, key and repair."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from knowmine.client.egress.policy import Policy
from knowmine.client.settings import ClientSettings
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.server.settings import ServerSettings
from knowmine.shared.errors import SettingsError
from knowmine.shared.settings import REMOVED, ModelSettings, Plan, Settings, read_settings


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
        ("mining.fraction", 1.0, r"`mining\.fraction`: .*less than 1 \(found 1\.0\)"),
    ],
)
def test_an_impossible_value_is_named_with_what_was_found(key, value, words):
    """The message holds key, expectation and finding."""
    with pytest.raises(SettingsError, match=words):
        read_settings(Plan, None, {key: value})


def test_every_mistake_is_named_at_once(tmp_path):
    """One run of the command shows all there is to repair."""
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


OF_PLAN = [key for key in REMOVED if key.split(".")[0] in Plan.model_fields]


@pytest.mark.parametrize("key", OF_PLAN)
def test_a_removed_key_is_named_with_what_takes_its_place(tmp_path, key):
    """An old settings file gets the key, that it was removed, and what to do instead."""
    section, name = key.split(".")
    file = written(tmp_path, f"plan:\n  {section}:\n    {name}: 1\n")
    with pytest.raises(SettingsError) as caught:
        read_settings(Role, file, {})
    assert str(caught.value) == f"{file}: `plan.{key}` was removed: {REMOVED[key]}"


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("mining.share", "use mining.fraction"),
        ("mining.keep_first", "all pseudo-labels of sufficient quality are kept"),
        ("training.decay", "the learning rate falls from the first round to the last"),
    ],
)
def test_a_removed_key_is_named_as_a_flag_too(key, instead):
    """Without a file there is no file to name."""
    with pytest.raises(SettingsError) as caught:
        read_settings(Plan, None, {key: 1})
    assert str(caught.value) == f"`{key}` was removed: {instead}"


def test_a_removed_key_of_a_role_is_named(tmp_path):
    """The policy's key stands at the top of its file."""
    with pytest.raises(SettingsError, match=r"`sam_decoder` was removed: SAM never leaves a site"):
        read_settings(Policy, written(tmp_path, "sam_decoder: false\n"), {})


def keys_of(kind: type[Settings], section: str = "") -> Iterator[str]:
    """Each key with its section, as `REMOVED` spells them: `training.steps`, `seed`."""
    for name, field in kind.model_fields.items():
        yield f"{section}.{name}" if section else name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from keys_of(field.annotation, name)


def test_no_removed_key_exists():
    """A key that came back would be refused in words that are wrong."""
    roles: tuple[type[Settings], ...] = (
        Plan, ClientSettings, ServerSettings, SimulationSettings, Policy
    )  # fmt: skip
    existing = {key for role in roles for key in keys_of(role)}
    assert "mining.fraction" in existing
    assert not existing & set(REMOVED)


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
    """The paper's method always, two methods never, knowmine by its setting."""
    assert Plan.model_validate({"method": method, "mining": {"sam": sam}}).uses_sam == asks


def test_settings_are_frozen():
    """What was checked at the door stays as it was checked."""
    with pytest.raises(ValidationError, match="frozen"):
        ModelSettings().classes = 2  # type: ignore[misc]  # the point of the test


def test_a_plan_survives_its_json():
    """A task carries the plan as JSON, and the site reads the same plan."""
    plan = Plan(seed=5, method="paper")
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
