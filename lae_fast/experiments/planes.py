"""The latent plane (nz 2) in numbers: the overlap of classes, and the change of images across the plane."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lae_fast.experiments.autoencoders import TrainedAutoencoder
from lae_fast.experiments.classifiers import TrainedClassifier, as_images
from lae_fast.experiments.recipes import Lab, Product, Recipe
from lae_fast.models import Autoencoder

NEIGHBOURS = 10
GRID = 20  # images along each axis


@torch.no_grad()
def interpolation(
    model: Autoencoder, n: int, centre: Tensor | float = 0, scale: Tensor | float = 1
) -> Tensor:
    """The report's figure 5: mean images [n, n, nx] at z from (-1, 1), top left, to (1, -1), bottom right; or at centre + scale z."""
    axis = torch.linspace(-1, 1, n)
    z = torch.cartesian_prod(-axis, axis).flip(1).to(next(model.parameters()).device)
    return torch.unflatten(model.decode(centre + scale * z), 0, (n, n))


@torch.no_grad()
def _codes(model: Autoencoder, lab: Lab) -> Tensor:
    """Codes [N, 2] of the test images."""
    return torch.cat([model.encode(x / 255) for x in lab.test.images.split(1000)])


def _across(model: Autoencoder, codes: Tensor) -> Tensor:
    """Mean images [GRID, GRID, nx] within one standard deviation of the codes' mean: the codes of some models are a hundred times
    as large as those of others, and figure 5's square is a dot among them."""
    return interpolation(model, GRID, codes.mean(0), codes.std(0))


def confusion(z: Tensor, labels: Tensor, n_classes: int = 10) -> Tensor:
    """Fractions [classes, classes] for codes z [n, nz] with labels [n].

    Entry [i, j] is the fraction of class j among the `NEIGHBOURS` nearest other codes of each code in class i.
    """
    votes = z.new_zeros(n_classes, n_classes)
    for i in torch.arange(len(z), device=z.device).split(1000):
        distance = torch.cdist(z[i], z)
        distance[torch.arange(len(i), device=z.device), i] = torch.inf  # the distance to itself
        near = distance.topk(NEIGHBOURS, largest=False).indices
        votes.index_put_((labels[i, None].expand_as(near), labels[near]), votes.new_ones(()), accumulate=True)
    return votes / votes.sum(1, keepdim=True).clamp(min=1)


@dataclasses.dataclass(frozen=True)
class Plane(Recipe):
    autoencoder: TrainedAutoencoder

    def cost(self) -> float:
        return 3.0

    @torch.no_grad()
    def make(self, lab: Lab) -> Product:
        model = self.autoencoder.load(lab)
        z = _codes(model, lab)
        fractions = confusion(z, lab.test.labels)
        pairs = (fractions + fractions.T).triu(1)
        nine = pairs[4, 9].item()
        pairs[4, 9] = 0
        images = _across(model, z)
        steps = [images.diff(dim=axis).square().mean(-1).sqrt().mean() for axis in (0, 1)]
        return Product(
            {},
            {
                "confusion_4_9": nine / 2,
                "confusion_next": pairs.max().item() / 2,
                # r.m.s. over pixels of the change between neighbours, averaged over neighbours
                "roughness": torch.stack(steps).mean().item(),
            },
        )


@dataclasses.dataclass(frozen=True)
class Recognised(Recipe):
    """A classifier's confidence about the images across the plane."""

    autoencoder: TrainedAutoencoder
    classifier: TrainedClassifier

    def cost(self) -> float:
        return 1.0

    @torch.no_grad()
    def make(self, lab: Lab) -> Product:
        model = self.autoencoder.load(lab)
        images = _across(model, _codes(model, lab)).flatten(0, 1)
        log_p = self.classifier.load(lab)(as_images(images))
        return Product({}, {"confidence": log_p.max(1).values.exp().mean().item()})
