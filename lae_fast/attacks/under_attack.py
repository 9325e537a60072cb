"""A classifier's accuracy under an attack, ours or another library's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lae_fast import checks
from lae_fast.attacks.arguments import check
from lae_fast.attacks.projected import pgd
from lae_fast.attacks.victim import Logits, Model, checked, evaluating, with_logits
from lae_fast.isolation import isolated


class Robustness(NamedTuple):
    """A classifier's accuracy and loss under attack, one entry for each eps; float64, on the CPU.

    Attributes:
        accuracy: fraction of the images, [K].
        loss: mean cross-entropy, nats per image, [K].

    Example:
        >>> classifier = torch.nn.Identity()  # logits are the two pixels
        >>> x, labels = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
        >>> found = lae_fast.attacks.robustness(classifier, x, labels, eps=[0.0, 0.1], attack=lae_fast.attacks.fgsm)
        >>> found.accuracy.tolist(), bool(found.loss[1] > found.loss[0])
        ([1.0, 0.0], True)
    """

    accuracy: Tensor
    loss: Tensor


@torch.inference_mode(False)  # foreign attacks expect to take gradients
def robustness(
    model: Model,
    x: Tensor,
    labels: Tensor,
    *,
    eps: Sequence[float],
    attack: Callable[..., Tensor] = pgd,
    batch_size: int = 500,
    logits: Logits | None = None,
    **options: Any,
) -> Robustness:
    """Accuracy and loss of the model, in eval mode, on the images that `attack` makes of x, for each eps.

    All eps are measured in the same batches of at most `batch_size` images, so that eps 0 gives the clean accuracy
    exactly. `pgd` chooses the images of each eps independently: a larger eps need not give a stronger attack.

    Args:
        model: as for `pgd`.
        x: images [N, ...], as for `pgd`.
        labels: [N], integers: the true classes.
        eps: a sequence of K radii.
        attack: a function, called as `attack(model, x, labels, eps=eps, **options)` with a batch of m images and all
            K eps; it returns [K, m, ...] of x's type: `pgd`, `apgd`, `fgsm`, or your own. The model is in eval mode, and returns logits.
        logits: as for `pgd`.
        options: passed on to `attack`.

    Raises:
        TypeError: as for `pgd`, or the attack returns no tensor.
        ValueError: eps is not a sequence, batch_size < 1, the option `targeted` is set (its labels are not the true
            classes), the attack's result has another shape or type, or as for `pgd`.
        RuntimeError: as for `pgd`.

    Example:
        >>> classifier = torch.nn.Identity()  # logits are the two pixels: the brighter one is the class
        >>> x, labels = torch.tensor([[0.6, 0.5], [0.1, 0.9]]), torch.tensor([0, 1])
        >>> lae_fast.attacks.robustness(classifier, x, labels, eps=[0.0, 0.1, 0.5]).accuracy
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    values, _ = check(model, x, labels, eps, options.get("bounds", (0.0, 1.0)))
    if values.dim() == 0:
        raise ValueError(f"eps is {eps}; expected a sequence")
    checks.function("attack", attack)
    batch_size = checks.count("batch_size", batch_size)
    if checks.flag("targeted", options.get("targeted", False)):
        raise ValueError("targeted is True; expected False: accuracy is counted against the true labels")
    model = with_logits(model, logits)
    totals = torch.zeros(2, len(values), dtype=torch.float64)  # correct answers, nats
    for images, classes in zip(x.split(batch_size), labels.split(batch_size), strict=True):
        with isolated(model):  # a foreign attack may not take care of it
            adversaries = attack(model, images, classes, eps=eps, **options)
        axes = ", ".join(map(str, (len(values), *images.shape)))
        checks.tensor("the attack's images", adversaries, axes, dtypes=(x.dtype,), device=x.device)
        if not adversaries.isfinite().all():
            raise ValueError("the attack returned images that are not finite; expected finite ones")
        with evaluating(model):
            answer = checked(model, classes)
            for i, adversary in enumerate(adversaries):
                output = answer(adversary).double()
                if output.isnan().any():
                    raise RuntimeError("the model's output is NaN for attacked images; expected numbers")
                totals[0, i] += (output.argmax(1) == classes).sum().cpu()
                totals[1, i] += F.cross_entropy(output, classes.long(), reduction="sum").cpu()
    return Robustness(*totals / len(x))
