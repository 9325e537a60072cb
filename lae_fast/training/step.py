"""One training step: the loss, its gradients, the optimizer. Eager, or on a GPU captured in a CUDA graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lae_fast import checks
from lae_fast.graphs import Replayed
from lae_fast.sharing import Shared
from lae_fast.training.optimizer import Adam
from lae_fast.training.parts import FixedParts, gradients_and_loss, running_averages


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a training step frees: freeing one large block raises glibc's threshold. Otherwise
    every step returns its activations to the system and pays for fresh pages, a sixth of the step's time."""
    torch.empty(30 * 2**20, dtype=torch.uint8)


def adam(model: nn.Module, lr: float, beta1: float | None = None) -> torch.optim.Adam:
    """Fused Adam over the model's parameters. On a GPU it takes two launches, and a graph can capture it: its learning rate is on
    the device. State and options are those of `torch.optim.Adam`, and either loads what the other one saved.

    Args:
        beta1: the momentum; None: that of the model, `model.beta1`, 0.5 of an LAE with joint decisions, and 0.9 of what has none.

    Example:
        >>> from lae_fast import training
        >>> optimizer = training.adam(torch.nn.Linear(2, 1), lr=1e-3, beta1=0.5)
        >>> optimizer.param_groups[0]["betas"]
        (0.5, 0.999)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {checks.describe(model)}; expected an nn.Module")
    beta1 = getattr(model, "beta1", 0.9) if beta1 is None else beta1
    lr, beta1 = checks.number("lr", lr, least=0), checks.number("beta1", beta1, least=0, below=1)
    device, betas = _device(model), (beta1, 0.999)
    if device.type == "cuda":
        return Adam(model.parameters(), torch.tensor(lr, dtype=torch.float32, device=device), betas)
    return torch.optim.Adam(model.parameters(), lr, betas, fused=True)


def _device(model: nn.Module) -> torch.device:
    """Where the model is: its first parameter."""
    for p in model.parameters():
        return p.device
    raise ValueError(f"model is {checks.describe(model)}, without parameters; expected some to train")


def cool_down(optimizer: torch.optim.Optimizer, lr: float, done: float, cooldown: float) -> None:
    """Set the learning rate: lr, then linear to 0 over the last fraction `cooldown` of training (0: never).

    Args:
        done: the fraction of training that is over.

    Raises:
        TypeError, ValueError: lr is no finite number from 0, or done or cooldown none from 0 to 1.

    Example:
        >>> from lae_fast import training
        >>> optimizer = training.adam(torch.nn.Linear(2, 1), lr=1e-3)
        >>> training.cool_down(optimizer, lr=1e-3, done=0.9, cooldown=0.2)  # half of the last fifth is over
        >>> round(float(optimizer.param_groups[0]["lr"]), 6)
        0.0005
    """
    checks.number("lr", lr, least=0)
    checks.fraction("done", done)
    checks.fraction("cooldown", cooldown)
    rate = lr * (min(1.0, (1 - done) / cooldown) if cooldown else 1.0)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def check_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError unless a CUDA graph can capture the optimizer's step, so that its learning rate may change later."""
    for group in optimizer.param_groups:
        if not group.get("capturable") or not isinstance(group["lr"], Tensor):
            raise ValueError(
                f"capture with an optimizer whose capturable is {group.get('capturable')} and whose lr is a "
                f"{type(group['lr']).__name__}; expected True and a Tensor"
            )


