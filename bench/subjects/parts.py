"""Where the time of our training step goes: its parts, timed within the step, and what is left between them.

The parts are functions of the package that are called one after the other, on the CPU, where a call returns when it is done.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch
from finding import Finding, Setting
from timing import summary

from lae_fast import ops
from lae_fast.models import layers_in_parts, products
from subjects.contestants import OURS, models
from subjects.step import step_calls

WHOLE, REST = "whole step", "between these: autograd, small tensors, Python"
PARTS = {
    (products, "linear"): "matrix products",
    (ops, "norm_relu_unchecked"): "layer norm and ReLU, forward",
    (ops, "norm_relu_backward_unchecked"): "layer norm and ReLU, backward",
    (ops, "norm_relu_sums_unchecked"): "gradients of layer norms' parameters",
    (ops, "energy_unchecked_"): "energies and their derivatives",
    (ops, "transition_unchecked"): "transitions",
    (ops, "keep_unchecked"): "selection of what a rejection leaves",
    (torch.optim.Adam, "step"): "Adam",
}


@contextlib.contextmanager
def stopwatches(seconds: dict[str, float]) -> Iterator[None]:
    """Within, every part adds the time of its calls to `seconds`."""
    originals = {(owner, name): getattr(owner, name) for owner, name in PARTS}

    def timed(part: str, function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[part] += time.perf_counter() - start
            return result

        return call

    for (owner, name), function in originals.items():
        setattr(owner, name, timed(PARTS[owner, name], function))
    try:
        yield
    finally:
        for (owner, name), function in originals.items():
            setattr(owner, name, function)


def parts(s: Setting, n_steps: int) -> Finding:
    with stopwatches(spent := defaultdict(float)):  # before the optimizer is made: it binds its step
        step = step_calls({OURS: models(512, 256, 8, n_steps, True)[OURS]}, 512)[OURS]
        seconds = defaultdict(list)
        for i in range(5 + 40):
            spent.clear()
            start = time.perf_counter()
            step()
            whole = time.perf_counter() - start
            if i < 5:
                continue
            for part in PARTS.values():
                seconds[part].append(spent[part])
            seconds[REST].append(whole - sum(spent.values()))
            seconds[WHOLE].append(whole)
    assert layers_in_parts.ops is ops  # what was watched is what the step calls
    rows = summary({WHOLE: seconds.pop(WHOLE), **seconds}, against=WHOLE)
    title = f"our training step, batch 512, nh 256, nz 8, T = {n_steps}, MH"
    return Finding(title, rows, WHOLE, {}, ours=step)
