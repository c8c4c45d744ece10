"""What a site keeps on disk of a run: its own layers, who took part, scores, pseudo-labels."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowmine.client.data.image_set import ImageSet
from knowmine.client.mining.miner import PseudoLabels
from knowmine.client.storage.encryption import Seal
from knowmine.client.storage.participation import Participation
from knowmine.client.storage.pseudo_label_store import save_mined
from knowmine.client.storage.report_samples import save_gallery
from knowmine.shared.files import write_atomically
from knowmine.shared.weights import Weights, load_weights, save_weights


class SiteState:
    """The site's own folder of one run; nothing in it leaves the site.

    seal: encrypts what is kept of images, and names cases in the record of who took part. Without
    one, files are plain and no such record is kept.
    """

    def __init__(self, folder: Path, seal: Seal | None = None) -> None:
        self.folder, self.seal = folder, seal

    def note(self, round_: int, as_: str, images: ImageSet) -> None:
        """Record which cases took part in a round, and as what ("trained", "mined", "scored")."""
        if self.seal:
            record = Participation(self.folder, self.seal)
            record.note(round_, as_, images.cases, images.digests)

    def keep_pseudo_labels(self, round_: int, found: PseudoLabels) -> None:
        """Keep a few pseudo-labels for the report and all of them for a review."""
        for save in (save_gallery, save_mined):
            save(self.folder, round_, found, seal=self.seal)

    def keep_scores(self, round_: int, scores: Mapping[str, Any]) -> None:
        """Keep the score of each test image."""
        content = json.dumps(scores, indent=1).encode()
        write_atomically(self.folder / f"scores-{round_:04d}.json", content)

    def own_layers(self, round_: int) -> Weights:
        """The site's own batch-norm layers after the last round before `round_`; may be empty."""
        before = [n for n in self._own_rounds() if n < round_]
        return load_weights(self._own_layers(max(before))) if before else {}

    def keep_own_layers(self, round_: int, layers: Weights) -> None:
        """Keep the site's own batch-norm layers after `round_`, and those of the round before."""
        save_weights(self._own_layers(round_), layers)
        for old in [n for n in self._own_rounds() if n < round_][:-1]:
            self._own_layers(old).unlink(missing_ok=True)

    def _own_rounds(self) -> list[int]:
        files = self.folder.glob("batch-norm-*.safetensors")
        return sorted(int(file.stem.removeprefix("batch-norm-")) for file in files)

    def _own_layers(self, round_: int) -> Path:
        return self.folder / f"batch-norm-{round_:04d}.safetensors"
