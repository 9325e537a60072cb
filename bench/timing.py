"""One timer for all comparisons: rivals take turns, so that a busy moment of the machine hits them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from lae_fast.training.step import keep_freed_memory

Calls = dict[str, Callable[[], object]]  # by name, what is timed
Rows = dict[str, dict[str, float]]  # by name, what `summary` found and any further columns


Timer = Callable[[Callable[[], object], int], float]  # a call and how many times in a row: seconds of one


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def host_seconds(call: Callable[[], object], loops: int) -> float:
    """By the host's clock, until the work is done."""
    start = _now()
    for _ in range(loops):
        call()
    return (_now() - start) / loops


def cpu_seconds(call: Callable[[], object], loops: int) -> float:
    """Of all threads of this process together: what other processes do on the same cores hardly counts."""
    start = time.process_time()
    for _ in range(loops):
        call()
    return (time.process_time() - start) / loops


def device_seconds(call: Callable[[], object], loops: int) -> float:
    """By events in the current stream: what the host does meanwhile counts only where the device waits for it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(loops):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / loops


def timer_of(device: torch.device) -> Timer:
    return device_seconds if device.type == "cuda" else host_seconds


def round_robin(
    calls: Calls, rounds: int = 20, warmup: int = 3, loops: int = 1, timer: Timer = host_seconds
) -> dict[str, list[float]]:
    """Seconds of a call, by name: after `warmup` turns each, `rounds` rounds in turn, `loops` calls a turn."""
    keep_freed_memory()  # else it would depend on the benchmarks before how often everybody gets fresh pages
    for call in calls.values():
        for _ in range(warmup * loops):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(timer(call, loops))
    return seconds


def summary(seconds: dict[str, list[float]], against: str) -> Rows:
    """Median and quartiles in milliseconds, median and quartiles of the rounds' ratios to `against`."""
    rows = {}
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        ratios = [a / b for a, b in zip(times, seconds[against], strict=True)]
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
        rows[name] = {"ms": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}
        rows[name] |= {"ratio": ratio, "ratio_low": ratio_low, "ratio_high": ratio_high}
    return rows


def compare(
    calls: Calls,
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
