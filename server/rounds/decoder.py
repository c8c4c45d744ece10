"""SAM's mask decoder as the federation tunes it, where the plan shares it (`mining.share_decoder`).

It is averaged as the model is, by the same rule and one site at a time; a site counts as many images
as it has labels, for its decoder learns from nothing else. A site tunes in some rounds and not in
others: one that sends none stands by the average that it was last part of. Otherwise one site that
comes late, with few labels, would put its own decoder in the place of all others'. It stands with a
vote of its own: under a rule that guards against wild sites, one that alone sends in a round moves the
decoder no more than if all had sent. Where two are all there are, no rule can tell who is wild.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from knowmine.server.rounds.robust import Aggregate, Rule, aggregate_by
from knowmine.shared.protocol import Update
from knowmine.shared.weights import Weights


class SharedDecoder:
    """The decoder between rounds, and the round's new one while it is being made.

    weights: empty until a site has sent one. images: labelled ones behind it, by site.
    """

    def __init__(self, weights: Weights, images: Mapping[str, int]) -> None:
        self.weights, self.images = weights, dict(images)
        self._sent: dict[str, int] = {}
        self._mean: Aggregate | None = None

    @classmethod
    def of_record(cls, weights: Weights, record: Mapping[str, Any]) -> "SharedDecoder":
        """As a committed round left it."""
        return cls(weights, record.get("decoder", {}))

    def begin(self, rule: Rule, folder: Path) -> None:
        """A round begins, or begins again; see `aggregate_by`."""
        self._sent, self._mean = {}, aggregate_by(rule, self.weights, folder)

    def add(self, site: str, update: Update) -> None:
        """Take in what an admitted update brings, if anything."""
        if update.decoder and update.labelled:
            assert self._mean is not None, "no round has begun"
            self._mean.add(update.decoder, update.labelled)
            self._sent[site] = update.labelled

    def settle(self, hold: Callable[[Weights], Weights]) -> None:
        """The round's sites have all answered: `weights` is the new average, if any sent one.

        hold: gives weights the form that they are sent in.
        """
        if self._mean is None or not self._sent:
            return
        # A vote for each, not one for all: a median of one sender and one average is half the sender's.
        for images in (n for site, n in self.images.items() if site not in self._sent):
            self._mean.add(self.weights, images)
        self.images |= self._sent
        self.weights = hold(self._mean.result())
        self._mean = None

    def as_json(self) -> dict[str, Any]:
        """What a round's record says of it: nothing where there is none."""
        return {"decoder": dict(sorted(self.images.items()))} if self.images else {}
