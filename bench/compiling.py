"""`torch.compile` as a rival: where it works, and what it says of itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


def compiled(function: Callable, run: Callable[[Callable], object]) -> tuple[Callable | None, str]:
    """`torch.compile` of a function for the shapes that `run(function)` calls it with, or None and why not."""
    torch.compiler.reset()
    candidate = torch.compile(function, dynamic=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run(candidate)
        except Exception as error:
            return None, f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}"
    return candidate, ""


def cudagraph_skips() -> int | None:
    """So many graphs of this process `torch.compile` has not served by CUDA graphs; None: this torch does not tell.

    torch has no public name for it.
    """
    try:
        from torch._dynamo.utils import counters  # takes seconds to import
    except ImportError:
        return None
    return counters["inductor"]["cudagraph_skips"]
