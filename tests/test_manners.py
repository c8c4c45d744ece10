"""A program that imports knowmine stays as it was, and finds declared what knowmine imports."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_tree import MODULES, ROOT, TREES, imports_of

FLOWER = [name for name, path in MODULES.items() if "from flwr" in path.read_text()]
"""Modules that load Flower as they are imported."""

# Packages with threads of their own come first: those, and what torch sets, are not ours.
LOOK = """
import importlib, json, logging, os, signal, sys, threading
import numpy, onnxruntime, scipy.linalg, torch, torch._dynamo
from pathlib import Path

def seen():
    system = Path("/proc/self/status").read_text()
    return {
        "threads": threading.active_count(),
        "the system's threads": system.partition("Threads:")[2].split()[0],
        "torch's threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch's state": [str(torch.get_default_dtype()), torch.get_rng_state().tolist()],
        "torch's choices": [torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
                            torch.backends.cudnn.benchmark],
        "NumPy's errors": numpy.geterr(),
        "signals": {str(s): str(signal.getsignal(s)) for s in signal.valid_signals()},
        "logging": [logging.root.level, logging.root.disabled, len(logging.root.handlers)],
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.displayhook)],
        "folder": os.getcwd(),
        **{f"variable {name}": value for name, value in os.environ.items()},
    }

changed, before = {}, seen()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    after = seen()
    for what in {*before, *after}:
        if before.get(what) != after.get(what):
            changed[f"{name}: {what}"] = after.get(what)
    before = after
print(json.dumps(changed))
"""
SILENT = """
import importlib, sys
from urllib import request

def refuse(*_, **__):
    raise AssertionError("Flower wanted to report")

request.urlopen = refuse
if sys.argv[2:]:
    importlib.import_module(sys.argv[2])
importlib.import_module(sys.argv[1])
from flwr.supercore import telemetry
assert telemetry.event(telemetry.EventType.PING, {}).result(10) == "disabled"
assert "flwr.supercore.update_check" not in sys.modules
"""


def run(code, *arguments):
    """Run Python in a fresh process; its standard output."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE).stdout


def test_an_import_changes_nothing_of_the_process():
    """No variable, thread, signal handler, seed or log; entry points may."""
    assert json.loads(run(LOOK, json.dumps(list(MODULES)))) == {}


@pytest.mark.parametrize("module", FLOWER)
def test_flower_reports_to_nobody(module):
    """Whichever module of knowmine is imported first."""
    run(SILENT, module)


def test_flower_reports_to_nobody_even_where_it_was_there_before():
    """A host may have loaded it with its telemetry on."""
    run(SILENT, "knowmine.shared.wire.codec", "flwr.supercore.telemetry")


def declared():
    """The product's requirements by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [Requirement(line) for line in project["dependencies"]]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def imported():
    """Third-party packages that the product imports, and a file that does."""
    found: dict[str, Path] = {}
    for path, tree in TREES.items():
        for _, name in imports_of(tree):
            found.setdefault(name.split(".")[0], path)
    return {n: p for n, p in found.items() if n not in {"knowmine", *sys.stdlib_module_names}}


@pytest.mark.parametrize("package", sorted(imported()))
def test_what_is_imported_is_declared(package):
    """An indirect dependency may go with the next release of the direct one."""
    providers = {canonicalize_name(name) for name in packages_distributions()[package]}
    assert providers & set(declared()), f"{imported()[package]} imports {package}"


@pytest.mark.parametrize("name", sorted(declared()))
def test_what_is_installed_is_within_what_is_declared(name):
    """The suite vouches for no version that an installation would not get."""
    assert declared()[name].specifier.contains(version(name))
