"""The doctor at a real server: a site that is ready is told so, before anybody waits for it."""

import json
import sys
from pathlib import Path

from knowmine.deploy.phantom.draw import make_folder
from tests.faults.stage import change


def test_a_site_that_is_ready_has_no_error(stage):
    """Exit code 0; the way there was measured by TLS with the site's own key, and nobody joined."""
    one = stage("lyon")
    make_folder(one.root / "data", 8, seed=3)
    settings = one.home("lyon") / "client.yaml"
    change(settings, {"model": {"image_px": 64}, "data": str(one.root / "data")})
    one.serve()
    client = str(Path(sys.executable).with_name("knowmine-client"))
    check = one.program([client, "check", str(settings), "--format", "json"])
    assert check.ended() == 0, check.text
    network = [f for f in json.loads(check.text)["findings"] if f["area"] == "network"]
    assert [finding["level"] for finding in network] == ["good"] * 3
    assert network[0]["facts"]["latency_ms"] < 1000 and network[0]["facts"]["upload_mbit_s"] > 1
    assert "joined" not in (one.run / "run.log.jsonl").read_text()
