"""One timer for all comparisons: rivals take turns, so that a busy moment of the machine hits them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def round_robin(
    rivals: dict[str, Callable[[], object]], rounds: int = 20, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds of every call, by rival: after `warmup` calls each, `rounds` rounds in turn."""
    for call in rivals.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            start = _now()
            call()
            seconds[name].append(_now() - start)
    return seconds


def summary(seconds: dict[str, list[float]], against: str) -> dict[str, dict[str, float]]:
    """Median and quartiles in milliseconds, and the ratio of medians to `against`."""
    base = statistics.median(seconds[against])
    rows = {}
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        rows[name] = {"ms": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high, "ratio": median / base}
    return rows
