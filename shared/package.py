"""Write and check an exported model: a folder with a signed list of its files.

```
MODEL/model_card.json MODEL_CARD.md    a description, for programs and for people
MODEL/model.onnx                       or another format; the card names the file
MODEL/manifest.json                    SHA-256 of every file above
MODEL/manifest.json.sig                Ed25519 over manifest.json's bytes (64 bytes, RFC 8032)
MODEL/signing_key.pub                  the signer's public key, PEM
```
The signature is detached, so that openssl can check it without knowmine: `openssl pkeyutl -verify
-pubin -inkey KEY -rawin -in manifest.json -sigfile manifest.json.sig`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from knowmine.shared.errors import PackageRefused, UsageError, WeightsError
from knowmine.shared.model_card import ModelCard, pack_card, unpack_card

CARD, MANIFEST, SIGNATURE, PUBLIC_KEY = (
    "model_card.json",
    "manifest.json",
    "manifest.json.sig",
    "signing_key.pub",
)
KIND = "knowmine model package 1"
MAX_FILE_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Package:
    """An exported model that was checked.

    digests: SHA-256 of each file by its name. signer: fingerprint of the key that signed it, None
    for an unsigned package. trusted: whether the caller named that key.
    """

    folder: Path
    card: ModelCard
    digests: dict[str, str]
    signer: str | None
    trusted: bool

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, checked again; raises `PackageRefused`."""
        return _read_listed(self.folder, name, self.digests.get(name))


def write_package(folder: Path, card: ModelCard, signing_key: Ed25519PrivateKey | None) -> None:
    """Write the card and the list of all files in `folder`; sign the list if there is a key."""
    (folder / CARD).write_bytes(pack_card(card))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    manifest = (json.dumps({"kind": KIND, "files": digests}, indent=2) + "\n").encode()
    (folder / MANIFEST).write_bytes(manifest)
    if signing_key is not None:
        (folder / SIGNATURE).write_bytes(signing_key.sign(manifest))
        (folder / PUBLIC_KEY).write_bytes(_pem(signing_key.public_key()))


def open_package(place: Path, public_key: Path | None = None, *, unsigned: bool = False) -> Package:
    """Check an exported model: a folder, or any file in one.

    public_key: accept only what this key signed. Without it, the signature must match the enclosed
        key: that shows damage and careless edits, but not who signed.
    unsigned: accept a model without a signature if no key is given.

    Raises `WeightsError` for what is not an export, and `PackageRefused` for an export that is not
    signed or was changed.
    """
    # 1. The list exists.
    folder = _folder_of(place)
    manifest = (folder / MANIFEST).read_bytes()
    # 2. The list is signed by the expected key.
    signer = _check_signature(folder, manifest, public_key, unsigned)
    # 3. Each file has the digest in the list.
    digests = _digests_of(manifest)
    content = {name: _read_listed(folder, name, digest) for name, digest in digests.items()}
    # 4. The card can be read, and its model is among the listed files.
    if CARD not in content:
        raise WeightsError(f"{folder} has no {CARD} in its list: export the model again")
    card = unpack_card(content[CARD])
    if card.model_file not in content:
        raise WeightsError(
            f"{folder / CARD} names {card.model_file!r}, which is not listed in {MANIFEST}: "
            "export the model again"
        )
    return Package(folder, card, digests, signer, trusted=public_key is not None)


