"""Report a site's audit log: one screen, a case's rounds, and a zip file for auditors."""

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from knowmine.client.audit.receipts import Receipt
from knowmine.client.audit.verify import examine, files_of
from knowmine.client.paths import VAULT_KEYS, audit_log_of
from knowmine.client.settings import ClientSettings
from knowmine.client.storage.encryption import PROJECT, Seal
from knowmine.client.storage.participation import Participation, Took
from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.trust.keys import audit_line, load_audit_key

RUNS_SHOWN = 6


class Limits(Protocol):
    """What this report needs of the site's policy."""

    @property
    def approval(self) -> str:
        """Whether updates wait for a person."""

    @property
    def rounds(self) -> int:
        """Updates that may leave, in all runs together."""

    @property
    def gigabytes(self) -> float:
        """Gigabytes that may leave, in all runs together."""

    def digest(self) -> str:
        """SHA-256 of the policy."""

    def model_dump_json(self, *, indent: int) -> str:
        """The policy as JSON."""


_HOW_TO = """This is the audit log of one site of a knowmine federation: what left it.

    knowmine-client audit verify receipts.jsonl --key audit.pub

Ask the coordinator for the server's certificate and the folder `rounds` of the run, and add
--server-key server.crt --rounds rounds: this also finds an end that was cut off, and checks each
confirmation by the server. By hand: each line's `previous` is the SHA-256 of the line before,
without its newline; `signature` is Ed25519 over "knowmine receipt 1", a newline, and the line's
JSON without `signature`.
"""


def summary_of(settings: ClientSettings, policy: Limits) -> dict[str, Any]:
    """What left, by run and in total, the verdict on the audit log, and the policy's limits."""
    key = load_audit_key(settings.keys / "audit.key")
    verdict, receipts = examine(audit_log_of(settings.state), [key.public_key()])
    last = receipts[-1] if receipts else None
    return {
        "site": settings.site,
        "verdict": {**verdict.as_json(), "words": str(verdict)},
        "policy": {"digest": policy.digest(), "approval": policy.approval},
        "left": {
            "updates": last.rounds_out if last else 0,
            "updates_allowed": policy.rounds,
            "bytes": last.bytes_out if last else 0,
            "bytes_allowed": int(policy.gigabytes * 1e9),
        },
        "runs": [_run(name, receipts) for name in dict.fromkeys(r.run for r in receipts if r.run)],
        "refused": dict(Counter(str(r.about.get("what")) for r in receipts if r.kind == "refused")),
        "forgotten": sum(r.kind == "forgot" for r in receipts),
        "crashes": sum(r.kind == "recovered" for r in receipts),
    }


def screen(summary: Mapping[str, Any]) -> str:
    """The summary in lines of text."""
    left, verdict, policy = summary["left"], summary["verdict"], summary["policy"]
    lines = [
        f"Site {summary['site']}: what left",
        "",
        f"{'run':<22}{'from':<18}{'rounds':>7}{'updates':>9}{'scores':>8}{'hello':>7}{'MB':>10}  ended",
    ]
    runs = summary["runs"]
    if len(runs) > RUNS_SHOWN:
        lines.append(f"({len(runs) - RUNS_SHOWN} earlier runs are in --format json)")
    for run in runs[-RUNS_SHOWN:]:
        lines.append(
            f"{run['run'][:21]:<22}{run['from'][:16]:<18}{run['rounds']:>7}{run['update']:>9}"
            f"{run['scores']:>8}{run['hello']:>7}{run['bytes'] / 1e6:>10.2f}  "
            f"{'yes' if run['ended'] else 'no'}"
        )
    refused = ", ".join(f"{count} {what}" for what, count in summary["refused"].items())
    lines += [
        "",
        (
            f"In all {left['updates']} updates of {left['updates_allowed']} allowed, and "
            f"{left['bytes'] / 1e6:.2f} MB of {left['bytes_allowed'] / 1e6:.0f} MB."
        ),
        "An update is the model's tensors, counts and means; scores and introductions are counts,",
        "sums and the site's name. Nothing else leaves.",
        (
            f"Refused: {refused or 'nothing'}. Policy {policy['digest'][:16]}, approval "
            f"{policy['approval']}."
        ),
        (
            f"Forgotten on request: {summary['forgotten']}. Crashes while writing: "
            f"{summary['crashes']}."
        ),
        "",
        verdict["words"],
        f"Checkpoint {verdict['head']}",
    ]
    return "\n".join(lines)


def rounds_of(settings: ClientSettings, case_id: str) -> Sequence[Took]:
    """When a case took part, from the record of cases that stays at the site.

    Raises `UsageError` if the key to that record is gone.
    """
    folder = settings.state / VAULT_KEYS
    if not (folder / PROJECT).exists():
        raise UsageError(
            f"{folder} holds no project key: the project was forgotten, or at_rest.encrypt is off "
            "and no record of cases is kept"
        )
    return Participation(settings.state / "site", Seal(folder)).rounds_of(case_id)


def export(settings: ClientSettings, policy: Limits, out: Path) -> int:
    """Write the audit log, its public key, the policy and how to check it; return how many files.

    Raises `UsageError` if `out` exists or there is no audit log.
    """
    files = files_of(audit_log_of(settings.state))
    if not files:
        raise UsageError(f"no audit log in {settings.state}: nothing has left this site")
    public = audit_line(load_audit_key(settings.keys / "audit.key"))
    texts = {
        "audit.pub": public + "\n",
        "policy.json": policy.model_dump_json(indent=1) + "\n",
        "README.txt": _HOW_TO,
    }
    try:
        with zipfile.ZipFile(out, "x", zipfile.ZIP_DEFLATED) as parcel:
            for file in files:
                parcel.write(file, file.name)
            for name, text in texts.items():
                parcel.writestr(name, text)
    except FileExistsError:
        raise UsageError(f"{out} exists: name a new file") from None
    except OSError as error:
        raise CannotWrite(f"cannot write {out} ({error.strerror})") from error
    return len(files) + len(texts)


def read_public(path: Path) -> str:
    """An OpenSSH public key line, from its file or from a certificate. Raises `UsageError`."""
    try:
        text = path.read_text(encoding="ascii").strip()
        if text.startswith("-----BEGIN CERTIFICATE-----"):
            key = x509.load_pem_x509_certificate(text.encode()).public_key()
            return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} as a public key ({error})") from None
    if not text.startswith(("ssh-ed25519 ", "ecdsa-sha2-")):
        raise UsageError(f"{path} is no public key in one OpenSSH line, such as audit.pub")
    return text


def _run(name: str, receipts: Sequence[Receipt]) -> dict[str, Any]:
    of_run = [receipt for receipt in receipts if receipt.run == name]
    left = [receipt for receipt in of_run if receipt.left]
    kinds = Counter(receipt.kind for receipt in left)
    return {
        "run": name,
        "from": of_run[0].time,
        "to": of_run[-1].time,
        "rounds": len({receipt.round for receipt in left if receipt.round}),
        "update": kinds["update"],
        "scores": kinds["scores"],
        "hello": kinds["hello"],
        "bytes": sum(receipt.bytes for receipt in left),
        "ended": any(receipt.kind == "end" for receipt in of_run),
    }
