"""What a call needs at its peak, by PyTorch's own record of allocations."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(call: Callable[[], object]) -> int:
    """Bytes that a call has allocated at its highest moment beyond what was there when it began, on the CPU.

    It is called twice: the first time fills buffers that stay, such as an optimizer's. Memory that libraries take
    for themselves, such as a matrix product's scratch space, is not seen.
    """
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profiler:
        call()
        with torch.profiler.record_function("measured"):
            call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    start = next(e["ts"] for e in events if e["name"] == "measured")
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    total, before, highest = 0, 0, 0
    for moment, change in changes:
        total += change
        if moment < start:
            before = highest = total
        highest = max(highest, total)
    return highest - before
