"""Options from a file, YAML or JSON, for `--config`. The record that a run keeps of itself, config.json, is such a file."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from lae_fast import checks
from lae_fast.training import run_folder
from lae_fast.training.config import Config, TrainingError


@dataclasses.dataclass(frozen=True)
class Flags(Config):
    """What the command line takes: all options, and a file of them. One by one they are checked here; together by `options`, when flags
    have overridden what a file says."""

    config: Path | None = None
    """File of options, YAML or JSON, by their names here (batch_size: 64); a run's config.json is one. Flags beside it win."""

    def _check_together(self) -> None:
        pass

    def options(self) -> Config:
        """The options alone.

        Raises:
            ValueError: two contradict each other.
        """
        return Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)})


def read(path: Path) -> Flags:
    """The options in a file, by name: all others have their defaults.

    A run's record gives the options of that run, but for its folder: whoever uses them starts a run of their own.

    Raises:
        TrainingError: the file cannot be read, or what it holds are no options; the message names the file.
    """
    try:
        found = _content(checks.path("--config", path))
        if not isinstance(found, dict):
            raise TypeError(f"it holds {checks.describe(found)}; expected options by name")
        if {"options", "data"} <= found.keys():
            found = {
                k: v for k, v in run_folder.options_in(found).items() if k not in ("output_dir", "resume")
            }
        if "resume" in found:
            raise ValueError("'resume' is no option of a file; expected --resume FOLDER")
        return Flags.from_json(found)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise TrainingError(f"--config {path}: {error}") from error


def _content(path: Path) -> Any:
    if not path.exists():
        raise ValueError("there is no such file")
    if path.suffix == ".json":
        return json.loads(path.read_bytes(), object_pairs_hook=_once)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError("expected a file whose name ends in .yaml, .yml or .json")
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML in which 1e-3 is a number, as in JSON and as on the command line, None is no name, and 010 is not 8."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            _once([(key.value, None) for key, _ in node.value if key.id == "scalar"])
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

        def construct_yaml_int(self, node: Any) -> int:
            found: int = super().construct_yaml_int(node)
            if re.match(r"[-+]?0\d|.*:", node.value):
                raise ValueError(
                    f"{node.value} is {found} in YAML; expected a number without zeros in front or colons"
                )
            return found

        def construct_yaml_float(self, node: Any) -> float:
            found: float = super().construct_yaml_float(node)
            if ":" in node.value:
                raise ValueError(f"{node.value} is {found} in YAML; expected a number without colons")
            return found

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("None$"), ["N"])
    try:
        found = yaml.load(path.read_bytes(), Loader)
        return {} if found is None else found  # an empty file, or one of comments
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary, unless a name comes twice, of which the last value would count."""
    found, names = dict(pairs), [name for name, _ in pairs]
    if len(found) < len(pairs):
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is given twice; expected once")
    return found
