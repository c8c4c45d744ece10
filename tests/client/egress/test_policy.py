"""A site's policy tightens what may leave, and can loosen nothing."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowmine.client.egress.policy import LOOSEST, Policy, read_policy
from knowmine.shared.errors import SettingsError


def written(folder, text):
    file = folder / "policy.yaml"
    file.write_text(text)
    return file


def at(clock):
    """A moment of the day on this machine's clock."""
    return datetime.fromisoformat(f"2026-03-02T{clock}:00").astimezone()


def test_without_a_file_the_loosest_holds():
    """A site that says nothing has the built-in limits."""
    assert read_policy(None) is LOOSEST


def test_a_policy_file_is_read(tmp_path):
    """What it leaves out stays at its loosest."""
    policy = read_policy(written(tmp_path, "rounds: 5\nmin_cases: 10\napproval: manual\n"))
    assert (policy.rounds, policy.min_cases, policy.approval) == (5, 10, "manual")
    assert policy.gigabytes == LOOSEST.gigabytes


@pytest.mark.parametrize(
    "line",
    ["rounds: 10001", "gigabytes: 1.0e+9", "min_cases: 0", "max_update_norm: 1.0e+5", "max_change: 101"],
)  # fmt: skip
def test_nothing_can_be_looser_than_the_built_in_limits(tmp_path, line):
    """A number beyond the default is a mistake, with file and key."""
    with pytest.raises(SettingsError, match=rf"policy.yaml: `{line.split(':')[0]}`"):
        read_policy(written(tmp_path, line))


def test_an_unknown_key_is_refused_with_the_near_one(tmp_path):
    """A policy that is misspelt must not be taken for none."""
    with pytest.raises(SettingsError, match="did you mean `rounds`"):
        read_policy(written(tmp_path, "round: 5"))


@pytest.mark.parametrize("hours", ["22-6", "25:00-06:00", "22:00-22:00", "22:60-23:00", "x"])
def test_hours_are_windows_of_the_day(tmp_path, hours):
    """HH:MM-HH:MM and some length."""
    with pytest.raises(SettingsError, match="hours"):
        read_policy(written(tmp_path, f'hours: ["{hours}"]'))


@pytest.mark.parametrize(
    ("clock", "open_"),
    [("21:59", False), ("22:00", True), ("00:00", True), ("05:59", True), ("06:00", False), ("12:15", True)],
)  # fmt: skip
def test_a_window_may_cross_midnight(clock, open_):
    """It holds its start and not its end; several add up."""
    policy = Policy(hours=("22:00-06:00", "12:00-12:30"))
    assert policy.open_at(at(clock)) is open_


def test_hours_are_those_of_the_sites_clock(monkeypatch):
    """Noon in Greenwich is night in Auckland."""
    import time

    policy = Policy(hours=("00:00-06:00",))
    noon = datetime(2026, 3, 2, 12, tzinfo=UTC)
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    there = policy.open_at(noon)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert (there, policy.open_at(noon)) == (True, False)


def test_equal_policies_have_equal_digests(tmp_path):
    """However they were written down."""
    first = read_policy(written(tmp_path, "rounds: 5\ngigabytes: 2\n"))
    second = read_policy(written(tmp_path, "gigabytes: 2.0\nrounds: 5\nmin_cases: 1\n"))
    assert first.digest() == second.digest() != LOOSEST.digest()


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_other_policies_have_other_digests(a, b):
    """A receipt's digest tells which policy held."""
    assert (Policy(rounds=a).digest() == Policy(rounds=b).digest()) == (a == b)
