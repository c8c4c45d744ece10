"""Run a check on made-up input for a given time."""

import os
import time
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, given, settings

FUZZ_S = float(os.environ.get("KNOWMINE_FUZZ_S", "20"))
"""Seconds of each run of the fuzzer, divided among its targets."""


def fuzzed(check, examples):
    """Run a check on what hypothesis makes up, for its share of the time."""
    share = FUZZ_S / 4

    class Over(Exception):
        pass

    end = time.monotonic() + share
    runs = 0

    @settings(
        max_examples=10**9,
        deadline=timedelta(seconds=5),
        database=None,
        phases=[Phase.generate],  # `Over` is no failure to make smaller
        suppress_health_check=list(HealthCheck),
    )
    @given(examples)
    def run(example):
        nonlocal runs
        if time.monotonic() > end:
            raise Over
        check(example)
        runs += 1

    with pytest.raises(Over):
        run()
    assert runs, "the time was over before anything was tried"
