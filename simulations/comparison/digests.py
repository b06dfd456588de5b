"""What a cached result depends on, as one digest: if anything of it changes, the name changes.

A result of other code is no result of this code. So the digest of a stage holds the modules that it
imports, found by reading the sources: their syntax trees without docstrings, so that a comment or a
reworded sentence trains nothing again, and a changed line does.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shared.durable import canonical_json

_PACKAGES = ("client", "server", "shared", "simulations")
_LIBRARIES = ("faiss-cpu", "flwr", "numpy", "peft", "polars", "timm", "torch", "transformers")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LENGTH = 16  # hexadecimal digits in a folder's name


def digest_of(value: Any) -> str:
    """A short name of a JSON value, equal only for equal values."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:LENGTH]


def folder_digest(folder: Path) -> str:
    """What is in a folder of data: bytes of its files, names and sizes of those in folders below.

    Photos are not read again for every start; one that changes under its name and keeps its size
    goes unnoticed.
    """
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        if path.parent == folder:
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:LENGTH]


@cache
def library_versions() -> dict[str, str]:
    """Versions of what the figures are computed with."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # faiss-gpu instead of faiss-cpu
            continue
    return found


@cache
def code_digest(*modules: str) -> str:
    """Digest of modules of ours and of all modules of ours that they import, at any depth.

    Args:
        modules: their dotted names.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and (path := _source(name)) is not None:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            waiting += _imported(tree)
            found[name] = hashlib.sha256(ast.dump(_undocumented(tree)).encode()).hexdigest()
    return digest_of(found)


def _source(module: str) -> Path | None:
    """The file of a module, which is not imported; None for a name that is no module."""
    package, *rest = module.split(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest)
    files = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module, `from module import name` does not.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.partition(".")[0] in _PACKAGES)


def _undocumented(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and node.body and _is_text(node.body[0]):
            node.body = node.body[1:]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
