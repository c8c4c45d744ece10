"""Flower's own programs, kept quiet: what benchmarks and tests start them with."""

import os
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def quiet_environment(folder: Path) -> dict[str, str]:
    """They find each other on the path, phone nobody, and keep all they keep in `folder`/flwr."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
