"""A classifier that learns from new images of each class: decoded from new codes, or real ones to which codes give a label."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from lae_fast.experiments.classifiers import TrainedClassifier, as_images
from lae_fast.experiments.recipes import Lab
from lae_fast.experiments.variations import affine
from lae_fast.mixtures import fit_classes

# new codes: decoded from z ~ p(z|y). found: real images, the most certain of each class by p(y|z); their labels are not read.
NEW = ("new codes", "found")
N_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class TrainedOnNewImages(TrainedClassifier):
    """The classifier, trained on `n` other images of its class beside each labelled image.

    A mixture over the codes f(x) of all training images, fitted with the labels of those that this classifier may see, says
    what is of which class.

    Args:
        variations: one of NEW; with "+affine" these images are shifted, turned and resized a little.
    """

    variations: str = "new codes"

    def __post_init__(self) -> None:
        known = [kind + more for kind in NEW for more in ("", "+affine")]
        if self.variations not in known:
            raise ValueError(f"variations are {self.variations!r}; expected one of {', '.join(known)}")
        if self.autoencoder is None:
            raise ValueError("there is no autoencoder; expected one, whose codes say what is of which class")

    def batches(self, lab: Lab, generator: torch.Generator) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Images [(n + 1) m, 1, h, w] and labels of all minibatches, the new images after the labelled ones, pass by pass."""
        assert self.autoencoder is not None
        model = self.autoencoder.load(lab).requires_grad_(False)

        def encode(images: Tensor) -> Tensor:
            return torch.cat([model.encode(x / 255) for x in images.split(1000)])  # [N, nz]

        images, labels = self.training_set(lab.train)
        codes = encode(lab.train.images)
        is_kept = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        is_kept[self.kept(lab.train.labels)] = True
        mixture = fit_classes(codes[is_kept], labels, codes[~is_kept])
        n_certain = max(1, len(codes) // (2 * N_CLASSES))  # about half of each class
        certain = mixture.posterior(codes).topk(n_certain, dim=0).indices  # [n_certain, classes]

        def new(y: Tensor) -> Tensor:
            if "found" in self.variations:
                which = torch.randint(n_certain, y.shape, generator=generator, device=y.device)
                x = lab.train.images[certain[which, y]]
            else:
                x = model.decode(mixture.draw(y, generator))
            return affine(as_images(x), generator) if "affine" in self.variations else as_images(x)

        def batch(index: Tensor) -> tuple[Tensor, Tensor]:
            y = labels[index].repeat(self.n)
            return torch.cat((as_images(images[index]), new(y))), torch.cat((labels[index], y))

        for minibatches in self.passes(labels):
            yield map(batch, minibatches)
