"""Tables of the report: sites, rounds, mining, roster, digests and settings."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from knowmine.deploy.report.mining_figures import sparkline
from knowmine.shared.files import sha256_of

DIGESTED = ("model.safetensors", "settings.json")


def site_row(
    site: str, summary: Mapping[str, Any], per_round: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A site's scores after the last round, and its training images in that round."""
    scores = summary["per_site"].get(site, {})
    known = [
        value
        for record in per_round
        if (value := record.get("per_site", {}).get(site, {}).get("dice")) is not None
    ]
    updates = [r["updates"][site] for r in per_round if site in r.get("updates", {})]
    return {
        "name": site,
        **{key: scores.get(key) for key in ("dice", "iou", "hd95", "test_images")},
        "change": known[-1] - known[0] if len(known) > 1 else None,
        "labelled": updates[-1]["labelled"] if updates else None,
        "pseudo_labelled": updates[-1]["pseudo_labelled"] if updates else None,
    }


def round_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A round and its sites; means over sites are weighted by the images that each mined."""
    mined = record.get("mined_per_site", {})
    weights = {site: m.get("kept", 0) + m.get("dropped", 0) for site, m in mined.items()}
    total = sum(weights.values())

    def mean(key: str) -> float | None:
        if not total:
            return None
        return float(sum(m.get(key, 0.0) * weights[site] for site, m in mined.items()) / total)

    kept, dropped = record["mined"]["kept"], record["mined"]["dropped"]
    return {
        "round": record["round"],
        "dice": record["dice"],
        "kept": kept,
        "dropped": dropped,
        "kept_percent": 100 * kept / (kept + dropped) if kept + dropped else None,
        "empty": sum(m.get("empty", 0) for m in mined.values()),
        "gate": record["mined"]["gate"],
        "fuse_weight": mean("fuse_weight"),
        "mean_agreement": mean("mean_agreement"),
        "mean_quality": mean("mean_quality"),
        "seconds": record["seconds"],
        "bytes": record.get("bytes_down", 0) + record.get("bytes_up", 0),
        "sites": [{"name": site, "mined": weights[site], **m} for site, m in mined.items()],
    }


def mining_cards(
    sites: Sequence[str], per_round: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The mining of each site over all rounds; a site that mined nothing has no card."""
    cards = []
    for site in sites:
        rounds = [
            mined
            for record in per_round
            if (mined := record.get("mined_per_site", {}).get(site)) is not None
            and mined["kept"] + mined["dropped"]
        ]
        if not rounds:
            continue
        kept = sum(mined["kept"] for mined in rounds)
        total = kept + sum(mined["dropped"] for mined in rounds)
        cards.append(
            {
                "name": site,
                "last": rounds[-1],
                "rounds": len(rounds),
                "kept": kept,
                "total": total,
                "kept_percent": 100 * kept / total,
                "agreement": sparkline([mined["mean_agreement"] for mined in rounds]),
                "quality": sparkline([mined["mean_quality"] for mined in rounds]),
            }
        )
    return cards


def roster(sites: Sequence[str], per_round: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each site's presence in each round: there, refused or missing."""
    return [
        {
            "name": site,
            "rounds": [(record["round"], *_presence(site, record)) for record in per_round],
            "there": sum(site in record["sites"] for record in per_round),
            "seconds": sum(
                record.get("updates", {}).get(site, {}).get("seconds", 0.0) for record in per_round
            ),
        }
        for site in sites
    ]


def digests(run: Path, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """SHA-256 of the model, the settings and SAM, as far as they exist."""
    found = []
    for name in DIGESTED:
        if (run / name).is_file():
            found.append((name, sha256_of(run / name)))
    if summary["sam"]:
        found.append((f"SAM: {summary['sam']['name']}", summary["sam"]["sha256"]))
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Dotted keys and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            shown = "not set" if value is None else value
            yield prefix + str(key), str(shown)


def _presence(site: str, record: Mapping[str, Any]) -> tuple[str, str]:
    """A cell of the roster: its class and its tooltip."""
    if (why := record.get("refused", {}).get(site)) is not None:
        return "refused", f"round {record['round']}, {site}: {why}"
    if site in record["sites"]:
        return "there", f"round {record['round']}: {site} took part"
    return "missing", f"round {record['round']}: no update of {site}"
