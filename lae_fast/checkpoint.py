"""Checkpoints: safetensors weights and a small state file in one folder, written completely or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

_FOLDER = re.compile(r"step-(\d{9})")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit the model; the message names the file and the reason."""


class Checkpoint(NamedTuple):
    path: Path
    weights: dict[str, Tensor]
    metadata: dict[str, Any]
    state: dict[str, Any]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content. Even after a crash `path` is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file with JSON metadata, atomically."""
    contiguous = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    write_atomically(path, safetensors_bytes(contiguous, {"lae_fast": json.dumps(metadata)}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata that `save_weights` wrote.

    Raises:
        CheckpointError: the file is missing or damaged, or `save_weights` did not write it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["lae_fast"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but not one of lae_fast") from error


def load_into(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """`load_state_dict`, with an error that names the first tensor that does not fit.

    Raises:
        CheckpointError: names or shapes differ from the model's.
    """
    expected = {name: list(t.shape) for name, t in model.state_dict().items()}
    given = {name: list(t.shape) for name, t in weights.items()}
    for name in [*expected, *given]:
        a, b = given.get(name, "missing"), expected.get(name, "not expected")
        if a != b:
            raise CheckpointError(
                f"{source} is of another architecture: {name} is {a} there, {b} in this model"
            )
    model.load_state_dict(weights)


def save(
    folder: Path, step: int, weights: dict[str, Tensor], metadata: dict[str, Any], state: dict[str, Any]
) -> Path:
    """Write the checkpoint of this step as a folder, then remove older checkpoints; returns the folder.

    The rename at the end makes the checkpoint valid.
    """
    final = folder / f"step-{step:09d}"
    temporary = folder / f".{final.name}.tmp"
    if final.exists():  # the checkpoint of this step; the rename proves it complete
        return final
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_weights(temporary / "model.safetensors", weights, metadata)
        with (temporary / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in folder.iterdir():
        if _FOLDER.fullmatch(old.name) and old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in `folder`, or None if there is none.

    Raises:
        CheckpointError: the checkpoint is damaged, or its state file holds more than plain data and tensors.
    """
    steps = sorted(p for p in folder.glob("step-*") if _FOLDER.fullmatch(p.name)) if folder.is_dir() else []
    if not steps:
        return None
    weights, metadata = load_weights(steps[-1] / "model.safetensors")
    path = steps[-1] / "state.pt"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign pickles, and refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of arbitrary bytes may raise anything: struct.error, KeyError, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is damaged or not a plain state file: {reason}") from error
    for name, value in ((path, state), (steps[-1] / "model.safetensors", metadata)):
        if not isinstance(value, dict):
            raise CheckpointError(f"{name} holds a {type(value).__name__}; expected a dictionary")
    return Checkpoint(steps[-1], weights, metadata, state)
