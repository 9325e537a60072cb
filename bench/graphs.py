"""Work captured in a CUDA graph, to be timed without the host: and how many launches it is made of."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch

from lae_fast.graphs import no_garbage

_KERNEL = 0  # CU_GRAPH_NODE_TYPE_KERNEL


class Captured(NamedTuple):
    replay: Callable[[], None]
    n_launches: int | None  # kernels of one replay; None: not on a GPU, or nobody could say
    n_others: int | None  # copies and fills of one replay


def captured(call: Callable[[], object], device: torch.device, n: int = 1) -> Captured:
    """`n` calls in a row, captured; elsewhere than on a GPU the calls themselves.

    What the calls return is kept, so that each has memory of its own, as `n` different results would; and so is the call,
    with all that a replay reads.
    """
    if device.type != "cuda":

        def run() -> None:
            for _ in range(n):
                call()

        return Captured(run, None, None)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with no_garbage(), torch.cuda.graph(graph, stream=stream):
        results = [call() for _ in range(n)]
    graph.instantiate()

    def replay(kept: tuple = (call, results)) -> None:
        graph.replay()

    return Captured(replay, *_count(graph))


def _count(graph: torch.cuda.CUDAGraph) -> tuple[int, int] | tuple[None, None]:
    """Kernels and other nodes of a captured graph, by the driver, which the process has loaded already."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, None
    handle, size = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    if driver.cuGraphGetNodes(handle, None, ctypes.byref(size)):
        return None, None
    nodes = (ctypes.c_void_p * size.value)()
    if driver.cuGraphGetNodes(handle, nodes, ctypes.byref(size)):
        return None, None
    kind, n_kernels = ctypes.c_int(), 0
    for node in nodes:
        if driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)):
            return None, None
        n_kernels += kind.value == _KERNEL
    return n_kernels, size.value - n_kernels
