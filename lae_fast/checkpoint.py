"""Checkpoints: safetensors weights and a small state file in one folder, written completely or not at all, and read without
trust: a file says what its content must hash to, and its sizes are compared with what is expected before they take memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lae_fast.checks import first_line

_FOLDER = re.compile(r"step-(\d{9})")
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit the model; the message names the file and the reason."""


class Checkpoint(NamedTuple):
    path: Path
    weights: dict[str, Tensor]
    metadata: dict[str, Any]
    state: dict[str, Any]


# ---- writing ----


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system name this file; Python's own for a full disk names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder beside `path` that nobody else can enter; it is gone in the end."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
        yield Path(folder)


def _write(path: Path, content: bytes) -> None:
    with naming(path), path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content. Even after a crash `path` is the old file or the new one."""
    with naming(path), _beside(path) as folder:
        _write(folder / path.name, content)
        (folder / path.name).replace(path)


def sweep(folder: Path, age: float = 0.0) -> None:
    """Remove the temporary folders that killed processes have left in `folder`; where others may be writing, only those that are older
    than `age` seconds."""
    newest = time.time() - age
    for path in folder.iterdir() if folder.is_dir() else ():
        is_left = _TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        with contextlib.suppress(FileNotFoundError):  # somebody else sweeps, too
            if is_left and path.stat().st_mtime <= newest:
                shutil.rmtree(path, ignore_errors=True)


def _digest(weights: dict[str, Tensor], *texts: str) -> str:
    found = hashlib.sha256("\0".join(texts).encode())
    for name in sorted(weights):
        t = weights[name]
        found.update(f"\0{name} {t.dtype} {list(t.shape)} ".encode())
        found.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _weights_bytes(weights: dict[str, Tensor], metadata: dict[str, Any], state: str) -> bytes:
    """A safetensors file; `state` is the hash of the state file beside it, or empty."""
    # Here, as `import lae_fast` needs torch and numpy only.
    from safetensors.torch import save as safetensors_bytes

    contiguous = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    text = json.dumps(metadata)
    facts = {"lae_fast": text, "state": state, "sha256": _digest(contiguous, text, state)}
    return safetensors_bytes(contiguous, facts)


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file with JSON metadata, atomically."""
    write_atomically(path, _weights_bytes(weights, metadata, ""))


def save(
    folder: Path, step: int, weights: dict[str, Tensor], metadata: dict[str, Any], state: dict[str, Any]
) -> Path:
    """Write the checkpoint of this step as a folder, then remove older checkpoints; returns the folder.

    The rename at the end makes the checkpoint valid.
    """
    final = folder / f"step-{step:09d}"
    if final.exists():  # the checkpoint of this step; the rename proves it complete
        return final
    buffer = io.BytesIO()  # torch would hide a full disk behind a RuntimeError
    torch.save(state, buffer)
    content = buffer.getvalue()
    with naming(final):
        folder.mkdir(exist_ok=True)  # not the run's folder, which someone has removed if it is not there
        with _beside(final) as private:
            (made := private / final.name).mkdir()
            hashed = hashlib.sha256(content).hexdigest()
            _write(made / "model.safetensors", _weights_bytes(weights, metadata, hashed))
            _write(made / "state.pt", content)
            made.rename(final)
    for old in folder.iterdir():
        if _FOLDER.fullmatch(old.name) and old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


# ---- reading ----


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a dictionary.

    Raises:
        CheckpointError: it is missing or damaged, or holds something else.
    """
    try:
        _check_is_file(path)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return _dictionary(path, found)


def _check_is_file(path: Path) -> None:
    """Raise an OSError for what a reader would wait for, or never come to the end of."""
    if not path.is_file():
        raise FileNotFoundError("there is no such file")


def _dictionary(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected a dictionary")
    return value


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, metadata, and the hash of the state file beside it, if one is known."""
    from safetensors import safe_open

    try:
        _check_is_file(path)
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # a parser of arbitrary bytes may raise anything
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    text, state = facts.get("lae_fast", ""), facts.get("state", "")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but not one of lae_fast") from error
    if "sha256" in facts and facts["sha256"] != _digest(weights, text, state):  # older files have none
        raise CheckpointError(f"{path} is damaged: it does not hold what was written")
    return weights, _dictionary(path, metadata), state


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata that `save_weights` wrote.

    Raises:
        CheckpointError: the file is missing or damaged, or `save_weights` did not write it.
    """
    return _read_weights(path)[:2]


def check_tensors(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Any],
    source: Path,
    *,
    optional: Collection[str] = (),
    unbounded: Collection[str] = (),
) -> None:
    """Compare tensors by name, shape and type with those expected, and look for values that are not finite.

    Args:
        optional: names that may be missing.
        unbounded: names whose values may be -inf, as the logarithm of 0.

    Raises:
        CheckpointError: with the first name that does not fit.
    """
    for name in [*expected, *given]:
        a, b = given.get(name, "missing"), expected.get(name, "not expected")
        if a is b or (name in optional and isinstance(a, str)):
            continue
        shapes = [list(t.shape) if isinstance(t, Tensor) else t for t in (a, b)]
        if shapes[0] != shapes[1] or not isinstance(a, Tensor) or not isinstance(b, Tensor):
            raise CheckpointError(
                f"{source} is of another architecture: {name} is {shapes[0]!s:.80} there, {shapes[1]} in this model"
            )
        if a.dtype != b.dtype or a.layout != b.layout:
            raise CheckpointError(f"{source}: {name} is {a.dtype} there, {b.dtype} in this model")
        least = -torch.inf if name in unbounded else torch.finfo(a.dtype).min if a.is_floating_point() else 0
        if a.is_floating_point() and not ((a >= least) & (a < torch.inf)).all():
            raise CheckpointError(f"{source}: {name} holds values that are not finite")


def load_into(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """`load_state_dict`, with an error that names the first tensor that does not fit.

    Files from before the state of the chain was part of the weights lack it.

    Raises:
        CheckpointError: names, shapes or types differ from the model's, or values are not finite.
    """
    chain: dict[str, Tensor] = getattr(model, "chain_state", dict)()
    check_tensors(model.state_dict(), weights, source, optional=chain, unbounded=["log_step_size"])
    model.load_state_dict(weights)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in `folder`, or None if there is none.

    Raises:
        CheckpointError: the folder cannot be read, the checkpoint is damaged, or its state file holds more than plain data and
            tensors.
    """
    try:
        steps = sorted(p for p in folder.iterdir() if _FOLDER.fullmatch(p.name))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be read: {error}; expected a folder with checkpoints"
        ) from error
    if not steps:
        return None
    weights, metadata, hashed = _read_weights(steps[-1] / "model.safetensors")
    path = steps[-1] / "state.pt"
    try:
        _check_is_file(path)
        content = path.read_bytes()
        if hashed and hashlib.sha256(content).hexdigest() != hashed:
            raise ValueError("it does not hold what was written")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                raise ValueError("it would take more memory than the file has")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign pickles, and refuses them
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of arbitrary bytes may raise anything: struct.error, KeyError, ...
        raise CheckpointError(f"{path} is damaged or not a plain state file: {first_line(error)}") from error
    return Checkpoint(steps[-1], weights, metadata, _dictionary(path, state))
