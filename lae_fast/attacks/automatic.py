"""APGD: projected gradient ascent whose step size follows from its own progress (Croce and Hein, 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.attacks.arguments import MOST, check, check_size
from lae_fast.attacks.losses import LOSSES, WANTED, ratio_towards
from lae_fast.attacks.regions import Region, per_row
from lae_fast.attacks.restarts import Found, Restarts, is_blind
from lae_fast.attacks.victim import (
    Logits,
    Model,
    Victim,
    View,
    check_finite,
    checked,
    evaluating,
    is_finite,
    with_logits,
)

MOMENTUM = 0.75  # the paper's alpha: the weight of the new direction
SUCCESSES = 0.75  # its rho: where fewer of the steps since the last checkpoint rose, the step size is halved
AIMED = "dlr-targeted"


def checkpoints(n_steps: int) -> list[int]:
    """After how many steps the step size may be halved: w_j = ceil(p_j n_steps), with

    p_0 = 0,  p_1 = 0.22,  p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06) <= 1
    """
    percent = [0, 22]
    while (following := percent[-1] + max(percent[-1] - percent[-2] - 3, 6)) <= 100:
        percent.append(following)
    return sorted({-(-p * n_steps // 100) for p in percent[1:]})


def apgd(
    model: Model,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float | Sequence[float],
    norm: Literal["linf", "l2"] = "linf",
    loss: Literal["ce", "dlr", "cw", "dlr-targeted"] = "ce",
    n_steps: int = 100,
    random_start: bool = True,
    n_restarts: int = 1,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
    logits: Logits | None = None,
) -> Tensor:
    """Auto-PGD (Croce and Hein, 2020, algorithm 1): projected gradient ascent with momentum, which halves its own step size.

        z       <- P(x_k + eta s(g_k)),   g_k = grad L(x_k, labels);  s(g) = sign(g), or with "l2" g / |g|_2
        x_{k+1} <- P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1})),   x_1 = z

    eta is 2 eps at first, for each image by itself. At the checkpoints, after 22 %, 41 %, 57 %, 70 %, 80 %, 87 %, 93 % and
    99 % of the steps, an image halves eta and goes on from the best point so far, if since the last checkpoint fewer than
    0.75 of the steps have raised L, or if the highest L and eta both are what they were at the last checkpoint.

    Arguments, x [m, ...] and labels [m] among them, result and errors are those of `pgd`, except:

    Args:
        loss: as for `pgd`, or "dlr-targeted": restart r raises, for the r-th most likely wrong class t of each image x,

            `(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`, the logits z sorted downwards.

            For 10 classes 9 restarts aim at all; with fewer than 4 classes it is an error. The strongest attack here, and
            the one that takes longest.
        n_steps: of each restart; they take n_steps + 1 gradients.

    Returns:
        The worst image on each path, which is one that fools the model, or else the one with the highest L; shapes as `pgd`.

    Example:
        >>> classifier = torch.nn.Identity()  # logits are the three pixels: the brightest one is the class
        >>> x, labels = torch.tensor([[0.6, 0.5, 0.1]]), torch.tensor([0])
        >>> lae_fast.attacks.apgd(classifier, x, labels, eps=0.1, loss="cw", random_start=False)
        tensor([[0.5000, 0.6000, 0.1000]])
    """
    radii, bounds = check(model, x, labels, eps, bounds)
    restarts = Restarts(
        x,
        norm=norm,
        random_start=random_start,
        n_restarts=n_restarts,
        generator=generator,
        bounds=bounds,
        differ=loss == AIMED,
    )
    check_size("eps", radii, x, norm)
    n_steps = checks.count("n_steps", n_steps, 0, MOST)
    checks.choice("loss", loss, (*LOSSES, AIMED))
    if checks.flag("targeted", targeted) and loss == AIMED:
        raise ValueError(
            f"targeted is True with loss {loss!r}; expected False: this loss chooses its targets"
        )
    function, n_classes = (WANTED if targeted or loss == AIMED else LOSSES)[loss.removesuffix("-targeted")]
    model = with_logits(model, logits)
    with evaluating(model):
        answer = checked(model, labels, n_classes)

        def ascend(region: Region, start: Tensor, labels: Tensor, which: Tensor, restart: int) -> Found:
            aim = ratio_towards(likely(answer(region.x), labels, restart)) if loss == AIMED else function
            worst = _ascend(Victim(answer, aim, targeted), region, start, labels, n_steps)
            blind = ~worst.is_fooled & is_blind(loss, worst.gain, worst.gradient)
            return Found(worst.x, worst.gain, worst.is_fooled, blind)

        return restarts.run(ascend, x, labels, radii)


def likely(z: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The wrong class of the given rank, 0 the likeliest, by logits z [R, classes]: [R]; it begins anew after the last."""
    order = z.argsort(dim=1, descending=True, stable=True)
    wrong = order[order != labels[:, None]].view(len(z), z.shape[1] - 1)
    return wrong[:, rank % wrong.shape[1]]


def _ascend(victim: Victim, region: Region, start: Tensor, labels: Tensor, n_steps: int) -> View:
    """The worst images on the paths of n_steps from start [R, ...]."""
    marks, mark = set(checkpoints(n_steps)), 0  # the last checkpoint
    # The current point, that of the highest gain, and the result: one that fools the model, else the highest.
    at = top = worst = victim.look(start, labels)
    finite = is_finite(at.gain, at.gradient)
    before, step = start, 2 * region.eps  # x_{k-1} [R, ...], eta [R, 1, ...]
    n_rises = torch.zeros_like(labels)  # [R], since the last checkpoint
    was_halved, gain_then = torch.zeros_like(finite), top.gain  # [R], at the last checkpoint
    for k in range(1, n_steps + 1):
        x = region.move_(at.x.clone(), at.gradient, step)
        if k > 1:
            x = region.project_(at.x + MOMENTUM * (x - at.x) + (1 - MOMENTUM) * (at.x - before))
        before, gain = at.x, at.gain
        at = victim.look(x, labels)
        finite &= is_finite(at.gain, at.gradient)
        n_rises += at.gain > gain
        top = _where(at.gain > top.gain, at, top)
        is_worse = (at.is_fooled & ~worst.is_fooled) | (
            (at.is_fooled == worst.is_fooled) & (at.gain > worst.gain)
        )
        worst = _where(is_worse, at, worst)
        if k in marks:
            halves = (n_rises < SUCCESSES * (k - mark)) | (~was_halved & (top.gain == gain_then))
            step = torch.where(per_row(halves, step), step / 2, step)
            at = _where(halves, top, at)
            n_rises, was_halved, gain_then, mark = torch.zeros_like(n_rises), halves, top.gain, k
    check_finite(finite)
    return worst


def _where(mask: Tensor, a: View, b: View) -> View:
    """The images of a where mask [R] is true, and of b elsewhere."""
    return View(*(torch.where(per_row(mask, t), t, u) for t, u in zip(a, b, strict=True)))
