"""Adam as this package's kernels compute it on a GPU, with PyTorch's state and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lae_fast import ops


class Adam(torch.optim.Adam):
    """`torch.optim.Adam(fused=True, capturable=True)` whose step takes two launches for every 64 parameters of a group on a GPU.

    PyTorch's fused kernel gives a block 65,536 elements, and leaves most of a GPU idle where the networks are small. Formula and
    roundings, state, `state_dict` and `param_groups` are those of PyTorch: either optimizer loads what the other one saved.
    PyTorch's own step serves wherever the kernel does not: the first step, which makes the state; a closure; a gradient scaler;
    options that a `state_dict` has brought (amsgrad, maximize, weight decay, not fused or not capturable); a learning rate
    that is a number; parameters of several types or devices, or not contiguous.

    Args:
        params: parameters or groups of them, as in PyTorch.
        lr: float32 [], on the device of the parameters, so that a CUDA graph can be replayed with another one.
    """

    def __init__(
        self, params: Any, lr: Tensor, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(params, lr, betas, eps, fused=True, capturable=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        found = [self._arguments(group) for group in self.param_groups]
        groups = [group for group in found if group is not None]
        is_scaled = any(getattr(self, name, None) is not None for name in ("grad_scale", "found_inf"))
        if closure is not None or is_scaled or len(groups) < len(found):
            # Without the hooks of `step` around it: they have been called already.
            return inspect.unwrap(torch.optim.Adam.step)(self, closure)
        for group in groups:
            ops.adam_unchecked_(*group)
            # Who has saved a parameter for a backward pass gets an error.
            torch.autograd.graph.increment_version(group[0])
        return None

    def _arguments(self, group: dict[str, Any]) -> tuple[Any, ...] | None:
        """What the op takes for a group of parameters; None: it cannot serve."""
        params = [p for p in group["params"] if p.grad is not None]
        states = [self.state.get(p, {}) for p in params]
        others = ("amsgrad", "maximize", "weight_decay", "differentiable")
        if (
            not (group["fused"] and group["capturable"])
            or any(group[name] for name in others)
            or not all(states)
        ):
            return None
        columns = [params, [p.grad for p in params]]
        columns += [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
        *arrays, steps = columns
        if not _fit(group["lr"], arrays, steps) or not all(
            isinstance(beta, float) for beta in group["betas"]
        ):
            return None
        return *columns, group["lr"], *group["betas"], group["eps"]


def _fit(lr: Any, arrays: list[list[Tensor]], steps: list[Tensor]) -> bool:
    """Whether the op takes these: lr [], parameters, gradients and moments, and steps [] of each parameter."""
    if not isinstance(lr, Tensor) or not _has_kernel(lr.device):
        return False
    dtypes = {t.dtype for array in arrays for t in array}
    return (
        len(dtypes) <= 1
        and dtypes <= {torch.float32, torch.float64}
        and all(t.device == lr.device and t.layout is torch.strided for array in arrays for t in array)
        and all(t.is_contiguous() for array in arrays for t in array)
        and all(t.shape == p.shape for array in arrays for t, p in zip(array, arrays[0], strict=True))
        and all(t.device == lr.device and t.dtype == torch.float32 and t.dim() == 0 for t in (lr, *steps))
    )


def _has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and ops.is_compiled(device)
