"""What a checkpoint holds, checked before a run takes it: its file may be damaged, of another job, or made by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lae_fast import checkpoint, checks
from lae_fast.checkpoint import Checkpoint, CheckpointError
from lae_fast.models import Architecture, Autoencoder, AutoencoderWithChain
from lae_fast.models.registry import architecture_in, check_sizes


@dataclasses.dataclass
class Progress:
    """Where training stands. With the weights, the optimizer and the chain it is all that a checkpoint needs."""

    epoch: int = 0  # complete epochs
    position: int = 0  # minibatches of the current epoch so far
    step: int = 0  # minibatches in all epochs so far
    best: float = math.inf  # validation loss, nats per image
    best_epoch: int = 0  # the one that best.safetensors is of
    decisions: int = 0  # decisions of the chain when the current epoch began
    rejections: int = 0  # rejections among them
    is_finished: bool = False


def check_architecture(wanted: Architecture, saved: Checkpoint) -> None:
    """Raise a CheckpointError unless a checkpoint is of a model of this architecture."""
    found = architecture_in(saved.metadata, saved.path)
    if found.shape == (wanted.nx,):  # also of runs from before images had a shape
        found = dataclasses.replace(found, shape=wanted.shape)
    for name, value in dataclasses.asdict(wanted).items():
        if (there := getattr(found, name)) != value:
            raise CheckpointError(
                f"{saved.path} is of another architecture: {name} is {there!r} there, {value!r} in this run"
            )
    check_sizes(wanted, saved.weights, saved.path / "model.safetensors")


def restore_chain(model: Autoencoder, state: dict[str, Any], weights: dict[str, Tensor], path: Path) -> None:
    """Take a chain's tensors from a state of older checkpoints, whose weights lack them."""
    chain = model.chain_state()
    apart = {name: t for name, t in chain.items() if name not in weights}
    given = {name: t for name, t in state.get("chain", {}).items() if name in apart or name not in chain}
    checkpoint.check_tensors(apart, given, path, unbounded=["log_step_size"])
    for name, value in given.items():
        getattr(model, name).copy_(value)
    made = [model.counters, model.n_decisions] if isinstance(model, AutoencoderWithChain) else []
    if any((n < 0).any() for n in made):
        raise ValueError("the chain has made less than no decisions")


def checked_progress(values: dict[str, Any], n_batches: int, model: Autoencoder) -> Progress:
    """Where a checkpoint stands, if a run of this model and so many minibatches an epoch can stand there."""
    found = Progress(**values)
    for field in dataclasses.fields(found):
        value, kind = getattr(found, field.name), type(field.default)
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (kind is int and value < 0) or value != value:
            raise ValueError(f"{field.name} is {checks.describe(value)}")
    steps = found.epoch * n_batches + found.position
    if found.position >= n_batches or found.step != steps or found.best_epoch > found.epoch:
        raise ValueError(f"{found} cannot be, with {n_batches} minibatches in an epoch")
    least = max(found.decisions, found.step)  # a step makes one decision or more
    if isinstance(model, AutoencoderWithChain) and (made := model.n_decisions.item()) < least:
        raise ValueError(f"its chain has made {made} decisions; expected at least {least}")
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Take Adam's moments; its options are this run's own, as its device asks."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, moments in state["state"].items():
        step = torch.tensor(0, dtype=torch.float32)
        expected = {"step": step, "exp_avg": parameters[i], "exp_avg_sq": parameters[i]}
        checkpoint.check_tensors(expected, moments, path)
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
