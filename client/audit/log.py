"""The site's audit log: written before anything leaves, and never rewritten.

```python
with Chain.open(state / "audit" / "receipts.jsonl", key) as chain:
    chain.append("update", "out", run="7", round=3, digest=..., bytes=...)
    chain.head                       # publish it: a log that is cut short no longer holds it
Chain.verify(path, [public_key])     # needs only the files and the public key
```
A receipt is on disk before `append` returns. A crash at any point, even in the middle of a line,
leaves a log that verifies up to its torn end. The next `open` removes that end and writes a
receipt about it. A log that is wrong in any other way is not continued: then nothing leaves.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ed25519

from knowmine.client.audit.receipts import (
    KINDS,
    MAX_LINE,
    ZEROS,
    Receipt,
    hash_of,
    read_line,
    signed_line,
)
from knowmine.client.audit.retention import Past, Records
from knowmine.client.audit.verify import (
    closed_name,
    examine,
    files_of,
    totals_after,
    verify,
)
from knowmine.shared.errors import CannotWrite, Refused, UsageError
from knowmine.shared.files import FolderLock
from knowmine.shared.trust.countersign import Confirmation, Head, is_countersigned
from knowmine.shared.trust.keys import audit_line, make_private_folder, sync_folder


class Chain:
    """The audit log, open for writing by this process alone."""

    verify = staticmethod(verify)

    def __init__(self, path: Path, key: ed25519.Ed25519PrivateKey, records: Records) -> None:
        """Use `open`."""
        self._path, self._key, self._records = path, key, records
        make_private_folder(path.parent)
        self._lock = FolderLock(path.parent)
        try:
            self._receipts, self.head, torn = self._read()
            self._first = self._first_of_current()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            sync_folder(path.parent)
        except OSError as error:
            self._lock.release()
            raise CannotWrite(f"cannot write the audit log {path} ({error.strerror})") from error
        except BaseException:
            self._lock.release()
            raise
        if torn:
            os.ftruncate(self._file, os.fstat(self._file).st_size - len(torn))
            cut: dict[str, int | str] = {
                "bytes": len(torn),
                "sha256": hashlib.sha256(torn).hexdigest(),
            }
            self.append("recovered", "here", about=cut)

    @classmethod
    def open(
        cls,
        path: Path,
        key: ed25519.Ed25519PrivateKey,
        *,
        site: str = "",
        records: Records | None = None,
    ) -> Self:
        """Continue the audit log at `path`, or begin one.

        Raises `UsageError` if the log is wrong or another process writes it.
        """
        chain = cls(path, key, records or Records())
        if not chain._receipts:
            public = audit_line(key)
            chain.append("opened", "here", about={"site": site, "public_key": public})
        return chain

    @property
    def last(self) -> Receipt:
        """The newest receipt."""
        return self._receipts[-1]

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """All receipts that the files still hold, oldest first."""
        return tuple(self._receipts)

    @property
    def past(self) -> Past:
        """What left until now, for the egress checks."""
        answered = {(r.run, r.kind, r.round): r.digest for r in self._receipts if r.left}
        ended = frozenset(r.run for r in self._receipts if r.kind == "end")
        return Past(self.last.rounds_out, self.last.bytes_out, answered, ended)

    def append(
        self,
        kind: str,
        direction: str,
        *,
        run: str = "",
        round: int = 0,
        digest: str = "",
        bytes: int = 0,
        policy: str = "",
        model: str = "",
        about: Mapping[str, int | str] | None = None,
    ) -> Receipt:
        """Write a receipt and wait until it is on disk.

        Raises `CannotWrite` and leaves the log as it was.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no kind of receipt")
        before = self._receipts[-1] if self._receipts else None
        receipt = Receipt(
            number=before.number + 1 if before else 1,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            direction=direction,
            kind=kind,
            previous=self.head,
            run=run,
            round=round,
            digest=digest,
            bytes=bytes,
            policy=policy,
            model=model,
            about=dict(about or {}),
        )
        sums = (before.rounds_out, before.bytes_out) if before else (0, 0)
        rounds, bytes_ = totals_after(receipt, *sums)
        receipt = replace(receipt, rounds_out=rounds, bytes_out=bytes_)
        self._write(signed_line(receipt, self._key))
        self._receipts.append(receipt)
        if os.fstat(self._file).st_size >= self._records.rotate_mb * 1e6 and kind != "retired":
            self._rotate()
        return receipt

    def head_of(self, receipt: Receipt) -> Head:
        """A receipt's number and hash, as they are published: a checkpoint."""
        after = [r.previous for r in self._receipts if r.number == receipt.number + 1]
        return Head(receipt.number, after[0] if after else self.head)

    def countersigned(self, confirmation: Confirmation, server: object) -> None:
        """Keep a confirmation by the server; once, however often it comes.

        server: its public key. Raises `Refused` if the server did not sign it, or if it confirms
        another receipt or another answer than this log holds.
        """
        number = confirmation.receipts
        receipt = next((r for r in self._receipts if r.number == number), None)
        if not is_countersigned(server, confirmation):
            raise Refused(
                f"the confirmation of receipt {number} is not signed by the server: find out who "
                "answers at its address"
            )
        if receipt is None or self.head_of(receipt).hash != confirmation.head:
            raise Refused(f"the server confirms a receipt {number} that is not in this audit log")
        there = (True, confirmation.digest, confirmation.run, confirmation.round)
        if (receipt.left, receipt.digest, receipt.run, receipt.round) != there:
            raise Refused(
                f"the server confirms another answer than receipt {number} says: what arrived "
                "there is not what left here"
            )
        about: dict[str, int | str] = {**vars(confirmation)}
        if not any(r.kind == "countersigned" and r.about == about for r in self._receipts):
            self.append("countersigned", "in", run=receipt.run, round=receipt.round, about=about)

    def close(self) -> None:
        """Let other processes write."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ helpers

    def _read(self) -> tuple[list[Receipt], str, bytes]:
        """The receipts, the hash of the last, and the torn end."""
        if not files_of(self._path):
            return [], ZEROS, b""
        verdict, receipts = examine(self._path, [self._key.public_key()])
        if not verdict.ok:
            raise UsageError(
                f"the audit log {self._path} is wrong, so nothing may leave: {verdict} Keep it "
                "as evidence, and move its folder away to begin another"
            )
        torn = b""
        if verdict.torn_bytes:
            torn = self._path.read_bytes()[-verdict.torn_bytes :]
        return receipts, verdict.head, torn

    def _first_of_current(self) -> int:
        """Number of the first receipt in the newest file."""
        try:
            with self._path.open("rb") as file:
                line = file.readline(MAX_LINE)
        except FileNotFoundError:
            line = b""
        if line.endswith(b"\n"):
            return read_line(line.removesuffix(b"\n"))[0].number
        return self._receipts[-1].number + 1 if self._receipts else 1

    def _write(self, line: bytes) -> None:
        if self._file < 0:
            raise ValueError("the audit log is closed")
        size = os.fstat(self._file).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise CannotWrite(
                f"cannot write a receipt to {self._path} ({error.strerror}), so nothing leaves: "
                "free space there"
            ) from error
        self.head = hash_of(line.removesuffix(b"\n"))

    def _rotate(self) -> None:
        """Close the newest file; write which old files go, and only then remove them."""
        try:
            self._path.rename(closed_name(self._path, self._first))
            os.close(self._file)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            sync_folder(self._path.parent)
        except OSError as error:
            raise CannotWrite(f"cannot begin a new {self._path} ({error.strerror})") from error
        self._first = self.last.number + 1
        if old := self._old_files():
            _, upto, head = old[-1]
            self.append("retired", "here", about={"upto": upto, "head": head})
            for file, _, _ in old:
                file.unlink(missing_ok=True)
            self._receipts = [receipt for receipt in self._receipts if receipt.number > upto]

    def _old_files(self) -> list[tuple[Path, int, str]]:
        """Closed files past their time, with the number and the hash of their last receipts.

        Files about the current run stay, whatever their age: the egress checks need them.
        """
        limit = datetime.now(UTC) - timedelta(days=self._records.keep_days)
        under_way = {self.last.run} - self.past.ended - {""}
        old = []
        for file in files_of(self._path)[:-1]:
            lines = file.read_bytes().splitlines()
            receipts = [read_line(line)[0] for line in lines]
            young = datetime.fromisoformat(receipts[-1].time) > limit
            if young or under_way & {receipt.run for receipt in receipts}:
                break
            old.append((file, receipts[-1].number, hash_of(lines[-1])))
        return old
