"""The code that a result depends on, as a digest: it changes with the code, not with comments and docstrings."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = __name__.split(".")[0]


def _origin(module: str) -> Path | None:
    """The module's file; None where there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a name within a module that is no package
        return None
    return Path(spec.origin) if spec and spec.origin else None


def imports(module: str) -> Iterator[str]:
    """The modules of this package that a module imports, wherever it does so; `from a import b` is a.b if that is a module."""
    for node in ast.walk(ast.parse(_origin(module).read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if _origin(name) else node.module for name in names]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] == PACKAGE and name != PACKAGE)


def _closure(module: str) -> list[str]:
    """The module, and all of this package that it imports, directly or not."""
    found, waiting = {module}, [module]
    while waiting:
        new = set(imports(waiting.pop())) - found
        found |= new
        waiting += new
    return sorted(found)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [
                s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            ]
    return tree


@cache
def digest(module: str) -> str:
    """A hash of the syntax of a module and of all modules of this package that it imports.

    Comments, docstrings and layout do not count.
    """
    trees = (_without_docstrings(ast.parse(_origin(name).read_text())) for name in _closure(module))
    return hashlib.sha256("\n".join(ast.dump(tree) for tree in trees).encode()).hexdigest()
