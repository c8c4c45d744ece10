"""Load Flower so that it reports to nobody and leaves the environment alone.

Imported before anything else of Flower: ruff sorts `flwr` below knowmine's own modules.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment_kept() -> Iterator[None]:
    """Undo what the imports in this `with` do to the environment of the process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= {name: old for name, old in before.items() if os.environ.get(name) != old}


with environment_kept():  # it sets GRPC_VERBOSITY
    from flwr.supercore import telemetry

# Flower reads FLWR_TELEMETRY_ENABLED once, as it is imported, which may have been before us; each
# event looks at this name. Its check for updates runs in Flower's own programs alone.
telemetry.FLWR_TELEMETRY_ENABLED = "0"
