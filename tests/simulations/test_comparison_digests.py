"""A digest changes with what a result depends on, and with nothing else."""

import ast
import sys
from pathlib import Path

import pytest

from simulations.comparison.digests import (
    _undocumented,
    code_digest,
    digest_of,
    folder_digest,
    library_versions,
)


@pytest.fixture
def shared_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write modules into a package `shared` that is found before ours."""

    def write(**sources: str) -> str:
        folder = tmp_path / "shared"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text("")
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)
        with monkeypatch.context() as patched:
            kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "shared"}
            patched.syspath_prepend(str(tmp_path))
            code_digest.cache_clear()
            try:
                return code_digest("shared.first")
            finally:
                code_digest.cache_clear()
                sys.modules.pop("shared", None)
                sys.modules.update(kept)

    return write


def test_only_what_runs_counts(shared_module) -> None:
    plain = shared_module(first="def f(x):\n    return x + 1\n")
    assert (
        shared_module(first='"""Why."""\n\n\ndef f(x):  # more\n    """It."""\n    return x+1\n')
        == plain
    )
    assert shared_module(first="def f(x):\n    return x + 2\n") != plain


def test_what_is_imported_counts_at_any_depth(shared_module) -> None:
    first = "def f():\n    from shared.second import g\n    return g\n"
    one = shared_module(first=first, second="from shared import third\n", third="A = 1\n")
    assert shared_module(third="A = 2\n") != one
    assert shared_module(third="A = 1\n", beside="A = 3\n") == one


def test_training_hangs_on_the_loss_and_not_on_the_page() -> None:
    def closure(module: str) -> set[str]:
        from simulations.comparison import digests

        found, waiting = set(), [module]
        while waiting:
            name = waiting.pop()
            path = digests._source(name)
            if name not in found and path is not None:
                found.add(name)
                waiting += digests._imported(ast.parse(path.read_text()))
        return found

    trained = closure("simulations.training")
    assert {"shared.losses", "client.training", "server.strategy", "server.aggregation"} <= trained
    assert not {"simulations.report", "server.dashboard", "simulations.comparison.page"} & trained
    assert "simulations.clickmodel" in closure("simulations.prepare")
    assert "shared.metrics" in closure("simulations.comparison.measure")


def test_a_docstring_alone_leaves_a_body() -> None:
    tree = _undocumented(ast.parse('class A:\n    """Why."""\n'))
    assert '"Why."' not in ast.dump(tree)


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "styles.csv").write_text("a,b\n")
    (tmp_path / "images" / "1.jpg").write_bytes(b"photo")
    before = folder_digest(tmp_path)
    assert folder_digest(tmp_path) == before
    (tmp_path / "styles.csv").write_text("a,c\n")
    table = folder_digest(tmp_path)
    (tmp_path / "images" / "1.jpg").rename(tmp_path / "images" / "2.jpg")
    assert len({before, table, folder_digest(tmp_path)}) == 3


def test_values_and_versions() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    assert {"torch", "numpy", "flwr"} <= library_versions().keys()
