"""The ceilings of a GPU: what the measured numbers are fractions of."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from finding import Setting
from graphs import captured
from timing import round_robin, timer_of


def _median(call: Any, device: torch.device, loops: int = 1, rounds: int = 20) -> float:
    return statistics.median(round_robin({"": call}, rounds=rounds, loops=loops, timer=timer_of(device))[""])


def ceilings(
    device: torch.device,
    data_dir: Path | None = None,
    *,
    n_bytes: int = 2**31,
    n_launches: int = 1000,
    side: int = 8192,
) -> tuple[Setting, dict[str, float]]:
    """Measured: for the benchmarks, and by name for people.

    Args:
        n_bytes: that the copy reads, and writes as many.
        n_launches: kernels of one element in a graph.
        side: of the square matrices.
    """
    source = torch.randint(256, (n_bytes,), dtype=torch.uint8, device=device)  # zeros could move faster
    target, one = torch.empty_like(source), torch.zeros(1, device=device)
    floats = source.view(torch.int32), target.view(torch.int32)
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = _median(lambda a=a, b=b: a @ b, device, rounds=7)  # and the clocks rise
        products[dtype] = 2 * side**3 / seconds
    copy = 2 * n_bytes / _median(lambda: target.copy_(source), device, loops=3)
    kernel = 2 * n_bytes / _median(lambda: torch.bitwise_not(floats[0], out=floats[1]), device, loops=3)
    launch = _median(captured(lambda: one.add_(1), device, n_launches).replay, device) / n_launches
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    found = {
        f"copy_ of {n_bytes / 2**30:.3g} GiB, GB/s read and written": copy / 1e9,
        "the same bytes by an elementwise kernel, GB/s": kernel / 1e9,
        f"one launch in a graph of {n_launches}, us": 1e6 * launch,
        f"float32 product of {side} x {side}, TFLOP/s": products[torch.float32] / 1e12,
        "bfloat16 product of these, TFLOP/s": products[torch.bfloat16] / 1e12,
    }
    return Setting(device, copy, cache, data_dir), found
