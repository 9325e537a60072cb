"""Minibatches in a fixed number of parts: whichever process computes a part, all sums over a minibatch have one order, and so the
same bits for any number of processes."""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lae_fast.models.autoencoder import Autoencoder, add_gradient
from lae_fast.ops.torch_private import has_hooks
from lae_fast.sharing import Shared

T = TypeVar("T")


class FixedParts:
    """Gradients of a model from the parts of a minibatch, as if each part had a process of its own.

    A process has one copy of the model for each of its parts. The copies share its parameters, and take turns: one computes until
    it has to know what all parts have, then the next one does. All begin with the same random numbers, as processes do, so that
    Dropout has the same masks in each. Running averages of BatchNorm are the means over the parts; other buffers that a network
    changes are those of the first part of each process.

    Args:
        model: what is trained; a copy's chain is brought up to date before each minibatch, and brought back after it.
        n_parts: of a minibatch; a power of two.
        share: the processes that have the parts; None: this one has them all.

    Raises:
        ValueError: n_parts is not a power of two, or the processes cannot have equally many parts.
    """

    def __init__(self, model: nn.Module, n_parts: int, share: Shared | None) -> None:
        size, rank = (1, 0) if share is None else (share.size, share.rank)
        if n_parts < 1 or n_parts & (n_parts - 1):
            raise ValueError(f"n_parts is {n_parts}; expected a power of two")
        if n_parts % size:
            raise ValueError(
                f"n_parts is {n_parts} for {size} processes; expected a multiple of their number"
            )
        self.model, self.n_parts, self.share = model, n_parts, share
        self._check()
        self.turns = _Turns(n_parts // size, share)
        self.first = rank * self.turns.n  # of this process's parts, among all
        self.copies: list[nn.Module] = []
        self.modes: list[bool] = []  # of the model's modules, as the copies have them

    def _copy(self, k: int) -> nn.Module:
        """A copy of the model that shares its parameters, for this process's part k."""
        memo: dict[int, Any] = {
            id(p): nn.Parameter(p.detach(), p.requires_grad) for p in self.model.parameters()
        }
        copied = copy.deepcopy(self.model, memo)
        if isinstance(copied, Autoencoder):
            copied.share = _Part(self.first + k, self.n_parts, k, self.turns)
        return copied

    def add_gradients(self, x: Tensor) -> Tensor:
        """Add the gradients of the mean loss of a whole minibatch, of which this process has x [n, ...], to those of the model's
        parameters, the same bits in all processes; returns that loss [], detached.

        Raises:
            ValueError: x cannot be split into equal parts, a parameter has hooks, the model has been shared since, or its loss is
                not of the model that it is called on.
        """
        self._check()
        n = self.turns.n
        if len(x) % n or not len(x):
            raise ValueError(f"a minibatch's {len(x)} images in {n} parts; expected a multiple of {n}")
        modes = [m.training for m in self.model.modules()]
        if modes != self.modes:  # what train() does beyond a flag is done, in memory that copies share
            self.copies, self.modes = [self._copy(k) for k in range(n)], modes
        for copied in self.copies:
            _follow(self.model, copied)
        tasks = [
            lambda k=k, m=m, part=part: self._gradients(m, part, k)
            for k, (m, part) in enumerate(zip(self.copies, x.chunk(n), strict=True))
        ]
        sums = self.turns.run(tasks, x.device)[0]
        with torch.no_grad():
            for own, found in zip(self.model.buffers(), self.copies[0].buffers(), strict=True):
                own.copy_(found)
            wanted = [p for p in self.model.parameters() if p.requires_grad]
            averages = running_averages(self.model)
            sizes = [t.numel() for t in (*wanted, *averages)]
            *totals, are_there, loss = sums.split([*sizes, len(wanted), 1])
            for average in reversed(averages):
                average.copy_((totals.pop() / self.n_parts).view_as(average))
            if wanted and not are_there.any():
                raise ValueError(
                    "loss gives no gradient to the model that it is called on; expected a method of the model"
                )
            for p, total, n_there in zip(wanted, totals, are_there.tolist(), strict=True):
                if n_there:
                    add_gradient(p, (total / self.n_parts).view_as(p).to(p.dtype))
        mean_loss: Tensor = (loss / self.n_parts).view(())
        return mean_loss

    def _check(self) -> None:
        """Raise a ValueError where the copies would not do what the model does."""
        if getattr(self.model, "share", None) is not self.share:
            raise ValueError(
                "the model shares its minibatches with others than before; expected share_minibatches() before TrainingStep"
            )
        if any(has_hooks(p) for p in self.model.parameters()):
            raise ValueError("a parameter has hooks, which n_parts would not call; expected none")

    def _gradients(self, model: nn.Module, x: Tensor, k: int) -> Tensor:
        """The sums over all parts, flat, where this process's part k is x: of each gradient, of running averages, of whether a
        gradient is there, and of the loss."""
        wanted = [p for p in model.parameters() if p.requires_grad]
        for p in wanted:
            p.grad = None
        loss = gradients_and_loss(model, x)
        kind = functools.reduce(
            torch.promote_types, [p.dtype for p in wanted], loss.dtype if not wanted else wanted[0].dtype
        )
        found = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().to(kind) for p in wanted]
        found += [t.flatten().to(kind) for t in running_averages(model)]
        are_there = torch.tensor([p.grad is not None for p in wanted], dtype=kind, device=loss.device)
        return self.turns.total(k, torch.cat([*found, are_there, loss.reshape(1).to(kind)]))


