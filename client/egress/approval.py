"""Hold an update until a person has read what would leave, and approved or refused it.

Each waiting update is two files in the pending folder, named by round and digest: a page in words
and numbers, and its facts. A decision is a third file; the first decision counts. All three
survive a crash: the same update, made again, finds its decision and keeps its deadline.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any, Literal

from knowmine.shared.errors import CannotWrite, EgressRefused, Interrupted, UsageError
from knowmine.shared.files import write_atomically
from knowmine.shared.trust.keys import make_private_folder

LOOK_S = 1.0
"""Seconds between two looks for a decision."""
Choice = Literal["approve", "refuse"]


@dataclass(frozen=True)
class Waiting:
    """One update that waits. name: for `approve`; facts: the content of the page."""

    name: str
    digest: str
    since: str
    until: str
    facts: Mapping[str, str]
    decision: str = ""
    by: str = ""


def hold(
    folder: Path,
    name: str,
    digest: str,
    facts: Mapping[str, str],
    timeout: timedelta,
    stop: threading.Event,
    *,
    on_hold: Callable[[], object] = lambda: None,
) -> str:
    """Wait for a decision; return who approved.

    on_hold: called when the wait begins, but not when it continues after a crash.
    Raises `EgressRefused` if a person refused or did not answer in time. Raises `Interrupted` if
    `stop` is set; the update then waits on disk.
    """
    page = folder / f"{name}.json"
    if not page.exists():
        now = datetime.now(UTC)
        new = Waiting(name, digest, _text(now), _text(now + timeout), dict(facts))
        make_private_folder(folder)
        try:
            write_atomically(folder / f"{name}.html", page_of(new).encode())
            write_atomically(page, json.dumps(asdict(new)).encode())
        except OSError as error:
            raise CannotWrite(f"cannot write in {folder} ({error.strerror})") from error
        on_hold()
    waiting = _read(page)
    while not waiting.decision:
        if datetime.now(UTC) >= datetime.fromisoformat(waiting.until):
            # Written down like a person's decision, so that a late approval is refused.
            _decide(folder, waiting, "refuse", "timeout")
        elif stop.wait(LOOK_S):
            raise Interrupted(f"update {name} waits for approval in {folder}")
        waiting = _read(page)
    if waiting.decision == "approve":
        return waiting.by
    late = waiting.by == "timeout"
    why = "it was not approved in time" if late else f"{waiting.by} refused it"
    raise EgressRefused(f"update {name} does not leave: {why}")


def waiting_in(folder: Path) -> list[Waiting]:
    """All updates that wait for a decision, oldest first."""
    found = [_read(page) for page in sorted(folder.glob("*.json"))]
    return sorted((one for one in found if not one.decision), key=lambda one: one.since)


def approve(folder: Path, name: str, by: str = "") -> Waiting:
    """Let the update leave. Raises `UsageError` if it does not wait."""
    return _answer(folder, name, "approve", by)


def refuse(folder: Path, name: str, by: str = "") -> Waiting:
    """Keep the update here. Raises `UsageError` if it does not wait."""
    return _answer(folder, name, "refuse", by)


def clear(folder: Path) -> None:
    """Remove the updates that were decided; those that wait stay."""
    for page in folder.glob("*.json"):
        if _read(page).decision:
            # The decision is removed last: without the page it has no effect.
            for suffix in (".html", ".json", ".decision"):
                page.with_suffix(suffix).unlink(missing_ok=True)


def page_of(waiting: Waiting) -> str:
    """What would leave, as a page that opens in any browser, without a network."""
    rows = "".join(_rows(waiting.facts))
    name = escape(waiting.name)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src "
        "'unsafe-inline'\">"
        f"<title>Update {name}</title><style>body{{font:16px/1.5 sans-serif;max-width:44em;"
        "margin:2em auto;padding:0 1em}td{padding:.2em 1em .2em 0;vertical-align:top}"
        "td:first-child{color:#555}code{font-size:90%}</style>"
        f"<h1>Update {name} would leave</h1>"
        "<p>These are weights of the network that this site trained, and the numbers below. No "
        "image, mask, name or file is among them. Weights can still reveal something about the "
        "images that they were trained on: see docs/audit.md.</p>"
        f"<table>{rows}</table>"
        f"<p>It waits until {escape(waiting.until)} and is then refused. To decide:</p>"
        f"<pre>knowmine-client approve client.yaml {name}\n"
        f"knowmine-client approve client.yaml {name} --refuse</pre></html>\n"
    )


def _rows(facts: Mapping[str, str]) -> Iterator[str]:
    for what, value in facts.items():
        yield f"<tr><td>{escape(what)}<td>{escape(value)}"


def _answer(folder: Path, name: str, choice: Choice, by: str) -> Waiting:
    names = [one.name for one in waiting_in(folder)]
    if name not in names:
        waits = f"these wait: {', '.join(names)}" if names else "none waits"
        raise UsageError(f"no update {name!r} waits for approval; {waits}")
    return _decide(folder, _read(folder / f"{name}.json"), choice, by)


def _decide(folder: Path, waiting: Waiting, choice: Choice, by: str) -> Waiting:
    """Write the decision down unless there is one already; return the one that counts."""
    by = re.sub(r"[^A-Za-z0-9._@-]", "-", by)[:40] or "someone"
    decision = {"decision": choice, "by": by, "digest": waiting.digest}
    path = folder / f"{waiting.name}.decision"
    own = folder / f".{waiting.name}.{os.getpid()}"
    try:
        write_atomically(own, json.dumps(decision).encode())
        try:
            path.hardlink_to(own)  # unlike a rename, it never replaces an earlier decision
        except FileExistsError:
            pass
        finally:
            own.unlink()
    except OSError as error:
        raise CannotWrite(f"cannot write {path} ({error.strerror})") from error
    return _read(folder / f"{waiting.name}.json")


def _read(page: Path) -> Waiting:
    """What waits, with its decision. Raises `UsageError` for a decision on another digest."""
    try:
        values: dict[str, Any] = json.loads(page.read_bytes())
        waiting = Waiting(**values)
        decided = page.with_suffix(".decision")
        if not decided.exists():
            return waiting
        seen = json.loads(decided.read_bytes())
        if seen["digest"] != waiting.digest or seen["decision"] not in ("approve", "refuse"):
            raise ValueError("it is about another update")
        return Waiting(**{**values, "decision": seen["decision"], "by": str(seen["by"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{page} or the decision beside it is damaged ({error}): remove both; the update is "
            "then held again"
        ) from None


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
