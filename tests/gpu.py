"""What the tests of GPUs share."""

import contextlib
import ctypes

import pytest
import torch

from lae_fast import (
    LAE,
    Bernoulli,
)
from lae_fast.graphs import no_garbage
from lae_fast.models import nets, whole_layers
from lae_fast.ops import library

DEVICE = "cuda"
compiled = pytest.mark.skipif(
    not all(library.backends[device].is_compiled for device in ("cpu", "cuda")),
    reason="a promise of the compiled kernels",
)
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


@contextlib.contextmanager
def no_waiting():
    """An error for whatever makes the host wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(function, keep_graph=False):
    """A graph of what `function` launches, after one call of it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph(keep_graph)
    with no_garbage(), torch.cuda.graph(graph):
        function()
    return graph


def n_launches(graph):
    """How many nodes a graph has that was kept."""
    handle, n = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    assert ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(handle, None, ctypes.byref(n)) == 0
    return n.value


whole = pytest.mark.skipif(
    not torch.cuda.is_available() or whole_layers.unfit(torch.device(DEVICE)) is not None,
    reason="no whole layers on this GPU",
)


def same_draws(monkeypatch):
    """From now on torch's random functions draw on the CPU, wherever their result goes."""

    def replace(name):
        function = getattr(torch, name)

        def draw(*arguments, generator=None, device="cpu", **options):
            return function(*arguments, **options).to(device)

        monkeypatch.setattr(torch, name, draw)

    for name in ("randn", "rand", "randint"):
        replace(name)
    monkeypatch.setattr(torch, "randn_like", lambda t: torch.randn(t.shape, dtype=t.dtype, device=t.device))


def on_both_devices(function):
    """The tensors and numbers that `function(device)` returns, on the CPU and on the GPU."""
    results = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(5)
        results.append([t.cpu() if isinstance(t, torch.Tensor) else t for t in function(device)])
    return results


def report_s_model():
    """The report's sizes, images [512, 784], and two states of their codes."""
    torch.manual_seed(0)
    m = LAE(*nets.mlp(784, 8, nh=256), Bernoulli(), nx=784, nz=8, d=256).to(DEVICE)
    x = torch.rand(512, 784).to(DEVICE)
    z = torch.randn(512, 8).to(DEVICE)
    return m, x, (z, z + 0.1 * torch.randn(512, 8).to(DEVICE))
