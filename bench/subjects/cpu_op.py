"""A fused op on the CPU by itself: against eager PyTorch, `torch.compile` of the same, and a copy of the same bytes.

GB/s counts each array that an op has to read or write once, in every row alike; the copy moves as many bytes, half of them
read and half written.
"""

from __future__ import annotations

import torch
from finding import Finding
from timing import Calls, compare

EAGER, COMPILED, COPY = "eager PyTorch", "torch.compile", "copy of the same bytes"


def copy_of(n_bytes: int):
    """What reads n_bytes / 2 and writes as many."""
    source = torch.ones(n_bytes // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def cpu_op(title: str, calls: Calls, n_bytes: int, n_elements: int, why_not: str) -> Finding:
    """All of them, small ones many times a turn, against the first; `why_not`: why one of them is None."""
    ours = next(iter(calls))
    calls = {name: call for name, call in calls.items() if call is not None} | {COPY: copy_of(n_bytes)}
    loops = max(1, 2**16 // n_elements)
    rows = compare(calls, ours, torch.device("cpu"), warmup=2, loops=loops)
    for row in rows.values():
        row["GB/s"] = n_bytes / row["ms"] / 1e6
    return Finding(title, rows, ours, {}, (why_not,) if why_not else (), calls[ours], loops)
