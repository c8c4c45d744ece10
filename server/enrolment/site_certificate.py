"""Refuse site certificates that could not be pinned safely."""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from knowmine.shared.errors import Refused
from knowmine.shared.trust.certificates import CLIENT, CLOCK_SLACK, common_name, expires

MAX_PEM_CHARACTERS = 8_000
MAX_DAYS = 2 * 366
STRONG_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def check_site_certificate(pem: str, site: str, now: datetime) -> x509.Certificate:
    """The certificate in `pem`; raise `Refused` if the server must not trust it for `site`.

    1. It is one readable X.509 certificate of at most 8000 characters.
    2. It names the site and nothing else.
    3. It is signed by its own key: an elliptic curve of 256 bits or more, SHA-256 or better.
    4. It is made for clients, and cannot sign other certificates: pinning it would admit those too.
    5. It is valid now, and for at most two years in total.
    """
    who = f"certificate of site {site!r}"
    try:
        return _checked(pem, site, now, who)
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise Refused(f"{who} cannot be read ({error}); the site has to make a new one") from None


def _checked(pem: str, site: str, now: datetime, who: str) -> x509.Certificate:
    # 1. one readable certificate
    if len(pem) > MAX_PEM_CHARACTERS:
        raise Refused(f"{who} has {len(pem)} characters; expected at most {MAX_PEM_CHARACTERS}")
    found = x509.load_pem_x509_certificates(pem.encode())
    if len(found) != 1:
        raise Refused(f"{who}: found {len(found)} certificates, expected one")
    certificate = found[0]
    if certificate.version is not x509.Version.v3:
        raise Refused(f"{who} is X.509 {certificate.version.name}; expected v3")

    # 2. the site's name
    if common_name(certificate) != site or len(list(certificate.subject)) != 1:
        raise Refused(f"{who} is made out to {certificate.subject.rfc4514_string()!r}")

    # 3. its own signature, strong enough
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
        raise Refused(f"{who} has a weak or other key; expected an elliptic curve of 256 bits")
    if not isinstance(certificate.signature_hash_algorithm, STRONG_HASHES):
        raise Refused(f"{who} is signed over a weak digest; expected SHA-256 or better")
    try:
        certificate.verify_directly_issued_by(certificate)
    except InvalidSignature:
        raise Refused(f"{who} is not signed by its own key") from None

    # 4. for clients, and not for signing
    extensions = certificate.extensions
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise Refused(f"{who} could sign others; expected one that is not an authority")
    usages = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    if usages != [CLIENT]:
        raise Refused(f"{who} is not made for TLS clients alone")

    # 5. valid now, and not for too long
    if certificate.not_valid_before_utc > now + CLOCK_SLACK or expires(certificate) <= now:
        raise Refused(
            f"{who} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{expires(certificate):%Y-%m-%d}, not on {now:%Y-%m-%d}: check both clocks"
        )
    if expires(certificate) - certificate.not_valid_before_utc > timedelta(days=MAX_DAYS):
        raise Refused(f"{who} is valid for more than two years: the site has to make a shorter one")
    return certificate
