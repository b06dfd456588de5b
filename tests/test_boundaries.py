"""Who may import whom, and what nobody may use: read from the sources themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shared", "client", "server", "simulations", "benchmarks")
ALLOWED = {
    "shared": {"shared"},
    "client": {"client", "shared"},
    "server": {"server", "shared"},
    "simulations": {"shared", "client", "server", "simulations"},
    "benchmarks": set(PACKAGES),
}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PURE_MATHS = (
    "shared/decorrelation.py",
    "shared/losses.py",
    "shared/metrics.py",
    "shared/encoders/fusion.py",
)
# They know Flower or files; the maths knows neither.
IMPURE = {"flwr", "os", "io", "pathlib", "shutil", "tempfile", "json", "safetensors", "PIL"}
# They run code that lies in data.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_OPTIONS = {"trust_remote_code", "allow_pickle"}
RECORD_KEYS = {"arrays", "metrics", "num-examples", "server-round", "protocol-version"}

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: name_of(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def imports(path: Path) -> set[str]:
    """Top-level names of all imports, also of those inside functions."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found.add(str(node.module).split(".")[0])
    return found


def test_there_is_something_to_read() -> None:
    assert {name_of(path).split("/")[0] for path in SOURCES} == set(PACKAGES)


@each_source
def test_imports_go_one_way(path: Path) -> None:
    ours = imports(path) & {*PACKAGES, "fedshelf"}
    assert ours <= ALLOWED[name_of(path).split("/")[0]]


def test_the_front_door_only_composes_command_lines() -> None:
    modules = {
        node.module
        for node in nodes(ROOT / "fedshelf.py")
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES
    }
    assert modules <= {"server.cli", "client.cli", "simulations.cli", "shared.errors"}


@pytest.mark.parametrize("name", PURE_MATHS)
def test_the_maths_knows_neither_flower_nor_files(name: str) -> None:
    assert not imports(ROOT / name) & IMPURE
    assert "open" not in called(ROOT / name)


def called(path: Path) -> set[str]:
    """Names of plain functions called, as `f(...)` and not `object.f(...)`."""
    return {
        node.func.id
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


@each_source
def test_nothing_that_was_read_is_ever_run(path: Path) -> None:
    assert not imports(path) & UNSAFE_MODULES
    assert not called(path) & UNSAFE_CALLS
    options = {
        node.arg
        for node in nodes(path)
        if isinstance(node, ast.keyword)
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    }
    assert not options & UNSAFE_OPTIONS


@each_source
def test_only_the_wire_knows_record_keys(path: Path) -> None:
    literals = {
        node.value
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    keys = literals & RECORD_KEYS
    wire = ("shared/wire.py", "shared/wire_evaluation.py", "shared/records.py")
    assert bool(keys) == (name_of(path) in wire), keys


def test_apps_stay_thin() -> None:
    # Decode, hand over, encode: whatever else they need belongs into a module without Flower.
    heavy = {"torch", "numpy", "faiss", "transformers", "timm", "peft"}
    for name in ("client/app.py", "server/app.py"):
        assert not imports(ROOT / name) & heavy
