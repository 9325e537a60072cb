"""Work that a GPU does beside other work: in a stream of its own, eager or captured in a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result", bound="Iterable[Tensor | None]")


@functools.cache
def _beside(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """The stream beside this one, which has it to itself: another's work may run at the same time, and one stream's products
    share cuBLAS's workspace; and what is captured in a graph must not meet what is not."""
    return torch.cuda.Stream(stream.device)


class Beside(Generic[Result]):
    """`work()`, whose result, a tuple of tensors, is there for who calls this: a GPU works at it beside what follows.

    What the work reads must stay as it is until the result has been asked for, and it must be asked for.

    Args:
        device: None, or another device than a GPU: the work is done at once.
    """

    def __init__(self, work: Callable[[], Result], device: torch.device | None) -> None:
        self._is_ready = device is None or device.type != "cuda" or torch.compiler.is_compiling()
        if self._is_ready:
            self._result = work()
            return
        self._work: Callable[[], Result] | None = (
            work  # with all that it reads, whose memory must not serve others yet
        )
        current = torch.cuda.current_stream(device)
        self._stream = _beside(current)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._result = work()

    def __call__(self) -> Result:
        if not self._is_ready:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_stream(self._stream)
            for t in self._result:
                if t is not None:
                    t.record_stream(
                        current
                    )  # its memory is not free before the current stream is done with it
            self._is_ready, self._work = True, None
        return self._result
