"""Make, keep and use private keys, in files that only their owner can read.

A site has three keys: `tls.key` for its connection, `node.key` by which Flower knows it, and
`audit.key` that signs its audit log. None of them ever leaves the machine that made it.
"""

import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from knowmine.shared.errors import CannotWrite, UsageError


def write_secret(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a file that only its owner can read, whole or not at all.

    The file has its mode from the start, so there is no moment in which others can open it.
    Raises `UsageError` if the file exists and `replace` is false, and `CannotWrite` if the system
    refuses.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        made = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(made, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            # A link, unlike a rename, never replaces an existing file.
            path.hardlink_to(temporary)
            temporary.unlink()
        sync_folder(path.parent)
    except FileExistsError:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path} exists and is never overwritten: move it away first") from None
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CannotWrite(f"cannot write {path} ({error.strerror})") from error


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner can enter; an existing one keeps its mode."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make folder {folder} ({error.strerror})") from error


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_secret(path: Path, max_bytes: int = 64_000) -> bytes:
    """The content of a file that only its owner can read; `UsageError` if others can."""
    try:
        with path.open("rb") as file:
            seen = os.fstat(file.fileno())
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: enrol or provision first, or restore it") from None
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}): check its owner") from error
    if seen.st_uid != os.geteuid():
        raise UsageError(
            f"{path} belongs to user {seen.st_uid} and knowmine runs as {os.geteuid()}: "
            f"run `chown {os.geteuid()} {path}`, or run knowmine as its owner"
        )
    if stat.S_IMODE(seen.st_mode) & 0o077:
        raise UsageError(
            f"{path} can be read by others (mode {stat.S_IMODE(seen.st_mode):04o}, expected "
            f"0600): run `chmod 600 {path}`, and renew the key if others use this machine"
        )
    if len(content) > max_bytes:
        raise UsageError(f"{path} is larger than {max_bytes} bytes: it is another kind of file")
    return content


def make_ec_key(path: Path, *, openssh: bool = False) -> ec.EllipticCurvePrivateKey:
    """A new P-384 key in a new file; Flower needs OpenSSH's format."""
    key = ec.generate_private_key(ec.SECP384R1())
    layout = serialization.PrivateFormat.OpenSSH if openssh else serialization.PrivateFormat.PKCS8
    write_secret(path, _private_pem(key, layout))
    return key


def load_ec_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private elliptic-curve key in PEM or OpenSSH format."""
    content = read_secret(path)
    ssh = b"OPENSSH" in content[:64]
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        key = load(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is no private key ({error}): restore it or renew it") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path} holds another kind of key; expected an elliptic-curve key")
    return key


def make_audit_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """A new Ed25519 key in a new file."""
    key = ed25519.Ed25519PrivateKey.generate()
    write_secret(path, _private_pem(key, serialization.PrivateFormat.PKCS8))
    return key


def load_audit_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """The Ed25519 key that signs a site's audit log."""
    try:
        key = serialization.load_pem_private_key(read_secret(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is no private key ({error}): restore it") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{path} holds another kind of key; expected an Ed25519 key")
    return key


def node_line(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half as one OpenSSH line, as Flower's node authentication reads it."""
    public, ssh = key.public_key(), serialization.PublicFormat.OpenSSH
    return public.public_bytes(serialization.Encoding.OpenSSH, ssh).decode()


def audit_line(key: ed25519.Ed25519PrivateKey) -> str:
    """The public half as one OpenSSH line."""
    public, ssh = key.public_key(), serialization.PublicFormat.OpenSSH
    return public.public_bytes(serialization.Encoding.OpenSSH, ssh).decode()


def sign(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, message: bytes) -> str:
    """Signature in hex: Ed25519, or ECDSA over SHA-384."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message).hex()
    return key.sign(message, ec.ECDSA(hashes.SHA384())).hex()


def is_signed_by(public_key: object, message: bytes, signature: str) -> bool:
    """Whether the owner of `public_key` made this signature of `message`; never raises.

    public_key: an object of `cryptography`, or an OpenSSH line.
    """
    try:
        if isinstance(public_key, str):
            public_key = serialization.load_ssh_public_key(public_key.encode())
        if isinstance(public_key, ed25519.Ed25519PublicKey):
            public_key.verify(bytes.fromhex(signature), message)
        elif isinstance(public_key, ec.EllipticCurvePublicKey):
            public_key.verify(bytes.fromhex(signature), message, ec.ECDSA(hashes.SHA384()))
        else:
            return False
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True


def _private_pem(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    layout: serialization.PrivateFormat,
) -> bytes:
    # Without a password: a program that starts by itself would have to keep it in another file.
    return key.private_bytes(serialization.Encoding.PEM, layout, serialization.NoEncryption())
