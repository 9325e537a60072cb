"""The energies -log p(x|z) of pixels and their derivatives, in one pass over a decoder's output.

Bernoulli on logits, Gaussian, and the discretized logistic; csrc/energy_math.h is the compiled twin.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lae_fast import checks
from lae_fast.checks import describe
from lae_fast.ops.arguments import (
    expect_constants,
    expect_contiguous,
    expect_floats,
    expect_like,
    expect_no_tangents,
    is_dense,
    written,
)
from lae_fast.ops.library import define, register_autograd
from lae_fast.ops.once import differentiable_once
from lae_fast.ops.torch_private import is_differentiated, is_transformed

BERNOULLI, GAUSSIAN, LOGISTIC = range(3)  # kinds of `energy`
HALF_BIN = 0.5 / 255
_SMALLEST_SCALE = HALF_BIN / 500

# ---- one pixel, in plain PyTorch: energy, derivative by the output, derivative by log_scale ----


def _bernoulli(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor, None]:
    is_negative, size = logits < 0, logits.abs()
    wrong = torch.where(is_negative, x, 1 - x)  # how much of the pixel the sign of the logit gets wrong
    pixels = size * wrong + torch.log1p(torch.exp(-size))
    slope = wrong - torch.sigmoid(-size)  # sigmoid(l) - x, up to the sign, without cancellation
    return pixels, torch.where(is_negative, -slope, slope), None


def _gaussian(mean: Tensor, x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse = torch.exp(-log_scale)
    square = ((x - mean) * inverse.to(x.dtype)).square()
    return 0.5 * square, (mean - x) * inverse.square().to(x.dtype), 1 - square.double()


def logistic_pixels(mean: Tensor, x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energy of every pixel in nats, its derivative by the mean, and its derivative by log_scale: each [..., n, nx].

    The arguments are mean [..., n, nx], x [n, nx] and log_scale [], all of one type.
    """
    inverse = torch.exp(-log_scale)
    upper, lower = (x - mean + HALF_BIN) * inverse, (x - mean - HALF_BIN) * inverse
    # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), without cancellation;
    # the outermost bins lose the factor of their open side
    is_first, is_last = x < HALF_BIN, x > 1 - HALF_BIN
    width = 2 * HALF_BIN * inverse
    above = torch.where(is_last, 0.0, -F.logsigmoid(upper))
    below = torch.where(is_first, 0.0, -F.logsigmoid(-lower))
    inner = torch.where(is_first | is_last, 0.0, -torch.log(-torch.expm1(-width)))
    above_slope = torch.where(is_last, 0.0, torch.sigmoid(-upper))
    below_slope = torch.where(is_first, 0.0, torch.sigmoid(lower))
    inner_slope = torch.where(is_first | is_last, 0.0, width / torch.expm1(width))
    slope = above_slope * upper - below_slope * lower + inner_slope
    return above + below + inner, (above_slope - below_slope) * inverse, slope


# ---- energy ----


