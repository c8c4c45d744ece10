"""Write down how a run ended, whatever happened: done, failed or paused, and why."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from knowmine.shared.errors import Interrupted, KnowmineError, Paused
from knowmine.shared.log import RunLog


@contextmanager
def ending(run: Path, log: RunLog, end: Callable[[str, str], None], go_on: str) -> Iterator[None]:
    """Run the body, then call `end(status, reason)`, whether it succeeded or not.

    go_on: how a person continues an interrupted run. Errors pass; Ctrl-C becomes `Interrupted`.
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
    """The versions of Python and of the packages that can change the result."""
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
