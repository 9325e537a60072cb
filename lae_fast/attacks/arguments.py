"""What all attacks check of their arguments before they start."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.checks import describe

FLOATS = (torch.float16, torch.bfloat16, *checks.FLOATS)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MOST = 10**6  # steps, or restarts: more would run for days
ROUNDING = 4  # units in the last place by which normalised images may leave their bounds, which are rounded otherwise


def check(model: Any, x: Any, labels: Any, eps: Any, bounds: Any) -> tuple[Tensor, tuple[float, float]]:
    """Raise a TypeError or ValueError unless an attack accepts these arguments; returns eps as float64 [] or [K], and bounds
    that hold all of x."""
    checks.function("model", model)
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_nested or x.is_meta:
        raise _wrong(x, f"x is {describe(x)}; expected a dense tensor [m, ...] of images")
    if x.dtype not in FLOATS or x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x is {describe(x)}; expected floating point [m, ...] with m >= 1")
    low, high = _pair(bounds, torch.finfo(x.dtype).max)
    slack = ROUNDING * torch.finfo(x.dtype).eps * max(abs(v) for v in (low, high, 0) if abs(v) < math.inf)
    least, most = (value.item() for value in x.detach().aminmax())
    if not low - slack <= least <= most <= high + slack:  # a NaN fails too
        raise ValueError(
            f"x has values from {least:g} to {most:g}; expected all in [{low:g}, {high:g}], the bounds: clamp x, or "
            "give `bounds` in its units"
        )
    fits = isinstance(labels, Tensor) and labels.layout == torch.strided and not labels.is_nested
    if not fits or labels.dtype not in INTEGERS or labels.shape != x.shape[:1] or labels.device != x.device:
        raise _wrong(
            labels,
            f"labels are {describe(labels)}; expected integers [{len(x)}] on {x.device}, one for each image of x",
        )
    if labels.min() < 0:  # cross-entropy would silently ignore the label -100
        raise ValueError(f"labels go down to {labels.min().item()}; expected classes from 0 on")
    return _radii(eps), (min(low, least), max(high, most))


def _wrong(value: Any, message: str) -> Exception:
    """A TypeError about what is no tensor, a ValueError about a tensor of another form."""
    return (ValueError if isinstance(value, Tensor) else TypeError)(message)


def _pair(bounds: Any, largest: float) -> tuple[float, float]:
    """The two bounds as float; infinite ones are no bounds."""
    is_pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2
    if not is_pair or not all(_is_number(v) for v in bounds):
        raise TypeError(f"bounds are {describe(bounds)}; expected two numbers, the lower one first")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds are {bounds}; expected the lower one first")
    if any(largest < abs(v) != math.inf for v in bounds):
        raise ValueError(
            f"bounds are {bounds}; expected infinity, or numbers up to {largest:g}, which x's type holds"
        )
    return float(bounds[0]), float(bounds[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _radii(eps: Any) -> Tensor:
    """eps, a number or a sequence of K numbers (a list, a tuple, an array, a tensor), as float64 [] or [K]."""
    if isinstance(eps, Tensor):
        checks.tensor("eps", eps, dtypes=(*FLOATS, *INTEGERS))
    if isinstance(eps, Tensor) and eps.is_meta:
        raise ValueError(f"eps is {describe(eps)}; expected a tensor that holds values")
    given = eps.tolist() if hasattr(eps, "tolist") and not isinstance(eps, type) else eps
    parts = list(given) if isinstance(given, (list, tuple)) else [given]
    parts = [p.item() if isinstance(p, Tensor) and p.numel() == 1 and not p.is_meta else p for p in parts]
    if not parts or not all(_is_number(p) and 0 <= p <= torch.finfo(torch.float64).max for p in parts):
        raise ValueError(f"eps is {eps}; expected a finite number >= 0, or a sequence of at least one")
    return torch.tensor(parts if isinstance(given, (list, tuple)) else parts[0], dtype=torch.float64)


def check_size(name: str, values: Tensor, x: Tensor, norm: str = "linf") -> None:
    """Check that x's type holds sums of a few of these float64 values, and in "l2" their squares."""
    largest = torch.finfo(x.dtype).max
    limit = (math.sqrt(largest) if norm == "l2" else largest) / 8
    if values.max() > limit:
        raise ValueError(f"{name} is {values.max():g}; expected at most {limit:g}, for x of {x.dtype}")
