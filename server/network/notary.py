"""Confirm to each site what arrived from it, signed with the key of the server's certificate.

A site's newest confirmation travels with its next task. It covers all before it: an audit log that
holds the confirmed receipt holds everything that leads to it.
"""

from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec

from knowmine.shared.protocol import Scores, Update
from knowmine.shared.trust.countersign import Confirmation, Head, countersign, digest_of_reply


class Notary:
    """Signs for one run.

    key: of the server's certificate, which every connection shows. run: the run's id in messages.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, run: str) -> None:
        self._key, self._run = key, run
        self._newest: dict[str, Confirmation] = {}

    def confirm(self, site: str, reply: Update | Scores, head: Head) -> Confirmation:
        """Sign what a site sent, together with the head of its audit log."""
        self._newest[site] = countersign(
            self._key,
            Confirmation(
                site=site,
                run=self._run,
                round=reply.round,
                receipts=head.receipts,
                head=head.hash,
                digest=digest_of_reply(reply),
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            ),
        )
        return self._newest[site]

    def newest(self, site: str) -> Confirmation | None:
        """The confirmation that goes with the site's next task, if there is one."""
        return self._newest.get(site)
