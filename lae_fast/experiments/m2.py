"""A model of images and labels, M2 of Kingma et al. (2014), and a classifier that learns from what it draws and recognises."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lae_fast import data, seeds
from lae_fast.experiments.classifiers import TrainedClassifier, as_images
from lae_fast.experiments.new_images import N_CLASSES, Classes, OnNewImages
from lae_fast.experiments.recipes import Lab, Labelled, Product, Recipe
from lae_fast.experiments.variations import affine
from lae_fast.models import Bernoulli
from lae_fast.models.likelihood import gaussian_rate
from lae_fast.models.nets import mlp
from lae_fast.training import adam, keep_freed_memory

N_LABELLED = 64  # labelled images of each step
# The weight of each labelled image's classification loss, in images, so that more labels weigh more; equation 9 of the paper has that of
# their mean. Five times as much was no better: 95.2 against 95.3 % of validation images, with ten labels a class of another seed.
ALPHA = 0.1


class M2(nn.Module):
    """p(y) p(z) p(x|z, y), where all labels y are equally likely, and q(y|x) q(z|x, y); networks of the report.

    Its losses are in nats per image.
    """

    one_hot: Tensor

    def __init__(self, nx: int, nz: int, nh: int) -> None:
        super().__init__()
        self.nz = nz
        self.encoder, self.decoder = mlp(nx, nz + N_CLASSES, nh)
        body, _ = mlp(nx, nz, nh)
        self.classifier = nn.Sequential(body, nn.Linear(nh, N_CLASSES))
        self.head = nn.Linear(nh + N_CLASSES, 2 * nz)  # mu and log sigma^2
        self.likelihood = Bernoulli()
        self.register_buffer("one_hot", torch.eye(N_CLASSES), persistent=False)

    def negative_elbo(self, x: Tensor, labels: Tensor) -> Tensor:
        """At least -log p(x, y) for images x [n, nx] and labels y, int64 [..., n]: float64 [..., n]."""
        y = self.one_hot[labels]  # [..., n, classes]
        h = self.encoder(x).expand(*labels.shape, -1)
        mean, log_variance = self.head(torch.cat((h, y), -1)).chunk(2, -1)  # [..., n, nz]
        std = (0.5 * log_variance).exp()
        z = mean + std * torch.randn_like(std)
        output = self.decoder(torch.cat((z, y), -1).flatten(0, -2)).view(*labels.shape, -1)
        return self.likelihood.energy(output, x) + gaussian_rate(mean, std) + math.log(N_CLASSES)

    def unlabelled(self, x: Tensor) -> Tensor:
        """At least -log p(x) for images [n, nx], exact in the labels: float64 [n]."""
        labels = torch.arange(N_CLASSES, device=x.device)[:, None].expand(-1, len(x))
        log_q = self.classifier(x).log_softmax(1).T  # [classes, n]
        return (log_q.exp() * (self.negative_elbo(x, labels) + log_q)).sum(0)

    def posterior(self, images: Tensor) -> Tensor:
        """q(y|x) of uint8 images: [N, nx] -> [N, classes]."""
        return torch.cat([self.classifier(x / 255).softmax(1) for x in images.split(1000)])

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The mean images of p(x|z, y), z ~ N(0, I), for labels [n]: [n, nx]."""
        z = torch.randn(len(labels), self.nz, generator=generator, device=labels.device)
        return self.likelihood.mean(self.decoder(torch.cat((z, self.one_hot[labels]), 1)))


@dataclasses.dataclass(frozen=True)
class TrainedM2(Recipe):
    """M2, trained on all images and the labels of a few, which are those that a classifier of this seed sees.

    A sum over images: the bound of each, that with its label of each labelled one, and ALPHA times the number of images times
    the classification loss of each labelled one, shifted, turned and resized a little: more than in the paper. The weights are
    the best by the bound of validation images, whose labels are not read.

    Args:
        per_class: how many images of each class have a label.
    """

    nz: int
    seed: int
    epochs: int
    lr: float
    per_class: int
    batch_size: int = 512
    nh: int = 256
    patience: int = 10

    def cost(self) -> float:
        return self.epochs * 15.0

    def make(self, lab: Lab) -> Product:
        torch.manual_seed(self.seed)
        keep_freed_memory()
        generator = torch.Generator(lab.device).manual_seed(self.seed)
        model = M2(lab.nx, self.nz, self.nh).to(lab.device)
        optimizer = adam(model, self.lr)
        labelled = TrainedClassifier(self.seed, per_class=self.per_class).training_set(lab.train)
        images, n = lab.train.images, len(lab.train.images)
        best, metrics, kept = math.inf, dict[str, float](), dict[str, Tensor]()
        for epoch in range(1, self.epochs + 1):
            order = data.shuffled(n, min(self.batch_size, n), seeds.mixed(self.seed, epoch), lab.device)
            for index in order:
                optimizer.zero_grad(set_to_none=True)
                loss = model.unlabelled(images[index] / 255).mean()
                (loss + _of_labels(model, labelled, n, generator)).backward()
                optimizer.step()
            bound = _bound(model, lab.validation.images)
            if not math.isfinite(bound):
                break
            if bound < best:
                best, metrics = bound, {"best_epoch": float(epoch), "bound": bound}
                kept = {name: t.clone() for name, t in model.state_dict().items()}
            if epoch - metrics["best_epoch"] >= self.patience:
                break
        if not kept:
            raise ArithmeticError(f"training diverged in its first epoch: {self.describe()}")
        model.load_state_dict(kept)
        with torch.no_grad():
            is_right = model.posterior(lab.test.images).argmax(1) == lab.test.labels
        return Product(kept, metrics | {"accuracy": is_right.double().mean().item()})

    def load(self, lab: Lab) -> M2:
        """The trained model, which needs no gradient."""
        model = M2(lab.nx, self.nz, self.nh)
        model.load_state_dict(lab.get(self).weights)
        return model.to(lab.device).requires_grad_(False)


def _of_labels(model: M2, labelled: Labelled, n: int, generator: torch.Generator) -> Tensor:
    """What labels add to the loss, in nats per image of n, by some of the labelled images."""
    n_labelled = len(labelled.labels)
    index = torch.randint(n_labelled, (N_LABELLED,), generator=generator, device=labelled.labels.device)
    x, y = labelled.images[index], labelled.labels[index]
    shifted = affine(as_images(x), generator).flatten(1)
    of_classifier = F.cross_entropy(model.classifier(shifted), y)
    return n_labelled * (model.negative_elbo(x / 255, y).mean() / n + ALPHA * of_classifier)


@torch.no_grad()
def _bound(model: M2, images: Tensor) -> float:
    """At least -log p(x) of uint8 images [N, nx], mean, nats per image."""
    return torch.cat([model.unlabelled(x / 255) for x in images.split(500)]).mean().item()


@dataclasses.dataclass(frozen=True)
class TrainedOnM2(OnNewImages):
    """The classifier, trained on other images of its class that M2 draws, or to which it gives a label."""

    m2: TrainedM2 = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        own, its = (self.seed, self.per_class), (self.m2.seed, self.m2.per_class)
        if own != its:
            raise ValueError(
                f"m2 has seed and per_class {its}; expected {own}: it may see no other labels than the classifier"
            )

    def classes(self, lab: Lab) -> Classes:
        return self.m2.load(lab)
