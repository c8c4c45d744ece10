"""Connect to the server with TLS 1.3 only, and say what a person can do if that fails."""

import ssl
import urllib.request
from pathlib import Path

import httpx
from cryptography import x509

from knowmine.client.settings import NetworkSettings
from knowmine.shared.errors import Refused, UsageError
from knowmine.shared.trust.certificates import warning_of_expiry


def tls_context(ca: Path, keys: Path) -> ssl.SSLContext:
    """TLS 1.3 with the site's certificate; only the authority of its kit is trusted.

    Raises `UsageError` for files that cannot be used.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(keys / "tls.crt", keys / "tls.key")
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"cannot use {ca} with {keys / 'tls.crt'} and tls.key ({error}): put back the files of "
            "the enrolment"
        ) from error
    return context


def http_client(settings: NetworkSettings, context: ssl.SSLContext) -> httpx.Client:
    """A client that uses the proxy of the environment and follows no redirect."""
    proxy = None
    if settings.proxy_ca and (address := urllib.request.getproxies().get("https")):
        trusted = ssl.create_default_context(cafile=settings.proxy_ca)
        proxy = httpx.Proxy(address, ssl_context=trusted)
    return httpx.Client(
        verify=context,
        timeout=settings.timeout_s,
        follow_redirects=False,
        proxy=proxy,
        headers={"accept-encoding": "identity"},
    )


def detail_of(response: httpx.Response) -> str:
    """The server's reason for refusing a request."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text
    return f"{str(detail)[:300]} (HTTP {response.status_code})"


def explained(
    error: Exception, settings: NetworkSettings, certificate: x509.Certificate, *, joined: bool
) -> str:
    """What a person can do about a connection that failed.

    certificate: the site's. joined: whether the server accepted it before. Raises `Refused` if it
    never did and is not the server of the kit.
    """
    text = str(error) or type(error).__name__
    server = settings.server
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = (
            f"the server at {server} shows a certificate that {settings.ca} does not "
            f"vouch for ({text}): ask the coordinator whether this is their server"
        )
        if not joined:
            raise Refused(why) from error
        return why
    # A server that refuses a certificate says so in a TLS alert. Often the connection ends
    # before the alert arrives.
    if "alert" in text.lower() or isinstance(error, httpx.RemoteProtocolError):
        if (ended := warning_of_expiry(certificate)) and "ended" in ended:
            return f"the server at {server} hung up: {ended}"
        return (
            f"the server at {server} hung up ({text}). If this goes on, the server does not "
            "accept this site's certificate: the request was not admitted yet, or the site "
            "was revoked; ask the coordinator"
        )
    if isinstance(error, httpx.ProxyError):
        return f"the proxy does not connect to {server} ({text}): check HTTPS_PROXY"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return (
            f"nothing answers at {server} ({text}): the server does not run yet, or a firewall "
            "blocks the connection"
        )
    return f"{server}: {text}"
