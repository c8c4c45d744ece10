"""A site's models: the U-Net++ that the federation trains, and SAM."""

from torch import nn

from knowmine.client.device import Compute
from knowmine.client.sam.session import SamSession
from knowmine.shared.errors import Refused
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import (
    batch_norm_names,
    build_model,
    manifest_of_model,
    put_weights,
    weights_of,
)
from knowmine.shared.weights import Array, Weights


class SiteModels:
    """The U-Net++, SAM, and the device that both run on.

    network: a U-Net++ of these settings, which sites that never work at the same time may share;
    if it is not given, the site builds its own.
    """

    def __init__(
        self,
        settings: ModelSettings,
        sam: SamSession,
        compute: Compute,
        network: nn.Module | None = None,
    ) -> None:
        self.settings, self.sam, self.compute = settings, sam, compute
        # Every task brings weights, so the start does not matter.
        bare = settings.model_copy(update={"pretrained": False})
        self.network = network or build_model(bare, seed=0)
        self.manifest = manifest_of_model(self.network)
        self._batch_norm = batch_norm_names(self.network)

    def check(self, settings: ModelSettings) -> None:
        """Raise `Refused` for another model than the installed one."""
        if settings != self.settings:
            raise Refused(
                f"the server asks for model {settings.model_dump()}, this site was set up for "
                f"{self.settings.model_dump()}: make the settings equal on both sides"
            )

    def load(self, weights: Weights, own_layers: Weights) -> None:
        """Load the global weights; the layers in `own_layers` take the place of theirs."""
        put_weights(self.network, {**weights, **own_layers})

    def weights(self) -> dict[str, Array]:
        """The U-Net++'s weights as they are now."""
        return weights_of(self.network)

    def batch_norm(self, weights: Weights) -> Weights:
        """The batch-norm layers among these weights."""
        return {name: array for name, array in weights.items() if name in self._batch_norm}
