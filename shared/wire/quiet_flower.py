"""Import Flower so that it sends no telemetry and leaves the environment unchanged.

Import this before anything else of Flower: ruff sorts `flwr` below knowmine's own modules.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment_kept() -> Iterator[None]:
    """Undo what the body does to the environment variables of the process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= {name: old for name, old in before.items() if os.environ.get(name) != old}


with environment_kept():  # it sets GRPC_VERBOSITY
    from flwr.supercore import telemetry

# Flower reads FLWR_TELEMETRY_ENABLED once, on import, which may have been before ours. Each event
# reads this name. Flower checks for updates only in its own programs.
telemetry.FLWR_TELEMETRY_ENABLED = "0"
