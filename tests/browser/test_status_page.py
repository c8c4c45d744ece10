"""figures.py, metrics.py and page.py show what the run's folder holds, without small counts."""

import json
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient
from typer.testing import CliRunner

from knowmine.server.cli import app
from knowmine.server.status.figures import figures_of, mining_cards
from knowmine.server.status.metrics import metrics_of
from knowmine.server.status.page import serve_status, status_app
from knowmine.shared.errors import UsageError


def site(**changes):
    """A connected site as `status.json` tells of it."""
    return {
        "connected": True,
        "since": None,
        "version": "0.1.0",
        "task": "train",
        "task_seconds": 7,
        "task_expected_seconds": None,
        "last_round": 1,
        "last_seconds": {},
        "error": "",
        "revoked": False,
        "certificate_expires": "2027-05-01T00:00:00+00:00",
        "certificate_warning": None,
        **changes,
    }


@pytest.fixture
def run(tmp_path):
    """A run of two sites after its first round; turin has four test images."""
    status = {
        "federation": "polyps",
        "status": "running",
        "reason": "",
        "round": 2,
        "rounds": 5,
        "dice": 0.7,
        "started_at": "",
        "updated_at": datetime.now(UTC).isoformat(),
        "server_certificate_warning": None,
        "server_certificate_expires": "2027-05-01T00:00:00+00:00",
        "damaged": {},
        "sites": {"lyon": site(), "turin": site(connected=False, task="", task_seconds=None)},
    }
    mined = {"kept": 3, "dropped": 1, "gate": "on", "mean_quality": 0.66}
    mined |= {"mean_agreement": 0.9, "fuse_weight": 0.5}
    record = {
        "round": 1,
        "seconds": 12.5,
        "sites": ["lyon", "turin"],
        "dice": 0.7,
        "bytes_down": 10_000_000,
        "bytes_up": 5_000_000,
        "mined": mined,
        "per_site": {
            "lyon": {"dice": 0.8, "test_images": 10},
            "turin": {"dice": 0.4444, "test_images": 4},
        },
        "mined_per_site": {"lyon": mined},
        "refused": {},
    }
    (tmp_path / "rounds").mkdir()
    (tmp_path / "status.json").write_text(json.dumps(status))
    (tmp_path / "rounds" / "0001.json").write_text(json.dumps(record))
    line = {"time": "2026-11-23T01:02:03", "level": "warning", "event": "refused", "site": "turin"}
    (tmp_path / "run.log.jsonl").write_text(json.dumps({**line, "reason": "nan"}) + "\n{half")
    return tmp_path


@pytest.fixture
def address(run):
    """Where the page is served, on a free port."""
    config = uvicorn.Config(status_app(run), port=0, log_config=None, lifespan="off")
    listening = config.bind_socket()
    listening.listen()  # or a page that is quicker than uvicorn would be refused
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


def test_small_counts_are_left_out(run):
    """Turin's four images give no Dice, and the mean does not betray it."""
    (round_,) = figures_of(run)["history"]
    assert round_["per_site"]["turin"] == {"test_images": None, "dice": None}
    assert round_["dice"] == 0.8


def test_metrics_are_those_figures(run):
    """Lyon's Dice is there, turin's is not."""
    text = metrics_of(figures_of(run)).decode()
    assert 'knowmine_site_dice{site="lyon"} 0.8' in text
    assert 'knowmine_site_dice{site="turin"}' not in text
    assert 'knowmine_bytes{direction="down"} 1e+07' in text


def test_metrics_tell_when_certificates_end(run):
    """As Unix time, of each site that may still come and of the server."""
    file = run / "status.json"
    status = json.loads(file.read_text())
    status["sites"]["turin"]["revoked"] = True
    file.write_text(json.dumps(status))
    text = metrics_of(figures_of(run)).decode()
    assert 'knowmine_certificate_expiry_seconds{site="lyon"} 1.8091296e+09' in text
    assert 'knowmine_certificate_expiry_seconds{site="turin"}' not in text
    assert "knowmine_server_certificate_expiry_seconds 1.8091296e+09" in text


