"""Adversarial images: FGSM and PGD in L-infinity and L2, and a classifier's accuracy under them.

An attack runs the model in eval mode, leaves model and images unchanged, and handles all values of eps at once: for
PGD, K eps and m images make one batch of K m rows.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lae_fast import checks
from lae_fast.checks import describe
from lae_fast.isolation import isolated

FLOATS = (torch.float16, torch.bfloat16, *checks.FLOATS)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MOST = 10**6  # steps, or restarts: more would run for days

Model = Callable[[Tensor], Tensor]  # images [n, ...] -> logits or log-probabilities [n, classes]


class Robustness(NamedTuple):
    """A classifier's accuracy and loss under attack, one entry for each eps; float64, on the CPU.

    Example:
        >>> classifier = torch.nn.Identity()  # logits are the two pixels
        >>> x, labels = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
        >>> found = lae_fast.attacks.robustness(classifier, x, labels, eps=[0.0, 0.1], attack=lae_fast.attacks.fgsm)
        >>> found.accuracy.tolist(), bool(found.loss[1] > found.loss[0])
        ([1.0, 0.0], True)
    """

    accuracy: Tensor  # [K], fraction of the images
    loss: Tensor  # [K], nats per image: mean cross-entropy


@contextlib.contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Eval mode for the model (isolation.py), and tensors that autograd accepts even if the caller is in inference mode."""
    with torch.inference_mode(False), torch.no_grad(), isolated(model):
        yield


def _checked(model: Model, labels: Tensor) -> Model:
    """The model, with an error if its output has a wrong shape or a label has no class: on a GPU such a label would
    make all later work fail."""
    n_classes = int(labels.max()) + 1

    def call(x: Tensor) -> Tensor:
        output = model(x)
        expected = f"[{len(x)}, classes] with classes >= {n_classes} for these labels"
        if not isinstance(output, Tensor):
            raise TypeError(f"the model returned {describe(output)}; expected a tensor {expected}")
        if output.layout != torch.strided or output.is_nested or output.device != x.device:
            raise ValueError(
                f"the model returned {describe(output)}; expected {expected}, dense on {x.device}"
            )
        if output.dim() != 2 or len(output) != len(x) or output.shape[1] < n_classes:
            raise ValueError(f"the model returned {list(output.shape)}; expected {expected}")
        if not output.is_floating_point():
            raise ValueError(f"the model returned {describe(output)}; expected floating point {expected}")
        return output

    return call


