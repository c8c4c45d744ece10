"""The list of what leaves is what the packed messages hold."""

from typing import Any

import numpy as np
import pytest

from knowmine.client.check.disclosure import contents, what_leaves
from knowmine.client.check.findings import Finding
from knowmine.client.egress.release import release
from knowmine.client.settings import ClientSettings
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.protocol import Update
from knowmine.shared.weights import manifest_of
from knowmine.shared.wire import packing
from knowmine.shared.wire.codec import pack_reply


def test_the_list_accounts_for_every_byte_of_an_update():
    """The tensors it names, packed anew, are the bytes that the message carries."""
    weights: dict[str, Any] = {"a.w": np.ones((2, 3), np.float32), "b.n": np.zeros((), np.int64)}
    records = pack_reply(release(Update(1, weights, 3, 0, 0.5, 1.0), manifest=manifest_of(weights)))
    held = contents(records)
    (sent,) = records.array_records["weights"].values()
    listed = {
        t["name"]: np.asarray(weights[t["name"]]).reshape(t["shape"]) for t in held["tensors"]
    }
    assert packing.pack({name: listed[name] for name in weights}) == sent.data
    assert held["bytes"] == sum(record.count_bytes() for record in records.values())


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[ClientSettings, list[Finding]]:
    """A dry run on twelve drawn images."""
    folder = tmp_path_factory.mktemp("leaves")
    make_folder(folder / "data", 12, seed=3)
    settings = ClientSettings.model_validate(
        {
            "federation": "chest",
            "site": "lyon",
            "network": {"server": "127.0.0.1:9"},
            "state": folder / "state",
            "data": folder / "data",
            "model": {"image_px": 64, "pretrained": False, "decoder_channels": (8, 8, 8)},
        }
    )
    return settings, list(what_leaves(settings, steps=2))


def test_a_dry_run_lists_all_replies_and_both_attacks(found):
    """In the order in which a server would get them."""
    _, findings = found
    assert [f.area for f in findings] == ["leaves"] * 5 + ["membership", "inversion"]


@pytest.mark.parametrize(("form", "bytes_each"), [("bf16", 2), ("int8", 1)])
def test_an_update_that_is_sent_as_a_change_is_listed_as_it_travels(found, form, bytes_each):
    """Its tensors are bytes on the wire, and the message is smaller than they are."""
    (held,) = [f.facts for f in found[1] if f.facts.get("form") == form]
    whole = next(f.facts for f in found[1] if f.facts.get("kind") == "update")
    sizes = {t["name"]: t["bytes"] for t in held["tensors"] if t["dtype"] == "uint8"}
    listed = {t["name"]: t["bytes"] for t in whole["tensors"]}
    assert all(size == listed[name] // 4 * bytes_each for name, size in sizes.items())
    assert len(sizes) > 50 and held["bytes"] < whole["bytes"]


def test_the_records_head_is_listed(found):
    """It goes beside each update, so it is no secret of the list."""
    (update, *_) = [f.facts for f in found[1] if f.facts.get("kind") == "update"]
    assert {"record.receipts", "record.hash"} < set(update["numbers"])


def test_the_inversion_is_held_against_one_that_knows_nothing(found):
    """Both scores of both."""
    facts = found[1][-1].facts
    assert set(facts) == {"own_db", "other_db", "own_ssim", "other_ssim"}


def test_the_picture_stays_in_the_state_folder(found):
    """Beside the rest that the site keeps."""
    settings, _ = found
    assert (settings.state / "site" / "pictures" / "inversion.png").is_file()
