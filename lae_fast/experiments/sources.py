"""The code that a result depends on, as a digest: it changes with the code, not with comments and docstrings.

The digest covers the syntax of a module and of every module of this package that it imports, directly or not, except those
that only keep and label results. Python versions describe the same syntax differently: a digest belongs to one of them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = __name__.split(".")[0]
LABELS = {
    f"{PACKAGE}.{name}"
    for name in ("_version", "checkpoint", "progress", "provenance", "experiments.sources")
}


def _origin(module: str) -> Path | None:
    """The file of a module of this package; None where there is no such module."""
    if module.split(".")[0] != PACKAGE:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a name within a module that is no package
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _file(module: str) -> Path:
    """The file of a module, which may be anybody's."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} has no file")
    return Path(spec.origin)


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def read_all() -> None:
    """Read the whole package now, so that later digests are those of the code that this process runs."""
    for path in Path(__file__).parent.parent.rglob("*.py"):
        _text(path)


def _named(node: ast.AST) -> list[str]:
    """The modules that one statement or call imports; `from a import b` is a.b if that is a module, else a."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level or node.module is None:
            raise ValueError(f"line {node.lineno} imports relative to its own file; expected a full name")
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if _origin(name) else node.module for name in names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return []


def imports(module: str) -> Iterator[str]:
    """The modules of this package that a module imports, wherever in its file.

    Raises:
        ValueError: an import is relative.
    """
    for node in ast.walk(ast.parse(_text(_file(module)))):
        yield from (name for name in _named(node) if name.split(".")[0] == PACKAGE)


def _closure(module: str) -> list[str]:
    """The module, and all of this package that it imports, directly or not."""
    found, waiting = {module}, [module]
    while waiting:
        new = set(imports(waiting.pop())) - found - LABELS
        found |= new
        waiting += new
    return sorted(found)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return tree


@cache
def digest(module: str) -> str:
    """A hash of the syntax of a module and of all that it imports from this package."""
    trees = (_without_docstrings(ast.parse(_text(_file(name)))) for name in _closure(module))
    return hashlib.sha256("\n".join(ast.dump(tree) for tree in trees).encode()).hexdigest()
