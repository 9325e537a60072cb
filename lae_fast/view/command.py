"""The command: from a run's folder to its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro

from lae_fast import checks, console, models
from lae_fast.checkpoint import CheckpointError
from lae_fast.data import DataError
from lae_fast.training import run_folder
from lae_fast.view import page


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a trained run as one page for a browser: view.html in its folder."""

    run: tyro.conf.Positional[Path]
    """A folder that `lae-fast train` has written."""
    table: Path | None = None
    """A table of `lae-fast score --output`; default: the one in the run's folder, if there is one."""
    data: Path | None = None
    """Images of your own, where they lie now; default: where the run found them (for runs on --data)."""
    data_dir: Path | None = None
    """Folder of the data sets by name; default: the folder that the run used."""

    def __post_init__(self) -> None:
        checks.expand_paths(self, "run", "table", "data", "data_dir")


def view(options: Options) -> int:
    """Write the page; the exit code."""
    folder = options.run
    config = run_folder.read_config(folder)
    run_folder.check_places([folder], options.data, options.data_dir)
    model = models.load(folder)
    dataset = run_folder.data_to_evaluate(folder, config, options.data, options.data_dir)
    path = page.write(folder, model, dataset.test, options.table, dataset.classes)
    console.say(f"written   {path}, {path.stat().st_size / 1e6:.1f} MB: open it in a browser")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, `lae-fast view`; `arguments` are those of the shell if None. Returns the exit code."""

    def body() -> int:
        found = console.arguments(arguments)
        return view(tyro.cli(Options, args=found, prog=" ".join(console.typed("view"))))

    return console.run(
        body,
        (CheckpointError, DataError, ValueError, OSError, torch.OutOfMemoryError),
        "stopped; no page was written",
    )
