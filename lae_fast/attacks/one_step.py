"""FGSM: one step along the sign of the gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lae_fast import checks
from lae_fast.attacks.arguments import check, check_size
from lae_fast.attacks.losses import cross_entropy
from lae_fast.attacks.victim import (
    Logits,
    Model,
    Victim,
    check_finite,
    checked,
    evaluating,
    is_finite,
    with_logits,
)


def fgsm(
    model: Model,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float | Sequence[float],
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    logits: Logits | None = None,
) -> Tensor:
    """The fast gradient sign method (Goodfellow et al., 2015): one step of eps in every pixel.

        x + eps sign(grad_x L(x, labels)),  clamped to the bounds;  with `targeted`, x - eps sign(...)

    Arguments, x [m, ...] and labels [m] among them, result and errors are those of `pgd`. For one eps the result is
    that of `pgd(..., n_steps=1, step_size=eps, random_start=False)`; several eps need only one gradient.

    Example:
        >>> classifier = torch.nn.Identity()  # logits are the two pixels: the brighter one is the class
        >>> x, labels = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
        >>> lae_fast.attacks.fgsm(classifier, x, labels, eps=0.1)
        tensor([[0.5000, 0.6000]])
    """
    values, bounds = check(model, x, labels, eps, bounds)
    check_size("eps", values, x)
    checks.flag("targeted", targeted)
    values, model = values.to(x), with_logits(model, logits)
    with evaluating(model):
        x, labels = x.clone(), labels.long().clone()
        seen = Victim(checked(model, labels), cross_entropy, targeted).look(x, labels)
        check_finite(is_finite(seen.gain, seen.gradient))
        step = values.view(*values.shape, *[1] * x.dim())
        return (x + step * seen.gradient.sign()).clamp_(*bounds)  # [*x.shape] or [K, *x.shape]
