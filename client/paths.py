"""The state folder, divided so that neither of a site's two processes needs the other's part.

```
site/  vault-keys/                the vault's: what it keeps of the images, and the keys to that
courier/                          the courier's: answers, residues, whom it was last connected as
audit/  pending/                  the record, and updates that wait: people read them too
site.log.jsonl  .lock
```
The kernel refuses the courier the vault's part and the cache of embeddings. It lets it change its
own part, record, updates that wait, log and keys, and nothing else on this machine: no folder can
take the place of another under the vault's feet. What is made later right beside the vault's part
it cannot read (`isolation.hide_folders`), so all that it needs is made beforehand.
"""

import io
from pathlib import Path

from PIL import Image

from knowmine.client.audit.log import record_of
from knowmine.client.egress.approval import PENDING
from knowmine.client.sam.weights import default_cache
from knowmine.client.settings import SITE_LOG, ClientSettings
from knowmine.client.storage.encryption import VAULT_KEYS
from knowmine.shared.errors import CannotWrite
from knowmine.shared.lock import FolderLock
from knowmine.shared.trust.keys import make_private_folder, sync_folder, write_secret

SITE, COURIER = "site", "courier"
REHEARSAL, PICTURES = "rehearsal", "pictures"
"""In the vault's part: the folder of a round that only pretends; what `check` drew of images."""
ANSWERS, FEEDBACK, INSTANCE = "answers", "feedback", "instance"


def prepare(state: Path) -> Path:
    """Make what both processes need in `state`; return the courier's part.

    What earlier versions kept right in the state folder moves into that part, one rename each, so
    that a crash loses nothing. Raises `CannotWrite`; `UsageError` where another process is at work.
    """
    own = state / COURIER
    for folder in (
        state,
        own,
        state / SITE,
        state / VAULT_KEYS,
        record_of(state).parent,
        state / PENDING,
    ):
        make_private_folder(folder)
    try:
        for name in (".lock", SITE_LOG):
            (state / name).touch()
        _move_in(state, own)
        (own / ANSWERS).mkdir(exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot write in {state} ({error.strerror})") from error
    return own


def vaults_part(settings: ClientSettings) -> dict[str, Path]:
    """What the courier must not read beside the images, by what it is."""
    return {
        "what the vault keeps of the images": settings.state / SITE,
        "the keys to it": settings.state / VAULT_KEYS,
        "the embeddings": (settings.sam.cache or default_cache()) / "embeddings",
    }


def save_picture(state: Path, name: str, picture: Image.Image) -> Path:
    """Keep what shows patients' images in the vault's part, for its owner's eyes alone."""
    file = state / SITE / PICTURES / name
    make_private_folder(state)
    make_private_folder(state / SITE)
    make_private_folder(file.parent)
    png = io.BytesIO()
    picture.save(png, "PNG")
    write_secret(file, png.getvalue(), replace=True)
    return file


def pictures_of(state: Path) -> list[Path]:
    """All that holds pictures of several cases at once, also where earlier versions kept them."""
    site = state / SITE
    earlier = [state / name for name in ("check-contact-sheet.png", "canary", "what-leaves")]
    return [place for place in (site / PICTURES, site / REHEARSAL, *earlier) if place.exists()]


def leftovers(state: Path) -> list[str]:
    """What still lies where earlier versions kept it, because there was newer in its new place."""
    return [name for name in (ANSWERS, FEEDBACK, INSTANCE) if (state / name).exists()]


def couriers_part(settings: ClientSettings) -> list[Path]:
    """All that the courier may change; it exists once the state folder is prepared."""
    state = settings.state
    folders = [settings.keys, state / COURIER, record_of(state).parent, state / PENDING]
    return [*folders, state / SITE_LOG, state / ".lock"]


def _move_in(state: Path, own: Path) -> None:
    old = leftovers(state)
    if not old:
        return
    lock = FolderLock(state)  # of a process that still knows the old places
    try:
        for name in old:
            if not (own / name).exists():
                (state / name).rename(own / name)
        sync_folder(own)
        sync_folder(state)
    finally:
        lock.release()
