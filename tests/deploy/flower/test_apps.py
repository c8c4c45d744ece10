"""The same rounds and sites on Flower's own programs: a stock SuperLink and SuperNodes."""

import json
import os
import signal
import socket
import subprocess
import time
import tomllib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from benchmarks.stock_flower import BIN, quiet_environment
from knowmine.deploy.flower.apps import APP, client, node_settings, open_site_of, server
from knowmine.deploy.simulation.grid import LocalGrid
from knowmine.shared.errors import REASONS, RunFailed, SettingsError, UsageError
from tests.deploy.small_runs import SMALL, draw_data, merged

from flwr.app import Context, RecordDict

PATIENCE_S = 450


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A settings file of one small round."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(merged(SMALL, {"run": {"rounds": 1}, "sites": {"count": 3}})))
    return file


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Flower's programs phone nobody and keep all they keep in the test's folder."""
    return {**quiet_environment(tmp_path), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as calibration:
        calibration.bind(("127.0.0.1", 0))
        return int(calibration.getsockname()[1])


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


def outcome(run: Path) -> tuple[str, list[str]] | None:
    """How a run ended and whose updates are in it: `flwr run` exits with 0 even when it failed."""
    file = run / "summary.json"
    if not file.is_file():
        return None
    summary = json.loads(file.read_text())
    return summary["status"], summary["per_round"][-1]["sites"] if summary["per_round"] else []


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
    """Both sites' updates are in the model."""
    out = tmp_path / "run"
    said = flwr_run(tmp_path, environment, federation, out, settings)

    assert outcome(out) == ("done", ["bergen", "lyon"]), said


class Nodes(LocalGrid):
    """Nodes of this process that all run the client that a SuperNode would load.

    configs: each node's `--node-config`.
    """

    def __init__(self, run_config, *configs):
        super().__init__(dict.fromkeys(range(2, 2 + len(configs)), client), lambda node: None)
        for context, config in zip(self._contexts.values(), configs, strict=True):
            context.node_config, context.run_config = config, run_config


def node_config(folder: Path, site: str, **more):
    """A SuperNode's configuration for ten drawn images, as Flower hands it over."""
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump({"model": SMALL["plan"]["model"], "machine": SMALL["machine"]}))
    data = draw_data(folder / "data" / site, 10)
    return {
        "site": site,
        "data": str(data),
        "state": str(folder / "state"),
        "settings": str(file),
        **more,
    }


def run_config(run: Path, settings: Path, **more):
    """What `flwr run` hands over: the app's own configuration with `--run-config` in it."""
    app = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    return {**app["config"], "settings": str(settings), "out": str(run), **more}


def do_run(config, *nodes):
    """What `flwr run` makes the SuperLink do, with these nodes."""
    grid = Nodes(config, *nodes)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
    server(grid, context)


def test_the_app_ships_names_and_no_code():
    """Nodes run the knowmine that is installed there: the bundle holds nothing to shadow it."""
    assert [file.name for file in APP.iterdir()] == ["pyproject.toml"]


def test_an_unfinished_run_is_gone_on_with(tmp_path, settings):
    """After a round that too few sites answered, the same command does what is missing."""
    config, lyon = run_config(tmp_path / "run", settings), node_config(tmp_path, "lyon")
    images = tmp_path / "data" / "lyon" / "images"
    images.rename(tmp_path / "away")
    with pytest.raises(RunFailed, match="no site can take part"):
        do_run(config, lyon)
    before = outcome(tmp_path / "run")
    (tmp_path / "away").rename(images)
    do_run(config, lyon)

    assert (before, outcome(tmp_path / "run")) == (("failed", []), ("done", ["lyon"]))


def test_a_finished_run_is_not_started_over(tmp_path, settings):
    """Its folder is left alone."""
    config, lyon = run_config(tmp_path / "run", settings), node_config(tmp_path, "lyon")
    do_run(config, lyon)

    with pytest.raises(UsageError, match="is done"):
        do_run(config, lyon)


def test_an_unfinished_run_keeps_its_settings(tmp_path, settings):
    """Going on with other settings would make a run that nobody can describe."""
    with pytest.raises(RunFailed, match="0 of 1 nodes are online"):
        do_run(run_config(tmp_path / "run", settings, **{"patience-s": 0}))
    settings.write_text(settings.read_text() + "\nsplit: {calibration: 0.5}\n")

    with pytest.raises(UsageError, match="unfinished run with another split"):
        do_run(run_config(tmp_path / "run", settings), node_config(tmp_path, "lyon"))


@pytest.mark.parametrize("key", ["settings", "out"])
def test_a_run_needs_settings_and_a_folder(tmp_path, settings, key):
    """Flower gives the app's empty default where --run-config says nothing."""
    with pytest.raises(UsageError, match=f"{key} is missing"):
        do_run({**run_config(tmp_path / "run", settings), key: ""})


def test_a_sites_error_leaves_it_as_a_code(tmp_path, settings):
    """The text of an error may name files of patients; the server is told the kind of error."""
    config = node_config(tmp_path, "lyon", data=str(tmp_path / "mueller-anna"))
    with pytest.raises(RunFailed) as failure:
        do_run(run_config(tmp_path / "run", settings), config)

    assert (REASONS["data"] in str(failure.value), "mueller" in str(failure.value)) == (True, False)


def test_a_mistake_in_a_node_config_is_named(tmp_path):
    """As in every settings file."""
    with pytest.raises(SettingsError, match="unknown key `dta`; did you mean `data`"):
        node_settings({"site": "lyon", "data": "/data", "dta": "/data"})


def test_a_site_is_opened_once_a_process(tmp_path, settings):
    """Its images are decoded for the first message, not for each."""
    config = node_config(tmp_path, "lyon")
    do_run(run_config(tmp_path / "one", settings), config)
    opened = open_site_of.cache_info()
    do_run(run_config(tmp_path / "two", settings), config)
    again = open_site_of.cache_info()

    # A run asks three times; another run has a folder of its own, so its site is opened anew.
    assert (again.misses - opened.misses, again.hits - opened.hits) == (1, 2)


def test_flowers_simulation_engine_does_a_round(tmp_path, environment, settings):
    """With Ray, the run's data folder is divided into as many sites as there are nodes."""
    drawn = yaml.safe_load(settings.read_text())
    drawn["sites"]["data"] = str(draw_data(tmp_path / "data", 20))
    settings.write_text(yaml.safe_dump(drawn))
    out, port = tmp_path / "run", free_port()
    nodes = "num-supernodes=2 init-args-num-cpus=2 client-resources-num-cpus=1"
    with superlink(environment, tmp_path, port, "--simulation"):
        said = flwr_run(
            *(tmp_path, environment, f"127.0.0.1:{port}", out, settings),
            *("--federation-config", nodes),
        )

    assert outcome(out) == ("done", ["site-1", "site-2"]), said
