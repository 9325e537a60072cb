"""The findings of gpu_table.py under pytest, where there is a GPU: the same tables, printed and stored.

Run with `pytest bench/bench_gpu.py --benchmark-only`. What pytest-benchmark times here is the measuring itself.
"""

from __future__ import annotations

import functools

import pytest
import torch
from card import Setting, settings
from gpu_table import FINDINGS
from timing import show

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@functools.cache
def here() -> Setting:
    return settings(torch.device("cuda"))[0]


@pytest.mark.parametrize("name", FINDINGS)
@pytest.mark.benchmark(group="GPU")
def test_finding(benchmark, capsys, name):
    finding = benchmark.pedantic(FINDINGS[name], args=(here(),), rounds=1)
    show(benchmark, capsys, finding.title, finding.rows, finding.against, finding.notes)
    benchmark.extra_info["gpu_targets"] = finding.as_dict()["measured"]
