"""The model that is attacked: in eval mode, its output checked, and what an attack raises with its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lae_fast import checks
from lae_fast.attacks.losses import LossFunction
from lae_fast.checks import describe
from lae_fast.isolation import isolated

Model = Callable[
    [Tensor], Any
]  # images [n, ...] -> logits or log-probabilities [n, classes], or what `logits` takes
Logits = Callable[[Any], Tensor]  # what a model returns -> logits [n, classes]


class _LogitsOf(nn.Module):
    """A model whose output is a function of another one's; a module, so that foreign attacks find its parameters."""

    def __init__(self, model: Model, logits: Logits) -> None:
        super().__init__()
        self.model, self.logits = model, logits
        self.training = getattr(model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.model(x))


def with_logits(model: Model, logits: Logits | None) -> Model:
    """The model, which returns `logits` of its output if that is a function."""
    if logits is None:
        return model
    return _LogitsOf(checks.function("model", model), checks.function("logits", logits))


@contextlib.contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Eval mode for the model (isolation.py), and tensors that autograd accepts even if the caller is in inference mode."""
    with torch.inference_mode(False), torch.no_grad(), isolated(model):
        yield


def checked(model: Model, labels: Tensor, n_classes: int = 1) -> Model:
    """The model, with an error if its output has a wrong shape, or fewer classes than the labels or `n_classes`: on a GPU a
    label without a class would make all later work fail."""
    least = max(int(labels.max()) + 1, n_classes)

    def call(x: Tensor) -> Tensor:
        output = model(x)
        reason = "for these labels" if least > n_classes else "for this loss"
        expected = f"[{len(x)}, classes] with classes >= {least} {reason}"
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned {describe(output)}; expected a tensor {expected}, or a function `logits` that takes "
                "it from the output"
            )
        if output.layout != torch.strided or output.is_nested or output.device != x.device:
            raise ValueError(
                f"the model returned {describe(output)}; expected {expected}, dense on {x.device}"
            )
        if output.dim() != 2 or len(output) != len(x) or output.shape[1] < least:
            raise ValueError(f"the model returned {list(output.shape)}; expected {expected}")
        if not output.is_floating_point():
            raise ValueError(f"the model returned {describe(output)}; expected floating point {expected}")
        return output

    return call


class View(NamedTuple):
    """What an attack sees of R images."""

    x: Tensor  # [R, ...]
    gain: Tensor  # [R], what it raises: the loss, or minus the loss of a wanted answer
    is_fooled: Tensor  # [R]
    gradient: Tensor  # [R, ...], of each image's gain by the image


class Victim:
    """The model under attack.

    Args:
        answer: a `checked` model.
        loss: of single images.
        targeted: lower the loss, for labels that the model should answer.
    """

    def __init__(self, answer: Model, loss: LossFunction, targeted: bool = False) -> None:
        self.answer, self.loss, self.targeted = answer, loss, targeted

    def judge(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gains [R] of images x [R, ...] with labels [R], and who is fooled [R]."""
        output = self.answer(x)
        loss = self.loss(output, labels)
        return -loss if self.targeted else loss, (output.argmax(1) == labels) == self.targeted

    def look(self, x: Tensor, labels: Tensor) -> View:
        """What `judge` finds, and the gradient; parameters get none."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            gain, is_fooled = self.judge(leaf, labels)
            gradient = (
                torch.autograd.grad(gain.sum(), leaf, allow_unused=True)[0] if gain.requires_grad else None
            )
        if gradient is None:
            raise ValueError(
                "the model's output has no gradient by the images; expected a model whose operations autograd records"
            )
        return View(x, gain.detach(), is_fooled, gradient)


def is_finite(gain: Tensor, gradient: Tensor | None) -> Tensor:
    """Whether an image's gain and gradient are numbers, [R]: one whose gradient is NaN does not move, and would count as robust."""
    finite = gain.isfinite()
    return finite if gradient is None else finite & gradient.flatten(1).isfinite().all(1)


def check_finite(finite: Tensor) -> None:
    """A RuntimeError unless all of these images [R] are."""
    if not finite.all():
        raise RuntimeError(
            f"the model's loss or its gradient is not finite for {int((~finite).sum())} of {len(finite)} attacked images; "
            "expected a model that is finite within its bounds"
        )
