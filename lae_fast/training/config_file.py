"""Options from a file, YAML or JSON, for `--config`. The record that a run keeps of itself, config.json, is such a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lae_fast import checks
from lae_fast.training import run_folder
from lae_fast.training.config import Config, TrainingError


def read(path: Path) -> Config:
    """The options in a file, by name: all others have their defaults.

    A run's record gives the options of that run, but for its folder: whoever uses them starts a run of their own.

    Raises:
        TrainingError: the file cannot be read, or what it holds are no options; the message names the file.
    """
    try:
        found = _content(checks.path("--config", path))
        if not isinstance(found, dict):
            raise TypeError(f"it holds {checks.describe(found)}; expected options by name")
        if "options" in found:
            found = {
                k: v for k, v in run_folder.options_in(found).items() if k not in ("output_dir", "resume")
            }
        if "resume" in found:
            raise ValueError("'resume' is no option of a file; expected --resume FOLDER")
        return Config.from_json(found)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise TrainingError(f"--config {path}: {error}") from error


def _content(path: Path) -> Any:
    if not path.exists():
        raise ValueError("there is no such file")
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError("expected a file whose name ends in .yaml, .yml or .json")
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML in which 1e-3 is a number, as in JSON and as on the command line."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(path.read_bytes(), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {error}") from error
