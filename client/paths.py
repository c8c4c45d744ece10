"""The state folder, divided so that neither of a site's two processes needs the other's part.

```
site/  vault-keys/                the vault's: what it keeps of the images, and the keys to that
courier/                          the courier's: answers, residuals, whom it was last connected as
audit/  pending/                  the record, and updates that wait: people read them too
site.log.jsonl  .lock
```
The kernel refuses the courier the vault's part and the cache of embeddings. It lets it change its
own part, record, updates that wait, log and keys, and nothing else on this machine: no folder can
take the place of another under the vault's feet. What is made later right beside the vault's part
it cannot read (`vault.sandbox.hide_folders`), so all that it needs is made beforehand.
"""

import io
import os
from pathlib import Path

from PIL import Image

from knowmine.client.settings import SITE_LOG, ClientSettings, SamSettings
from knowmine.shared.errors import CannotWrite
from knowmine.shared.trust.keys import make_private_folder, write_secret

SITE, COURIER, VAULT_KEYS, PENDING = "site", "courier", "vault-keys", "pending"
REHEARSAL, PICTURES = "rehearsal", "pictures"
"""In the vault's part: the folder of a round that only pretends; what `check` drew of images."""
ANSWERS, FEEDBACK, INSTANCE = "answers", "feedback", "instance"


def default_cache() -> Path:
    """Where fetched weights are kept: `$KNOWMINE_CACHE`, or `~/.cache/knowmine`."""
    return Path(os.environ.get("KNOWMINE_CACHE") or "~/.cache/knowmine").expanduser()


def cache_of(sam: SamSettings) -> Path:
    """Where weights and embeddings are kept."""
    return sam.cache or default_cache()


def embeddings_of(sam: SamSettings) -> Path:
    """Where SAM's embeddings are kept, below the cache."""
    return cache_of(sam) / "embeddings"


def audit_log_of(state: Path) -> Path:
    """A site's audit log, below its state folder."""
    return state / "audit" / "receipts.jsonl"


def prepare(state: Path) -> Path:
    """Make what both processes need in `state`; return the courier's part.

    Raises `CannotWrite`.
    """
    own = state / COURIER
    for folder in (
        state,
        own,
        state / SITE,
        state / VAULT_KEYS,
        audit_log_of(state).parent,
        state / PENDING,
    ):
        make_private_folder(folder)
    try:
        for name in (".lock", SITE_LOG):
            (state / name).touch()
        (own / ANSWERS).mkdir(exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot write in {state} ({error.strerror})") from error
    return own


def vaults_part(settings: ClientSettings) -> dict[str, Path]:
    """What the courier must not read beside the images, by what it is."""
    return {
        "what the vault keeps of the images": settings.state / SITE,
        "the keys to it": settings.state / VAULT_KEYS,
        "the embeddings": embeddings_of(settings.sam),
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
    """All that holds pictures of several cases at once."""
    places = (state / SITE / PICTURES, state / SITE / REHEARSAL)
    return [place for place in places if place.exists()]


def couriers_part(settings: ClientSettings) -> list[Path]:
    """All that the courier may change; it exists once the state folder is prepared."""
    state = settings.state
    folders = [settings.keys, state / COURIER, audit_log_of(state).parent, state / PENDING]
    return [*folders, state / SITE_LOG, state / ".lock"]