def gradients_and_loss(model: Any, x: Tensor) -> Tensor:
    """Add the gradients of a model's loss for images x [n, nx] to those of its parameters; returns the loss [], detached."""
    if isinstance(model, Autoencoder):
        return model.add_gradients(x)
    loss: Tensor = model.loss(x)
    loss.backward()
    return loss.detach()


def running_averages(model: nn.Module) -> list[Tensor]:
    """What BatchNorm and its kin average in train mode, of all minibatches so far: buffers that differ between processes, each of
    which sees its own images."""
    kinds = [m for m in model.modules() if m.training and getattr(m, "track_running_stats", False)]
    found = [getattr(m, name, None) for m in kinds for name in ("running_mean", "running_var")]
    return [t for t in found if isinstance(t, Tensor)]


def _follow(model: nn.Module, copied: nn.Module) -> None:
    """Bring a copy's parameters and buffers to those of the model: somebody may have loaded or moved them."""
    for p, q in zip(model.parameters(), copied.parameters(), strict=True):
        q.data = p.data
        q.requires_grad_(p.requires_grad)
    for b, c in zip(model.buffers(), copied.buffers(), strict=True):
        c.data = b.detach().clone()


class _Part(Shared):
    """One part among all parts of a minibatch, as a model sees it: a process of its own."""

    def __init__(self, rank: int, size: int, k: int, turns: _Turns) -> None:
        self.group, self.rank, self.size, self.k, self.turns = None, rank, size, k, turns

    def total(self, value: Tensor) -> Tensor:
        return self.turns.total(self.k, value)


class _Turns:
    """n functions, each in a thread of its own, of which one runs at a time: until it asks for a total of all, then the next one.

    Args:
        share: processes with as many functions each, whose totals are over all of these, in the order of ranks.
    """

    def __init__(self, n: int, share: Shared | None) -> None:
        self.n, self.share = n, share
        self.threads = ThreadPoolExecutor(n, "part")
        self.values: list[Tensor | None] = [None] * n
        self.sum = torch.empty(0)
        self.failure: BaseException | None = None

    def run(self, functions: Sequence[Callable[[], T]], device: torch.device) -> list[T]:
        """What the functions return. Each begins with the present random numbers, and those of the last one stay.

        Raises:
            Exception: what the first one that fails has raised.
        """
        self.failure, self.device, start = None, device, random_state(device)
        as_caller = _settings(device)
        self.turn = [threading.Semaphore(0) for _ in range(self.n)]
        found: list[T] = []  # they end in their order

        def task(k: int) -> None:
            self.turn[k].acquire()
            try:
                if self.failure is None:
                    set_random_state(start, device)
                    with as_caller():
                        found.append(functions[k]())
            except BaseException as error:
                self.failure = self.failure or error
            finally:
                self._pass_on(k)

        futures = [self.threads.submit(task, k) for k in range(self.n)]
        self.turn[0].release()
        try:
            for future in futures:
                future.result()
        except BaseException as error:  # somebody interrupts the caller: not before the parts have ended
            self.failure = self.failure or error
            wait(futures)
            raise
        if self.failure is not None:
            raise self.failure
        return found

    def total(self, k: int, value: Tensor) -> Tensor:
        """The sum of what function k and all others ask with; they ask equally often."""
        self.values[k] = value
        if k == self.n - 1:
            self.sum = self._summed()
        state = random_state(self.device)
        self._pass_on(k)
        self.turn[k].acquire()
        if self.failure is not None:
            raise RuntimeError("another part of the minibatch has failed") from self.failure
        set_random_state(state, self.device)
        return self.sum.clone()  # its reader may change it

    def _summed(self) -> Tensor:
        local = pairwise_sum([v for v in self.values if v is not None])
        return local if self.share is None else pairwise_sum(self.share.of_each(local))

    def _pass_on(self, k: int) -> None:
        self.turn[(k + 1) % self.n].release()


def pairwise_sum(values: Sequence[Tensor]) -> Tensor:
    """The sum of 2^k tensors by pairs of neighbours, then of their sums: aligned halves can be summed elsewhere, with equal bits."""
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _settings(device: torch.device) -> Callable[[], contextlib.ExitStack]:
    """What makes a thread compute as the present one does: its number of threads, autocast and stream."""
    n_threads = torch.get_num_threads()
    casts = [
        (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in ("cpu", "cuda")
    ]
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def entered() -> contextlib.ExitStack:
        torch.set_num_threads(n_threads)
        stack = contextlib.ExitStack()
        for kind, dtype, is_enabled in casts:
            if is_enabled:
                stack.enter_context(torch.autocast(kind, dtype))
        if stream is not None:
            stack.enter_context(torch.cuda.stream(stream))
        return stack

    return entered


def random_state(device: torch.device) -> list[Tensor]:
    """Of the generators that a model on this device draws by."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