def _gradient(model: Model, x: Tensor, labels: Tensor) -> Tensor:
    """The gradient of each image's cross-entropy by the images x [R, ...]: [R, ...]; parameters get no gradient."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        loss = F.cross_entropy(model(leaf), labels, reduction="sum")
        gradient = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise ValueError(
            "the model's output has no gradient by the images; expected a model whose operations autograd records"
        )
    return gradient


def _outcome(model: Model, x: Tensor, labels: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """The model's answers [R] to attacked images x [R, ...], and their cross-entropies [R], nats.

    Raises an error if a cross-entropy or the last gradient [R, ...] is not finite: an image whose gradient is NaN does
    not move, and would count as robust.
    """
    output = model(x)
    loss = F.cross_entropy(output, labels, reduction="none")
    is_finite = loss.isfinite()
    if gradient is not None:
        is_finite = is_finite & gradient.flatten(1).isfinite().all(1)
    if not is_finite.all():
        n_bad = int((~is_finite).sum())
        raise RuntimeError(
            f"the model's loss or its gradient is not finite for {n_bad} of {len(x)} attacked images; "
            "expected a model that is finite within its bounds"
        )
    return output.argmax(1), loss


def _per_row(values: Tensor, x: Tensor) -> Tensor:
    """[R] -> [R, 1, ...], to multiply images x [R, ...]."""
    return values.view(-1, *[1] * (x.dim() - 1))


def _norm(x: Tensor, order: float = 2) -> Tensor:
    """The norm of each image, [R, ...] -> [R, 1, ...]; it is never 0, so that callers can divide by it."""
    norm: Tensor = torch.linalg.vector_norm(x, order, dim=tuple(range(1, x.dim())), keepdim=True)
    return norm.clamp_(min=torch.finfo(x.dtype).tiny)


def _unit(x: Tensor) -> Tensor:
    """x / |x|_2 of each image, [R, ...] -> [R, ...]; 0 for x = 0.

    x is scaled before it is squared: a confident model's gradients are so small that their squares vanish in float32.
    """
    x = x / _norm(x, math.inf)
    return x.div_(_norm(x))


class _Box:
    """Images [R, ...] within eps of x in every pixel, and within the bounds."""

    def __init__(self, x: Tensor, eps: Tensor, low: float, high: float) -> None:
        self.x, self.eps = x, eps  # [R, ...], [R, 1, ...]
        self.lower, self.upper = (x - eps).clamp_(min=low), (x + eps).clamp_(max=high)
        self.sign = torch.empty_like(x)

    def random(self, generator: torch.Generator | None) -> Tensor:
        """Images uniform within eps, then clamped to the bounds: the start of Madry et al."""
        u = torch.rand(self.x.shape, generator=generator, dtype=self.x.dtype, device=self.x.device)
        return (self.x + self.eps * (2 * u - 1)).clamp_(self.lower, self.upper)

    def move_(self, adversary: Tensor, gradient: Tensor, step: Tensor) -> None:
        """Move adversary [R, ...] along the sign of gradient [R, ...] by step [R, 1, ...], in place."""
        # Not in place: the gradient may be an expanded tensor, or belong to the model.
        torch.sign(gradient, out=self.sign)
        adversary.addcmul_(self.sign, step).clamp_(self.lower, self.upper)


class _Ball:
    """Images [R, ...] within eps of x in Euclidean distance, and within the bounds."""

    def __init__(self, x: Tensor, eps: Tensor, low: float, high: float) -> None:
        self.x, self.eps, self.bounds = x, eps, (low, high)

    def random(self, generator: torch.Generator | None) -> Tensor:
        """Images uniform within eps, then clamped to the bounds."""
        options: dict[str, Any] = dict(generator=generator, dtype=self.x.dtype, device=self.x.device)
        direction = _unit(torch.randn(self.x.shape, **options))
        radius = torch.rand(self.eps.shape, **options).pow_(1 / self.x[0].numel())  # P(radius < r) = r^D
        return (self.x + self.eps * radius * direction).clamp_(*self.bounds)

    def move_(self, adversary: Tensor, gradient: Tensor, step: Tensor) -> None:
        """Move adversary [R, ...] along gradient [R, ...] by a distance step [R, 1, ...], in place."""
        delta = adversary.addcmul_(_unit(gradient), step) - self.x
        shrink = (self.eps / _norm(delta)).clamp_(max=1)
        # x lies within the bounds, so clamping to the bounds does not increase the distance from x.
        torch.addcmul(self.x, delta, shrink, out=adversary).clamp_(*self.bounds)


_REGIONS: dict[str, type[_Box] | type[_Ball]] = {"linf": _Box, "l2": _Ball}


def _check(model: Any, x: Any, labels: Any, eps: Any, bounds: Any) -> tuple[Tensor, tuple[float, float]]:
    """Raise a TypeError or ValueError unless `pgd` accepts these arguments; returns eps as float64 [] or [K], and the bounds."""
    checks.function("model", model)
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_nested or x.is_meta:
        raise _wrong(x, f"x is {describe(x)}; expected a dense tensor [m, ...] of images")
    if x.dtype not in FLOATS or x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x is {describe(x)}; expected floating point [m, ...] with m >= 1")
    low, high = _pair(bounds, torch.finfo(x.dtype).max)
    least, most = (value.item() for value in x.detach().aminmax())
    if not low <= least <= most <= high:  # a NaN fails too
        raise ValueError(
            f"x has values from {least:g} to {most:g}; expected all in [{low:g}, {high:g}], the bounds"
        )
    fits = isinstance(labels, Tensor) and labels.layout == torch.strided and not labels.is_nested
    if not fits or labels.dtype not in INTEGERS or labels.shape != x.shape[:1] or labels.device != x.device:
        raise _wrong(
            labels,
            f"labels are {describe(labels)}; expected integers [{len(x)}] on {x.device}, one for each image of x",
        )
    if labels.min() < 0:  # cross-entropy would silently ignore the label -100
        raise ValueError(f"labels go down to {labels.min().item()}; expected classes from 0 on")
    return _radii(eps), (low, high)


def _wrong(value: Any, message: str) -> Exception:
    """A TypeError about what is no tensor, a ValueError about a tensor of another form."""
    return (ValueError if isinstance(value, Tensor) else TypeError)(message)


def _pair(bounds: Any, largest: float) -> tuple[float, float]:
    """The two bounds as float; infinite ones are no bounds."""
    is_pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2
    if not is_pair or not all(_is_number(v) for v in bounds):
        raise TypeError(f"bounds are {describe(bounds)}; expected two numbers, the lower one first")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds are {bounds}; expected the lower one first")
    if any(largest < abs(v) != math.inf for v in bounds):
        raise ValueError(
            f"bounds are {bounds}; expected infinity, or numbers up to {largest:g}, which x's type holds"
        )
    return float(bounds[0]), float(bounds[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _radii(eps: Any) -> Tensor:
    """eps, a number or a sequence of K numbers (a list, a tuple, an array, a tensor), as float64 [] or [K]."""
    if isinstance(eps, Tensor):
        checks.tensor("eps", eps, dtypes=(*FLOATS, *INTEGERS))
    if isinstance(eps, Tensor) and eps.is_meta:
        raise ValueError(f"eps is {describe(eps)}; expected a tensor that holds values")
    given = eps.tolist() if hasattr(eps, "tolist") and not isinstance(eps, type) else eps
    parts = list(given) if isinstance(given, (list, tuple)) else [given]
    parts = [p.item() if isinstance(p, Tensor) and p.numel() == 1 and not p.is_meta else p for p in parts]
    if not parts or not all(_is_number(p) and 0 <= p <= torch.finfo(torch.float64).max for p in parts):
        raise ValueError(f"eps is {eps}; expected a finite number >= 0, or a sequence of at least one")
    return torch.tensor(parts if isinstance(given, (list, tuple)) else parts[0], dtype=torch.float64)


def _check_size(name: str, values: Tensor, x: Tensor, norm: str = "linf") -> None:
    """Check that x's type holds sums of a few of these float64 values, and in "l2" their squares."""
    largest = torch.finfo(x.dtype).max
    limit = (math.sqrt(largest) if norm == "l2" else largest) / 8
    if values.max() > limit:
        raise ValueError(f"{name} is {values.max():g}; expected at most {limit:g}, for x of {x.dtype}")


