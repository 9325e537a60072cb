"""A loop for models of one's own: minibatches, Adam, a cooldown. The command's is trainer.py, which keeps records and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lae_fast import checks, data, seeds
from lae_fast.data.images import as_split, stacked
from lae_fast.models import Autoencoder, images_for
from lae_fast.progress import bar
from lae_fast.training.config import TrainingError
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
        model: any of this package's models, of any networks; it is in its own mode afterwards.
        images: [N, ...] as the model takes them, a tensor or array; a `torch.utils.data.Dataset` of images or of pairs (image,
            label); or the training images of a `lae_fast.data.Dataset`. They are moved to the model's device.
        epochs: passes over the images, each in an order of its own, without the rest that fills no minibatch.
        lr: Adam's learning rate; default: `model.lr`.
        cooldown: the last fraction of training, in which the learning rate falls to 0.
        seed: of the order and of all noise; the program's own random stream stays where it is.
        progress: show a bar.
        on_epoch: called after each epoch with its number, from 1, and its loss; training stops if it returns True.

    Returns:
        The mean loss of each epoch, nats per image.

    Raises:
        TypeError, ValueError: an argument or the images have another form, or there are fewer images than `batch_size`.
        TrainingError: a loss or a parameter is not finite. The model then has the weights of the last good epoch.

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
    cooldown = checks.number("cooldown", cooldown, least=0)
    seed, progress = checks.seed("seed", seed), checks.flag("progress", progress)
    if on_epoch is not None:
        checks.function("on_epoch", on_epoch)
    x = _images(model, images)
    if len(x) < batch_size:
        raise ValueError(f"batch_size is {batch_size}; expected at most {len(x)}, the number of images")
    optimizer, n_batches, losses = adam(model, lr, model.beta1), len(x) // batch_size, list[float]()
    was_training, step = model.training, TrainingStep(model.train(), optimizer)
    devices = [x.device] if x.is_cuda else []
    shown = bar(total=epochs * n_batches, unit="batch", shown=progress)
    try:
        with torch.random.fork_rng(devices), shown:
            torch.manual_seed(seed)
            for epoch in range(epochs):
                good = {name: t.clone() for name, t in model.state_dict().items()}
                total = torch.zeros((), dtype=torch.float64, device=x.device)
                for i, index in enumerate(
                    data.shuffled(len(x), batch_size, seeds.mixed(seed, epoch), x.device)
                ):
                    cool_down(optimizer, lr, (epoch + i / n_batches) / epochs, cooldown)
                    total += step(data.pixels(x[index]))
                    shown.update()
                loss = total.item() / n_batches
                if not math.isfinite(loss) or not all(p.isfinite().all() for p in model.parameters()):
                    model.load_state_dict(good)
                    raise TrainingError(
                        f"epoch {epoch + 1}: the loss or a parameter is not finite; the model has the weights from before it; "
                        f"expected a lower lr than {lr:g}"
                    )
                losses.append(loss)
                shown.set_postfix(loss=f"{loss:.2f}")
                if on_epoch is not None and on_epoch(epoch + 1, loss) is True:
                    break
    finally:
        model.train(was_training)
    return losses


def _images(model: Autoencoder, images: Any) -> Tensor:
    """Images [N, ...] in a form that the model takes, on its device."""
    if isinstance(images, data.Dataset):
        images = images.train.images
    x = stacked(images)[0]
    if x.shape[1:] not in (model.shape, (model.nx,)) and len(model.shape) == 3:
        x = as_split(images).images  # channels last, or none
    x = x.to(next(model.parameters()).device)
    images_for(model, x)
    return x
