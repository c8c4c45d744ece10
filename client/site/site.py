"""One site during a run: its images, its models, and what it keeps on disk."""

from dataclasses import dataclass, field

from knowmine.client.data.scoring import Scorer
from knowmine.client.site.images import SiteImages
from knowmine.client.site.models import SiteModels
from knowmine.client.site.state import SiteState
from knowmine.shared.log import Progress, Silent
from knowmine.shared.protocol import PROTOCOL, Hello
from knowmine.shared.weights import digest_of_manifest


@dataclass(frozen=True)
class Site:
    """One hospital; `client.site.round` says what it does in a round.

    scorer: holds all hidden masks, those of test images among them; nothing else may read them.
    """

    name: str
    images: SiteImages
    models: SiteModels
    state: SiteState
    scorer: Scorer
    progress: Progress = field(default_factory=Silent)

    def hello(self) -> Hello:
        """Who this site is, and how many images it has."""
        self.images.leave_out_withdrawn()
        labelled, calibration = self.images.count("labelled"), self.images.count("calibration")
        return Hello(
            site=self.name,
            protocol=PROTOCOL,
            model_digest=digest_of_manifest(self.models.manifest),
            labelled=labelled + calibration,
            unlabelled=self.images.count("unlabelled"),
            calibration=calibration,
            test=self.images.count("test"),
        )

    @property
    def left_out(self) -> list[str]:
        """Each image that takes no part, as "case: reason"."""
        return [*self.images.left_out, *self.scorer.left_out]

    @property
    def embedded(self) -> int:
        """Images of this site with an embedding on disk, from this run or an earlier one."""
        return self.models.sam.embedded(self.images.digests("calibration", "unlabelled"))
