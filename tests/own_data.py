"""Images of one's own for tests: what they are, and what a data set made of them must hold."""

import sys

import torch
from PIL import Image

from lae_fast import data

N = 40  # images; 10 of them become test images


def bytes_like(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def everything(dataset):
    """All images of a data set, and all labels, in a canonical order."""
    splits = (dataset.train, dataset.validation, dataset.test)
    images = torch.cat([s.images for s in splits])
    order = sorted(range(len(images)), key=lambda i: images[i].flatten().tolist())
    labels = None if splits[0].labels is None else torch.cat([s.labels for s in splits])[order]
    return images[order], labels


def holds(dataset, images, labels=None):
    """Whether it is these images [n, c, h, w] and labels, in whatever order, each image with its own label."""
    order = sorted(range(len(images)), key=lambda i: images[i].flatten().tolist())
    found, own = everything(dataset)
    return torch.equal(found, images[order]) and (
        own is None if labels is None else own.tolist() == [int(labels[i]) for i in order]
    )


def only(split):
    """A data set of this split alone."""
    none = split.at(slice(0))
    return data.Dataset("one split", "", split, none, none)


GREY, RGB = bytes_like(N, 1, 5, 4), bytes_like(N, 3, 5, 4)
SQUARES = bytes_like(N, 1, 4, 4)
LABELS = torch.arange(N) % 3


def save(image, path):
    """uint8 [c, h, w] as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)


class Malice:
    def __reduce__(self):
        return sys.exit, (99,)
