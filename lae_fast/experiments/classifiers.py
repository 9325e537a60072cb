"""The report's image classifier, trained plainly, with Algorithm 3, and in the ways that its future work proposes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lae_fast import data, seeds
from lae_fast.attacks import pgd, robustness
from lae_fast.experiments.autoencoders import TrainedAutoencoder, report_posterior
from lae_fast.experiments.recipes import SIDE, Lab, Labelled, Product, Recipe
from lae_fast.experiments.variations import CONTROLS, OF_MODELS, Variations
from lae_fast.models import Autoencoder
from lae_fast.training import adam, keep_freed_memory


def as_images(x: Tensor) -> Tensor:
    """uint8 or float [n, 784] -> float [n, 1, 28, 28] in [0, 1], channels last: a third faster on a CPU."""
    x = x / 255 if x.dtype == torch.uint8 else x
    return x.view(-1, 1, SIDE, SIDE).contiguous(memory_format=torch.channels_last)


def classifier() -> nn.Sequential:
    """The report's classifier: images [n, 1, 28, 28] -> log probabilities [n, 10]."""
    net = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(10, 20, 5), nn.Dropout2d(), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Dropout(), nn.Linear(50, 10), nn.LogSoftmax(1),
    )  # fmt: skip
    return net.to(memory_format=torch.channels_last)


