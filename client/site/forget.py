"""Destroy what a site keeps of a case or of a whole project, and write that down.

The images themselves are the hospital's and are not touched. What has left cannot be called
back: the receipts and the record of who took part tell what it was.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from knowmine.client.audit.log import Chain
from knowmine.client.data.folder import images_in
from knowmine.client.data.images import digest_of_file
from knowmine.client.egress.policy import policy_of
from knowmine.client.paths import (
    ANSWERS,
    COURIER,
    FEEDBACK,
    SITE,
    VAULT_KEYS,
    audit_log_of,
    embeddings_of,
    pictures_of,
)
from knowmine.client.review.decisions import forget_review
from knowmine.client.sam.embeddings import folder_of, forget_embeddings, forget_plain
from knowmine.client.settings import ClientSettings
from knowmine.client.storage.encryption import PROJECT, Seal, destroy_keys
from knowmine.client.storage.participation import Participation
from knowmine.client.storage.report_samples import forget_in_gallery
from knowmine.shared.errors import CannotWrite, DataError
from knowmine.shared.files import FolderLock, write_atomically
from knowmine.shared.trust.keys import load_audit_key, make_private_folder


def forget_case(settings: ClientSettings, case_id: str) -> int:
    """Destroy what is kept of one case: embeddings, pseudo-labels, reviews, scores; how many files.

    Its lines in the record of who took part stay: only the key relates them to the case. Write
    its case id into withdrawn.txt too, or the next round makes its embedding again.
    Raises `UsageError` while the site runs.
    """
    with _stopped(settings) as chain:
        seal, site = _seal_of(settings), settings.state / "site"
        digests = [digest_of_file(path) for name, path in _images(settings) if name == case_id]
        files = forget_plain(embeddings_of(settings.sam), digests)
        if seal:
            aliases = {seal.alias("embedding", digest) for digest in digests}
            aliases |= Participation(site, seal).embeddings_of(case_id)
            files += forget_embeddings(embeddings_of(settings.sam), seal, sorted(aliases))
            files += forget_in_gallery(site, case_id, seal)
        files += forget_in_gallery(site, case_id, None)
        files += forget_review(site, case_id) + _forget_scores(site, case_id)
        files += sum(map(_remove, pictures_of(settings.state)))  # among others, of this case
        whose = {"case": seal.alias("case", case_id)} if seal else {}
        chain.append("forgot", "here", about={"what": "case", "files": files, **whose})
        return files


def forget_project(settings: ClientSettings) -> int:
    """Destroy the project's key and all that is kept of its images; how many files.

    Settings, network keys and receipts stay. Raises `UsageError` while the site runs.
    """
    with _stopped(settings) as chain:
        seal = _seal_of(settings)
        files = forget_plain(
            embeddings_of(settings.sam), [digest_of_file(path) for _, path in _images(settings)]
        )
        state = settings.state
        folders = [*pictures_of(state), state / SITE]
        folders += [state / COURIER / ANSWERS, state / COURIER / FEEDBACK]
        if seal:
            folders.append(folder_of(embeddings_of(settings.sam), seal))
        try:
            files += sum(map(_remove, folders))
        finally:
            # Whatever could not be removed is noise from here on.
            keys = destroy_keys(settings.state / VAULT_KEYS)
        about: dict[str, int | str] = {"what": "project", "files": files, "keys": int(keys)}
        chain.append("forgot", "here", about=about)
        return files


@contextmanager
def _stopped(settings: ClientSettings) -> Iterator[Chain]:
    """The audit log, while no other process or review works for this site."""
    make_private_folder(settings.state)
    with ExitStack() as locks:
        locks.callback(FolderLock(settings.state).release)
        # A review goes on beside a running site, so it holds a lock of its own.
        if (settings.state / SITE).is_dir():
            locks.callback(FolderLock(settings.state / SITE).release)
        key, records = load_audit_key(settings.keys / "audit.key"), policy_of(settings).records
        path = audit_log_of(settings.state)
        with Chain.open(path, key, site=settings.site, records=records) as chain:
            yield chain


def _seal_of(settings: ClientSettings) -> Seal | None:
    """The project's key if there is one; none is made here."""
    folder = settings.state / VAULT_KEYS
    return Seal(folder) if (folder / PROJECT).exists() else None


def _images(settings: ClientSettings) -> list[tuple[str, Path]]:
    """Case ids and files of the images that are still there."""
    try:
        return list(images_in(settings.data).items())
    except DataError:
        return []


def _forget_scores(site: Path, case_id: str) -> int:
    """Take a case out of the scores of all rounds; from how many files."""
    found = 0
    for file in sorted(site.glob("scores-*.json")):
        scores = json.loads(file.read_bytes())
        if scores.pop(case_id, None) is not None:
            write_atomically(file, json.dumps(scores, indent=1).encode())
            found += 1
    return found


def _remove(place: Path) -> int:
    """Remove a file, or a folder and all in it; how many files there were."""
    if not place.exists():
        return 0
    try:
        if place.is_file():
            place.unlink()
            return 1
        files = sum(path.is_file() for path in place.rglob("*"))
        shutil.rmtree(place)
    except OSError as error:
        raise CannotWrite(f"cannot remove {place} ({error.strerror})") from error
    return files
