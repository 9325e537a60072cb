"""A minibatch that is split over processes, and what they have to know of each other: sums over all of its rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from lae_fast import checks


class Shared:
    """The processes of a group: each holds an equal part of every minibatch, in the order of their ranks.

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
        """This process's part [n, ...] of the rows of a whole minibatch [n size, ...]."""
        return whole.chunk(self.size)[self.rank]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a value over all processes, the same bits on each of them."""
        value = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(value, group=self.group)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over all processes, the same bits on each of them."""
        return self.total(value) / self.size

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over all processes, in place, by one message, which is of the first one's type."""
        flat = self.mean(torch.cat([t.flatten().to(tensors[0].dtype) for t in tensors]))
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def of_first(self, tensors: list[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        source = 0 if self.group is None else distributed.get_global_rank(self.group, 0)
        for tensor in tensors:
            distributed.broadcast(tensor, source, group=self.group)

    def __deepcopy__(self, _: dict[int, Any]) -> Shared:
        return self  # a copy of a model shares with the same processes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a model that is read from a file shares with nobody
