"""Check the connection to the coordinator: proxy, TLS, clock, latency, bandwidth, versions."""

import os
from datetime import UTC, datetime
from importlib.metadata import version

from knowmine.client.check.findings import Finding
from knowmine.client.federation.keys import SiteKeys
from knowmine.client.federation.link import Link
from knowmine.client.paths import COURIER
from knowmine.client.settings import ClientSettings
from knowmine.shared.errors import KnowmineError
from knowmine.shared.log import silent
from knowmine.shared.protocol import PROTOCOL

PAYLOAD_BYTES = 4_000_000
MAX_CLOCK_S = 60.0


def check_network(settings: ClientSettings) -> list[Finding]:
    """Greet the server, and measure latency and bandwidth."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    found = [Finding("network", "note", f"through the proxy {_masked(proxy)}")] if proxy else []
    try:
        keys = SiteKeys.load(settings.keys, settings.site)
        link = Link(
            settings.network, settings.site, keys, settings.keys, settings.state / COURIER, silent()
        )
        try:
            link.probe(b"")  # opens the connection
            answer, latency_s, there = link.probe(b"")
            _, upload_s, _ = link.probe(bytes(PAYLOAD_BYTES))
        finally:
            link.close()
    except KnowmineError as error:
        why = "no round reaches this site"
        repair = "allow one outgoing TCP connection to that address"
        return [*found, Finding("network", "error", str(error), why, repair)]
    bits = PAYLOAD_BYTES * 8 / max(1e-6, upload_s - latency_s) / 1e6
    what = f"{settings.network.server} answers in {latency_s * 1000:.0f} ms, {bits:.0f} Mbit/s up"
    facts = {"latency_ms": round(latency_s * 1000, 1), "upload_mbit_s": round(bits, 1)}
    found.append(Finding("network", "good", what, facts=facts))
    return [*found, *versions(answer), *clock(there)]


def versions(answer: dict[str, object]) -> list[Finding]:
    """Whether the server's answer has the same protocol version as this site."""
    ours = version("knowmine")
    if answer.get("protocol") != PROTOCOL:
        what = f"the server uses protocol {answer.get('protocol')}, this site {PROTOCOL}"
        repair = f"install knowmine {answer.get('version')} here, or ask the coordinator to update"
        return [Finding("network", "error", what, "they cannot work together", repair)]
    what = f"the server runs knowmine {answer.get('version')}, this site {ours}"
    return [Finding("network", "good", what)]


def clock(there: datetime | None) -> list[Finding]:
    """Whether this machine's clock agrees with the server's to a minute."""
    if there is None:
        return []
    wrong_s = (datetime.now(UTC) - there).total_seconds()
    if abs(wrong_s) < MAX_CLOCK_S:
        return [Finding("network", "good", "the clock agrees with the server's")]
    what = f"this machine's clock is {abs(wrong_s):.0f} s {'ahead' if wrong_s > 0 else 'behind'}"
    why = "the site corrects for it in its requests, but logs and certificates stay wrong"
    return [Finding("network", "warning", what, why, "set it, or start a time service (NTP)")]


def _masked(proxy: str) -> str:
    """A proxy's address without the password that it may contain."""
    scheme, _, rest = proxy.rpartition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if scheme else rest.rpartition("@")[2]