def fgsm(
    model: Model,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float | Sequence[float],
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
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
    values, bounds = _check(model, x, labels, eps, bounds)
    _check_size("eps", values, x)
    checks.flag("targeted", targeted)
    values = values.to(x)
    with _evaluating(model):
        x, labels, model = x.clone(), labels.long().clone(), _checked(model, labels)
        gradient = _gradient(model, x, labels)
        _outcome(model, x, labels, gradient)
        step = values.view(*values.shape, *[1] * x.dim()) * (-1 if targeted else 1)
        return (x + step * gradient.sign()).clamp_(*bounds)  # [*x.shape] or [K, *x.shape]


def pgd(
    model: Model,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float | Sequence[float],
    norm: Literal["linf", "l2"] = "linf",
    n_steps: int = 40,
    step_size: float | None = None,
    random_start: bool = True,
    n_restarts: int = 1,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient ascent on the cross-entropy L (Madry et al., 2018), within eps of x and within the bounds.

        x' <- P(x' + step_size sign(g)),  g = grad L(x', labels);  "l2": g / |g|_2 instead of sign(g)

    With "linf", P clamps to the box that eps and the bounds define; in PyTorch
    `x_adv.add_(step_size * g.sign()).clamp_((x - eps).clamp(min=low), (x + eps).clamp(max=high))`. With "l2", P scales
    x' - x down to eps, then clamps to the bounds. An image with a zero gradient does not move. Beware of very confident
    models: float32 rounds away the true class's part of the gradient where this class is 17 nats ahead, and the whole
    gradient at 100 nats, which looks like robustness.

    Args:
        model: images [n, ...] -> logits or log-probabilities [n, classes], each image independently. An `nn.Module` is
            in eval mode during the attack; its parameters, their .grad and every submodule's mode do not change.
        x: [m, ...], floating point, within the bounds.
        labels: [m], integers: the true classes, or with `targeted` the classes that the model should answer.
        eps: the radius in units of x, or a sequence of K radii.
        norm: "linf" or "l2".
        n_steps: gradient steps of each restart, at most a million.
        step_size: in units of x, the same for all eps; None: 2.5 eps / n_steps for each eps.
        random_start: start from a point uniform within eps (then clamped to the bounds) instead of from x.
        n_restarts: number of restarts; the worst result for each image is kept: one that fools the model, else the one
            with the highest L (with `targeted` the lowest). Fooled images skip later restarts.
        targeted: lower L, so that the model answers `labels`, instead of raising L.
        bounds: the lowest and the highest value of a pixel.
        generator: source of the random starts, on x's device; default: the generator that `torch.manual_seed` sets.

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
    values, bounds = _check(model, x, labels, eps, bounds)
    checks.choice("norm", norm, _REGIONS)
    _check_size("eps", values, x, norm)
    n_steps = checks.count("n_steps", n_steps, 0, MOST)
    n_restarts = checks.count("n_restarts", n_restarts, 1, MOST)
    checks.flag("random_start", random_start)
    checks.flag("targeted", targeted)
    checks.generator("generator", generator, x.device)
    if n_restarts > 1 and not random_start:
        raise ValueError(
            f"n_restarts is {n_restarts} without random_start; expected 1: all would be the same"
        )
    if step_size is not None:
        step_size = checks.number("step_size", step_size, least=0)
        _check_size("step_size", torch.tensor(step_size, dtype=torch.float64), x, norm)

    steps = 2.5 * values / max(n_steps, 1) if step_size is None else torch.full_like(values, step_size)
    sign = -1 if targeted else 1
    with _evaluating(model):
        m, k = len(x), values.numel()
        origin = torch.cat([x] * k)  # [K m, ...] in x's memory format; the tensors below are [K m]
        labels, model = labels.long().repeat(k), _checked(model, labels)
        radius, step = (v.to(x).view(-1).repeat_interleave(m) for v in (values, sign * steps))
        best, best_gain = origin.clone(), torch.full_like(radius, -math.inf)
        is_settled = radius == 0
        for _ in range(n_restarts):
            rows = (~is_settled).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            region = _REGIONS[norm](origin[rows], _per_row(radius[rows], x), *bounds)
            adversary = region.random(generator) if random_start else origin[rows]
            row_labels, row_step, gradient = labels[rows], _per_row(step[rows], x), None
            for _ in range(n_steps):
                gradient = _gradient(model, adversary, row_labels)
                region.move_(adversary, gradient, row_step)
            answer, loss = _outcome(model, adversary, row_labels, gradient)
            is_fooled, gain = (answer == row_labels) == targeted, (sign * loss).to(best_gain)
            is_better = is_fooled | (gain > best_gain[rows])
            kept = rows[is_better]
            best[kept], best_gain[kept] = adversary[is_better], gain[is_better]
            is_settled[rows] = is_fooled
    return best.view(*values.shape, *x.shape)


@torch.inference_mode(False)  # foreign attacks expect to take gradients
def robustness(
    model: Model,
    x: Tensor,
    labels: Tensor,
    *,
    eps: Sequence[float],
    attack: Callable[..., Tensor] = pgd,
    batch_size: int = 500,
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
            K eps; it returns [K, m, ...]: `pgd`, `fgsm`, or your own.
        options: passed on to `attack`.

    Raises:
        TypeError: as for `pgd`, or the attack returns no tensor.
        ValueError: eps is not a sequence, batch_size < 1, the option `targeted` is set (its labels are not the true
            classes), the attack's result has another shape, or as for `pgd`.
        RuntimeError: as for `pgd`.

    Example:
        >>> classifier = torch.nn.Identity()  # logits are the two pixels: the brighter one is the class
        >>> x, labels = torch.tensor([[0.6, 0.5], [0.1, 0.9]]), torch.tensor([0, 1])
        >>> lae_fast.attacks.robustness(classifier, x, labels, eps=[0.0, 0.1, 0.5]).accuracy
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    values, _ = _check(model, x, labels, eps, options.get("bounds", (0.0, 1.0)))
    if values.dim() == 0:
        raise ValueError(f"eps is {eps}; expected a sequence")
    checks.function("attack", attack)
    batch_size = checks.count("batch_size", batch_size)
    if checks.flag("targeted", options.get("targeted", False)):
        raise ValueError("targeted is True; expected False: accuracy is counted against the true labels")
    totals = torch.zeros(2, len(values), dtype=torch.float64)  # correct answers, nats
    for images, classes in zip(x.split(batch_size), labels.split(batch_size), strict=True):
        adversaries = attack(model, images, classes, eps=eps, **options)
        expected = [len(values), *images.shape]
        if not isinstance(adversaries, Tensor):
            raise TypeError(f"the attack returned {describe(adversaries)}; expected a tensor {expected}")
        if list(adversaries.shape) != expected:
            raise ValueError(f"the attack returned {list(adversaries.shape)}; expected {expected}")
        if not adversaries.isfinite().all():
            raise ValueError("the attack returned images that are not finite; expected finite ones")
        with _evaluating(model):
            answer = _checked(model, classes)
            for i, adversary in enumerate(adversaries):
                output = answer(adversary).double()
                if output.isnan().any():
                    raise RuntimeError("the model's output is NaN for attacked images; expected numbers")
                totals[0, i] += (output.argmax(1) == classes).sum().cpu()
                totals[1, i] += F.cross_entropy(output, classes.long(), reduction="sum").cpu()
    return Robustness(*totals / len(x))
