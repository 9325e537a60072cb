"""A run's folder: its creation, the lock on it, the check for free space, and the record of the run."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from lae_fast import checkpoint, checks, data
from lae_fast._version import __version__
from lae_fast.training.config import Config, TrainingError, renamed

LOCK = ".lock"
# Of what a record holds; None: it may lack it.
KINDS = {"options": (dict,), "data": (str,), "resumed": (list, NoneType), "versions": (dict, NoneType)}


@contextlib.contextmanager
def claimed(config: Config) -> Iterator[Path]:
    """The run's folder, made if it does not exist, and locked: no other process has it, until this one has ended, however it
    ends. If nothing was written to a new folder, it goes again.

    Raises:
        TrainingError: the folder holds another run, another process has it, or it cannot be made.
    """
    folder, is_new = _made(config)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TrainingError(
            f"{folder} is in use by another process; wait for it, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise TrainingError(f"{folder / LOCK} cannot be locked: {error}") from error
    try:
        if config.resume is None and _is_of_others(folder / "config.json"):
            raise TrainingError(
                f"{folder / 'config.json'} is not the record of a run, which would take its place; choose another folder"
            )
        if config.resume is None and (found := _work(folder)):
            raise TrainingError(
                f"{folder} holds a run already; continue it with --resume {shlex.quote(str(folder))}, or choose "
                f"another folder: {found} is there"
            )
        for place in (folder, folder / "checkpoints"):
            checkpoint.sweep(place)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            if is_new and not {p.name for p in folder.iterdir()} - {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        lock.release()


def _made(config: Config) -> tuple[Path, bool]:
    """The folder, and whether it is new."""
    folder = config.resume or config.output_dir
    try:
        if folder is not None:
            is_new = not folder.exists()
            if config.resume is None:
                folder.mkdir(parents=True, exist_ok=True)
            return folder, is_new
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        first = folder = Path("runs") / f"{config.model}-{stamp}"
        first.parent.mkdir(exist_ok=True)
        for i in itertools.count(2):
            with contextlib.suppress(FileExistsError):  # of a run that started in the same second
                folder.mkdir()
                return folder, True
            folder = first.with_name(f"{first.name}-{i}")
    except OSError as error:
        raise TrainingError(f"--output-dir {folder} cannot be made: {error}") from error
    raise AssertionError("there is always a next name")


def _work(folder: Path) -> str | None:
    """What a run has left in a folder that is worth keeping; None: it never came so far."""
    records = folder / "metrics.jsonl"
    found = [n for n in ("results.json", "best.safetensors") if (folder / n).exists()]
    found += [f"checkpoints/{p.name}" for p in (folder / "checkpoints").glob("step-*")]
    found += [records.name] if records.exists() and records.stat().st_size else []
    return next(iter(found), None)


def _is_of_others(path: Path) -> bool:
    """Whether a config.json holds something else than a run's options. What a killed run may have left holds nothing, or the
    beginning of a record."""
    try:
        text = path.read_bytes().strip(b"\0") if path.exists() else b""  # zeros are what a power cut leaves
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error}") from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        begin = b'{\n  "options": {'
        return not begin.startswith(text[: len(begin)])
    return not isinstance(record, dict) or (bool(record) and "options" not in record)


def check_room(folder: Path, model: nn.Module) -> None:
    """Raise a TrainingError unless three generations of weights and optimizer state, and some pictures, fit on the disk."""
    bytes_needed = 3 * 3 * sum(p.numel() * p.element_size() for p in model.parameters()) + 4 * 2**20
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise TrainingError(
            f"{folder} has {free / 2**20:.0f} MB free; this run needs about {bytes_needed / 2**20:.0f} MB"
        )


def write_record(folder: Path, config: Config, command: str = "", **facts: Any) -> None:
    """config.json: the options, and facts about data, versions and commands: the first one, and those that resumed the run."""
    commands: dict[str, Any] = {"command": command}
    if config.resume is not None:
        earlier = checkpoint.read_json(folder / "config.json")
        commands = {
            "command": earlier.get("command", command),
            "resumed": [*earlier.get("resumed", []), command],
        }
    content = json.dumps({"options": config.to_json(), **commands, **facts}, indent=2)
    checkpoint.write_atomically(folder / "config.json", content.encode())


def options_in(record: dict[str, Any]) -> dict[str, Any]:
    """The options in a run's record, as they are called today; its data set by name, where older records say auto.

    Raises:
        ValueError: the record is damaged.
    """
    for name, kind in KINDS.items():
        value = record.get(name)
        if not isinstance(value, kind):
            raise ValueError(f"{name} is {checks.describe(value)}; expected a {kind[0].__name__}")
    options, source = record["options"], record["data"]
    if options.get("dataset") == "auto" and options.get("data") is None:
        options = options | {"dataset": "mnist" if source.startswith("MNIST") else "digits"}
    return renamed(options)


def read_options(folder: Path) -> dict[str, Any]:
    """The options of the run in that folder.

    Raises:
        CheckpointError: it is not the folder of a run, or its record is damaged.
    """
    path = folder / "config.json"
    try:
        return options_in(checkpoint.read_json(path))
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{path} is damaged; {error}") from error


def read_config(folder: Path, **changes: Any) -> Config:
    """The options of the run in that folder, with these changes.

    Raises:
        CheckpointError: it is not the folder of a run, its record is damaged, or it has options that this version does not know.
    """
    try:
        return Config.from_json(read_options(folder) | changes)
    except (checkpoint.CheckpointError, ValueError, TypeError) as error:
        raise checkpoint.CheckpointError(
            f"{folder} is not the folder of a run of lae_fast {__version__}: {error}"
        ) from error


def epochs(folder: Path, lines: Sequence[Mapping[str, Any]]) -> int:
    """Complete epochs of the run in that folder, by the lines of its metrics.jsonl; without validation images by its weights, which follow
    the records.

    Raises:
        CheckpointError: the weights are damaged.
    """
    best = folder / "best.safetensors"
    known = checkpoint.load_weights(best)[1].get("epoch") if best.exists() else None
    last = next((line["epoch"] for line in reversed(lines) if "epoch" in line), 0)
    return known if type(known) is int else int(last)


def is_of_job(folder: Path, job: str, command: str) -> bool:
    """Whether the run in that folder was begun by this job of torchrun with this command, which then has started it once more.

    Raises:
        CheckpointError: its record is damaged.
    """
    path = folder / "config.json"
    record = checkpoint.read_json(path) if path.exists() else {}
    return (record.get("job"), record.get("command")) == (job, command)


def check_data(folder: Path, fingerprint: str) -> None:
    """Raise a TrainingError if the run in that folder has seen other data; older records do not say."""
    found = checkpoint.read_json(folder / "config.json").get("fingerprint", fingerprint)
    if found != fingerprint:
        raise TrainingError(
            f"{folder} was trained on other data: their fingerprint is {found!s:.80} in config.json, now {fingerprint}"
        )


def check_places(folders: Sequence[Path], own: Path | None, data_dir: Path | None) -> None:
    """Raise a ValueError where images of one's own, or data sets by name, are looked for elsewhere, and none of these runs has such."""
    has_own = set()
    for folder in folders:
        with contextlib.suppress(checkpoint.CheckpointError):  # told when its turn comes
            has_own.add(read_options(folder).get("data") is not None)
    if own is not None and has_own == {False}:
        raise ValueError(
            f"--data {own}: expected a run on images of one's own; the runs given name their data set"
        )
    if data_dir is not None and has_own == {True}:
        raise ValueError(
            f"--data-dir {data_dir}: expected a run on a data set by name; those given have images of their own"
        )


def data_to_evaluate(
    folder: Path, config: Config, own: Path | None = None, data_dir: Path | None = None
) -> data.Dataset:
    """The data of the run in that folder, for questions about its model. Where it was trained on binary images, those of test
    and validation are binary, the same at every call and for every model.

    Args:
        own, data_dir: where images of one's own, or data sets by name, lie now; None: where the run found them.

    Raises:
        DataError, ValueError: they cannot be read, or are others than those that the run was trained on, whose test images may
            have been training images.
    """
    dataset = data.load(
        (config.data and (own or config.data)) or config.dataset,
        data_dir or config.data_dir,
        validation=config.validation,
        binarization=config.binarize,
    )
    try:
        check_data(folder, dataset.fingerprint())
    except TrainingError as error:
        raise data.DataError(str(error)) from error
    return dataset
