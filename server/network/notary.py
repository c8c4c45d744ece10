"""Confirm to each site what arrived from it, by the key that the server is known by.

The newest confirmation of a site travels with its next question. It stands for all before it: a
record that holds the confirmed receipt holds everything that leads to it.
"""

from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec

from knowmine.shared.protocol import Scores, Update
from knowmine.shared.trust.countersign import Confirmation, Head, countersign, digest_of_reply


class Notary:
    """Signs for one run.

    key: of the server's certificate, which every connection shows. run: as messages name it.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, run: str) -> None:
        self._key, self._run = key, run
        self._newest: dict[str, Confirmation] = {}

    def confirm(self, site: str, answer: Update | Scores, head: Head) -> Confirmation:
        """Sign what a site sent, with where it said that its record stood."""
        self._newest[site] = countersign(
            self._key,
            Confirmation(
                site=site,
                run=self._run,
                round=answer.round,
                receipts=head.receipts,
                head=head.hash,
                digest=digest_of_reply(answer),
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            ),
        )
        return self._newest[site]

    def newest(self, site: str) -> Confirmation | None:
        """What is to go with the site's next question, if anything."""
        return self._newest.get(site)
