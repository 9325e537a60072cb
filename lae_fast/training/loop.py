"""A loop for models of one's own: minibatches, Adam, a cooldown. The command's is trainer.py, which keeps records and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lae_fast import checks, data, seeds
from lae_fast.data.images import stacked
from lae_fast.isolation import set_modes
from lae_fast.models import Autoencoder, images_for
from lae_fast.models.autoencoder import check_form, like_of
from lae_fast.progress import bar
from lae_fast.training.config import TrainingError
from lae_fast.training.parts import random_state, set_random_state
from lae_fast.training.step import TrainingStep, adam, cool_down


def fit(
    model: Autoencoder,
    images: Any,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float | None = None,
    cooldown: float = 0.2,
    seed: int = 0,
    progress: bool = True,
    on_epoch: Callable[[int, float], object] | None = None,
) -> list[float]:
    """Train a model on images in memory; on a GPU the steps are captured in a CUDA graph.

    Args:
        model: any of this package's models, of any networks. All of it trains in train mode; afterwards each of its modules is
            in the mode that it had, and no parameter has a gradient.
        images: [N, ...] as the model takes them, or [N, h, w, c], a tensor or array; a `torch.utils.data.Dataset` of images or of
            pairs (image, label), each read once, so that random transforms are drawn once; a `lae_fast.data.Split`, or the training images of a `lae_fast.data.Dataset`, drawn anew at
            each use where its binarization is dynamic. They are moved to the model's device.
        epochs: passes over the images, each in an order of its own, without the rest that fills no minibatch.
        lr: Adam's learning rate; default: `model.lr`.
        cooldown: the last fraction of training, from 0 to 1, in which the learning rate falls to 0.
        seed: of the order and of all noise but the chain's, which goes on with its own; the program's own random streams stay
            where they are, and `on_epoch` draws from these. A further call sees other minibatches if it has another seed.
        progress: show a bar.
        on_epoch: called after each epoch with its number, from 1, and its loss; training stops if it returns True, also NumPy's or a
            tensor's; numbers say nothing.

    Returns:
        The mean loss of each epoch, nats per image.

    Raises:
        TypeError, ValueError: an argument or the images have another form, there are fewer images than `batch_size`, or the model
            has no weights (it is on meta), none to train, was made in inference mode, or has some that are not finite.
        TrainingError: a loss, a weight or the chain's state is not finite. The model then has what it had after the last good
            epoch.

    Example:
        >>> encoder, decoder = torch.nn.Linear(9, 8), torch.nn.Linear(2, 9)
        >>> model = lae_fast.LAE(encoder, decoder, lae_fast.Bernoulli(), nx=9, nz=2)
        >>> losses = lae_fast.fit(model, torch.eye(9).repeat(9, 1), epochs=5, batch_size=9, lr=0.02)
        >>> len(losses), losses[-1] < losses[0]
        (5, True)
    """
    if not isinstance(model, Autoencoder):
        raise TypeError(f"model is {checks.describe(model)}; expected an LAE, VAE or Hoffman")
    epochs, batch_size = checks.count("epochs", epochs), checks.count("batch_size", batch_size)
    lr = checks.number("lr", model.lr if lr is None else lr, least=0)
    checks.fraction("cooldown", cooldown)
    seed, progress = checks.seed("seed", seed), checks.flag("progress", progress)
    if on_epoch is not None:
        checks.function("on_epoch", on_epoch)
    if model.share is not None:
        raise ValueError(
            "the model shares its minibatches with other processes; expected one that does not: fit trains alone"
        )
    if any(t.is_meta for t in model.state_dict().values()):
        raise ValueError(
            "the model is on meta, where it has no weights; expected one on a device of this machine"
        )
    if any(t.is_inference() for t in model.state_dict().values()):
        raise ValueError(
            "the model was made in inference mode, where no weight can be trained; expected one made outside of it"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter of the model requires a gradient; expected some to train")
    x = _images(model, images)
    if len(x) < batch_size:
        raise ValueError(f"batch_size is {batch_size}; expected at most {len(x)}, the number of images")
    if not is_finite(model):
        raise ValueError("the model's weights or its chain's state are not finite; expected finite ones")
    modes, n_batches, losses = {m: m.training for m in model.modules()}, len(x) // batch_size, list[float]()
    with torch.inference_mode(False):  # which could not be trained afterwards
        optimizer = adam(model, lr, model.beta1)
        is_dynamic = isinstance(images, data.Dataset) and images.binarization == "dynamic"
        step = TrainingStep(
            model,
            optimizer,
            read=lambda index: data.pixels(data.binarize(x[index]) if is_dynamic else x[index]),
        )
    devices = [x.device] if x.is_cuda else []
    numbers = [
        torch.Generator(device).manual_seed(seed).get_state() for device in (torch.device("cpu"), *devices)
    ]
    shown = bar(total=epochs * n_batches, unit="batch", shown=progress)
    try:
        with shown:
            for epoch in range(epochs):
                with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
                    model.train()  # `on_epoch` may have asked it something in eval mode
                    set_random_state(numbers, x.device)
                    good = {name: t.clone() for name, t in model.state_dict().items()}
                    total = torch.zeros((), dtype=torch.float64, device=x.device)
                    for i, index in enumerate(
                        data.shuffled(len(x), batch_size, seeds.mixed(seed, epoch), x.device)
                    ):
                        cool_down(optimizer, lr, (epoch + i / n_batches) / epochs, cooldown)
                        total += step(index)
                        shown.update()
                    loss = total.item() / n_batches
                    if not math.isfinite(loss) or not is_finite(model):
                        model.load_state_dict(good)
                        raise TrainingError(
                            f"epoch {epoch + 1}: the loss or a weight is not finite; the model has the weights from before it; "
                            f"expected a lower lr than {lr:g}"
                        )
                    numbers = random_state(x.device)
                losses.append(loss)
                shown.set_postfix(loss=f"{loss:.2f}")
                if on_epoch is not None and _is_true(on_epoch(epoch + 1, loss)):
                    break
    finally:
        set_modes(modes)
        optimizer.zero_grad()  # those of weights that have moved, or are not finite
    return losses


def _is_true(answer: object) -> bool:
    """Whether a function said True; numbers, as some functions happen to return, say nothing, in tensors neither."""
    if isinstance(answer, Tensor):
        return answer.dtype == torch.bool and answer.numel() == 1 and bool(answer)
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


def is_finite(model: Autoencoder) -> bool:
    """Whether all weights and the chain's state are; the logarithm of a step size may be -inf, and buffers of networks may be
    masks of it."""
    own = {name: t for name, t in model.state_dict().items() if "." not in name}
    if "log_step_size" in own:
        own["log_step_size"] = own["log_step_size"].exp()
    return all(t.isfinite().all() for t in (*model.parameters(), *own.values()))


def _images(model: Autoencoder, images: Any) -> Tensor:
    """Images [N, ...] in a form that the model takes, on its device."""
    x = stacked(images.train if isinstance(images, data.Dataset) else images)[0]
    if x.dim() == 4 and x.shape[1:] != model.shape and x.movedim(3, 1).shape[1:] == model.shape:
        x = x.movedim(3, 1)  # the channels are last
    x = x.to(like_of(model).device)
    # Bytes have no wrong values, and all of them as floats may be more than fits into memory.
    check_form(model, x) if x.dtype == torch.uint8 else images_for(model, x)
    return x
