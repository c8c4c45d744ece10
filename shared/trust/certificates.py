"""Make certificates, read them, and warn 30 days before they end."""

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from knowmine.shared.errors import UsageError

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH

CLOCK_SLACK = timedelta(days=1)
"""Certificates are valid from a day before they are made, because hospitals' clocks differ."""

Issuer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def make_certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    usage: x509.ObjectIdentifier,
    *,
    days: int = 365,
    hosts: Sequence[str] = (),
    issuer: Issuer | None = None,
    now: datetime | None = None,
) -> x509.Certificate:
    """A certificate for one use (`CLIENT` or `SERVER`), which cannot sign another certificate.

    Without an `issuer` (certificate, key) it is signed by its own key.
    hosts: DNS names and addresses of a server.
    """
    builder = _builder(subject, key, days, now, issuer[0].subject if issuer else None)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, False)
    if issuer:
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer[1].public_key())
        builder = builder.add_extension(by, False)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA384())


def make_authority_certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, *, days: int, now: datetime | None = None
) -> x509.Certificate:
    """A certificate that signs others, which in turn cannot sign any (path length 0)."""
    builder = _builder(subject, key, days, now, None)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), True)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(own, False).sign(key, hashes.SHA384())


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file; raise `UsageError` if there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read certificate {path} ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path} is no PEM certificate ({error}): restore it") from None


def to_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def to_der(certificate: x509.Certificate) -> bytes:
    """The certificate as `ssl.SSLSocket.getpeercert(True)` gives it."""
    return certificate.public_bytes(serialization.Encoding.DER)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 in hex, which two people compare on the telephone and logs name."""
    return hashlib.sha256(to_der(certificate)).hexdigest()


def common_name(certificate: x509.Certificate) -> str | None:
    """The one name in the certificate; None if there is none or more than one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


def expires(certificate: x509.Certificate) -> datetime:
    """The last moment at which it is valid, in UTC."""
    return certificate.not_valid_after_utc


def warning_of_expiry(
    certificate: x509.Certificate, now: datetime | None = None, days: int = 30
) -> str | None:
    """A warning to log and show in the last `days` and after the end; None before that."""
    left = expires(certificate) - (now or datetime.now(UTC))
    who = f"certificate of {common_name(certificate) or 'an unnamed owner'}"
    end = f"{expires(certificate):%Y-%m-%d %H:%M} UTC"
    if left <= timedelta(0):
        return f"{who} ended on {end}: renew it, connections fail until then"
    if left <= timedelta(days=days):
        return f"{who} ends in {left.days} days, on {end}: renew it before"
    return None


def hosts_of(certificate: x509.Certificate) -> set[str]:
    """The DNS names and addresses in a server's certificate."""
    try:
        kind = x509.SubjectAlternativeName
        names = certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return set()
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *map(str, addresses)}


def checked_host(host: str) -> str:
    """A DNS name in lower case, or an address in its shortest form; `ValueError` otherwise.

    >>> checked_host("Fed.Example.org"), checked_host("0:0:0:0:0:0:0:1")
    ('fed.example.org', '::1')
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    name = host.lower()
    label = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
    # A last label of digits alone would be a mistyped address.
    if len(name) > 253 or not re.fullmatch(rf"({label}\.)*(?![0-9]+$){label}", name):
        raise ValueError(f"{host!r} is neither a host name (fed.example.org) nor an address")
    return name


def _builder(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    days: int,
    now: datetime | None,
    issuer: x509.Name | None,
) -> x509.CertificateBuilder:
    now = now or datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
