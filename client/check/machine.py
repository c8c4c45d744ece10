"""Check what a round needs on this machine: weights, memory, isolation, disk and keys."""

import os
import shutil
import stat

from knowmine.client.check.findings import Finding, Level
from knowmine.client.federation.keys import SiteKeys
from knowmine.client.paths import cache_of
from knowmine.client.sam.weights import KNOWN, find_weights
from knowmine.client.settings import ClientSettings
from knowmine.client.vault.sandbox import tried
from knowmine.shared.errors import KnowmineError
from knowmine.shared.free_memory import free_memory_bytes
from knowmine.shared.trust.certificates import expires, warning_of_expiry

EMBEDDING_MB = 2.1
"""SAM's embedding of one image on disk: 256 x 64 x 64 numbers of 16 bits."""
MIN_FREE_GB = 2.0


def check_weights(settings: ClientSettings) -> list[Finding]:
    """Whether SAM's weights are here and have the pinned digest."""
    name, cache = settings.sam.weights, cache_of(settings.sam)
    if name in KNOWN and not (cache / name).exists() and not list(cache.glob(f"{name}*")):
        return [
            Finding(
                "weights",
                "note",
                f"SAM {name} is not in {cache} yet",
                "it is downloaded when the first image is mined, which needs internet access",
                "without internet access, put it there now: docs/hospital-guide.md names the file",
            )
        ]
    try:
        weights = find_weights(name, cache)
    except KnowmineError as error:
        return [Finding("weights", "error", str(error), "nothing can be mined without SAM")]
    return [Finding("weights", "good", f"SAM {weights.name}, SHA-256 {weights.digest[:16]}...")]


def check_machine(settings: ClientSettings) -> list[Finding]:
    """The device and threads that training will use, and whether memory is sufficient."""
    import torch

    from knowmine.client.device import pick_compute

    try:
        compute = pick_compute(settings.machine.device)
    except KnowmineError as error:
        return [Finding("machine", "error", str(error), "the site cannot open")]
    threads = settings.machine.threads or torch.get_num_threads()
    found = [Finding("machine", "good", f"trains on {compute} with {threads} threads")]
    if compute.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(compute.device)
        what = f"GPU memory: {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if free < 4e9:
            why = "SAM and a training batch need about 4 GB"
            repair = "stop other programs, or ask for a smaller training.batch"
            found.append(Finding("machine", "warning", what, why, repair))
        else:
            found.append(Finding("machine", "good", what))
    available = free_memory_bytes() / 1e9
    if available < 4:
        why = "a site of 1000 images needs about 3 GB; the system kills programs if memory runs out"
        repair = "stop other programs while a round runs"
        found.append(Finding("machine", "warning", f"{available:.1f} GB memory free", why, repair))
    else:
        found.append(Finding("machine", "good", f"{available:.1f} GB memory free"))
    return found


def check_isolation(settings: ClientSettings) -> list[Finding]:
    """Whether this machine can isolate the process that sees the images."""
    if settings.isolation == "off":
        what = "isolation is off: the process that sees the images has the network"
        why = "the kernel then does not enforce that images stay here; only this program does"
        return [Finding("isolation", "warning", what, why, "set isolation: auto")]
    missing = tried(settings.keys)
    if not missing:
        what = "the process that sees the images gets no network, no sockets and no keys"
        return [Finding("isolation", "good", what)]
    level: Level = "error" if settings.isolation == "required" else "warning"
    why = "a bug in a library could then send out more than weights"
    repair = "enable user namespaces and Landlock, or run it as the services in the guide do"
    what = f"the process that sees the images is not isolated: {'; '.join(missing)}"
    return [Finding("isolation", level, what, why, repair)]


def check_disk(settings: ClientSettings, images: int) -> list[Finding]:
    """Whether the folders for embeddings, updates and logs are writable and have enough space."""
    found = []
    needs = {settings.state: MIN_FREE_GB, cache_of(settings.sam): images * EMBEDDING_MB / 1e3 + 1}
    for folder, wanted in needs.items():
        place = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(place, os.W_OK):
            repair = "make it writable for the user who runs knowmine-client, or choose another"
            found.append(Finding("disk", "error", f"{folder} cannot be written", repair=repair))
            continue
        free = shutil.disk_usage(place).free / 1e9
        what = f"{free:.0f} GB free for {folder}"
        if free < wanted:
            why = f"about {wanted:.0f} GB are needed; a full disk stops the running round"
            found.append(Finding("disk", "warning", what, why, "free some space"))
        else:
            found.append(Finding("disk", "good", what))
    return found


def check_keys(settings: ClientSettings) -> list[Finding]:
    """Whether the certificate is valid and only this user can read the keys."""
    try:
        keys = SiteKeys.load(settings.keys, settings.site)
    except KnowmineError as error:
        return [Finding("keys", "error", str(error), "the server would refuse the site")]
    if warning := warning_of_expiry(keys.certificate):
        return [
            Finding(
                "keys", "warning", warning, repair="run the site: it renews its certificate itself"
            )
        ]
    found = [Finding("keys", "good", f"certificate until {expires(keys.certificate):%Y-%m-%d}")]
    if stat.S_IMODE(settings.keys.stat().st_mode) & 0o077:
        repair = f"chmod 700 {settings.keys}"
        found.append(
            Finding("keys", "warning", f"{settings.keys} is open to others", repair=repair)
        )
    return found