class TrainingStep:
    """Steps of `optimizer` down the loss of `model`: `step(x)` for images x [n, nx].

    On a GPU the first calls run as they are, the next call is captured, and every later call copies x and replays the
    graph: hundreds of launches for the price of one. Noise, step size and learning rate advance in a replay too, as
    they live on the device; a step does not wait for the device.

    Of a model that shares its minibatches (`share_minibatches`) each process steps with its own part, and all with the mean
    of their gradients: one message a step, and the same weights everywhere; BatchNorm's running averages are means, too. Such steps
    are not captured.

    Args:
        model: any of this package's models, or a module with a `loss` of a minibatch.
        optimizer: an optimizer of the model's parameters, whose steps take their gradients and no closure (so not LBFGS). For
            capture it must be `capturable`, and its learning rate a tensor on the device: `adam` makes such an optimizer.
        read: makes images of the step's argument, within the step and so within its graph: with
            `read=lambda index: images[index] / 255` a step takes the indices of its images. None: it takes the images.
        capture: replay the step from a CUDA graph; default: if the model is on a GPU and shares nothing.
        n_parts: a power of two: every minibatch is computed in so many equal parts, one after the other or by several
            processes, whose number divides it. Sums over parts have a fixed order: the same bits for any number of processes of
            one kind, with equally many threads. Such steps take longer and are not captured, and a copy of the model for each part has
            its buffers and gradients; it does not see attributes that are changed later, BatchNorm sees its part alone, and Dropout
            has the same mask in each. None: each process computes its part as it is.

    Raises:
        ValueError: an optimizer of other parameters, or one that takes a closure; capture without a GPU, in parts or of a model that shares its
            minibatches, or of an optimizer that cannot be captured; n_parts is no power of two, or does not divide among the processes.

    Example:
        >>> from lae_fast import models, training
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1))
        >>> step = lae_fast.TrainingStep(model, training.adam(model, lr=model.lr))
        >>> x = (torch.rand(64) < 0.5).float().expand(32, 64)  # one image, many times
        >>> losses = [step(x).item() for _ in range(30)]
        >>> losses[-1] < 0.8 * losses[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        read: Callable[[Tensor], Tensor] | None = None,
        capture: bool | None = None,
        n_parts: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module) or not callable(getattr(model, "loss", None)):
            raise TypeError(f"model is {checks.describe(model)}; expected an nn.Module with a `loss`")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer is {checks.describe(optimizer)}; expected an optimizer of torch.optim"
            )
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"optimizer is a {type(optimizer).__name__}, whose steps take a closure; expected one that steps along gradients"
            )
        if capture is not None:
            checks.flag("capture", capture)
        if read is not None:
            checks.function("read", read)
        device = _device(model)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = [p for p in model.parameters() if p.requires_grad]
        if trained and not any(id(p) in held for p in trained):
            raise ValueError(
                "the optimizer holds none of the model's trained parameters; expected one of model.parameters()"
            )
        self.model, self.optimizer, self.read = model, optimizer, read
        share: Shared | None = getattr(model, "share", None)
        is_whole = share is None and n_parts is None
        captures = device.type == "cuda" and is_whole if capture is None else capture
        if captures and not is_whole:
            what = "a model that shares its minibatches with other processes" if share else f"{n_parts} parts"
            raise ValueError(f"capture of {what}; expected False")
        self.parts = None
        if n_parts is not None:
            self.parts = FixedParts(model, checks.count("n_parts", n_parts), share)
        self.replayed = Replayed(lambda: self._step(self.x), device) if captures else None
        if captures:
            check_capturable(optimizer)
        elif device.type == "cpu":
            keep_freed_memory()

    def __call__(self, x: Tensor) -> Tensor:
        """Take one step on images x [n, nx], or on what `read` makes images of; returns the loss [] before the step, nats per
        image, detached; of all processes that share the minibatch.

        A captured step's loss is valid until the next call.

        Raises:
            ValueError: the model is in eval mode, or x has another shape or type than the captured images.
        """
        self.check_mode()
        if self.replayed is None:
            loss = self._step(x)
        else:
            self._hold(x)
            loss = self.replayed()
        torch.clear_autocast_cache()  # of the weights before the step, which an outer region would keep
        return loss

    def check_mode(self) -> None:
        """Raise a ValueError unless the model is in train mode: a replay would train it all the same."""
        if not self.model.training:
            raise ValueError("the model is in eval mode; expected train mode: call model.train() first")

    def _hold(self, x: Tensor) -> None:
        """Put x where the graph reads it."""
        if not self.is_captured:
            self.x = x.clone()
        elif x.shape != self.x.shape or x.dtype != self.x.dtype:
            raise ValueError(
                f"{'images are' if self.read is None else 'given'} {x.dtype} {list(x.shape)}; expected {self.x.dtype} "
                f"{list(self.x.shape)}, as captured"
            )
        else:
            self.x.copy_(x)

    @property
    def is_captured(self) -> bool:
        return self.replayed is not None and self.replayed.graph is not None

    def _step(self, x: Tensor) -> Tensor:
        torch.clear_autocast_cache()  # a graph has to make its own copies of the weights, at each replay
        self.optimizer.zero_grad(set_to_none=True)
        if self.read is not None:
            x = self.read(x)
        if self.parts is not None:
            loss = self.parts.add_gradients(x)
        else:
            loss = gradients_and_loss(self.model, x)
            share: Shared | None = getattr(self.model, "share", None)
            if share is not None:
                gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
                share.average([*gradients, loss, *running_averages(self.model)])
        self.optimizer.step()
        return loss
