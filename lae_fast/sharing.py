"""Work that is split over processes, and what they have to know of each other: of a minibatch sums over all of its rows, of a
list of tasks the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lae_fast import checks

__all__ = ["ProcessError", "Shared"]

T = TypeVar("T")


class ProcessError(RuntimeError):
    """Another process has failed, whose results this one needs; the message names it and its error.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> share = lae_fast.sharing.Shared()
        >>> try:  # `ProcessError` is raised by all others, and the error itself by the process that meets it
        ...     share.done([lambda: 1, lambda: 1 / 0])
        ... except ZeroDivisionError as error:
        ...     print(error)
        division by zero
        >>> dist.destroy_process_group()
    """


class Shared:
    """The processes of a group: each holds an equal part of every minibatch, in the order of their ranks, or does some of many
    tasks.

    All draws of noise are made for the whole minibatch, and each process takes its rows: where their random streams are
    alike, their draws are those of one process that holds the whole minibatch, however many they are.

    Args:
        group: a process group that has been initialised; None: the default one.

    Raises:
        ValueError: there is no process group.

    Example:
        >>> import torch.distributed as dist
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)  # as torchrun and init_process_group() do
        >>> share = lae_fast.sharing.Shared()
        >>> share.rows(torch.arange(6)), share.total(torch.ones(2))  # of one process: all of it
        (tensor([0, 1, 2, 3, 4, 5]), tensor([1., 1.]))
        >>> dist.destroy_process_group()
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        if not distributed.is_available() or not distributed.is_initialized():
            raise ValueError(
                "there is no process group; expected one: start the program by torchrun, and call "
                "torch.distributed.init_process_group() first"
            )
        if group is not None and not isinstance(group, distributed.ProcessGroup):
            raise TypeError(
                f"process_group is {checks.describe(group)}; expected a process group, of which this process is a member"
            )
        self.group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)

    def rows(self, whole: Tensor) -> Tensor:
        """This process's part [n, ...] of the rows of a whole minibatch [n size, ...].

        Raises:
            ValueError: there are no equal parts, which means over all processes take for granted.
        """
        if len(whole) % self.size or not len(whole):
            raise ValueError(
                f"a minibatch has {len(whole)} rows for {self.size} processes; expected a multiple of their number"
            )
        return whole.chunk(self.size)[self.rank]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a value over all processes, the same bits on each of them."""
        value = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(value, group=self.group)
        return value

    def of_each(self, value: Tensor) -> list[Tensor]:
        """The values of all processes, in the order of their ranks."""
        values = [torch.empty_like(value) for _ in range(self.size)]
        distributed.all_gather(values, value, group=self.group)
        return values

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over all processes, the same bits on each of them."""
        return self.total(value) / self.size

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over all processes, in place, by one message, which is of the first one's type."""
        flat = torch.cat(
            [t.flatten().to(tensors[0].dtype) for t in tensors]
        )  # as large as a model: no second copy
        distributed.all_reduce(flat, group=self.group)
        for tensor, mean in zip(
            tensors, flat.div_(self.size).split([t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(mean.view_as(tensor))

    def of_first(self, tensors: list[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        source = 0 if self.group is None else distributed.get_global_rank(self.group, 0)
        for tensor in tensors:
            distributed.broadcast(tensor, source, group=self.group)

    def done(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """The results of all tasks in their order, on all processes, of which each does every `size`-th task.

        All iterate over all tasks: what happens on the way, as a draw of noise for each task, is the same for any number of
        processes. A task does not talk to other processes, and its result can be pickled; tensors are on the CPU.

        Raises:
            ProcessError: a task has failed elsewhere; the first process where one has failed raises that error itself.
        """
        own: dict[int, T] = {}
        failure = None
        try:
            for i, task in enumerate(tasks):
                if i % self.size == self.rank:
                    own[i] = task()
        except Exception as error:
            failure = error
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, (own, failure and checks.reason(failure)), group=self.group)
        failed = next((rank for rank, (_, reason) in enumerate(parts) if reason), None)
        if failed is not None:
            if failure and failed == self.rank:
                raise failure
            raise ProcessError(f"process {failed} of {self.size} has failed: {parts[failed][1]}")
        results = {i: result for part, _ in parts for i, result in part.items()}
        return [results[i] for i in sorted(results)]

    def __deepcopy__(self, _: dict[int, Any]) -> Shared:
        return self  # a copy of a model shares with the same processes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a model that is read from a file shares with nobody


def done(tasks: Iterable[Callable[[], T]], share: Shared | None) -> list[T]:
    """The results of all tasks in their order, by `Shared.done`, or where nobody shares them by this process alone."""
    return [task() for task in tasks] if share is None else share.done(tasks)


def check(share: Shared | None) -> None:
    """Raise a TypeError if the argument `share` of a public function is not one."""
    if share is not None and not isinstance(share, Shared):
        raise TypeError(
            f"share is {checks.describe(share)}; expected None or a Shared, of processes that do the work together"
        )
