"""Verify an audit log from its files and the public keys alone.

For each line: 1 it is a receipt, 2 its number is the next, 3 it follows the line before, 4 the
site signed it, 5 its totals add up, 6 what the server confirmed is what the log holds. At the end:
7 nothing is missing at the start except what a receipt says was retired, 8 the published
checkpoints are among the lines. The first failure is named with its file and line.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from knowmine.client.audit.receipts import (
    MAX_LINE,
    ZEROS,
    Receipt,
    hash_of,
    is_signed,
    read_line,
)
from knowmine.shared.errors import UsageError
from knowmine.shared.trust.countersign import Confirmation, Head, is_countersigned


@dataclass(frozen=True)
class Verdict:
    """What was found.

    ok: every check passed. A torn end comes from a crash and is no fault. file, line, why: the
    first failure. first, last: numbers of the receipts that are right. head: hash of the last of
    them. torn_bytes: length of a last line that was cut short. retired: receipts that retention
    removed. confirmed: how often the server countersigned. published: checkpoints that others
    hold and that were found.
    """

    ok: bool = True
    file: str = ""
    line: int = 0
    why: str = ""
    receipts: int = 0
    first: int = 0
    last: int = 0
    head: str = ZEROS
    torn_bytes: int = 0
    retired: int = 0
    confirmed: int = 0
    published: int = 0

    def __str__(self) -> str:
        """In sentences."""
        if not self.ok:
            where = f"{self.file}, line {self.line}: " if self.line else ""
            return f"WRONG. {where}{self.why}. {self.receipts} receipts before it are right."
        words = [f"Right: receipts {self.first} to {self.last} are signed, in order and whole."]
        if not self.receipts:
            words = ["There is no receipt yet."]
        if self.retired:
            words.append(f"Receipts 1 to {self.retired} were retired, as a receipt says.")
        if self.confirmed:
            words.append(f"The server confirmed it {self.confirmed} times.")
        if self.published:
            words.append(f"It holds the {self.published} checkpoints that were published.")
        if self.torn_bytes:
            words.append(
                f"A crash cut the next line short: {self.torn_bytes} bytes after receipt "
                f"{self.last}. What that line was about had not left."
            )
        return " ".join(words)

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def verify(
    path: Path,
    public_keys: Iterable[object],
    *,
    server_keys: Iterable[object] = (),
    published: Iterable[Head] = (),
) -> Verdict:
    """Verify the audit log whose newest file is `path`; its closed files lie beside it.

    public_keys: the site's, as OpenSSH lines or objects of `cryptography`; each line must be
    signed with one of them.
    server_keys: without them countersignatures are compared but not verified.
    published: checkpoints that others hold, such as those in the server's RUN/rounds. Each must
    be in the log, so that an end that was cut off is found. Number 0 stands for an unknown one.
    Raises `UsageError` if there is no audit log.
    """
    return examine(path, public_keys, server_keys=server_keys, published=published)[0]


def examine(
    path: Path,
    public_keys: Iterable[object],
    *,
    server_keys: Iterable[object] = (),
    published: Iterable[Head] = (),
) -> tuple[Verdict, list[Receipt]]:
    """As `verify`, and also return the receipts that are right."""
    reader = _Reader(list(public_keys), list(server_keys))
    files = files_of(path)
    if not files:
        raise UsageError(f"no audit log at {path}: name the file receipts.jsonl of the site")
    for file in files:
        for number, line in _lines(file):
            if not line.endswith(b"\n") and file == path:
                reader.verdict = replace(reader.verdict, torn_bytes=len(line))
            elif why := reader.take(line):
                wrong = replace(reader.verdict, ok=False, file=file.name, line=number, why=why)
                return wrong, reader.receipts
    if why := reader.end(published):
        return replace(reader.verdict, ok=False, why=why), reader.receipts
    return reader.verdict, reader.receipts


def files_of(path: Path) -> list[Path]:
    """The files of an audit log, oldest first; closed ones are named by their first receipt."""
    closed = sorted(path.parent.glob(f"{path.stem}.{'[0-9]' * 8}{path.suffix}"))
    return [*closed, path] if path.exists() else closed


def closed_name(path: Path, first: int) -> Path:
    """The name of a closed file."""
    return path.with_name(f"{path.stem}.{first:08d}{path.suffix}")


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines; of a line that is far too long only the beginning."""
    try:
        with file.open("rb") as content:
            number = 0
            while line := content.readline(MAX_LINE + 1):
                number += 1
                yield number, line
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror})") from error