def _empty_rows(output: Tensor, log_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Energies [R] and their derivatives by log_scale, [R], or [0] without a scale; float64."""
    n_rows = output.shape[0]
    n_slopes = 0 if log_scale is None else n_rows
    return tuple(output.new_empty(n, dtype=torch.float64) for n in (n_rows, n_slopes))


def _empty_energy(
    output: Tensor, x: Tensor, kind: int, log_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    energies, slopes = _empty_rows(output, log_scale)
    return energies, torch.empty_like(output), slopes


@define(
    "energy(Tensor output, Tensor x, int kind, Tensor? log_scale=None) -> (Tensor, Tensor, Tensor)",
    fake=_empty_energy,
)
def energy_reference(
    output: Tensor, x: Tensor, kind: int, log_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.repeat(output.shape[0] // max(len(x), 1), 1)
    if kind == BERNOULLI:
        pixels, derivative, slope = _bernoulli(output, x)
    elif kind == GAUSSIAN:
        pixels, derivative, slope = _gaussian(output, x, log_scale.double())
    else:
        log_scale = log_scale.double().clamp(min=math.log(_SMALLEST_SCALE))
        pixels, derivative, slope = logistic_pixels(output.double(), x.double(), log_scale)
    total = pixels.sum(1, dtype=torch.float64)
    if kind == GAUSSIAN:
        total = total + output.shape[1] * (log_scale.double() + 0.5 * math.log(2 * math.pi))
    slope = total.new_empty(0) if slope is None else slope.sum(1, dtype=torch.float64)
    return total, derivative.to(output.dtype), slope


def _save_derivatives(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, derivative, log_scale_derivative = output
    ctx.mark_non_differentiable(derivative, log_scale_derivative)
    ctx.save_for_backward(derivative, log_scale_derivative, inputs[0], inputs[3])


def _energy_backward(ctx: Any, cotangent: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    derivative, log_scale_derivative, rows, log_scale = ctx.saved_tensors
    inputs = (cotangent, rows) if log_scale is None else (cotangent, rows, log_scale)
    with torch.no_grad():
        gradient = derivative * cotangent.to(derivative.dtype)[:, None]
        slope = None if log_scale is None else (log_scale_derivative * cotangent).sum().to(derivative.dtype)
    by_rows, by_scale = (differentiable_once(g, "lae_fast.ops.energy", *inputs) for g in (gradient, slope))
    return by_rows, None, None, by_scale


register_autograd("energy", _energy_backward, _save_derivatives)


def energy(
    output: Tensor, x: Tensor, kind: int, log_scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(x|z) and its derivatives in one pass over a decoder's output.

    Args:
        output: [..., n, nx], float32 or float64: logits (BERNOULLI) or means (GAUSSIAN, LOGISTIC).
        x: images [n, nx] of the same type; in [0, 1] for BERNOULLI, k / 255 for LOGISTIC.
        kind: BERNOULLI, GAUSSIAN or LOGISTIC.
        log_scale: [], of the same type: the logarithm of the scale of GAUSSIAN and LOGISTIC; None for BERNOULLI.

    Returns:
        The energies [..., n], float64, nats summed over pixels (float64 sums; a Gaussian's constant included); their
        derivative by the output [..., n, nx]; and their derivative by log_scale [..., n], float64 ([0] for BERNOULLI).
        Autograd can differentiate the energies by output and log_scale, once, and keeps both as they are until then. Equivalent PyTorch for BERNOULLI:
        `binary_cross_entropy_with_logits(output, x, reduction="none").sum(-1)` and `sigmoid(output) - x`.

    Raises:
        TypeError, ValueError: shapes, types or devices do not fit, x requires a gradient, or the derivative is to be taken
            by `torch.func` or in forward mode.

    Example:
        >>> output = torch.zeros(1, 784)  # logits
        >>> energy, grad, _ = lae_fast.ops.energy(output, torch.ones(1, 784), lae_fast.ops.BERNOULLI)
        >>> round(energy.item(), 2), grad.unique().item()  # 784 log 2; sigmoid(0) - 1
        (543.43, -0.5)
    """
    if not (is_dense(output) and output.dtype in checks.FLOATS and output.dim() >= 2):
        error = ValueError if isinstance(output, Tensor) else TypeError
        raise error(f"energy: output is {describe(output)}; expected float32 or float64 [..., n, nx]")
    rows = output.flatten(0, -2)  # [R, nx]
    _expect_pixels("energy", rows, x, output.shape[-2], kind, log_scale)
    expect_constants("energy", {"x": x})
    if not torch.compiler.is_compiling() and is_transformed():
        differentiable = {"output": output, "log_scale": log_scale}
        expect_no_tangents("energy", differentiable)
        for name, t in differentiable.items():
            if t is not None and is_differentiated(t):
                raise ValueError(
                    f"energy: {name} is under a gradient of torch.func; expected torch.autograd.grad or backward()"
                )
    energies, derivative, slope = torch.ops.lae_fast.energy(
        rows.contiguous(), x.contiguous(), kind, log_scale
    )
    shape = output.shape[:-1]
    return (
        energies.reshape(shape),
        derivative.reshape(output.shape),
        slope if log_scale is None else slope.reshape(shape),
    )


def _expect_pixels(op: str, rows: Any, x: Any, n: int | None, kind: Any, log_scale: Any) -> None:
    """Check the arguments of an energy for rows [R, nx]; x has n images, or None: any number that divides R."""
    expect_floats(op, "output", rows, "R, nx")
    n_rows, n_pixels = rows.shape
    wanted = len(x) if n is None and is_dense(x) and x.dim() == 2 else n or 0
    expect_like(op, "output", rows.dtype, rows.device, x=(x, (wanted, n_pixels)))
    if n_rows % wanted if wanted else n_rows:
        raise ValueError(f"{op}: output has {n_rows} rows; expected a multiple of x's {wanted}")
    if checks.count(f"{op}: kind", kind, 0) > LOGISTIC:
        raise ValueError(f"{op}: kind is {kind}; expected BERNOULLI, GAUSSIAN or LOGISTIC")
    if (kind == BERNOULLI) != (log_scale is None):
        raise ValueError(f"{op}: log_scale belongs to GAUSSIAN and LOGISTIC, and only there; kind is {kind}")
    if log_scale is not None:
        expect_like(op, "output", rows.dtype, rows.device, log_scale=(log_scale, ()))


# ---- energy_ ----


@define(
    "energy_(Tensor(a!) output, Tensor x, int kind, Tensor? log_scale=None) -> (Tensor, Tensor)",
    fake=lambda output, x, kind, log_scale=None: _empty_rows(output, log_scale),
)
def energy_reference_(
    output: Tensor, x: Tensor, kind: int, log_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    total, derivative, slope = energy_reference(output, x, kind, log_scale)
    output.copy_(derivative)
    return total, slope


def energy_(
    output: Tensor,  # [R, nx], R a multiple of n
    x: Tensor,  # [n, nx]
    kind: int,
    log_scale: Tensor | None = None,  # []
) -> tuple[Tensor, Tensor]:  # [R], [R] or [0]
    """`energy` in place: the derivative by the output overwrites the output, which must be contiguous.

    Returns the energies, nats summed over pixels, and their derivatives by log_scale, both float64.

    Raises:
        TypeError, ValueError: an argument does not fit, or somebody wants a derivative, which this op does not have.

    Example:
        >>> output = torch.zeros(1, 784)  # logits
        >>> energy, _ = lae_fast.ops.energy_(output, torch.ones(1, 784), lae_fast.ops.BERNOULLI)
        >>> output.unique().item()  # now the derivative
        -0.5
    """
    _expect_pixels("energy_", output, x, None, kind, log_scale)
    expect_constants("energy_", {"output": output, "x": x, "log_scale": log_scale}, writes=("output",))
    expect_contiguous("energy_", "output", output)
    result = torch.ops.lae_fast.energy_(output, x.contiguous(), kind, log_scale)
    written(output)
    return result


# `energy_` for callers that own the output, outside autograd: contiguous tensors that fit, in the schema's order.
energy_unchecked_ = torch.ops.lae_fast.energy_


# ---- add_prior_ ----


@define(
    "add_prior_(Tensor(a!) energy, Tensor(b!) z_grad, Tensor z) -> ()",
    fake=lambda energy, z_grad, z: None,
    compiled_on=("cuda",),
)
def add_prior_reference_(
    energy: Tensor,  # float64 [n]
    z_grad: Tensor,  # [n, nz]
    z: Tensor,  # [n, nz]
) -> None:
    """Add -log N(z; 0, I) to the energies of n rows, and its derivative z to theirs."""
    energy += 0.5 * z.square().sum(1, dtype=torch.float64) + 0.5 * z.shape[1] * math.log(2 * math.pi)
    z_grad += z


def add_prior_unchecked_(energy: Tensor, z_grad: Tensor, z: Tensor) -> None:
    """For callers that own the tensors, outside autograd: on a GPU one launch for seven. On a CPU the reference, at once: to look
    for the op's implementation takes as long as these small tensors."""
    (torch.ops.lae_fast.add_prior_ if z.is_cuda else add_prior_reference_)(energy, z_grad, z)


# ---- in_unit_range ----


@define("in_unit_range(Tensor x) -> bool", fake=None, compiled_on=("cpu",))
def in_unit_range_reference(x: Tensor) -> bool:
    if x.numel() == 0:
        return True
    low, high = x.aminmax()
    return bool(low >= 0) and bool(high <= 1)


def in_unit_range(x: Tensor) -> bool:
    """Whether all values of x [n, nx] lie in [0, 1]; a NaN does not. For tensors on a CPU, where the check is cheap.

    Raises:
        TypeError, ValueError: x is not a dense float32 or float64 tensor [n, nx] that holds values.

    Example:
        >>> lae_fast.ops.in_unit_range(torch.rand(2, 3)), lae_fast.ops.in_unit_range(torch.full((1, 1), torch.nan))
        (True, False)
    """
    expect_floats("in_unit_range", "x", x, "n, nx")
    if x.is_meta:
        raise ValueError(f"in_unit_range: x is {describe(x)}; expected a tensor that holds values")
    return torch.ops.lae_fast.in_unit_range(x.detach().contiguous())
