"""A site's U-Net++ takes the global weights, and refuses tasks for another model."""

import pytest

from knowmine.client.sam.session import SamSession
from knowmine.client.site.models import SiteModels
from knowmine.shared.errors import Refused
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import batch_norm_names, build_model, weights_of
from knowmine.shared.weights import digest_of
from tests.client.small_site import CPU, MODEL, never

TWO_CLASSES = ModelSettings(pretrained=False, decoder_channels=(8, 8, 8), image_px=64, classes=2)


@pytest.fixture
def open_models(tmp_path):
    """Opens the models of a site that uses no SAM."""
    session = SamSession(never, tmp_path, 10**6)
    return lambda network=None: SiteModels(TWO_CLASSES, session, CPU, network)


def fresh_weights(seed):
    return weights_of(build_model(TWO_CLASSES, seed=seed))


def test_the_global_weights_are_loaded(open_models):
    """All of them."""
    models, weights = open_models(), fresh_weights(5)
    models.load(weights, {})
    assert digest_of(models.weights()) == digest_of(weights)


def test_own_layers_replace_the_global_ones(open_models):
    """Batch norm is the site's own; all other layers are global."""
    models, weights = open_models(), fresh_weights(5)
    own = {name: array + 1 for name, array in models.batch_norm(weights).items()}
    models.load(weights, own)
    assert digest_of(models.weights()) == digest_of({**weights, **own})


def test_batch_norm_layers_are_found_among_the_weights(open_models):
    """Exactly those of the network."""
    models = open_models()
    assert set(models.batch_norm(models.weights())) == set(batch_norm_names(models.network))


def test_another_model_is_refused(open_models):
    """The message shows its settings beside the site's own."""
    models = open_models()
    models.check(TWO_CLASSES)
    with pytest.raises(Refused, match=r"'classes': 1.*this site was set up for.*'classes': 2"):
        models.check(MODEL)


def test_two_sites_may_share_one_network(open_models):
    """Each task brings all weights, so nothing of the other site is left in it."""
    one = open_models()
    other = open_models(one.network)
    assert other.network is one.network and other.manifest == one.manifest
