"""Work that a GPU does beside other work: in a stream of its own, eager or captured in a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result", bound="Iterable[Tensor | None]")


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for each GPU: memory that is freed in a stream serves that stream again."""
    return torch.cuda.Stream(device)


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
        self._stream = _stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
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
