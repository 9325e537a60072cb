"""Our training step on a GPU, captured by us, against the same left to `torch.compile`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from compiling import cudagraph_skips
from finding import Finding, Setting
from timing import compare
from torch import Tensor, nn

from subjects.captured_step import OURS_EAGER, WARMUP
from subjects.contestants import OURS, models_on, our_step, random_images

COMPILED = "LAE, torch.compile"


def compiled_step(model: nn.Module) -> Callable[[Tensor], None]:
    """Our eager step as a user of torch.compile would have it: the loss compiled forwards and backwards, fused Adam."""
    torch.compiler.reset()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    loss = torch.compile(model.loss, mode="reduce-overhead")

    def step(x: Tensor) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return step


def against_compiler(
    s: Setting, n: int = 512, nh: int = 256, nz: int = 8, n_steps: int = 2, mh: bool = True, **options: int
) -> Finding:
    """Our step captured, eager, and left to `torch.compile`. Apart from the others: compiling takes most of a minute."""
    found, x = models_on(s.device, n, nh, nz, n_steps, mh)[OURS], random_images(n, s.device)
    compiled, skips_before = compiled_step(copy.deepcopy(found)), cudagraph_skips()
    # before ours is captured: a recording frees cuBLAS's workspaces, also where graphs use them
    for _ in range(WARMUP):
        compiled(x)
    steps = {
        OURS: our_step(found),
        OURS_EAGER: our_step(copy.deepcopy(found), capture=False),
        COMPILED: compiled,
    }
    calls = {name: lambda step=step: step(x) for name, step in steps.items()}
    rows = compare(calls, OURS, s.device, **{"warmup": WARMUP, "loops": 5} | options)
    skips = "unknown" if skips_before is None else cudagraph_skips() - skips_before
    note = (
        'torch.compile(model.loss, mode="reduce-overhead"), backward pass included; Adam fused, not compiled. '
        f"Graphs that its CUDA graphs did not serve: {skips}."
    )
    measured = {"compiled / step": rows[COMPILED]["ms"] / rows[OURS]["ms"]}
    title = f"against torch.compile, batch {n}, nh {nh}, T = {n_steps}"
    return Finding(title, rows, OURS, measured, (note,), calls[OURS])
