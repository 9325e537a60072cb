"""A run's folder: its creation, the check for free space, and the record of the run."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from lae_fast.checkpoint import write_atomically
from lae_fast.training.config import Config, TrainingError


def prepare(config: Config) -> Path:
    """The run's folder, created if it does not exist.

    Raises:
        TrainingError: the folder holds another run, or cannot be created.
    """
    if config.resume is not None:
        return config.resume
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = config.output_dir or Path("runs") / f"{config.model}-{stamp}"
    if (folder / "config.json").exists():
        raise TrainingError(
            f"{folder} holds a run already; continue it with --resume {folder}, or choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--output-dir {folder} cannot be made: {error}") from error
    return folder


def check_room(folder: Path, model: nn.Module) -> None:
    """Raise a TrainingError unless three generations of weights and optimizer state, and some pictures, fit on the disk."""
    bytes_needed = 3 * 3 * sum(p.numel() * p.element_size() for p in model.parameters()) + 4 * 2**20
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise TrainingError(
            f"{folder} has {free / 2**20:.0f} MB free; this run needs about {bytes_needed / 2**20:.0f} MB"
        )


def write_record(folder: Path, config: Config, **facts: Any) -> None:
    """config.json: the options, and facts about data, command and versions."""
    content = json.dumps({"options": config.to_json(), **facts}, indent=2)
    write_atomically(folder / "config.json", content.encode())


def read_options(folder: Path) -> dict[str, Any]:
    """The options of the run in that folder; its data set by name, where older records say auto.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is not the folder of a run.
    """
    record = json.loads((folder / "config.json").read_text())
    options = record["options"]
    if options["dataset"] == "auto":
        options |= {"dataset": "mnist" if record["data"].startswith("MNIST") else "digits"}
    return options
