"""What every benchmark makes, for whatever device: a finding. And a benchmark: what makes one."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from targets import TARGETS, checked
from timing import Rows


class Setting(NamedTuple):
    """Where something is measured."""

    device: torch.device
    copy_rate: float = math.nan  # bytes per second of a large copy, read and written; measured on a GPU
    cache: int = 0  # bytes of the card's L2
    data_dir: Path | None = None  # where MNIST lies; None: random images


class Finding(NamedTuple):
    """One table, and what it says about targets.

    Rows hold times and ratios, as `timing.compare` makes them, and any further columns; or further columns alone.
    """

    title: str
    rows: Rows
    against: str | None  # the row that the ratios are to; None: the rows hold no times
    measured: dict[str, float]  # by the keys of the device's targets
    notes: tuple[str, ...] = ()
    ours: Callable[[], object] | None = None  # our own call, for pytest-benchmark to time; it is not kept
    loops: int = 1  # calls in a row that are timed together, where one call is too short

    def as_dict(self) -> dict[str, Any]:
        """What is kept of it, as JSON."""
        return {
            "title": self.title,
            "rows": self.rows,
            "against": self.against,
            "measured": self.measured,
            "notes": list(self.notes),
        }


class Benchmark(NamedTuple):
    """What makes a finding."""

    device: str  # "cpu" or "cuda"
    group: str  # the heading that its table stands under
    name: str  # among those of its device
    path: str  # "module.function" in subjects/
    sizes: dict[str, Any]  # what the function takes beside the setting

    def function(self) -> Callable[..., Finding]:
        """Imported not before it is called: a package that one subject lacks costs no other."""
        module, name = self.path.split(".")
        return getattr(importlib.import_module(f"subjects.{module}"), name)

    def run(self, setting: Setting) -> Finding:
        found = self.function()(setting, **self.sizes)
        checked(found.measured, TARGETS[self.device])
        return found
