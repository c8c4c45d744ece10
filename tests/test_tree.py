"""The tree keeps the promises that CONTRIBUTING.md makes about it."""

import ast
import doctest
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "shared": {"shared"},
    "server": {"server", "shared"},
    "client": {"client", "shared"},
    "deploy": {"deploy", "client", "server", "shared"},
}
# Packages in the order in which they may import each other: each may import those before it. A file
# beside the packages stands before them all, unless it is listed by name.
ORDER = {
    "shared": ("", "trust", "wire"),
    "server": ("", "enrolment", "network", "journal", "rounds", "release", "status", "federation.py",
               "commands", "cli.py"),
    "client": ("", "data", "sam", "training", "mining", "storage", "review", "audit", "egress",
               "site", "vault", "federation", "check", "predict", "commands", "cli.py"),
    "deploy": ("", "phantom", "provision", "report", "simulation", "flower", "commands.py",
               "cli.py"),
}  # fmt: skip
MAX_LINES = 300
MAX_FILES = 12
MAX_METHODS = {"Door": 13, "LocalGrid": 12}
"""A list of checks, each a method; and Flower's own interface. Any other class has ten at most."""
LONGER = {"shared/settings.py": 350}
"""Files that may be longer, and how long."""
COVERED_BY = {
    "client/audit/*": "client/audit/test_log.py",
    "client/check/*": "client/check/test_check.py",
    "client/cli.py": "shared/test_command.py",
    "client/commands/*": "shared/test_command.py",
    "client/data/dicom.py": "client/data/test_images.py",
    "client/data/*": "client/data/test_dataset.py",
    "client/egress/*": "client/egress/test_egress_policy.py",
    "client/federation/fleet_client.py": "client/federation/test_link.py",
    "client/predict/*": "client/predict/test_predict.py",
    "client/review/*": "client/review/test_server.py",
    "client/sam/download.py": "client/sam/test_weights.py",
    "client/sam/*": "client/sam/test_model.py",
    "client/settings.py": "client/federation/test_enrolment.py",
    "client/site/open.py": "client/site/test_site.py",
    "client/vault/airlock_pb2.py": "client/vault/test_codec.py",
    "client/vault/*": "client/vault/test_launcher.py",
    "server/cli.py": "shared/test_command.py",
    "server/commands/*": "shared/test_command.py",
    "server/enrolment/site_certificate.py": "server/enrolment/test_allow_list.py",
    "server/network/*": "server/network/test_fleet.py",
    "server/release/*": "server/release/test_release.py",
    "server/journal/*": "server/journal/test_journal.py",
    "server/rounds/*": "server/rounds/test_rounds.py",
    "server/settings.py": "server/test_federation.py",
    "server/status/*": "browser/test_status_page.py",
    "shared/model_card.py": "server/release/test_release.py",
    "shared/package.py": "server/release/test_release.py",
    "shared/protocol.py": "shared/wire/test_codec.py",
    "shared/trust/*": "server/enrolment/test_enrolments.py",
    "shared/verbosity.py": "shared/test_command.py",
    "shared/version.py": "shared/test_command.py",
    "shared/wire/quiet_flower.py": "test_manners.py",
    "deploy/flower/settings.py": "deploy/flower/test_apps.py",
    "deploy/phantom/wall.py": "deploy/phantom/test_draw.py",
    "deploy/provision/settings.py": "deploy/provision/test_provision.py",
    "deploy/report/*": "deploy/report/test_report.py",
    "deploy/simulation/pace.py": "deploy/simulation/test_progress.py",
    "deploy/simulation/*": "deploy/simulation/test_simulate.py",
}
"""Files without a test of the same name, and the test that covers them; the first match counts."""
SOURCES = [path for side in MAY_IMPORT for path in sorted((ROOT / side).rglob("*.py"))]

