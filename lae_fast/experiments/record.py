"""`report.jsonl` and `likelihood.jsonl`: the measurements of all runs so far.

What other code than today's has measured stays in the document until it is measured anew, and says by which commit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lae_fast.checkpoint import CheckpointError, write_atomically
from lae_fast.experiments.recipes import Recipe


class Measured(NamedTuple):
    metrics: dict[
        str, float
    ]  # also those of the recipes that this one needs: of the products that it was made from
    provenance: dict[str, str]  # commit, machine, versions, kernels


@dataclasses.dataclass(frozen=True)
class Drawn(Recipe):
    """A figure: nothing is measured, but it is of some data, by some commit."""

    name: str


class Record:
    """One line for each recipe on each data set: its fields, the data's digest, what was measured, and where.

    A recipe's code may have changed since; its fields are the same, and those that it did not have then are at their defaults.

    Args:
        path: the file, if there is one yet.
        digest: of the data set.

    Raises:
        CheckpointError: a line is no measurement.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest
        self._lines = self._read()  # by recipe and data
        self._added: dict[str, dict[str, Any]] = {}

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        lines = {}
        for number, text in enumerate(self.path.read_bytes().splitlines(), 1):
            try:
                line = json.loads(text)
                lines[_key(line["recipe"], line["data"])] = line
                for values, kind in ((line["metrics"], (int, float)), (line["provenance"], str)):
                    if not all(isinstance(value, kind) for value in values.values()):
                        raise TypeError(f"values are {values}")
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{self.path} is damaged: line {number} is {text!r:.80}") from error
        return lines

    def find(self, recipe: Recipe) -> Measured | None:
        """What was measured of a recipe on this data set, by whichever commit."""
        line = self._lines.get(_key(recipe.describe(), self.digest))
        return None if line is None else Measured(line["metrics"], line["provenance"])

    def is_of_other_data(self) -> bool:
        """Whether there are measurements, and all of other data."""
        return bool(self._lines) and all(line["data"] != self.digest for line in self._lines.values())

    def add(self, recipe: Recipe, measured: Measured) -> None:
        """Take what was measured now, instead of what the record had of this recipe."""
        fields, data = recipe.describe(), self.digest
        line = {"recipe": fields, "data": data, **measured._asdict()}
        self._lines[_key(fields, data)] = self._added[_key(fields, data)] = line

    def write(self) -> None:
        """Write all lines, in an order of their own: one measurement changes one line of the file. What others have written since it
        was read stays."""
        lines = self._read() | self._added
        text = "".join(f"{json.dumps(lines[key])}\n" for key in sorted(lines))
        write_atomically(self.path, text.encode())


def _key(recipe: dict[str, Any], data: str) -> str:
    return json.dumps([_completed(recipe), data], sort_keys=True)


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields, with those that its kind has got since, at their defaults."""
    kind = _kinds().get(recipe["kind"])
    fields = dataclasses.fields(kind) if kind else ()
    defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    known = defaults | recipe
    return {k: _completed(v) if isinstance(v, dict) and "kind" in v else v for k, v in known.items()}


def _kinds() -> dict[str, type[Recipe]]:
    """All kinds of recipes by name."""

    def below(kind: type[Recipe]) -> Iterator[type[Recipe]]:
        yield kind
        for each in kind.__subclasses__():
            yield from below(each)

    return {kind.__name__: kind for kind in below(Recipe)}
