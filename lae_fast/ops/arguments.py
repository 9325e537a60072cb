"""The arguments of the ops: their forms, and the checks that every op makes before it starts.

C chains of D elements, one chain a row
S step sizes: 1 (shared by all chains) or C
K columns of `adaptation`; their number selects the rule that adapts: see columns.py
N columns of `counters`, R columns of `rng`: see there too

Most calls fit, thousands of times a second: each check first compares whole shapes, and looks for the reason only if
they differ.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.checks import describe
from lae_fast.ops.columns import COUNTERS, DUAL_AVERAGING, RNG, ROBBINS_MONRO
from lae_fast.ops.torch_private import has_tangent, is_batched, is_transformed


class Argument(NamedTuple):
    axes: str  # one letter for each
    dtype: torch.dtype | None  # None: the dtype of phi, float32 or float64


ARGUMENTS = {
    "phi": Argument("CD", None),
    "grad": Argument("CD", None),
    "proposal": Argument("CD", None),
    "proposal_grad": Argument("CD", None),
    "noise": Argument("CD", None),
    "potential": Argument("C", torch.float64),  # nats
    "proposal_potential": Argument("C", torch.float64),
    "log_alpha": Argument("C", torch.float64),
    "uniform": Argument("C", torch.float64),  # in (0, 1]
    "acceptance": Argument("C", torch.float64),  # a running total of min(1, alpha)
    "known_finite": Argument("C", torch.bool),  # of proposals
    "is_accepted": Argument("C", torch.bool),
    "counters": Argument("CN", torch.int64),  # rejections, non-finite proposals
    "step_size": Argument("S", torch.float64),  # eta
    "log_step_size": Argument("S", torch.float64),
    "adaptation": Argument("SK", torch.float64),
    "rng": Argument("R", torch.int64),  # seed, step, ticket
}

OPTIONAL = ("noise", "uniform", "adaptation", "acceptance", "known_finite")


def expect(op: str, phi: Any, step_sizes: Any, /, **arguments: Any) -> None:
    """Check a Langevin op's arguments, by their names in the table, against phi [C, D] and the step sizes [S].

    Raises:
        TypeError, ValueError: an argument does not fit; the message names the first one and its expected form.
    """
    expect_floats(op, "phi", phi, "C, D")
    n_chains, dtype, device = phi.shape[0], phi.dtype, phi.device
    n_step_sizes = 1 if is_dense(step_sizes) and step_sizes.shape == (1,) else n_chains
    exact = {"CD": phi.shape, "C": (n_chains,), "S": (n_step_sizes,), "R": (RNG,)}
    for name, t in arguments.items():
        if t is None and name in OPTIONAL:
            continue
        axes, own_dtype = ARGUMENTS[name]
        if is_exactly(t, own_dtype or dtype, device, exact.get(axes)):
            continue
        sizes = {
            "C": (n_chains,),
            "D": (phi.shape[1],),
            "S": (n_step_sizes,),
            "K": (ROBBINS_MONRO, DUAL_AVERAGING),
            "N": (COUNTERS,),
            "R": (RNG,),
        }
        form = ", ".join(" or ".join(map(str, sizes[axis])) for axis in axes)
        fits = is_dense(t) and t.dim() == len(axes) and t.dtype == (own_dtype or dtype) and t.device == device
        if not fits or any(n not in sizes[axis] for n, axis in zip(t.shape, axes, strict=True)):
            misfit(op, name, t, own_dtype or dtype, device, form, "phi")


def expect_floats(op: str, name: str, value: Any, axes: str) -> None:
    """Check the tensor that the others have to fit: float32 or float64, dense, with these axes ("n, d")."""
    if not (is_dense(value) and value.dtype in checks.FLOATS and value.dim() == len(axes.split(","))):
        checks.tensor(f"{op}: {name}", value, axes)


def expect_like(
    op: str, first: str, dtype: torch.dtype, device: torch.device, **arguments: tuple[Any, tuple[int, ...]]
) -> None:
    """Check tensors of the first one's type and device, each given with the shape that it should have."""
    for name, (value, shape) in arguments.items():
        if not is_exactly(value, dtype, device, shape):
            misfit(op, name, value, dtype, device, ", ".join(map(str, shape)), first)


def is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested


def is_exactly(value: Any, dtype: torch.dtype, device: torch.device, shape: tuple[int, ...] | None) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_nested
        and value.shape == shape
        and value.dtype is dtype
        and value.device == device
    )


def misfit(
    op: str, name: str, value: Any, dtype: torch.dtype, device: torch.device, form: str, first: str
) -> None:
    """Raise the error about an argument that is not a dense tensor [form] of this type on this device, as `first` demands."""
    wanted = f"{str(dtype).removeprefix('torch.')} [{form}] on {device}, to fit {first}"
    error = ValueError if isinstance(value, Tensor) else TypeError
    raise error(f"{op}: {name} is {describe(value)}; expected {wanted}")


def expect_constants(op: str, tensors: dict[str, Any], writes: tuple[str, ...] = ()) -> None:
    """Check that nobody wants a derivative from these arguments of an op that has none, which would silently be zero, and
    that the op may write to those named in `writes`. None among the tensors is an argument that was left out.

    Raises:
        ValueError: gradients are recorded and an argument requires one; it has a forward-mode tangent; torch.func.vmap
            maps over what an op writes to; or that is expanded, shares its memory with another argument, or is an inference
            tensor outside of inference mode, which PyTorch's own ops refuse too.
    """
    if torch.is_grad_enabled():
        for name, t in tensors.items():
            if t is not None and t.requires_grad:
                raise ValueError(
                    f"{op}: {name} requires a gradient; expected none, this op cannot be differentiated by {name}: "
                    "pass a detached tensor, or call under torch.no_grad()"
                )
    if torch.compiler.is_compiling():
        return
    if is_transformed():
        expect_no_tangents(op, tensors)
        for name, t in tensors.items():
            if writes and t is not None and is_batched(t):
                raise ValueError(
                    f"{op}: {name} is under torch.func.vmap; expected none, this op works in place"
                )
    elif writes:
        expect_apart(op, tensors, writes)
    is_normal = not torch.is_inference_mode_enabled()
    for name in writes:
        t = tensors[name]
        if t is None:
            continue
        if not t.is_contiguous() and any(
            n > 1 and step == 0 for n, step in zip(t.shape, t.stride(), strict=True)
        ):
            raise ValueError(
                f"{op}: {name} is expanded; expected memory of its own for every element, to write to"
            )
        if is_normal and t.is_inference():
            raise ValueError(f"{op}: {name} is an inference tensor; expected a clone of it, to write to")


def expect_apart(op: str, tensors: dict[str, Any], writes: tuple[str, ...]) -> None:
    """Check that what an op writes to is no part of another argument: of contiguous tensors, as PyTorch's own ops do."""
    storages = [t.untyped_storage() for t in tensors.values() if t is not None]
    if len(set(storages)) == len(storages):
        return
    spans = {}  # of each contiguous tensor: storage, first byte, end
    for name, t in tensors.items():
        if t is not None and t.is_contiguous():
            start = t.storage_offset() * t.itemsize
            spans[name] = t.untyped_storage(), start, start + t.nbytes
    for name in filter(spans.get, writes):
        storage, start, end = spans[name]
        for other, (its_storage, its_start, its_end) in spans.items():
            if other != name and its_storage is storage and max(start, its_start) < min(end, its_end):
                raise ValueError(
                    f"{op}: {name} shares memory with {other}; expected memory of its own, to write to"
                )


def expect_no_tangents(op: str, tensors: dict[str, Any]) -> None:
    """Check that no argument carries a forward-mode derivative, which no op here would pass on."""
    for name, t in tensors.items():
        if t is not None and has_tangent(t):
            raise ValueError(
                f"{op}: {name} has a forward-mode tangent; expected none, this op has no forward-mode derivative: "
                "use reverse mode where the op has one, or plain PyTorch"
            )


def expect_contiguous(op: str, name: str, t: Tensor) -> None:
    """Check a tensor that an op overwrites whole."""
    if not t.is_contiguous():
        raise ValueError(
            f"{op}: {name} is not contiguous; expected a contiguous tensor, which the op overwrites"
        )


def written(*tensors: Tensor) -> None:
    """Tell autograd that an op has written to these tensors: who has saved one for a backward pass gets torch's error, not a
    gradient from the new values."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(tensors)