# Heavy or risky packages and the only files that know them.
ONLY_IN = {
    "flwr": (
        "client/federation/app.py",
        "server/rounds/app.py",
        "server/rounds/messenger.py",
        "client/federation/fleet_client.py",
        "client/federation/identity.py",
        "client/federation/link.py",
        "client/federation/threads.py",
        "server/network/grid.py",
        "server/network/routes.py",
        "server/network/run_state.py",
        "shared/wire/codec.py",
        "shared/wire/tensors.py",
        "shared/wire/flower_objects.py",
        "shared/wire/quiet_flower.py",
        "deploy/simulation/grid.py",
        "deploy/flower/apps.py",
    ),
    "segment_anything": ("client/sam/model.py", "client/sam/encoders.py"),
    "onnxruntime": (
        "client/predict/networks.py",
        "server/release/formats.py",
    ),
}
# The trust boundary is testable without torch.
WITHOUT_TORCH = (
    "shared/protocol.py",
    "server/rounds/admission.py",
    "server/rounds/aggregation.py",
    "client/egress/release.py",
    "client/egress/porter.py",
    "client/audit/log.py",
    "client/audit/report.py",
    "client/egress/approval.py",
    "client/federation/enrolment.py",
    "client/federation/keys.py",
    "server/enrolment/enrolments.py",
    "server/network/trust.py",
)
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MAY_PRINT = (
    "*/cli.py",
    "*/*_cli.py",
    "shared/command.py",
    "deploy/commands.py",
    "deploy/phantom/draw.py",
)


def module_name(path: Path) -> str:
    """The import name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("knowmine", *parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
each_source = pytest.mark.parametrize("path", SOURCES, ids=module_name)


def is_one_of(path: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a source file's place in the tree is among `patterns`."""
    return any(path.relative_to(ROOT).match(pattern) for pattern in patterns)


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import, wherever it stands in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: knowmine uses absolute imports"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def known_module(name: str) -> str | None:
    """The knowmine module that an imported name lies in, if any."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 1, -1))
    return next((prefix for prefix in prefixes if prefix in MODULES), None)


def way_to(package: str, path: Path) -> list[str]:
    """The shortest chain of knowmine modules from `path` to one that imports `package`, or []."""
    start = module_name(path)
    chains, seen = [[start]], {start}
    while chains:
        chain = chains.pop(0)
        for _, name in imports_of(TREES[MODULES[chain[-1]]]):
            if name.split(".")[0] == package:
                return [*chain, package]
            inner = known_module(name)
            if inner and inner not in seen:
                seen.add(inner)
                chains.append([*chain, inner])
    return []


def test_every_folder_with_code_is_listed_in_pyproject():
    """A folder that pyproject.toml forgets would be missing from the wheel."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in SOURCES}

    assert sorted(module_name(ROOT / f / "__init__.py") for f in folders) == sorted(
        setuptools["packages"]
    )


def test_every_side_has_a_link_for_type_checkers():
    """Mypy sees the import package through .typing/knowmine."""
    links = {link.name: link.resolve() for link in (ROOT / ".typing" / "knowmine").iterdir()}

    assert links == {side: ROOT / side for side in MAY_IMPORT}


@each_source
def test_imports_point_only_downwards(path):
    """Server and client never know each other, and shared knows neither."""
    allowed = MAY_IMPORT[path.relative_to(ROOT).parts[0]]

    wrong = [
        f"line {line}: {name}"
        for line, name in imports_of(TREES[path])
        if name.startswith("knowmine.") and name.split(".")[1] not in allowed
    ]
    assert not wrong


def place_of(path: Path) -> int:
    """Where a file's package stands in the order of its side."""
    side, *inner = path.relative_to(ROOT).parts
    named = inner[0] if len(inner) > 1 or inner[0] in ORDER[side] else ""
    return ORDER[side].index(named)