def read_signing_key(file: Path) -> Ed25519PrivateKey:
    """A private Ed25519 key in PEM without passphrase; raises `UsageError`."""
    advice = f"make one with: openssl genpkey -algorithm ed25519 -out {file.name}"
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except FileNotFoundError:
        raise UsageError(f"there is no signing key at {file}; {advice}") from None
    except TypeError:
        raise UsageError(
            f"{file} is protected by a passphrase; export without a key, and sign {MANIFEST} "
            f"with: openssl pkeyutl -sign -rawin -inkey {file.name} -in {MANIFEST} "
            f"-out {SIGNATURE}"
        ) from None
    except (OSError, ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{file} is not a private key in PEM; {advice}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{file} is a {type(key).__name__}, expected an Ed25519 key; {advice}")
    return key


def read_public_key(file: Path) -> Ed25519PublicKey:
    """A public Ed25519 key in PEM; raises `UsageError`."""
    try:
        key = serialization.load_pem_public_key(file.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"there is no public key at {file}: check the path") from None
    except (OSError, ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"{file} is not a public key in PEM; ask the coordinator for {PUBLIC_KEY}"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{file} is not an Ed25519 key; ask the coordinator for {PUBLIC_KEY}")
    return key


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """First half of the raw key's SHA-256, for two people to compare by telephone."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    digest = hashlib.sha256(raw).hexdigest()[:32]
    return ":".join(digest[place : place + 4] for place in range(0, 32, 4))


def _folder_of(place: Path) -> Path:
    """The package that is `place` or contains it; searched two folders up, for a bundle's models/."""
    for folder in (place, place.parent, place.parent.parent) if place.exists() else ():
        if (folder / MANIFEST).is_file():
            return folder
    if not place.exists():
        raise WeightsError(f"there is no model at {place}: check the path")
    raise WeightsError(
        f"{place} is not an exported model (there is no {MANIFEST}): name the whole folder "
        "that `knowmine-server export` wrote"
    )


def _check_signature(
    folder: Path, manifest: bytes, public_key: Path | None, unsigned: bool
) -> str | None:
    signature, enclosed = folder / SIGNATURE, folder / PUBLIC_KEY
    trusted = read_public_key(public_key) if public_key is not None else None
    if not signature.is_file():
        if trusted is not None:
            raise PackageRefused(
                f"{folder} is not signed (there is no {SIGNATURE}), and a public key was given: "
                "ask the coordinator for the signed export"
            )
        if enclosed.is_file():
            raise PackageRefused(
                f"{folder} was signed, and its {SIGNATURE} is missing: get the export again"
            )
        if not unsigned:
            raise PackageRefused(
                f"{folder} is not signed (there is no {SIGNATURE}), so its origin is unknown: ask the "
                "coordinator for the signed export, or give --unsigned if you made it yourself"
            )
        return None
    key = trusted or (read_public_key(enclosed) if enclosed.is_file() else None)
    if key is None:
        raise PackageRefused(
            f"{folder} is signed, and the signing key is missing ({PUBLIC_KEY}): name the "
            "coordinator's public key with --key"
        )
    try:
        key.verify(signature.read_bytes(), manifest)
    except InvalidSignature:
        whose = f"the key {fingerprint_of(key)}" if trusted else "the enclosed key"
        raise PackageRefused(
            f"{folder / MANIFEST} was not signed by {whose}: it was changed after signing, or "
            "signed by another key; get the export and the key again from the coordinator"
        ) from None
    return fingerprint_of(key)


def _digests_of(manifest: bytes) -> dict[str, str]:
    try:
        values: Any = json.loads(manifest)
        files = dict(values["files"]) if values["kind"] == KIND else {}
    except (ValueError, KeyError, TypeError):
        files = {}
    if not files or not all(type(digest) is str for digest in files.values()):
        raise WeightsError(f"{MANIFEST} is not a list of a model's files: export the model again")
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
            raise PackageRefused(f"{MANIFEST} lists {name!r}, which lies outside the folder")
    return files


def _read_listed(folder: Path, name: str, digest: str | None) -> bytes:
    if digest is None:
        raise PackageRefused(f"{folder / name} is not listed in {MANIFEST}")
    try:
        size = (folder / name).stat().st_size
        if size > MAX_FILE_BYTES:
            raise PackageRefused(
                f"{folder / name} has {size} bytes, expected at most {MAX_FILE_BYTES}"
            )
        content = (folder / name).read_bytes()
    except OSError:
        raise PackageRefused(
            f"{folder / name} is listed in {MANIFEST} and cannot be read: get the export again"
        ) from None
    seen = hashlib.sha256(content).hexdigest()
    if seen != digest:
        raise PackageRefused(
            f"{folder / name} was changed after the export: sha256 {seen[:12]}..., expected "
            f"{digest[:12]}...; get the export again from the coordinator"
        )
    return content


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
