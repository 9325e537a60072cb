"""What attacks raise: losses of single images, from logits z [R, classes] and labels y [R] -> [R]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor], Tensor]  # logits [R, classes], labels [R] -> [R]


class Loss(NamedTuple):
    """A loss, and the fewest classes that it is defined for."""

    function: LossFunction
    n_classes: int


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y, nats."""
    return F.cross_entropy(z, y, reduction="none")


def margin(z: Tensor, y: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y (Carlini and Wagner, 2017): positive where the answer is not y."""
    own = y[:, None]
    return z.scatter(1, own, -math.inf).amax(1) - z.gather(1, own).squeeze(1)


def _over(z: Tensor, spread: Tensor) -> Tensor:
    """z / spread; z itself where the spread is 0, as all of its logits are then one."""
    return z / torch.where(spread > 0, spread, 1)


def _lead(z: Tensor) -> Tensor:
    """z_(1) - (z_(3) + z_(4)) / 2, [R]: it stays free where the class that an attack aims at is the third."""
    top = z.topk(4).values
    return top[:, 0] - (top[:, 2] + top[:, 3]) / 2


def ratio(z: Tensor, y: Tensor) -> Tensor:
    """(max_{i != y} z_i - z_y) / (z_(1) - z_(3)), logits sorted downwards: DLR (Croce and Hein, 2020, equation 6)."""
    top = z.topk(3).values
    return _over(margin(z, y), top[:, 0] - top[:, 2])


def aimed_ratio(z: Tensor, y: Tensor) -> Tensor:
    """(max_{i != y} z_i - z_y) / (z_(1) - (z_(3) + z_(4)) / 2): DLR for classes y that the model should answer."""
    return _over(margin(z, y), _lead(z))


def ratio_towards(target: Tensor) -> LossFunction:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) for classes t [R]: targeted DLR (equation 7)."""

    def targeted_ratio(z: Tensor, y: Tensor) -> Tensor:
        ahead = z.gather(1, target[:, None]) - z.gather(1, y[:, None])
        return _over(ahead.squeeze(1), _lead(z))

    return targeted_ratio


# Cross-entropy alone depends on the scale of the logits: float32 rounds it to 0 where the model is confident.
LOSSES = {"ce": Loss(cross_entropy, 1), "dlr": Loss(ratio, 3), "cw": Loss(margin, 2)}
WANTED = LOSSES | {"dlr": Loss(aimed_ratio, 4)}  # the same for labels that the model should answer
