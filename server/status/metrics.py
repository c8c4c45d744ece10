"""The status of a run as Prometheus metrics."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest


def metrics_of(figures: Mapping[str, Any]) -> bytes:
    """The figures of `figures_of` in Prometheus' text format."""
    registry = CollectorRegistry()

    def gauge(name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"knowmine_{name}", what, labels, registry=registry)

    running = figures["status"] in ("waiting", "running")
    gauge("running", "1 while the server runs.").set(running)
    gauge("round", "Current round, or the last one.").set(figures["round"])
    if figures["rounds"]:
        gauge("rounds", "Rounds of the run.").set(figures["rounds"])
    connected = gauge("site_connected", "1 while the site is connected.", "site")
    last = gauge("site_last_round", "Last round in which the site trained.", "site")
    ends = gauge("certificate_expiry_seconds", "Unix time at which the certificate ends.", "site")
    for name, site in figures["sites"].items():
        connected.labels(name).set(site["connected"])
        last.labels(name).set(site["last_round"])
        if not site["revoked"]:
            ends.labels(name).set(datetime.fromisoformat(site["certificate_expires"]).timestamp())
    if server_ends := figures.get("server_certificate_expires"):
        gauge(
            "server_certificate_expiry_seconds",
            "Unix time at which the server's own certificate ends.",
        ).set(datetime.fromisoformat(server_ends).timestamp())
    history = figures["history"]
    if not history:
        return generate_latest(registry)
    sent = gauge("bytes", "Bytes of all rounds so far.", "direction")
    for direction in ("down", "up"):
        sent.labels(direction).set(sum(r[f"bytes_{direction}"] for r in history))
    if history[-1]["dice"] is not None:
        gauge("dice", "Dice of the global model.").set(history[-1]["dice"])
    dice = gauge("site_dice", "Dice on the site's own test images.", "site")
    for name, scores in history[-1]["per_site"].items():
        if scores["dice"] is not None:
            dice.labels(name).set(scores["dice"])
    quality = gauge("site_mining_quality", "Mean predicted Dice of pseudo-labels.", "site")
    for name, mined in history[-1]["mined_per_site"].items():
        quality.labels(name).set(mined["mean_quality"])
    gauge("round_seconds", "Seconds of the last round.").set(history[-1]["seconds"])
    return generate_latest(registry)
