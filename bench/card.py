"""A GPU and its ceilings: what the measured numbers are fractions of."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from graphs import captured
from targets import GPU_TARGETS, checked
from timing import Rows, round_robin, summary, timer_of

import lae_fast
from lae_fast import info

ROOT = Path(__file__).resolve().parent.parent


class Setting(NamedTuple):
    """Where something is measured."""

    device: torch.device
    copy_rate: float  # bytes per second of a large copy, read and written
    launch: float  # seconds of the smallest kernel in a graph
    cache: int  # bytes of the card's L2
    data_dir: Path | None = None  # where MNIST lies; None: random images


class Finding(NamedTuple):
    """One table, and what it says about targets."""

    title: str
    rows: Rows
    against: str
    measured: dict[str, float]  # by the keys of GPU_TARGETS
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        checked(self.measured, GPU_TARGETS)
        return self._asdict() | {"notes": list(self.notes)}


def compare(
    calls: dict[str, Any],
    against: str,
    device: torch.device,
    counts: dict[str, int] | None = None,
    **options: Any,
) -> Rows:
    """`summary` of a round robin by the device's own timer; a call that does the thing `counts[name]` times is
    divided by it."""
    seconds = round_robin(calls, timer=timer_of(device), **options)
    counts = counts or {}
    return summary(
        {name: [s / counts.get(name, 1) for s in times] for name, times in seconds.items()}, against
    )


def _command(*words: str) -> str | None:
    try:
        finished = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def commit() -> str:
    """The commit measured: $LAE_FAST_COMMIT, where the checkout travelled without its history; else git's own word."""
    if given := os.environ.get("LAE_FAST_COMMIT"):
        return given
    found = _command("git", "rev-parse", "--short", "HEAD")
    return (
        f"{found}{' with changes' if _command('git', 'status', '--porcelain') else ''}"
        if found
        else "unknown"
    )


def machine(device: torch.device) -> dict[str, str]:
    """Card, driver and versions, for people."""
    facts = info.report()
    found = {
        "card": "none",
        "driver": (
            _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"
        ).split("\n")[0],
        "processor": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__} (CUDA {torch.version.cuda}), "
        f"lae_fast {lae_fast.__version__}",
        "kernels": facts[device.type].split(" (")[0]
        + ", built for CUDA "
        + facts.get("built for CUDA", "no"),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        found["card"] = (
            f"{p.name}, compute capability {p.major}.{p.minor}, {p.multi_processor_count} multiprocessors, "
            f"{p.L2_cache_size / 2**20:.0f} MB of L2, {p.total_memory / 2**30:.0f} GiB"
        )
    return found


def _median(call: Any, device: torch.device, loops: int = 1, rounds: int = 20) -> float:
    return statistics.median(round_robin({"": call}, rounds=rounds, loops=loops, timer=timer_of(device))[""])


def settings(
    device: torch.device,
    data_dir: Path | None = None,
    *,
    n_bytes: int = 2**31,
    n_launches: int = 1000,
    side: int = 8192,
) -> tuple[Setting, dict[str, float]]:
    """The ceilings, measured: for the benchmarks, and by name for people.

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
        products[dtype] = (
            2 * side**3 / _median(lambda a=a, b=b: a @ b, device, rounds=7)
        )  # and the clocks rise
    copy = 2 * n_bytes / _median(lambda: target.copy_(source), device, loops=3)
    kernel = 2 * n_bytes / _median(lambda: torch.bitwise_not(floats[0], out=floats[1]), device, loops=3)
    launch = _median(captured(lambda: one.add_(1), device, n_launches).replay, device) / n_launches
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    ceilings = {
        f"copy_ of {n_bytes / 2**30:.3g} GiB, GB/s read and written": copy / 1e9,
        "the same bytes by an elementwise kernel, GB/s": kernel / 1e9,
        f"one launch in a graph of {n_launches}, us": 1e6 * launch,
        f"float32 product of {side} x {side}, TFLOP/s": products[torch.float32] / 1e12,
        "bfloat16 product of these, TFLOP/s": products[torch.bfloat16] / 1e12,
    }
    return Setting(device, copy, launch, cache, data_dir), ceilings
