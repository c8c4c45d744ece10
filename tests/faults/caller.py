"""A site's end of the wire in the hands of a test: real keys and TLS, and any request."""

import uuid
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

import httpx

from knowmine.client.federation.keys import SiteKeys
from knowmine.client.federation.link import Link
from knowmine.client.settings import ClientSettings
from knowmine.shared.log import silent
from knowmine.shared.settings import read_settings
from knowmine.shared.wire import codec

from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message


class Caller:
    """Joins as a site and does what no good site would."""

    def __init__(self, home: Path) -> None:
        settings = read_settings(ClientSettings, home / "client.yaml", {})
        keys = SiteKeys.load(settings.keys, settings.site)
        (settings.state).mkdir(exist_ok=True)
        self.link = Link(
            settings.network, settings.site, keys, settings.keys, settings.state, silent()
        )

    def join(self) -> "Caller":
        """Introduce this process to the server."""
        self.link._join()
        return self

    def next_task(self):
        """Head and parts of the server's next task."""
        while (found := self.link._fleet.next_task()) is None:
            pass
        return found

    def close(self) -> None:
        self.link.close()


def tls_client(stage, site, *, ca=None, context_of=None) -> httpx.Client:
    """Plain HTTPS with a site's certificate, or what `context_of` makes of the context."""
    import ssl

    context = ssl.create_default_context(cafile=ca or stage.folder / "ca" / "ca.crt")
    if site:
        keys = stage.home(site) / "keys"
        context.load_cert_chain(keys / "tls.crt", keys / "tls.key")
    if context_of:
        context_of(context)
    return httpx.Client(
        base_url=f"https://localhost:{stage.port}", verify=context, timeout=30, trust_env=False
    )


def signed(stage, site, instance=None, replaces="") -> dict[str, str]:
    """The headers by which a request is a site's own."""
    key = SiteKeys.load(stage.home(site) / "keys", site).node
    now = datetime.now(UTC).isoformat()
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
        TIMESTAMP_HEADER: now,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, now.encode())).decode(),
        codec.INSTANCE_HEADER: instance or uuid.uuid4().hex,
        codec.REPLACES_HEADER: replaces,
        codec.VERSION_HEADER: "0",
        "content-type": "application/protobuf",
    }