class _Reader:
    """The receipts so far; `take` adds one or returns why it is wrong."""

    def __init__(self, public_keys: list[object], server_keys: list[object]) -> None:
        self.verdict, self.receipts = Verdict(), list[Receipt]()
        self._hashes: dict[int, str] = {}
        self._keys, self._server_keys = public_keys, server_keys

    def take(self, line: bytes) -> str | None:
        content = line.removesuffix(b"\n")
        try:
            receipt, _ = read_line(content)  # 1
        except ValueError as error:
            return str(error)
        before = self.receipts[-1] if self.receipts else None
        if before and receipt.number != before.number + 1:  # 2
            return (
                f"it is receipt {receipt.number}; expected {before.number + 1}: a line was "
                "removed, inserted or moved"
            )
        start = before is None and receipt.number > 1  # retention: see `end`
        if not start and receipt.previous != self.verdict.head:  # 3
            return (
                "it does not follow the line before: that line was changed, or this one is from "
                "another audit log"
            )
        if not any(is_signed(content, key) for key in self._keys):  # 4
            return "its signature is not the site's: it was changed, or another key signed it"
        if not start and (why := _sums(receipt, before)):  # 5
            return why
        if receipt.kind == "countersigned" and (why := self._confirmed(receipt)):  # 6
            return why
        self._hashes[receipt.number] = head = hash_of(content)
        self.receipts.append(receipt)
        self.verdict = replace(
            self.verdict,
            receipts=len(self.receipts),
            first=self.receipts[0].number,
            last=receipt.number,
            head=head,
            confirmed=self.verdict.confirmed + (receipt.kind == "countersigned"),
        )
        return None

    def end(self, published: Iterable[Head]) -> str | None:
        first = self.receipts[0] if self.receipts else None
        if first and first.number > 1:  # 7
            upto = first.number - 1
            retired = {(r.about.get("upto"), r.about.get("head")) for r in self._of("retired")}
            if (upto, first.previous) not in retired:
                return (
                    f"receipts 1 to {upto} are missing, and no receipt says that they were retired"
                )
            self.verdict = replace(self.verdict, retired=upto)
        known = {*self._hashes.values(), *(r.previous for r in self.receipts[:1])}
        found = 0
        for head in published:  # 8
            if 0 < head.receipts <= self.verdict.retired:
                continue
            if head.hash not in known:
                which = f"receipt {head.receipts}, " if head.receipts else ""
                return (
                    f"the checkpoint that the site published ({which}{head.hash[:16]}...) is not "
                    "in this audit log: its end was cut off, or it is another log"
                )
            found += 1
        self.verdict = replace(self.verdict, published=found)
        return None

    def _of(self, kind: str) -> Iterator[Receipt]:
        return (receipt for receipt in self.receipts if receipt.kind == kind)

    def _confirmed(self, receipt: Receipt) -> str | None:
        about: dict[str, Any] = dict(receipt.about)
        try:
            confirmed = Confirmation(**about)
            number = int(confirmed.receipts)
        except (TypeError, ValueError):
            return "it does not hold a confirmation by the server"
        start = self.receipts[0].number if self.receipts else receipt.number
        if number >= receipt.number:
            return f"the server confirmed a receipt {number} that is not before it"
        if number >= start:  # else it was retired
            there = self.receipts[number - start]
            said = (confirmed.head, confirmed.digest, confirmed.round, True)
            if (self._hashes[number], there.digest, there.round, there.left) != said:
                return f"the server confirmed another receipt {number} than the log holds"
        keys = self._server_keys
        if keys and not any(is_countersigned(key, confirmed) for key in keys):
            return "the confirmation in it is not signed by the server"
        return None


def _sums(receipt: Receipt, before: Receipt | None) -> str | None:
    rounds, bytes_ = (before.rounds_out, before.bytes_out) if before else (0, 0)
    rounds, bytes_ = totals_after(receipt, rounds, bytes_)
    if (receipt.rounds_out, receipt.bytes_out) != (rounds, bytes_):
        return f"its totals do not add up: expected {rounds} rounds and {bytes_} bytes"
    return None


def totals_after(receipt: Receipt, rounds: int, bytes_: int) -> tuple[int, int]:
    """Rounds and bytes that left up to a receipt; sending again counts only the bytes."""
    if not receipt.left:
        return rounds, bytes_
    new = receipt.kind == "update" and not receipt.about.get("again")
    return rounds + new, bytes_ + receipt.bytes
