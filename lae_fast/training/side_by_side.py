"""Several models trained at once in one process: on a GPU their steps are branches of one CUDA graph."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.graphs import Replayed
from lae_fast.training.step import TrainingStep


class OwnNumbers:
    """Random numbers of one's own: `with numbers():` PyTorch's default generators go on where these have come to.

    So a model draws the same numbers, whatever is trained beside it. On a GPU a graph may be captured within, if it has been told of
    `generators`.

    Args:
        seed: as of `torch.manual_seed`.
        device: of the model; its default generator is replaced beside the CPU's.

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
        self.generators = []
        if self.device.type == "cuda":
            self.generators = [torch.Generator(self.device).manual_seed(seed)]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        others = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            with contextlib.ExitStack() as stack:
                for generator in self.generators:
                    stack.enter_context(_by_default(generator))
                yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(others)


@contextlib.contextmanager
def _by_default(generator: torch.Generator) -> Iterator[None]:
    """Within, whoever draws on the generator's GPU draws from it, also in a graph."""
    torch.cuda.init()
    default = torch.cuda.default_generators[generator.device.index or 0]
    others = default.graphsafe_get_state()
    default.graphsafe_set_state(generator)
    try:
        yield
    finally:
        default.graphsafe_set_state(others)


@functools.cache
def _streams(device: torch.device, n: int) -> list[torch.cuda.Stream]:
    """The same ones for all: PyTorch has but 32 of them, and each model needs one more beside its own (beside.py)."""
    return [torch.cuda.Stream(device) for _ in range(n)]


class SideBySide:
    """Steps of several models at once: `steps(x)` for minibatches x [k, n, ...], one for each of k models.

    The step of a small network leaves most of a GPU idle. There the steps of all models are captured in one CUDA graph, where each
    is a branch of its own, so that they share the device and one launch. Elsewhere they are taken in turn. Either way each model
    becomes what it would become alone, with the same random numbers.

    Args:
        steps: of different models on one device, with `capture=False`.
        numbers: each model's random numbers. None: all draw from PyTorch's default generators, in turn.
        capture: replay the steps from a CUDA graph; default: on a GPU.

    Raises:
        TypeError, ValueError: there is no step, or one that is captured itself, in parts, shared with other processes, or of a model
            or a device that another one does not have; or as many numbers as steps are not given.

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
        for step in steps:
            if not isinstance(step, TrainingStep):
                raise TypeError(f"a step is {checks.describe(step)}; expected a TrainingStep")
            if step.replayed is not None or step.parts is not None or getattr(step.model, "share", None):
                raise ValueError(
                    "a step is captured, in parts or shared with other processes; expected capture=False alone"
                )
        devices = {p.device for step in steps for p in step.model.parameters()}
        if len(devices) != 1:
            raise ValueError(
                f"{len(steps)} steps are on {len(devices)} devices; expected steps on one device"
            )
        if len({id(step.model) for step in steps}) < len(steps):
            raise ValueError("two steps are of one model; expected a model for each")
        if any(not isinstance(own, OwnNumbers) for own in numbers or ()):
            wrong = next(own for own in numbers or () if not isinstance(own, OwnNumbers))
            raise TypeError(f"numbers are {checks.describe(wrong)}; expected OwnNumbers")
        if numbers is not None and len(numbers) != len(steps):
            raise ValueError(
                f"there are numbers for {len(numbers)} of {len(steps)} models; expected for each"
            )
        self.steps, self.device = list(steps), devices.pop()
        self.numbers: list[Callable[[], contextlib.AbstractContextManager[None]]] = (
            [contextlib.nullcontext] * len(steps) if numbers is None else list(numbers)
        )
        is_captured = self.device.type == "cuda" if capture is None else checks.flag("capture", capture)
        generators = [g for own in numbers or () for g in own.generators]
        self.replayed = Replayed(lambda: self._step(self.x), self.device, generators) if is_captured else None
        self.x = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """Take one step of each model on its minibatch x [k, n, ...], or on what its `read` makes images of; returns their losses [k]
        before the step, detached; captured ones are valid until the next call.

        Raises:
            TypeError, ValueError: x are not k minibatches, or have another shape or type than those that were captured.
        """
        checks.tensor("minibatches", x, dtypes=None)
        if x.shape[:1] != (len(self.steps),):
            raise ValueError(
                f"minibatches are {checks.describe(x)}; expected one for each of {len(self.steps)} models"
            )
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
        return losses

    def _step(self, x: Tensor) -> Tensor:
        """One step of each model; on a GPU each in a stream of its own, which begin and end together."""
        losses = []
        if self.device.type != "cuda":
            for step, numbers, images in zip(self.steps, self.numbers, x, strict=True):
                with numbers():
                    losses.append(step(images))
            return torch.stack(losses)
        present, streams = torch.cuda.current_stream(self.device), _streams(self.device, len(self.steps))
        for stream, step, numbers, images in zip(streams, self.steps, self.numbers, x, strict=True):
            stream.wait_stream(present)
            with torch.cuda.stream(stream), numbers():
                losses.append(step(images))
        for stream in streams:
            present.wait_stream(stream)
        return torch.stack(losses)
