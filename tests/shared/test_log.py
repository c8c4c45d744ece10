"""The run's log: whole lines, no arrays, no secrets."""

import json
import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowmine.shared.errors import UsageError
from knowmine.shared.log import Progress, Silent, open_log, plain, silent

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_holds_time_level_event_and_fields(tmp_path):
    """One event is one JSON line."""
    with open_log(tmp_path / "run.log.jsonl") as log:
        log.event("round", level="warning", round=3, dice=np.float32(0.5))
    (line,) = lines(tmp_path / "run.log.jsonl")
    time = datetime.fromisoformat(str(line.pop("time")))
    assert time.tzinfo is not None
    assert line == {"level": "warning", "event": "round", "round": 3, "dice": 0.5}


def test_a_line_is_on_disk_before_the_log_is_closed(tmp_path):
    """Each line is flushed as it is written."""
    log = open_log(tmp_path / "log")
    log.event("one")
    assert len(lines(tmp_path / "log")) == 1
    log.close()


def test_reopening_appends(tmp_path):
    """A resumed run goes on in the same log."""
    for _ in range(2):
        with open_log(tmp_path / "log") as log:
            log.event("start")
    assert len(lines(tmp_path / "log")) == 2


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path):
    """After a kill in the middle of a line, the next one starts afresh."""
    (tmp_path / "log").write_text('{"event": "a"}\n{"event": "b')
    with open_log(tmp_path / "log") as log:
        log.event("resumed")
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["event"] == "resumed"


@pytest.mark.parametrize(
    "name", ["token", "api_key", "siteKey", "Password", "auth-token", "SECRET", "private_keys"]
)
def test_what_is_called_like_a_secret_is_masked(tmp_path, name):
    """Secrets never reach the log, however deep they are."""
    with open_log(tmp_path / "log") as log:
        log.event("start", level="info", **{name: "s3cret"}, inner=[{name: {"a": "s3cret"}}])
    assert "s3cret" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", ["keypoints", "monkey", "kept"])
def test_other_names_are_not_masked(tmp_path, name):
    """A word that merely contains `key` is no secret."""
    with open_log(tmp_path / "log") as log:
        log.event("start", level="info", **{name: 3})
    assert lines(tmp_path / "log")[0][name] == 3


def test_arrays_are_named_and_never_written(tmp_path):
    """Pixels cannot get into the log by accident."""
    with open_log(tmp_path / "log") as log:
        log.event("seen", image=np.full((2, 3), 77, np.uint8))
    assert lines(tmp_path / "log")[0]["image"] == "<uint8 (2, 3)>"


def test_a_field_cannot_pose_as_the_event(tmp_path):
    """The header's own names are kept for the header."""
    with open_log(tmp_path / "log") as log:
        log.event("real", event="posed", time=0)
    line = lines(tmp_path / "log")[0]
    assert (line["event"], line["event_"], line["time_"]) == ("real", "posed", 0)


def test_a_full_disk_does_not_stop_the_run():
    """A line that cannot be written is missed, not raised."""
    with open_log(Path("/dev/full")) as log:
        log.event("one")


def test_a_log_that_cannot_be_opened_says_which(tmp_path):
    """The message names the file."""
    with pytest.raises(UsageError, match=r"cannot write the log .*no/log"):
        open_log(tmp_path / "no" / "log")


def test_the_silent_log_takes_events():
    """Nothing happens, and nothing breaks."""
    silent().event("anything", value=object())


def test_silent_progress_is_progress():
    """The quiet one can stand wherever progress is shown."""
    progress: Progress = Silent()
    progress.start("mine", 2)
    progress.advance()
    progress.done()


@given(st.dictionaries(st.text(), junk))
def test_anything_becomes_json(value):
    """Whatever a field holds, strict JSON can carry what `plain` makes of it."""
    json.dumps(plain(value, mask=True), allow_nan=False)


def test_numbers_that_json_lacks_become_null():
    """NaN and infinities are no JSON."""
    assert plain([math.nan, -math.inf, np.float32("inf"), 1.5]) == [None, None, None, 1.5]
