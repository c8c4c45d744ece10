"""The same rounds and sites on Flower's own programs: a stock SuperLink and SuperNodes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from knowmine.deploy.flower import APP
from tests.deploy.small_runs import SMALL, draw_data, merged

BIN = Path(sys.executable).parent
PATIENCE_S = 240


@pytest.fixture
def settings(tmp_path) -> Path:
    """A settings file of one small round."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(merged(SMALL, {"run": {"rounds": 1}, "sites": {"count": 3}})))
    return file


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Flower's programs phone nobody and keep all they keep in the test's folder."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(log: Path, environment, *command):
    """A program and all that it starts, until the end of the block; its output is in `log`."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [BIN / command[0], *command[1:]],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for how in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, how)
                    process.wait(10)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def flwr_run(home: Path, environment, address: str, out: Path, settings: Path, *more):
    """`flwr run` of the app on the SuperLink at `address`, to the end of the run; its output."""
    (home / "flwr").mkdir(exist_ok=True)
    (home / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\n'
        "insecure = true\n"
    )
    config = f'settings="{settings}" out="{out}" sites=2 patience-s={PATIENCE_S}'
    done = subprocess.run(
        [BIN / "flwr", "run", APP, "here", "--stream", "--run-config", config, *more],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.stdout + done.stderr


@contextmanager
def superlink(environment, home: Path, port: int, *more):
    """A stock SuperLink on loopback, once it listens."""
    with running(
        home / "superlink.log",
        environment,
        "flower-superlink",
        "--insecure",
        "--disable-runtime-dependency-installation",
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--control-api-address", f"127.0.0.1:{free_port()}"),
        *more,
    ) as process:
        last = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < last:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)  # nothing tells an outsider when a port opens
        yield process


def supernode(environment, home: Path, port: int, site: str, data: Path):
    """A stock SuperNode on loopback, for one site's data."""
    config = {
        "site": site,
        "data": data,
        "state": home / site,
        "settings": home / "site.yaml",
    }
    return running(
        home / f"{site}.log",
        environment,
        "flower-supernode",
        "--insecure",
        *("--superlink", f"127.0.0.1:{port}"),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--node-config", " ".join(f'{key}="{value}"' for key, value in config.items())),
    )


@pytest.fixture
def federation(tmp_path, environment):
    """The address of a stock SuperLink with the SuperNodes of lyon and bergen."""
    site = {"model": SMALL["plan"]["model"], "machine": SMALL["machine"]}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    port = free_port()
    with ExitStack() as programs:
        programs.enter_context(superlink(environment, tmp_path, port))
        for name in ("lyon", "bergen"):
            data = draw_data(tmp_path / "data" / name, 10)
            programs.enter_context(supernode(environment, tmp_path, port, name, data))
        yield f"127.0.0.1:{port}"


def test_a_stock_superlink_and_two_supernodes_do_a_round(
    tmp_path, environment, federation, settings
):
    """Both sites' updates are in the model, and a finished run is not started over."""
    out = tmp_path / "run"
    said = flwr_run(tmp_path, environment, federation, out, settings)

    assert (out / "summary.json").is_file(), said
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["sites"]) == ("done", ["bergen", "lyon"]), said
