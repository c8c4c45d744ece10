"""What a site keeps of its images on disk is sealed: AES-256-GCM, a key for each file.

```
vault-keys/project.key     32 random bytes, 0600: names files and is part of every key
vault-keys/files.keys      a record of 48 bytes for each sealed file: whose it is, 32 random bytes
```
A file's key follows from both, so destroying either makes the file noise. What kind of thing it
is and whose is bound to the content: files that change places do not open. The keys lie on the
same machine as what they seal, in another folder: this is for caches on other disks, for backups
and for forgetting. Against the theft of the whole machine only an encrypted disk helps.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.trust.keys import make_private_folder, read_secret, sync_folder, write_secret

Kind = Literal["embedding", "gallery"]

MAGIC = b"KNOWMINE1"
KEY_BYTES, NONCE_BYTES, ID_BYTES = 32, 12, 16
_RECORD = ID_BYTES + KEY_BYTES
_GONE = bytes(_RECORD)
PROJECT, FILES = "project.key", "files.keys"
"""The folder of both, in the state folder of the process that sees the images."""


class Seal:
    """Seals and opens one project's files.

    folder: of the keys; made on first use. Raises `UsageError` for keys that others can read.
    """

    def __init__(self, folder: Path) -> None:
        make_private_folder(folder)
        path = folder / PROJECT
        if not path.exists():
            if (folder / FILES).exists():
                raise UsageError(
                    f"{path} is missing and what it sealed cannot be opened any more: restore it, "
                    f"or remove {folder} to start again"
                )
            write_secret(path, secrets.token_bytes(KEY_BYTES))
        self._project = read_secret(path)
        if len(self._project) != KEY_BYTES:
            raise UsageError(f"{path} is no key of {KEY_BYTES} bytes: restore it")
        self._folder, self._path = folder, folder / FILES
        if not self._path.exists():
            write_secret(self._path, b"")
        read_secret(self._path, max_bytes=_RECORD * 10**7)  # its owner and mode
        self._keys: dict[bytes, tuple[bytes, int]] = {}
        self._read_to = 0
        with self._locked() as file:
            self._catch_up(file)

    def alias(self, kind: str, name: str) -> str:
        """A name that only the key relates to the case: 64 hex digits."""
        return hmac.digest(self._project, f"name|{kind}|{name}".encode(errors="surrogateescape"), hashlib.sha256).hex()  # fmt: skip

    def seal(self, kind: Kind, name: str, content: bytes) -> bytes:
        """The content as it may lie on a disk; a new nonce each time."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        cipher = AESGCM(self._file_key(kind, name, make=True))
        return MAGIC + nonce + cipher.encrypt(nonce, content, _bound_to(kind, name))

    def unseal(self, kind: Kind, name: str, sealed: bytes) -> bytes | None:
        """The content, or None where it is not what was sealed under this kind and name."""
        start = len(MAGIC) + NONCE_BYTES
        if not sealed.startswith(MAGIC) or len(sealed) < start:
            return None
        try:
            cipher = AESGCM(self._file_key(kind, name, make=False))
            # A view: two megabytes more need not be copied.
            body = memoryview(sealed)[start:]
            return cipher.decrypt(sealed[len(MAGIC) : start], body, _bound_to(kind, name))
        except (InvalidTag, KeyError):
            return None

    def destroy(self, kind: Kind, name: str) -> bool:
        """Overwrite the file's key; whether there was one."""
        with self._locked() as file:
            self._catch_up(file)
            found = self._keys.pop(self._id(kind, name), None)
            if found is None:
                return False
            os.pwrite(file, _GONE, found[1])
            os.fsync(file)
        return True

    # ------------------------------------------------------------ helpers

    def _id(self, kind: str, name: str) -> bytes:
        return bytes.fromhex(self.alias(kind, name))[:ID_BYTES]

    def _file_key(self, kind: str, name: str, *, make: bool) -> bytes:
        own = self._id(kind, name)
        if own not in self._keys:
            with self._locked() as file:  # another process may have made it
                self._catch_up(file)
                if make and own not in self._keys:
                    self._add(file, own + secrets.token_bytes(KEY_BYTES))
        return hmac.digest(self._project, b"file|" + self._keys[own][0], hashlib.sha256)

    def _add(self, file: int, record: bytes) -> None:
        # What a crash cut short is written over.
        place = self._read_to
        try:
            os.pwrite(file, record, place)
            os.fsync(file)
        except OSError as error:
            raise CannotWrite(f"cannot write {self._path} ({error.strerror})") from error
        self._catch_up(file)

    def _catch_up(self, file: int) -> None:
        """Read the records that are new."""
        while len(record := os.pread(file, _RECORD, self._read_to)) == _RECORD:
            if record != _GONE:
                self._keys[record[:ID_BYTES]] = record[ID_BYTES:], self._read_to
            self._read_to += _RECORD

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self._path, os.O_RDWR)
        try:
            # Not filelock: the file that is locked is the one that is read and written.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def is_sealed(content: bytes) -> bool:
    """Whether a file's content was sealed, by whatever key."""
    return content.startswith(MAGIC)


def destroy_keys(folder: Path) -> bool:
    """Overwrite and remove all keys of a project; whether there were any.

    The file system or the disk may keep older copies: an encrypted disk is what helps there.
    """
    there = False
    for name in (PROJECT, FILES):
        path = folder / name
        if not path.exists():
            continue
        there = True
        try:
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            sync_folder(folder)
        except OSError as error:
            raise CannotWrite(f"cannot destroy {path} ({error.strerror})") from error
    return there


def _bound_to(kind: str, name: str) -> bytes:
    return f"knowmine at rest 1|{kind}|{name}".encode(errors="surrogateescape")
