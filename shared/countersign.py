"""The server confirms a site's receipt: a signature over the receipt's hash.

It shows an auditor that the receipt was there when the server got what it names, and that the
server does not dispute it.
"""

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from knowmine.shared.keys import is_signed_by, sign

_PURPOSE = b"knowmine countersignature 1\n"


def countersign(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, hash_: str) -> str:
    """The server's signature, in hex, of a receipt by the SHA-256 of its line."""
    return sign(key, _PURPOSE + hash_.encode())


def is_countersigned(public_key: object, hash_: str, signature: str) -> bool:
    """Whether the owner of `public_key` confirmed the receipt; never raises."""
    return is_signed_by(public_key, _PURPOSE + hash_.encode(), signature)
