"""Repeated work, replayed from a CUDA graph: hundreds of launches for the price of one."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lae_fast import checks
from lae_fast.ops.torch_private import end_failed_capture

# From torch 2.14 on a graph finds the generators that it draws from itself, and warns of each that is registered.
REGISTERS = torch.__version__ < "2.14"  # versions, not letters
WARMUP = 3  # calls before capture: optimizer state and lazily made library handles must exist


class Replayed:
    """`call()`, for a function that does the same work on the same memory every time.

    The first `WARMUP` calls run as they are. The next call is captured, and every later call replays the graph. The
    Python code of `call` then no longer runs: values that change must live on the device, as the noise and the step
    sizes of the ops here do.

    As with every CUDA graph, `torch.compile(mode="reduce-overhead")` must record before this capture, not after it: the
    recording frees cuBLAS's workspaces, and a graph that multiplies matrices would go on using them.

    Args:
        call: a function without arguments. Its result is valid until the next call.
        device: a GPU.
        generators: the generators that `call` draws from, besides the device's default generator.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the device is not a GPU, or a generator is on another device.
        RuntimeError: `call` cannot be captured; the call that captures raises it.
    """

    def __init__(
        self, call: Callable[[], Any], device: torch.device, generators: Sequence[torch.Generator] = ()
    ) -> None:
        checks.function("call", call)
        if not isinstance(device, torch.device):
            raise TypeError(f"device is {checks.describe(device)}; expected a torch.device")
        for generator in generators:
            checks.generator("generators", generator, device)
        if device.type != "cuda":
            raise ValueError(f"capture on {device}; expected a GPU")
        self.call, self.device, self.generators = call, device, generators
        self.stream = torch.cuda.Stream(device)
        self.n_calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Any:
        with torch.cuda.device(self.device):
            if self.graph is None:
                result = self._run_or_capture()
                if self.graph is None:
                    return result
            self.graph.replay()
            return self.result

    def _run_or_capture(self) -> Any:
        """Run or capture `call` on a separate stream, which capture requires."""
        self.n_calls += 1
        result = None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            if self.n_calls <= WARMUP:
                result = self.call()
            else:
                self.graph = self._captured()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        self._register_generators(graph)
        outside = sys.exc_info()[1]  # of a caller that mends another error
        try:
            # Other threads of a program may do what they want with the device.
            captured = torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local")
            with no_garbage(), captured:
                self.result = self.call()
        except RuntimeError as error:
            end_failed_capture(graph, pool)
            self._free_generators()
            reason = checks.first_line(_first_of(error, outside))
            raise RuntimeError(
                f"the step could not be captured in a CUDA graph ({reason}): something in it waits for "
                "the device or reads from the host; with capture=False it runs as it is"
            ) from error
        return graph

    def _register_generators(self, graph: torch.cuda.CUDAGraph) -> None:
        for generator in self.generators if REGISTERS else ():
            graph.register_generator_state(generator)

    def _free_generators(self) -> None:
        """Let generators draw again: in torch 2.11 a failed capture leaves them in it, and the next one that succeeds takes them out."""
        graph = torch.cuda.CUDAGraph()
        self._register_generators(graph)
        counter = torch.zeros(1, device=self.device)
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            counter.add_(1)


def _first_of(error: BaseException, outside: BaseException | None) -> BaseException:
    """The error that all those up to `error` followed: they only say that there is no capture any more. `outside`: what a caller
    was handling before; not one of them."""
    while (before := error.__context__) is not None and before is not outside:
        error = before
    return error


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Within, no garbage is collected: an older graph among it, as its destruction may wait for the device, could end a capture."""
    was_enabled = gc.isenabled()
    gc.disable()  # without collecting first, which takes as long as some thousand replayed steps of a sampler
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
