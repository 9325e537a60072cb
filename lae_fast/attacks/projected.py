"""PGD: many steps along the gradient, and back to the region after each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.attacks.arguments import MOST, check, check_size
from lae_fast.attacks.losses import LOSSES, WANTED
from lae_fast.attacks.regions import Region, per_row
from lae_fast.attacks.restarts import Found, Restarts, is_blind
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


def pgd(
    model: Model,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float | Sequence[float],
    norm: Literal["linf", "l2"] = "linf",
    loss: Literal["ce", "dlr", "cw"] = "ce",
    n_steps: int = 40,
    step_size: float | None = None,
    random_start: bool = True,
    n_restarts: int = 1,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    logits: Logits | None = None,
) -> Tensor:
    """Projected gradient ascent on a loss L (Madry et al., 2018), within eps of x and within the bounds.

        x' <- P(x' + step_size sign(g)),  g = grad L(x', labels);  "l2": g / |g|_2 instead of sign(g)

    With "linf", P clamps to the box that eps and the bounds define; in PyTorch
    `x_adv.add_(step_size * g.sign()).clamp_((x - eps).clamp(min=low), (x + eps).clamp(max=high))`. With "l2", P scales
    x' - x down to eps, then clamps to the bounds. An image with a zero gradient does not move.

    Beware of confident models: float32 rounds away the true class's part of the gradient of the cross-entropy where this
    class is 17 nats ahead, and the whole gradient at 100 nats, which looks like robustness. A warning says so where it is the
    case for more than 1 % of the images and nothing fools them. "dlr" and "cw" follow the same path whatever the scale of the
    logits.

    Args:
        model: images [n, ...] -> logits or log-probabilities [n, classes], each image independently, or what `logits`
            takes them from. An `nn.Module` is in eval mode during the attack; its parameters, their .grad and every
            submodule's mode do not change.
        x: [m, ...], floating point, within the bounds.
        labels: [m], integers: the true classes, or with `targeted` the classes that the model should answer.
        eps: the radius in units of x, or a sequence of K radii.
        norm: "linf" or "l2".
        loss: of each image, from its logits z and its label y:

            - "ce": the cross-entropy, -log softmax(z)_y
            - "dlr": the difference of logits ratio (Croce and Hein, 2020), (max_{i != y} z_i - z_y) / (z_(1) - z_(3)) with
              the logits sorted downwards; 3 classes at least. With `targeted` over z_(1) - (z_(3) + z_(4)) / 2, and 4
            - "cw": the margin max_{i != y} z_i - z_y (Carlini and Wagner, 2017)
        n_steps: gradient steps of each restart, at most a million.
        step_size: in units of x, the same for all eps; None: 2.5 eps / n_steps for each eps.
        random_start: start from a point uniform within eps (then clamped to the bounds) instead of from x.
        n_restarts: number of restarts; the worst result for each image is kept: one that fools the model, else the one
            with the highest L (with `targeted` the lowest). Fooled images skip later restarts.
        targeted: lower L, so that the model answers `labels`, instead of raising L.
        bounds: the lowest and the highest value of a pixel, in units of x: for normalised images
            ((0 - mean) / std, (1 - mean) / std), to a few roundings of x's type. Where channels have several, let the model
            normalise.
        generator: source of the random starts, on x's device; default: the generator that `torch.manual_seed` sets.
        logits: a function that takes the logits from what the model returns, as `lambda output: output["logits"]`; None:
            the model returns them.

    Returns:
        Adversarial images, detached: [*x.shape] for a number as eps, [K, *x.shape] for a sequence. eps 0 gives x.

    Raises:
        TypeError: an argument, or what the model returns, is of another kind.
        ValueError: an argument or the model's output has another form or no gradient, or n_restarts > 1 without `random_start`, where
            all restarts would be the same.
        RuntimeError: at the end of a restart the loss or the last gradient of an image is not finite.

    Example:
        >>> classifier = torch.nn.Identity()  # logits are the two pixels: the brighter one is the class
        >>> x, labels = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
        >>> lae_fast.attacks.pgd(classifier, x, labels, eps=0.1, norm="l2", random_start=False)
        tensor([[0.5293, 0.5707]])
        >>> lae_fast.attacks.pgd(classifier, x, labels, eps=[0.0, 0.1]).shape
        torch.Size([2, 1, 2])
    """
    radii, bounds = check(model, x, labels, eps, bounds)
    restarts = Restarts(
        x,
        norm=norm,
        random_start=random_start,
        n_restarts=n_restarts,
        generator=generator,
        bounds=bounds,
    )
    check_size("eps", radii, x, norm)
    n_steps = checks.count("n_steps", n_steps, 0, MOST)
    checks.flag("targeted", targeted)
    function, n_classes = (WANTED if targeted else LOSSES)[checks.choice("loss", loss, LOSSES)]
    if step_size is not None:
        step_size = checks.number("step_size", step_size, least=0)
        check_size("step_size", torch.tensor(step_size, dtype=torch.float64), x, norm)
    steps = 2.5 * radii / max(n_steps, 1) if step_size is None else torch.full_like(radii, step_size)
    steps, model = steps.to(x).view(-1), with_logits(model, logits)  # [K]
    with evaluating(model):
        victim = Victim(checked(model, labels, n_classes), function, targeted)

        def ascend(region: Region, start: Tensor, labels: Tensor, which: Tensor, restart: int) -> Found:
            adversary, step, gradient = start, per_row(steps[which], x), None
            for _ in range(n_steps):
                gradient = victim.look(adversary, labels).gradient
                region.move_(adversary, gradient, step)
            gain, is_fooled = victim.judge(adversary, labels)
            check_finite(is_finite(gain, gradient))
            return Found(adversary, gain, is_fooled, ~is_fooled & is_blind(loss, gain, gradient))

        return restarts.run(ascend, x, labels, radii)