@dataclasses.dataclass(frozen=True)
class TrainedClassifier(Recipe):
    """The classifier after training on minibatches of images, each with `n` variations.

    The report's are drawn from a model of images: an LAE draws z ~ N(f(x), 0.05^2 I), the other models draw z ~ q(z|x).

    Args:
        autoencoder: the model that draws the variations; None: n must be 0, or the variations those of a control.
        variations: one or two of variations.py.
        per_class: train on only this many images of each class; None: on all images.
        rare: keep 1 % of this class's training images; None: all.
        is_balanced: draw all classes equally often.
        adversarial_steps: train on the worst images within eps = 0.3 that PGD finds in this many steps, variations
            included (Madry et al., 2018); 0: on the images as they are.
        n_updates: stop after this many minibatches; None: after the epochs.
    """

    seed: int
    n: int = 0
    autoencoder: TrainedAutoencoder | None = None
    epochs: int = 10
    lr: float = 1e-4
    batch_size: int = 128
    per_class: int | None = None
    rare: int | None = None
    is_balanced: bool = False
    adversarial_steps: int = 0
    n_updates: int | None = None
    variations: str = "report"

    def __post_init__(self) -> None:
        kinds = self.variations.split("+")
        if unknown := [kind for kind in kinds if kind not in (*OF_MODELS, *CONTROLS)]:
            raise ValueError(
                f"variations are {unknown[0]!r}; expected some of {', '.join((*OF_MODELS, *CONTROLS))}"
            )
        if self.n and self.autoencoder is None and set(kinds) & set(OF_MODELS):
            raise ValueError(f"n is {self.n} without an autoencoder; expected 0: nothing draws variations")

    def cost(self) -> float:
        epochs = self.n_updates * self.batch_size / 60_000 if self.n_updates else self.epochs
        return 4.5 * epochs * (self.n + 1) * (1 + 0.8 * self.adversarial_steps)

    def make(self, lab: Lab) -> Product:
        *_, (net, n_seen) = self.train(lab)
        if not all(p.isfinite().all() for p in net.parameters()):
            raise ArithmeticError(f"training diverged: {self.describe()}")
        n_images = len(self.training_set(lab.train).labels)
        metrics = {"n_images": float(n_images), "epochs": n_seen / n_images}
        return Product(net.state_dict(), metrics | measure(net, lab.test))

    def train(self, lab: Lab) -> Iterator[tuple[nn.Sequential, int]]:
        """Train; after each pass the classifier, in evaluation mode until it goes on, and how many images it has seen."""
        torch.manual_seed(self.seed)
        keep_freed_memory()
        net = classifier().to(lab.device)
        optimizer = adam(net, self.lr)
        generator = torch.Generator(lab.device).manual_seed(self.seed)
        n_seen = 0
        for minibatches in self.batches(lab, generator):
            net.train()
            for x, y in minibatches:
                if self.adversarial_steps:
                    x = pgd(
                        net, x.clamp(0, 1), y, eps=0.3, n_steps=self.adversarial_steps, generator=generator
                    )
                optimizer.zero_grad(set_to_none=True)
                F.nll_loss(net(x), y).backward()
                optimizer.step()
                n_seen += len(y) // (self.n + 1)
            yield net.eval(), n_seen

    def batches(self, lab: Lab, generator: torch.Generator) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Images [(n + 1) m, 1, h, w] and labels of all minibatches, with their variations, pass by pass."""
        source = self.autoencoder.load(lab) if self.autoencoder else None
        images, labels = self.training_set(lab.train)
        vary = Variations(self.variations, self.n, source, as_images(images)) if self.n else None

        def batch(index: Tensor) -> tuple[Tensor, Tensor]:
            x, y = as_images(images[index]), labels[index]
            return (x, y) if vary is None else vary(x, y, generator)

        for minibatches in self.passes(labels):
            yield map(batch, minibatches)

    def training_set(self, split: Labelled) -> Labelled:
        """The training images of this recipe; the seed decides the choice."""
        if self.per_class is None and self.rare is None:
            return split
        index = self.kept(split.labels)
        return Labelled(split.images[index], split.labels[index])

    def kept(self, labels: Tensor) -> Tensor:
        """Which of the images with labels [N] are those of `training_set`: their indices, in order."""
        generator = torch.Generator().manual_seed(self.seed)
        kept = []
        for label in range(10):
            members = (labels == label).nonzero().squeeze(1).cpu()
            n = len(members) if self.per_class is None else min(self.per_class, len(members))
            if label == self.rare:
                n = max(1, n // 100)
            kept.append(members[torch.randperm(len(members), generator=generator)[:n]])
        return torch.cat(kept).sort().values.to(labels.device)

    def passes(self, labels: Tensor) -> Iterator[Iterator[Tensor]]:
        """Minibatches, indices [batch_size] into the training set with labels [N], epoch by epoch; or all `n_updates` at once."""
        size, device = min(self.batch_size, len(labels)), labels.device
        weights = 1 / labels.bincount(minlength=10).clamp(min=1).double()[labels].cpu()

        def minibatches(epoch: int) -> Iterator[Tensor]:
            seed = seeds.mixed(self.seed, epoch)
            if not self.is_balanced:
                return data.shuffled(len(labels), size, seed, device)
            generator = torch.Generator().manual_seed(seed)
            drawn = weights.multinomial(len(labels) // size * size, replacement=True, generator=generator)
            return iter(drawn.to(device).split(size))

        if self.n_updates is None:
            return map(minibatches, range(self.epochs))
        endless = itertools.chain.from_iterable(map(minibatches, itertools.count()))
        return iter([itertools.islice(endless, self.n_updates)])

    def load(self, lab: Lab) -> nn.Sequential:
        """The trained classifier, in evaluation mode."""
        net = classifier()
        net.load_state_dict(lab.get(self).weights)
        return net.to(lab.device).eval()


@torch.no_grad()
def measure(net: nn.Module, split: Labelled) -> dict[str, float]:
    """Mean loss in nats per image, accuracy, and the recall of each class."""
    log_p = torch.cat([net(as_images(x)) for x in split.images.split(1000)])
    is_right = log_p.argmax(1) == split.labels
    recalls = {f"recall_{k}": is_right[split.labels == k].double().mean().item() for k in range(10)}
    loss = F.nll_loss(log_p.double(), split.labels).item()
    return {"loss": loss, "accuracy": is_right.double().mean().item()} | recalls


@dataclasses.dataclass(frozen=True)
class LatentClassifier(Recipe):
    """ReLU and a linear layer on samples of the encoder, drawn again at each use (the report's section 6.3)."""

    autoencoder: TrainedAutoencoder
    epochs: int = 20
    lr: float = 1e-2
    batch_size: int = 512

    def cost(self) -> float:
        return 6.0

    def make(self, lab: Lab) -> Product:
        seed = self.autoencoder.seed
        torch.manual_seed(seed)
        model = self.autoencoder.load(lab)
        codes = {
            name: self.codes(model, split.images)
            for name, split in (("train", lab.train), ("test", lab.test))
        }
        head = nn.Linear(self.autoencoder.nz, 10, device=lab.device)
        optimizer = adam(head, self.lr)
        mean, std = codes["train"]
        for epoch in range(self.epochs):
            size = min(self.batch_size, len(mean))
            for index in data.shuffled(len(mean), size, seeds.mixed(seed, epoch), lab.device):
                z = mean[index] + std[index] * torch.randn_like(mean[index])
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(head(F.relu(z)), lab.train.labels[index]).backward()
                optimizer.step()
        metrics = {}
        with torch.no_grad():
            for name, labels in (("train", lab.train.labels), ("test", lab.test.labels)):
                mean, std = codes[name]
                logits = head(F.relu(mean + std * torch.randn_like(mean)))
                metrics[f"{name}_loss"] = F.cross_entropy(logits.double(), labels).item()
                metrics[f"{name}_accuracy"] = (logits.argmax(1) == labels).double().mean().item()
        return Product(head.state_dict(), metrics)

    @torch.no_grad()
    def codes(self, model: Autoencoder, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations, each [n, nz], of the report's q(z|x) of uint8 images [n, nx]."""
        encoder = report_posterior(model)
        parts = [encoder.posterior(x / 255) for x in images.split(1000)]
        mean, std = (torch.cat(t) for t in zip(*parts, strict=True))
        return mean, std


@dataclasses.dataclass(frozen=True)
class Attacked(Recipe):
    """A classifier's accuracy and loss on the first test images, without attack (eps 0) and under PGD, L-inf."""

    classifier: TrainedClassifier
    n_steps: int
    is_random_start: bool
    eps: tuple[float, ...] = (0.0, 0.01, 0.1, 0.2, 0.3)
    step_size: float = 0.01
    n_images: int = 2000

    def cost(self) -> float:
        return 0.1e-3 * self.n_images * self.n_steps * len(self.eps)

    def make(self, lab: Lab) -> Product:
        keep_freed_memory()
        net = self.classifier.load(lab)
        images, labels = (t[: self.n_images] for t in lab.test)
        result = robustness(
            net,
            as_images(images),
            labels,
            eps=self.eps,
            n_steps=self.n_steps,
            step_size=self.step_size,
            random_start=self.is_random_start,
            generator=torch.Generator(lab.device).manual_seed(self.classifier.seed),
        )
        names = [f"{eps:g}" for eps in self.eps]
        accuracy, loss = result.accuracy.tolist(), result.loss.tolist()
        return Product(
            {},
            {f"accuracy_{e}": a for e, a in zip(names, accuracy, strict=True)}
            | {f"loss_{e}": v for e, v in zip(names, loss, strict=True)},
        )
