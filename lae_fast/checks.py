"""Checks of arguments at the public edge: each raises a TypeError or ValueError that names the argument, what was given and
what was expected, and returns the value in the form that the core takes."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Name = TypeVar("Name", bound=str)

FLOATS = (torch.float32, torch.float64)
REAL = (*FLOATS, torch.float16, torch.bfloat16, torch.int32, torch.int64)


def describe(value: Any) -> str:
    """A value in a few words, for people: a tensor by type, shape and device, an array by type and shape."""
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
        shape = "nested" if value.is_nested else list(value.shape)
        return f"{layout}{str(value.dtype).removeprefix('torch.')} {shape} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)} (ndarray)"
    if isinstance(value, tuple) and any(isinstance(v, Tensor) for v in value[:4]):
        text = ", ".join(map(describe, value[:4])) + (", ..." if len(value) > 4 else "")
        return f"({text}) ({type(value).__name__})"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def reason(error: BaseException) -> str:
    """What an error says, or else its name, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or else its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def count(name: str, value: Any, least: int = 1, most: int = 2**63 - 1) -> int:
    """A whole number from `least` to `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} is {describe(value)}; expected a whole number")
    if not least <= number <= most:
        limits = f"at least {least}" if number < least else f"at most {most}"
        raise ValueError(f"{name} is {number}; expected {limits}")
    return number


def seed(name: str, value: Any) -> int:
    """A seed, as PyTorch takes it and people give it."""
    return count(name, value, 0, 2**64 - 1)


def number(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> float:
    """A finite number that is >= least, > above and < below."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {describe(value)}; expected a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not (math.isfinite(found) and found >= least and found > above and found < below):
        limits = [f">= {least:g}"] if least > -math.inf else []
        limits += [f"> {above:g}"] if above > -math.inf else []
        limits += [f"< {below:g}"] if below < math.inf else []
        raise ValueError(f"{name} is {found:g}; expected a finite number {' and '.join(limits)}".rstrip())
    return found


def fraction(name: str, value: Any) -> float:
    """A number from 0 to 1."""
    found = number(name, value)
    if not 0 <= found <= 1:
        raise ValueError(f"{name} is {value}; expected a number from 0 to 1")
    return found


def choice(name: str, value: Name, known: Iterable[str]) -> Name:
    """One of the known names."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {describe(value)}; expected True or False")
    return value


def tensor(
    name: str,
    value: Any,
    axes: str | None = None,
    *,
    dtypes: tuple[torch.dtype, ...] | None = FLOATS,
    device: torch.device | None = None,
) -> Tensor:
    """A dense tensor with these axes, of one of these types, on this device.

    Args:
        axes: as people write them, "C, nz, d": one for each axis, and a number where its size is known. None: any.
        dtypes: None: any.
    """
    kinds = " or ".join(str(d).removeprefix("torch.") for d in dtypes or ()) or "a tensor"
    expected = kinds + ("" if axes is None else f" [{axes}]") + ("" if device is None else f" on {device}")
    verb = "are" if name.endswith("s") else "is"
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} {verb} {describe(value)}; expected {expected}, a tensor".replace("a tensor, a", "a")
        )
    sizes = None if axes is None else [a.strip() for a in axes.split(",") if a.strip()]
    is_dense = value.layout == torch.strided and not value.is_nested
    fits = sizes is None or (
        is_dense
        and value.dim() == len(sizes)
        and all(not a.isdigit() or int(a) == n for a, n in zip(sizes, value.shape, strict=True))
    )
    fits = fits and (dtypes is None or value.dtype in dtypes) and (device is None or value.device == device)
    if not fits or not is_dense:
        raise ValueError(f"{name} {verb} {describe(value)}; expected {expected}")
    return value


def image_shape(shape: Any, nx: Any) -> tuple[int, ...]:
    """The shape of one image, from a shape, from its number of elements nx, or from both."""
    if shape is None:
        if nx is None:
            raise TypeError(
                "neither shape nor nx is given; expected one: shape=(c, h, w), or nx for flat images"
            )
        return (count("nx", nx),)
    if not isinstance(shape, (tuple, list)) or not 1 <= len(shape) <= 8:
        raise TypeError(f"shape is {describe(shape)}; expected that of one image, as (c, h, w)")
    sizes = tuple(count("a size of the shape", size) for size in shape)
    if nx is not None and count("nx", nx) != math.prod(sizes):
        raise ValueError(f"nx is {nx} beside the shape {sizes}; expected its product, {math.prod(sizes)}")
    return sizes


def step_sizes(name: str, value: Any, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Step sizes, a number or a tensor of 1 or n: float64 [1] or [n], a copy, on the device or the tensor's own, not yet
    compared with 0."""
    if not isinstance(value, Tensor):  # a fill, as a copy from the host would wait for a GPU
        return torch.full((1,), number(name, value, least=0), dtype=torch.float64, device=device)
    tensor(name, value, dtypes=REAL)
    if value.numel() not in (1, n) or value.dim() > 1 or value.is_meta:
        form = "one number" if n == 1 else f"one number or {n}"
        raise ValueError(f"{name} is {describe(value)}; expected finite and >= 0, {form}")
    return value.detach().to(torch.float64, copy=True).reshape(-1)


def generator(name: str, value: Any, device: torch.device) -> torch.Generator | None:
    """A generator on this device, or None."""
    if value is None:
        return None
    if not isinstance(value, torch.Generator):
        raise TypeError(f"{name} is {describe(value)}; expected a torch.Generator, or None")
    is_other = None not in (value.device.index, device.index) and value.device.index != device.index
    if value.device.type != device.type or is_other:
        raise ValueError(f"{name} is on {value.device}; expected one on {device}")
    return value


def device(name: str, value: Any) -> torch.device:
    """A device of this machine, given as such or by its name."""
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"{name} is {describe(value)}; expected a torch.device or its name")
    try:
        return torch.empty(0, device=value).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"{name} is {str(value)!r}; expected a device of this machine ({first_line(error)})"
        ) from None


def command_device(value: str) -> torch.device:
    """The device that a command computes on, its --device: auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    found = device("--device", ("cuda" if torch.cuda.is_available() else "cpu") if value == "auto" else value)
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {found}; expected auto, cpu or cuda")
    return found


def option(name: str) -> str:
    """The flag of a command line for the option of this name."""
    return f"--{name.replace('_', '-')}"


def path(name: str, value: Any) -> Path:
    """A path, given as such or as text, its ~ replaced by the home folder."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is {describe(value)}; expected a path")
    if value == "":  # which pathlib takes for the current folder
        raise ValueError(f"{name} is empty; expected a path")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise ValueError(f"{name} is {value}; expected a path: {error}") from error


def expand_paths(options: Any, *names: str) -> None:
    """Replace ~ by the home folder in these fields of a frozen dataclass: a path each, several, or None."""
    for name in names:
        value, flag = getattr(options, name), option(name)
        if value is not None:
            found = tuple(path(flag, v) for v in value) if isinstance(value, tuple) else path(flag, value)
            object.__setattr__(options, name, found)


def function(name: str, value: Any) -> Any:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} is {describe(value)}; expected a function")
    return value