def test_the_table_in_the_terminal_leaves_them_out_too(run, tmp_path):
    """As the page does; before a first round that can be read there is no mean at all."""
    settings = tmp_path / "server.yaml"
    settings.write_text(f"federation: polyps\nout: {run}\n")
    said = CliRunner().invoke(app, ["status", str(settings)]).stdout
    assert "Dice 0.800" in said and "0.700" not in said
    (run / "rounds" / "0001.json").unlink()
    assert "Dice -" in CliRunner().invoke(app, ["status", str(settings)]).stdout


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_everybody_can_read_it(page, address, width, colours):
    """Sites, rounds and events are there; axe-core finds no serious fault."""
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=colours)
    page.goto(address)
    page.get_by_text("fewer than 5").wait_for()
    page.evaluate(Path(__file__).with_name("axe.min.js").read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert not [v["id"] for v in found if v["impact"] in ("serious", "critical")]
    assert "0.4444" not in page.content()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_card_tells_what_a_site_mined():
    """Over the rounds in which it mined; its predicted Dice rises from half way to the top."""
    last = {"kept": 6, "dropped": 0, "mean_quality": 1.0}
    rounds = [{"kept": 3, "dropped": 1, "mean_quality": 0.5}, {"kept": 0, "dropped": 0}, last]
    history = [{"mined_per_site": {"lyon": one, "oslo": rounds[1]}} for one in rounds]
    (card,) = mining_cards(history)
    told = {"name": "lyon", "last": last, "rounds": 2, "kept": 9, "total": 10}
    assert card == {**told, "curve": "0.0,10.0 100.0,0.0"}


def test_cards_of_sites_stand_side_by_side(page, address, run):
    """Four of them need no more than two rows at 1280 pixels."""
    file = run / "rounds" / "0001.json"
    record = json.loads(file.read_text())
    (mined,) = record["mined_per_site"].values()
    record["mined_per_site"] = dict.fromkeys(("bern", "lyon", "oslo", "turin"), mined)
    file.write_text(json.dumps(record))
    page.goto(address)
    page.get_by_text("agreement of the models").first.wait_for()
    places = [card.bounding_box() for card in page.locator("article.card").all()]
    assert len(places) == 4 and len({place["y"] for place in places}) <= 2


def test_the_page_renews_itself(page, address, run):
    """A round that begins shows without a reload."""
    page.goto(address)
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "round": 3}))
    page.get_by_text("3 / 5").wait_for()


@pytest.mark.parametrize("label", ["Sites", "Rounds"])
def test_the_keyboard_stays_where_it_is(page, address, run, label):
    """A table that has the focus keeps it when the page renews, though a section comes before it."""
    file = run / "rounds" / "0001.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "mined_per_site": {}}))
    page.goto(address)
    page.get_by_label(label).focus()
    file.write_text(json.dumps({**record, "seconds": 77.0}))
    page.get_by_text("77 s").wait_for()
    page.get_by_text("agreement of the models").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == label


def test_the_page_says_after_renewing_what_a_fresh_one_says(page, address, run):
    """A round more, a site fewer, a reason that comes and goes."""
    first = json.loads((run / "status.json").read_text())
    record = json.loads((run / "rounds" / "0001.json").read_text())
    page.goto(address)
    ended = {**first, "reason": "no quorum", "sites": {"lyon": first["sites"]["lyon"]}}
    (run / "status.json").write_text(json.dumps(ended))
    (run / "rounds" / "0002.json").write_text(json.dumps({**record, "round": 2}))
    page.get_by_text("no quorum").wait_for()
    (run / "status.json").write_text(json.dumps({**ended, "reason": ""}))
    page.get_by_text("no quorum").wait_for(state="detached")
    renewed = page.locator("#page").inner_text()
    page.reload()
    assert page.locator("#page").inner_text() == renewed


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:8738", 200),
        ("localhost:8738", 200),
        ("[::1]:8738", 200),
        ("10.1.2.3", 200),
        ("Status.hospital.example:8738", 200),
        ("evil.example:8738", 403),
        ("", 403),
        ("[", 403),
    ],
)
def test_a_foreign_name_is_refused(run, host, code):
    """Such as one that was pointed here to read the page from a stranger's."""
    with TestClient(status_app(run, ["status.hospital.example"])) as client:
        for path in ("/", "/status.json", "/metrics"):
            assert client.get(path, headers={"host": host}).status_code == code


def test_a_port_in_use_is_said(run):
    """With what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}.*--port"):
            serve_status(run, "127.0.0.1", port)
