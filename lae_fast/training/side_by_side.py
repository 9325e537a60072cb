"""Several models trained at once in one process: on a GPU their steps are branches of one CUDA graph."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.graphs import Replayed
from lae_fast.training.step import TrainingStep, check_capturable

T = TypeVar("T")


class OwnNumbers:
    """Random numbers of one's own: `with numbers():` PyTorch's default generators go on where these have come to.

    So a model draws the same numbers, whatever is trained beside it. The generators are those of all threads, and numbers cannot be used
    within themselves. On a GPU a graph may be captured within, if it has been told of the `generators`.

    Args:
        seed: as of `torch.manual_seed`.
        device: of the model. The CPU's default generator is replaced, and that of a GPU.

    Attributes:
        generators: those on a GPU, for `Replayed`.

    Raises:
        TypeError, ValueError: the seed is no whole number from 0, or there is no such device.

    Example:
        >>> from lae_fast import training
        >>> numbers = training.OwnNumbers(seed=0)
        >>> with numbers():
        ...     first = torch.rand(2)
        >>> _ = torch.rand(5)  # somebody else's
        >>> with numbers():
        ...     second = torch.rand(2)
        >>> _ = torch.manual_seed(0)
        >>> torch.equal(torch.cat((first, second)), torch.rand(4))
        True
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        seed, self.device = checks.seed("seed", seed), checks.device("device", device)
        self.state = torch.Generator().manual_seed(seed).get_state()
        is_gpu = self.device.type == "cuda"
        self.generators = [torch.Generator(self.device).manual_seed(seed)] if is_gpu else []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for generator in self.generators:
                default = torch.cuda.default_generators[self.device.index]
                stack.callback(default.graphsafe_set_state, default.graphsafe_get_state())
                default.graphsafe_set_state(generator)  # whoever draws there draws from it, also in a graph
            others = torch.get_rng_state()
            torch.set_rng_state(self.state)
            try:
                yield
            finally:
                self.state = torch.get_rng_state()
                torch.set_rng_state(others)


@functools.cache
def _stream(device: torch.device, k: int) -> torch.cuda.Stream:
    """Always the same one for the k-th of several models: PyTorch has but 32, and a model needs one more beside its own (beside.py)."""
    return torch.cuda.Stream(device)


class SideBySide:
    """Steps of several models at once: `steps(x)` for minibatches x [k, n, ...], one for each of k models.

    The step of a small network leaves most of a GPU idle. There the steps of all models are captured in one CUDA graph, where each
    is a branch of its own, so that they share the device. Elsewhere they are taken in turn. Where a model has numbers of its own, it
    becomes what it would become alone.

    Args:
        steps: of different models on one device, with `capture=False`.
        numbers: each model's random numbers. None: all draw from PyTorch's default generators, in turn.
        capture: replay the steps from a CUDA graph, as `TrainingStep` does; default: on a GPU.

    Raises:
        TypeError, ValueError: there is no step, or one that is captured itself, in parts or shared with other processes; models
            share a parameter, or are on several devices; there are not as many numbers as steps, on the models' device; or an optimizer
            cannot be captured.

    Example:
        >>> from lae_fast import models, training
        >>> def step(seed):
        ...     torch.manual_seed(seed)
        ...     model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1))
        ...     return lae_fast.TrainingStep(model, training.adam(model, lr=model.lr), capture=False)
        >>> steps = training.SideBySide([step(seed) for seed in range(3)])
        >>> steps(torch.rand(3, 32, 64)).shape  # three losses, of a minibatch of 32 images each
        torch.Size([3])
    """

    def __init__(
        self,
        steps: Sequence[TrainingStep],
        numbers: Sequence[OwnNumbers] | None = None,
        *,
        capture: bool | None = None,
    ) -> None:
        self.steps = _all("steps", steps, TrainingStep)
        for step in self.steps:
            if step.replayed is not None or step.parts is not None or getattr(step.model, "share", None):
                raise ValueError(
                    "a step is captured, in parts or shared with other processes; expected capture=False alone"
                )
        parameters = [p for step in self.steps for p in step.model.parameters()]
        devices = {p.device for p in parameters}
        if len(devices) != 1:
            raise ValueError(f"{len(self.steps)} steps are on {len(devices)} devices; expected one device")
        if len({id(p) for p in parameters}) < len(parameters):
            raise ValueError("two steps share parameters; expected a model of its own for each")
        self.device = devices.pop()
        own = [] if numbers is None else _all("numbers", numbers, OwnNumbers)
        if numbers is not None and len(own) != len(self.steps):
            raise ValueError(
                f"there are numbers for {len(own)} of {len(self.steps)} models; expected for each"
            )
        if wrong := [n.device for n in own if n.device != self.device]:
            raise ValueError(f"numbers are on {wrong[0]}; expected all on {self.device}, as the models")
        self.numbers: list[Callable[[], contextlib.AbstractContextManager[None]]] = list(own)
        if numbers is None:
            self.numbers = [contextlib.nullcontext] * len(self.steps)
        is_captured = self.device.type == "cuda" if capture is None else checks.flag("capture", capture)
        for step in self.steps if is_captured else ():
            check_capturable(step.optimizer)
        generators = [g for n in own for g in n.generators]
        self.replayed = Replayed(lambda: self._step(self.x), self.device, generators) if is_captured else None
        self.x = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """Take one step of each model on its minibatch x [k, n, ...], or on what its `read` makes images of; returns their losses [k]
        before the step, detached; captured ones are valid until the next call.

        Raises:
            TypeError, ValueError: a model is in eval mode; x are not k minibatches, or have another shape or type than those that
                were captured.
        """
        checks.tensor("minibatches", x, dtypes=None)
        if x.shape[:1] != (len(self.steps),):
            raise ValueError(
                f"minibatches are {checks.describe(x)}; expected one for each of {len(self.steps)} models"
            )
        for step in self.steps:
            step.check_mode()
        if self.replayed is None:
            return self._step(x)
        if self.replayed.graph is None:
            self.x = x.clone()
        elif x.shape != self.x.shape or x.dtype != self.x.dtype:
            raise ValueError(
                f"minibatches are {checks.describe(x)}; expected {self.x.dtype} {list(self.x.shape)}, as captured"
            )
        else:
            self.x.copy_(x)
        losses: Tensor = self.replayed()
        torch.clear_autocast_cache()  # as TrainingStep does, whose code a replay does not run
        return losses

    def _step(self, x: Tensor) -> Tensor:
        """One step of each model; on a GPU each in a stream of its own, which begin and end together."""
        losses, streams = [], list[torch.cuda.Stream]()
        branches: list[Any] = [contextlib.nullcontext()] * len(self.steps)
        if self.device.type == "cuda":
            present = torch.cuda.current_stream(self.device)
            streams = [_stream(self.device, k) for k in range(len(self.steps))]
            branches = [torch.cuda.stream(stream) for stream in streams]
        for stream in streams:  # before any of them begins
            stream.wait_stream(present)
        for step, numbers, branch, images in zip(self.steps, self.numbers, branches, x, strict=True):
            with branch, numbers():
                losses.append(step(images))
        for stream in streams:
            present.wait_stream(stream)
        return torch.stack(losses)


def _all(name: str, given: Sequence[T], kind: type[T]) -> list[T]:
    """Those given, if all are of a kind; else a TypeError."""
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} are {checks.describe(given)}; expected a list of {kind.__name__}")
    for one in given:
        if not isinstance(one, kind):
            raise TypeError(f"one of the {name} is {checks.describe(one)}; expected all {kind.__name__}")
    return list(given)
