"""However a run ends, its folder says how: done, failed or paused, and why."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from knowmine.shared.errors import Interrupted, KnowmineError, Paused
from knowmine.shared.log import RunLog


@contextmanager
def ending(run: Path, log: RunLog, end: Callable[[str, str], None], go_on: str) -> Iterator[None]:
    """Do what stands inside, then call `end(status, reason)` whatever came of it.

    go_on: how a person goes on with an interrupted run. Errors pass; Ctrl-C becomes `Interrupted`.
    """
    status, reason = "failed", ""
    try:
        yield
        status = "done"
    except KeyboardInterrupt:
        status, reason = "paused", "interrupted"
        raise Interrupted(f"interrupted; finished rounds are safe in {run}: {go_on}") from None
    except Paused as error:
        status, reason = "paused", str(error)
        raise
    except KnowmineError as error:
        reason = str(error)
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        end(status, reason)
        log.event("end", status=status, reason=reason)


def versions() -> dict[str, str]:
    """What made the result: Python and the packages that could change it."""
    names = (
        "knowmine",
        "flwr",
        "torch",
        "segment-anything",
        "segmentation-models-pytorch",
        "onnxruntime",
        "numpy",
    )
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
