"""The summary says what the rounds' records say."""

from knowmine.server.journal.summary import summarise

SCORES = {"dice": 0.8, "iou": 0.7, "hd95": 12.0, "test_images": 4}
RECORDS = [
    {"round": 1, "dice": 0.5, "per_site": {}, "calibration": {"lyon": {}}, "checkpoint": {}},
    {"round": 2, **SCORES, "per_site": {"lyon": SCORES}, "calibration": {}, "checkpoint": {}},
]


def summary_of(records, **changes):
    facts = {
        "status": "done",
        "reason": "",
        "records": records,
        "roster": ["porto", "lyon"],
        "settings": {"plan": {"seed": 7}},
        "seed": 7,
        "sam": None,
        "versions": {"python": "3.11.9"},
    }
    return summarise(**{**facts, **changes})


def test_the_last_round_gives_the_scores():
    """Those of all sites together and of each."""
    summary = summary_of(RECORDS)
    assert summary["global"] == SCORES and summary["per_site"] == {"lyon": SCORES}


def test_the_keys_of_the_contract_are_there():
    """Scripts rely on them."""
    scores = {"global", "per_site", "per_round"}
    facts = {"status", "rounds", "sites", "sam", "settings", "seed", "versions"}
    assert scores | facts <= summary_of(RECORDS).keys()


def test_rounds_are_counted_and_sites_sorted():
    """Two rounds were recorded."""
    summary = summary_of(RECORDS)
    assert (summary["rounds"], summary["sites"]) == (2, ["lyon", "porto"])


def test_what_only_a_resumed_run_needs_is_left_out():
    """Probe sums and digests stay in the rounds' own files."""
    assert not {"calibration", "checkpoint"} & summary_of(RECORDS)["per_round"][0].keys()


def test_a_run_without_a_round_has_null_scores():
    """Null rather than zero, and the reason beside it."""
    summary = summary_of([], status="failed", reason="no site can take part")
    assert summary["global"] == dict.fromkeys(("dice", "iou", "hd95", "test_images"))
    assert (summary["status"], summary["reason"]) == ("failed", "no site can take part")
