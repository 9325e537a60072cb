"""A Sphinx extension that reads docstrings as this package writes them: for people who read the source, with little markup.

- Comments beside fields and arguments, which state shapes, become documentation: fields go under "Attributes", arguments of a function
  under "Args".
- Paragraphs that are set in, which hold formulas, are shown as they stand.
- A bar, and a star in front of a shape, mean themselves.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from typing import Any

from sphinx.application import Sphinx

SECTION = re.compile(r"(Args.*|Attributes|Returns|Raises|Warns|Yields|Example|Examples):$")
LITERAL = ".. code-block:: text"
BEYOND = re.compile(r"Args \((.*)\):$")


def comments_of(thing: Any) -> dict[str, str]:
    """The comments at the end of the lines of a class's annotated fields or of a function's arguments, by their names."""
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):  # not written in Python
        return {}
    (node,) = ast.parse(source).body
    if isinstance(node, ast.ClassDef):
        named = [
            (n.target.id, n)
            for n in node.body
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        ]
    elif isinstance(node, ast.FunctionDef):
        named = [(a.arg, a) for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    else:
        return {}
    lines = source.splitlines()
    ends = {name: lines[n.end_lineno - 1].partition("  # ")[2] for name, n in named}
    return {name: comment for name, comment in ends.items() if comment}


def _with_comments(thing: Any, lines: list[str]) -> list[str]:
    """The docstring with a section of comments, unless it has such a section already."""
    is_class = inspect.isclass(thing)
    comments = comments_of(thing) if is_class or inspect.isfunction(thing) else {}
    title = "Attributes:" if is_class else "Args:"
    if not comments or any(line.startswith(title.rstrip(":")) for line in lines):
        return lines
    at = next((i for i, line in enumerate(lines) if SECTION.match(line)), len(lines))
    return [
        *lines[:at],
        "",
        title,
        *(f"    {name}: {text}" for name, text in comments.items()),
        "",
        *lines[at:],
    ]


def _with_formulas(lines: list[str]) -> list[str]:
    """The docstring in which a paragraph that is set in, outside of sections, is a literal block."""
    end = next((i for i, line in enumerate(lines) if SECTION.match(line)), len(lines))
    result, is_literal = lines[:1], False
    for before, line in pairwise(lines[:end]):
        if line and not line.startswith(" "):
            is_literal = False
        if line.startswith("    ") and not before and not is_literal and ">>>" not in line:
            result += [LITERAL, ""]
            is_literal = True
        result.append(line)
    return result + lines[end:] if lines[:end] else lines


def _escaped(line: str) -> str:
    """The line, whose bars and stars mean themselves outside of code."""
    parts = re.split(r"(``?[^`]+``?)", line)
    return "".join(
        p if p.startswith("`") else re.sub(r"\||\*(?=(?:\w+\.)?shape)", r"\\\g<0>", p) for p in parts
    )


def _beyond(line: str) -> list[str]:
    """A section of arguments beyond those of a base: the sentence that says so, and a section with a usual title."""
    found = BEYOND.match(line)
    return ["", f"Arguments {found[1]}:", "", "Args:"] if found else [line]


def read(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into what napoleon reads."""
    if what in ("data", "attribute") and thing.__doc__ == type(thing).__doc__:  # of dict, or float
        lines[:] = []
        return
    literal, result = False, []
    for line in _with_formulas(_with_comments(thing, lines)):
        literal = line == LITERAL or (literal and (not line or line.startswith(" ")))
        result += [line] if literal or ">>>" in line else _beyond(_escaped(line))
    lines[:] = result


def skip_fields(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples as members of their own: they stand under "Attributes"."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", read, priority=400)  # before napoleon, at 500
    app.connect("autodoc-skip-member", skip_fields)
    return {"version": "1", "parallel_read_safe": True}
