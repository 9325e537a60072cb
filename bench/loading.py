"""Two ways for 60,000 images of 28 x 28 bytes to become minibatches of floats."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lae_fast import data


def synthetic_images(n: int, side: int = 28) -> Tensor:
    """Bytes [n, side^2], four of five zero, as digits have it: loading takes the same time whatever they are."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(256, (n, side * side), generator=generator, dtype=torch.uint8)
    return values * (torch.rand(n, side * side, generator=generator) < 0.2)


def to_tensor() -> Callable[[Image.Image], Tensor]:
    """torchvision's ToTensor; where torchvision cannot be imported, what it does to a grey image."""
    try:
        from torchvision.transforms import ToTensor
    except (ImportError, RuntimeError):  # RuntimeError: beside a torch of another build
        return lambda image: torch.from_numpy(np.array(image, copy=True))[None].contiguous().float().div(255)
    return ToTensor()


class Pictures(Dataset):
    """Image by image, as torchvision's MNIST gives them: picture [1, side, side] and label.

    Args:
        images: bytes [N, side^2].
    """

    def __init__(self, images: Tensor) -> None:
        side = round(images.shape[1] ** 0.5)
        self.images, self.labels = images.view(-1, side, side), torch.zeros(len(images), dtype=torch.int64)
        self.transform = to_tensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[i].numpy())
        return self.transform(image), int(self.labels[i])


def loader_batches(images: Tensor, n: int) -> Iterator[Tensor]:
    """Epoch after epoch of minibatches [n, nx] by a DataLoader, shuffled, in this process."""
    loader = DataLoader(Pictures(images), batch_size=n, shuffle=True, drop_last=True)
    while True:
        for x, _ in loader:
            yield x.flatten(1)


def resident_batches(images: Tensor, n: int) -> Iterator[Tensor]:
    """The same from one tensor of bytes, on its device, as `lae_fast.train` does it."""
    for seed in itertools.count():
        for index in data.shuffled(len(images), n, seed, images.device):
            yield images[index] / 255
