"""All benchmarks under pytest: `pytest bench/ --benchmark-only`; `-k` chooses some of them.

Prints every finding, as `table.py` does, and stores it beside the time of our own call, which pytest-benchmark takes itself.
"""

from __future__ import annotations

import functools

import pytest
import torch
from ceilings import ceilings
from finding import Benchmark, Setting
from registry import BENCHMARKS
from render import comparison


@functools.cache
def setting(device: str) -> Setting:
    here = torch.device(device)
    return ceilings(here)[0] if device == "cuda" else Setting(here)


def parameter(b: Benchmark):
    marks = [pytest.mark.benchmark(group=b.group)]
    if b.device == "cuda":
        marks += [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    return pytest.param(b, id=f"{b.device}-{b.name}", marks=marks)


@pytest.mark.parametrize("b", [parameter(b) for b in BENCHMARKS])
def test_finding(benchmark, capsys, b):
    found = b.run(setting(b.device))
    benchmark.extra_info.update(found.as_dict())
    with capsys.disabled():
        print("\n" + "\n".join(comparison(found.as_dict())))

    def until_done() -> None:
        found.ours()
        torch.cuda.synchronize()

    call = found.ours if b.device == "cpu" else until_done
    benchmark.pedantic(call, rounds=5, iterations=found.loops, warmup_rounds=1)