@each_source
def test_packages_import_only_those_before_them(path):
    """So a reader can learn them one after the other, and none needs the whole."""
    wrong = [
        f"line {line}: {name}"
        for line, name in imports_of(TREES[path])
        if (inner := known_module(name))
        and inner.split(".")[1] == path.relative_to(ROOT).parts[0]
        and place_of(MODULES[inner]) > place_of(path)
    ]
    assert not wrong


def test_no_package_is_too_large():
    """Twelve files, beside the promise, tell one story; more tell two."""
    folders = {path.parent for path in SOURCES if path.parent.parent != ROOT}
    large = {
        folder.name: count
        for folder in folders
        if (count := len([*folder.glob("*.py")]) - 1) > MAX_FILES
    }
    assert not large


@each_source
def test_no_file_is_too_long(path):
    """A file tells one story."""
    most = LONGER.get(path.relative_to(ROOT).as_posix(), MAX_LINES)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most


def classes_of(path: Path) -> Iterator[ast.ClassDef]:
    """The classes of a file."""
    return (node for node in ast.walk(TREES[path]) if isinstance(node, ast.ClassDef))


@each_source
def test_no_class_does_too_much(path):
    """At most ten public methods or so, and seven arguments to make one."""
    for kind in classes_of(path):
        methods = [node for node in kind.body if isinstance(node, ast.FunctionDef)]
        public = [node.name for node in methods if not node.name.startswith("_")]
        assert len(public) <= MAX_METHODS.get(kind.name, 10), f"{kind.name}: {public}"
        for made in (node for node in methods if node.name == "__init__"):
            arguments = [*made.args.posonlyargs, *made.args.args, *made.args.kwonlyargs][1:]
            assert len(arguments) <= 7, f"{kind.name} takes {len(arguments)} arguments"


@each_source
def test_every_module_has_its_test(path):
    """Under the same path in tests/, or one that COVERED_BY names."""
    if path.name == "__init__.py":
        return
    place = path.relative_to(ROOT)
    mirror = ROOT / "tests" / place.parent / f"test_{place.name}"
    covered = [test for pattern, test in COVERED_BY.items() if place.match(pattern)]
    assert mirror.exists() or (covered and (ROOT / "tests" / covered[0]).exists())


@each_source
@pytest.mark.parametrize("package", ONLY_IN)
def test_heavy_packages_keep_to_their_files(path, package):
    """Flower, SAM and ONNX Runtime can each be replaced in one place."""
    if is_one_of(path, ONLY_IN[package]):
        return
    lines = [line for line, name in imports_of(TREES[path]) if name.split(".")[0] == package]
    assert not lines, f"{package} is imported outside {', '.join(ONLY_IN[package])}"


@pytest.mark.parametrize("place", WITHOUT_TORCH)
def test_the_trust_boundary_knows_no_torch(place):
    """Neither these files nor anything of knowmine that they import needs torch."""
    path = ROOT / place
    if path in TREES:
        assert not way_to("torch", path)


@each_source
def test_nothing_is_ever_unpickled(path):
    """Weights and arrays from outside cannot run code."""
    wrong = [
        f"line {line}: import {name}"
        for line, name in imports_of(TREES[path])
        if name.split(".")[0] in UNPICKLING and name != "pickle.UnpicklingError"
    ]
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            wrong.append(f"line {node.lineno}: torch.load without weights_only=True")
        if given.get("allow_pickle", "False") != "False":
            wrong.append(f"line {node.lineno}: {called} with allow_pickle")
    assert not wrong


@each_source
def test_only_entry_points_print(path):
    """Everything else returns, raises or logs."""
    if is_one_of(path, MAY_PRINT):
        return
    assert not [
        f"line {node.lineno}"
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo")
    ]


@each_source
def test_every_file_says_what_it_promises(path):
    """The first line of a file is a docstring's sentence."""
    assert ast.get_docstring(TREES[path])


@each_source
def test_examples_in_docstrings_hold(path):
    """What a docstring shows is what happens."""
    assert doctest.testmod(importlib.import_module(module_name(path))).failed == 0
