"""The library of ops: the definition of an op, the loaded kernels, and the implementation that serves each device.

Each op has one schema and up to three implementations: the reference in plain PyTorch, and compiled kernels for CPU
and CUDA, which take precedence as soon as their library is loaded. No other file of the package knows the libraries'
names. The libraries are top-level modules beside the package, so `lae_fast` finds them whether it was imported from
site-packages or from a checkout. If a library is absent or stale, the reference serves its device; a kernel that fails
at work raises.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast._version import SCHEMA_VERSION

KERNELS_VARIABLE = "LAE_FAST_KERNELS"
_CHOICES = ("reference", "sse2", "avx2", "avx512")
_choice = os.environ.get(KERNELS_VARIABLE)
if _choice is not None and _choice not in _CHOICES:
    raise ImportError(f"{KERNELS_VARIABLE}={_choice!r}; expected one of {', '.join(_CHOICES)}")


# ---- an op ----

_library = torch.library.Library("lae_fast", "DEF")


def define(
    schema: str, *, fake: Callable[..., Any] | None, compiled_on: tuple[str, ...] = ("cpu", "cuda")
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define an op by its schema; the decorated function is the op's reference, in plain PyTorch.

    Args:
        schema: as `torch.library.define` takes it, the name first.
        fake: returns empty tensors of the shapes and types that the op returns; None for an op whose result is a plain
            number, which depends on the data.
        compiled_on: the devices that have kernels; on others the reference serves without a warning.
    """
    name = schema[: schema.index("(")]

    def register(reference: Callable[..., Any]) -> Callable[..., Any]:
        def kernel(*args: Any) -> Any:
            device = _device_of(args)
            if device.type in compiled_on:
                _announce_reference(device.type)
            return reference(*args)

        _library.define(schema)
        _library.impl(name, kernel, "CompositeExplicitAutograd")
        if fake is not None:
            torch.library.register_fake(f"lae_fast::{name}", fake, lib=_library)
        return reference

    return register


def register_autograd(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """`torch.library.register_autograd` for an op defined here."""
    torch.library.register_autograd(f"lae_fast::{name}", backward, setup_context=setup_context, lib=_library)


def _device_of(args: tuple[Any, ...]) -> torch.device:
    """The device of the first tensor among an op's arguments, some of which may be lists of tensors."""
    first = next(a for a in args if isinstance(a, Tensor) or (isinstance(a, (list, tuple)) and a))
    return first.device if isinstance(first, Tensor) else _device_of(tuple(first))


# ---- backends ----


class Backend(NamedTuple):
    """The implementation that serves one device type."""

    path: str | None  # of the library; None: the reference serves
    reason: str = ""  # why the reference serves, and the remedy

    @property
    def is_compiled(self) -> bool:
        return self.path is not None


def _optional_module(name: str) -> ModuleType | None:
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _load(device: str) -> Backend:
    if _choice == "reference":
        return Backend(None, f"{KERNELS_VARIABLE}=reference asked for it")
    spec = importlib.util.find_spec(f"_lae_fast_{device}")
    if spec is None or spec.origin is None:
        note = _optional_module("_lae_fast_left_out")
        return Backend(
            None, (note.LEFT_OUT if note else {}).get(device, "not installed; run `pip install .`")
        )
    built = build_info.schema_version if build_info else None
    if built != SCHEMA_VERSION:
        return Backend(
            None,
            f"{spec.origin} was built for schema {built}, this package has schema {SCHEMA_VERSION}; "
            "run `pip install .` again",
        )
    if device == "cuda" and not torch.backends.cuda.is_built():
        return Backend(None, "this torch is built without CUDA; install one that has it")
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        cause = error.__cause__ or error  # torch wraps the loader's message
        return Backend(None, f"{spec.origin} does not load ({cause}); run `pip install .` again")
    return Backend(spec.origin)


build_info: ModuleType | None = _optional_module("_lae_fast_build")
backends: dict[str, Backend] = {}


def load_kernels() -> None:
    """Load the installed libraries. The package `ops` calls this once, after all schemas are defined."""
    for device in ("cpu", "cuda"):
        backends[device] = _load(device)


def is_compiled(device: torch.device | str) -> bool:
    """Whether compiled kernels serve this device, not plain PyTorch.

    Example:
        >>> lae_fast.ops.is_compiled("meta")  # nothing computes there
        False
    """
    if isinstance(device, str) and device in backends:  # also where the machine has no such
        return backends[device].is_compiled
    if not isinstance(device, torch.device):
        device = checks.device("device", device)
    return device.type in backends and backends[device.type].is_compiled


def simd_level() -> str | None:
    """The SIMD level of the CPU kernels in use (sse2, avx2, avx512, neon), or None without them."""
    if not backends["cpu"].is_compiled:
        return None
    query = ctypes.CDLL(backends["cpu"].path).lae_fast_simd_level
    query.restype = ctypes.c_char_p
    return query().decode()


_announced: set[str] = set()


def _announce_reference(device: str) -> None:
    """Warn, once per device type, that plain PyTorch does the work of the kernels."""
    if device in backends and device not in _announced:
        _announced.add(device)
        if _choice != "reference":
            warnings.warn(f"lae_fast: plain PyTorch serves {device}: {backends[device].reason}", stacklevel=2)
