"""A classifier that learns from new images of each class: drawn from a model, or real ones to which the model gives a label."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lae_fast.experiments.classifiers import TrainedClassifier, as_images
from lae_fast.experiments.recipes import Lab
from lae_fast.experiments.variations import affine
from lae_fast.mixtures import ClassMixture, fit_classes
from lae_fast.models import Autoencoder

# new codes: decoded from z ~ p(z|y). found: real images, the most certain of each class by p(y|x); their labels are not read.
NEW = ("new codes", "found")
N_CLASSES = 10


class Classes(Protocol):
    """A model that tells images of the classes apart, and draws new ones."""

    def posterior(self, images: Tensor) -> Tensor:
        """p(y|x) of uint8 images: [N, nx] -> [N, classes]."""

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """New images of the classes [n]: [n, nx] in [0, 1]."""


class ClassesOfCodes(NamedTuple):
    """By the codes of a model that knows no labels."""

    model: Autoencoder
    mixture: ClassMixture

    def posterior(self, images: Tensor) -> Tensor:
        return self.mixture.posterior(encode(self.model, images))

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        return self.model.decode(self.mixture.draw(labels, generator))


def encode(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes f(x) of uint8 images: [N, nx] -> [N, nz]."""
    return torch.cat([model.encode(x / 255) for x in images.split(1000)])


@dataclasses.dataclass(frozen=True)
class OnNewImages(TrainedClassifier):
    """The classifier, trained on `n` other images of its class beside each labelled image.

    Args:
        variations: one of NEW; with "+affine" these images are shifted, turned and resized a little.
    """

    variations: str = "new codes"

    def __post_init__(self) -> None:
        known = [kind + more for kind in NEW for more in ("", "+affine")]
        if self.variations not in known:
            raise ValueError(f"variations are {self.variations!r}; expected one of {', '.join(known)}")

    def classes(self, lab: Lab) -> Classes:
        """What says of which class an image is; it has seen no other labels than this classifier."""
        raise NotImplementedError

    def batches(self, lab: Lab, generator: torch.Generator) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Images [(n + 1) m, 1, h, w] and labels of all minibatches, the new images after the labelled ones, pass by pass."""
        classes = self.classes(lab)
        images, labels = self.training_set(lab.train)
        n_certain = max(1, len(lab.train.images) // (2 * N_CLASSES))  # about half of each class
        certain = classes.posterior(lab.train.images).topk(n_certain, dim=0).indices  # [n_certain, classes]

        def new(y: Tensor) -> Tensor:
            if "found" in self.variations:
                which = torch.randint(n_certain, y.shape, generator=generator, device=y.device)
                x = lab.train.images[certain[which, y]]
            else:
                x = classes.draw(y, generator)
            return affine(as_images(x), generator) if "affine" in self.variations else as_images(x)

        def batch(index: Tensor) -> tuple[Tensor, Tensor]:
            y = labels[index].repeat(self.n)
            return torch.cat((as_images(images[index]), new(y))), torch.cat((labels[index], y))

        for minibatches in self.passes(labels):
            yield map(batch, minibatches)


@dataclasses.dataclass(frozen=True)
class TrainedOnNewImages(OnNewImages):
    """With a mixture over the codes f(x) of all training images, fitted with the labels of those that the classifier may see."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.autoencoder is None:
            raise ValueError("there is no autoencoder; expected one, whose codes say what is of which class")

    def classes(self, lab: Lab) -> Classes:
        assert self.autoencoder is not None
        model = self.autoencoder.load(lab).requires_grad_(False)
        codes, labels = encode(model, lab.train.images), self.training_set(lab.train).labels
        is_kept = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        is_kept[self.kept(lab.train.labels)] = True
        return ClassesOfCodes(model, fit_classes(codes[is_kept], labels, codes[~is_kept]))
