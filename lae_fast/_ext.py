"""Finds and loads the compiled kernels, and says what serves each device and why.

The only file that knows the libraries' names. They are top-level modules beside the package, so it does
not matter whether `lae_fast` itself was imported from site-packages or from a checkout. A library that is
absent or stale leaves its device to the reference implementation; one that fails at work raises.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import warnings
from types import ModuleType
from typing import NamedTuple

import torch

from lae_fast._version import SCHEMA_VERSION

KERNELS_VARIABLE = "LAE_FAST_KERNELS"
_CHOICES = ("reference", "sse2", "avx2", "avx512")


class Backend(NamedTuple):
    """What serves one device type."""

    device: str
    is_compiled: bool
    reason: str  # where the library lies, or why the reference serves and what to do about it
    path: str | None


def _optional_module(name: str) -> ModuleType | None:
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _load(device: str) -> Backend:
    def reference(reason: str) -> Backend:
        return Backend(device, False, reason, None)

    if os.environ.get(KERNELS_VARIABLE) == "reference":
        return reference(f"{KERNELS_VARIABLE}=reference asked for it")
    spec = importlib.util.find_spec(f"_lae_fast_{device}")
    if spec is None or spec.origin is None:
        note = _optional_module("_lae_fast_left_out")
        return reference((note.LEFT_OUT if note else {}).get(device, "not installed; run `pip install .`"))
    built = build_info.schema_version if build_info else None
    if built != SCHEMA_VERSION:
        return reference(
            f"{spec.origin} was built for schema {built}, this package has schema {SCHEMA_VERSION}; "
            "run `pip install .` again"
        )
    if device == "cuda" and not torch.backends.cuda.is_built():
        return reference("this torch is built without CUDA; install one that has it")
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        cause = error.__cause__ or error  # torch wraps the loader's own words
        return reference(f"{spec.origin} does not load ({cause}); run `pip install .` again")
    return Backend(device, True, spec.origin, spec.origin)


def simd_level() -> str | None:
    """The SIMD level of the CPU kernels in use (sse2, avx2, avx512, neon), or None without them."""
    if not backends["cpu"].is_compiled:
        return None
    query = ctypes.CDLL(backends["cpu"].path).lae_fast_simd_level
    query.restype = ctypes.c_char_p
    return query().decode()


_announced: set[str] = set()


def announce_reference(device: str) -> None:
    """Warn, once per device type, that plain PyTorch does the work of the kernels."""
    if device in backends and device not in _announced:
        _announced.add(device)
        if os.environ.get(KERNELS_VARIABLE) != "reference":
            warnings.warn(f"lae_fast: plain PyTorch serves {device}: {backends[device].reason}", stacklevel=2)


_choice = os.environ.get(KERNELS_VARIABLE)
if _choice is not None and _choice not in _CHOICES:
    raise ImportError(f"{KERNELS_VARIABLE}={_choice!r}; expected one of {', '.join(_CHOICES)}")

build_info: ModuleType | None = _optional_module("_lae_fast_build")
backends: dict[str, Backend] = {}


def load_all() -> None:
    """Load what there is. Called once by ops.py, after the schemas are defined."""
    for device in ("cpu", "cuda"):
        backends[device] = _load(device)
