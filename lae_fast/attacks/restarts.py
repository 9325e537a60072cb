"""Restarts of an ascent, over all images and radii: who is fooled takes no part in the next ones, and the worst is kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.attacks.arguments import MOST
from lae_fast.attacks.regions import REGIONS, Region, per_row

BLIND = 0.01  # of the images: where more have no gradient, a warning says so
CHUNK = (
    2**19
)  # bytes of images that a CPU attacks at once: some hundred times as many of activations stay in its caches


class Found(NamedTuple):
    """What one ascent found for R images."""

    adversary: Tensor  # [R, ...]
    gain: Tensor  # [R]
    is_fooled: Tensor  # [R]
    is_blind: Tensor  # [R], not fooled, and without a gradient to follow


# (region, start [R, ...], labels [R], index of the eps [R], number of the restart) -> what it found
Ascent = Callable[[Region, Tensor, Tensor, Tensor, int], Found]


class Restarts:
    """The options of all restarts, checked.

    Raises:
        TypeError, ValueError: as `pgd`.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        norm: str,
        random_start: bool,
        n_restarts: int,
        generator: torch.Generator | None,
        bounds: tuple[float, float],
        differ: bool = False,
    ) -> None:
        self.region = REGIONS[checks.choice("norm", norm, REGIONS)]
        self.n = checks.count("n_restarts", n_restarts, 1, MOST)
        self.random_start = checks.flag("random_start", random_start)
        self.generator = checks.generator("generator", generator, x.device)
        self.bounds = bounds
        if self.n > 1 and not (random_start or differ):
            raise ValueError(
                f"n_restarts is {n_restarts} without random_start; expected 1: all would be the same"
            )

    def run(self, ascend: Ascent, x: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        """The worst images for x [m, ...] with labels [m], for eps float64 [] or [K]: [*eps.shape, *x.shape].

        Of two results for an image the one that fools the model is the worse, else the one of higher gain.
        """
        m, k = len(x), eps.numel()
        origin = torch.cat([x] * k)  # [K m, ...] in x's memory format; the tensors below are [K m]
        labels, which = labels.long().repeat(k), torch.arange(k, device=x.device).repeat_interleave(m)
        radius = eps.to(x).view(-1)[which]
        best, best_gain = origin.clone(), torch.full_like(radius, -math.inf)
        is_settled, is_blind = radius == 0, torch.zeros_like(radius, dtype=torch.bool)
        for restart in range(self.n):
            rows = (~is_settled).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            start = origin[rows]
            if self.random_start:
                start = self.region(start, per_row(radius[rows], x), *self.bounds).random(self.generator)
            size = _rows_at_once(x)
            for part, chunk in zip(rows.split(size), start.split(size), strict=True):
                region = self.region(origin[part], per_row(radius[part], x), *self.bounds)
                found = ascend(region, chunk, labels[part], which[part], restart)
                gain = found.gain.to(best_gain)
                is_worse = found.is_fooled | (gain > best_gain[part])
                kept = part[is_worse]
                best[kept], best_gain[kept] = found.adversary[is_worse], gain[is_worse]
                is_settled[part], is_blind[part] = found.is_fooled, found.is_blind
        _warn(is_blind)
        return best.view(*eps.shape, *x.shape)


def _rows_at_once(x: Tensor) -> int:
    """How many images a CPU takes at once, for speed; an accelerator takes all.

    A multiple of 16, as the kernels of matrix products take rows in such blocks: the parts then compute the bits of the whole.
    """
    if x.device.type != "cpu":
        return MOST**2
    return max(1, CHUNK // (x[0].numel() * x.element_size()) // 16) * 16


def _warn(is_blind: Tensor) -> None:
    n = int(is_blind.sum())
    if n > BLIND * len(is_blind):
        warnings.warn(
            f"the gradient vanishes for {n} of {len(is_blind)} attacked images, which then look robust, as if nothing fooled "
            'the model: take loss="dlr", which does not depend on the scale of the logits, and see whether the model masks '
            "its gradients",
            stacklevel=4,
        )


def is_blind(loss: str, gain: Tensor, gradient: Tensor | None) -> Tensor:
    """Which of R images has no gradient [R, ...] to follow, [R]: it is 0, or that of the cross-entropy has lost the true class's
    part, as the cross-entropy has been rounded to 0."""
    if gradient is None:  # no step was taken
        return torch.zeros_like(gain, dtype=torch.bool)
    is_zero = (gradient.flatten(1) == 0).all(1)
    return is_zero | (gain == 0) if loss == "ce" else is_zero
