"""Schemas of all ops, and what serves them: the reference everywhere, compiled kernels where they are loaded.

Each op has one schema and up to three implementations: the reference in plain PyTorch, and compiled kernels for CPU
and CUDA that win as soon as their library is loaded. Shapes and meaning: ops.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lae_fast import _ext, _reference, _reference_dense
from lae_fast._once import differentiable_once

_SCHEMAS = {
    "propose": "(Tensor phi, Tensor grad, Tensor step_size, Tensor rng, Tensor? noise=None) -> (Tensor, Tensor)",
    "decide": "(Tensor phi, Tensor proposal, Tensor potential, Tensor proposal_potential, Tensor grad, "
    "Tensor proposal_grad, Tensor step_size, Tensor rng, bool mh, Tensor? uniform=None) "
    "-> (Tensor, Tensor, Tensor)",
    "transition": "(Tensor(a!) phi, Tensor(b!) potential, Tensor(c!) grad, Tensor(d!) proposal, Tensor(e!) rng, "
    "Tensor(f!) log_step_size, Tensor(g!) counters, Tensor(h!) is_accepted, Tensor(i!) log_alpha, "
    "Tensor(j!)? adaptation, Tensor proposal_potential, Tensor proposal_grad, bool mh, Tensor? noise=None, "
    "Tensor? uniform=None) -> ()",
    "noise": "(Tensor(a!) out, Tensor rng, int kind) -> ()",
    "energy": "(Tensor output, Tensor x, int kind, Tensor? log_scale=None) -> (Tensor, Tensor, Tensor)",
    "energy_": "(Tensor(a!) output, Tensor x, int kind, Tensor? log_scale=None) -> (Tensor, Tensor)",
    "in_unit_range": "(Tensor x) -> bool",
    "norm_relu": "(Tensor(a!) y, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
    "norm_relu_backward": "(Tensor(a!) grad, Tensor out, Tensor normalized, Tensor rstd, Tensor weight) -> Tensor",
    "keep": "(Tensor(a!)[] latest, Tensor[] previous, Tensor is_accepted) -> ()",
}
# It exists for the CPU's sake. Elsewhere its reference is at home.
_CPU_KERNELS_ONLY = ("in_unit_range",)


def _reference_kernel(name: str):  # noqa: ANN202 - a closure for the dispatcher
    implementation = getattr(_reference, name, None) or getattr(_reference_dense, name)

    def kernel(*args):  # noqa: ANN002, ANN202
        device = next(a.device for a in torch.utils._pytree.tree_leaves(args) if isinstance(a, Tensor))
        if device.type == "cpu" or name not in _CPU_KERNELS_ONLY:
            _ext.announce_reference(device.type)
        return implementation(*args)

    return kernel


_library = torch.library.Library("lae_fast", "DEF")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, _reference_kernel(_name), "CompositeExplicitAutograd")
_ext.load_all()


@torch.library.register_fake("lae_fast::propose", lib=_library)
def _(phi, grad, step_size, rng, noise=None):  # noqa: ANN001, ANN202
    return torch.empty_like(phi), torch.empty_like(rng)


@torch.library.register_fake("lae_fast::decide", lib=_library)
def _(phi, proposal, potential, *rest, **options):  # noqa: ANN001, ANN002, ANN003, ANN202
    flags = potential.new_empty(potential.shape, dtype=torch.bool)
    return flags, torch.empty_like(flags), torch.empty_like(potential)


@torch.library.register_fake("lae_fast::transition", lib=_library)
def _(*args, **options) -> None:  # noqa: ANN002, ANN003
    pass


@torch.library.register_fake("lae_fast::noise", lib=_library)
def _(out, rng, kind) -> None:  # noqa: ANN001
    pass


@torch.library.register_fake("lae_fast::energy", lib=_library)
def _(output, x, kind, log_scale=None):  # noqa: ANN001, ANN202
    n_rows = output.shape[0]
    per_row = output.new_empty(n_rows, dtype=torch.float64)
    n_slopes = 0 if log_scale is None else n_rows
    return per_row, torch.empty_like(output), output.new_empty(n_slopes, dtype=torch.float64)


@torch.library.register_fake("lae_fast::energy_", lib=_library)
def _(output, x, kind, log_scale=None):  # noqa: ANN001, ANN202
    n_rows = output.shape[0]
    return tuple(
        output.new_empty(n, dtype=torch.float64) for n in (n_rows, 0 if log_scale is None else n_rows)
    )


@torch.library.register_fake("lae_fast::norm_relu", lib=_library)
def _(y, weight, bias, eps):  # noqa: ANN001, ANN202
    return torch.empty_like(y), y.new_empty(y.shape[0])


@torch.library.register_fake("lae_fast::norm_relu_backward", lib=_library)
def _(grad, out, normalized, rstd, weight):  # noqa: ANN001, ANN202
    return grad.new_empty(3, grad.shape[1])


@torch.library.register_fake("lae_fast::keep", lib=_library)
def _(latest, previous, is_accepted) -> None:  # noqa: ANN001
    pass


def _save_derivatives(ctx, inputs, output) -> None:  # noqa: ANN001
    _, derivative, log_scale_derivative = output
    ctx.mark_non_differentiable(derivative, log_scale_derivative)
    ctx.save_for_backward(derivative, log_scale_derivative)
    ctx.has_scale = inputs[3] is not None


def _energy_backward(ctx, cotangent, *_):  # noqa: ANN001, ANN002, ANN202
    derivative, log_scale_derivative = ctx.saved_tensors
    with torch.no_grad():
        gradient = derivative * cotangent.to(derivative.dtype)[:, None]
        scale_gradient = (
            (log_scale_derivative * cotangent).sum().to(derivative.dtype) if ctx.has_scale else None
        )
    name = "lae_fast.ops.energy"
    return differentiable_once(gradient, name), None, None, differentiable_once(scale_gradient, name)


torch.library.register_autograd(
    "lae_fast::energy", _energy_backward, setup_context=_save_derivatives, lib=_library
)
