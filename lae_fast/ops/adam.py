"""One step of Adam for all parameters of a network, on GPUs: training/optimizer.py is the optimizer that takes it.

On a CPU PyTorch's own fused Adam serves; there only the reference is, for tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lae_fast.ops.library import define


@define(
    "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, "
    "Tensor lr, float beta1, float beta2, float eps) -> ()",
    fake=lambda *_: None,
    compiled_on=("cuda",),
)
def adam_reference_(
    params: list[Tensor],  # float32 or float64, contiguous
    grads: list[Tensor],  # of the same shapes
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],  # float32 [] each: how many steps were taken; counted up
    lr: Tensor,  # float32 []
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """The step of `torch.optim.Adam`, in place. The compiled kernel has the formula and the roundings of PyTorch's fused one."""
    for p, g, mean, square, t in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        t += 1
        mean.mul_(beta1).add_(g, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        step_size, root = lr / (1 - beta1 ** t.double()), (1 - beta2 ** t.double()).sqrt()
        p.sub_(mean * step_size / (square.sqrt() / root + eps))


# For callers that own the tensors, outside autograd: contiguous tensors of one device that fit, in the schema's order.
adam_unchecked_ = torch.ops.lae_fast.adam_
