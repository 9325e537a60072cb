"""Adversarial training that converges: the classifier that stands beside all that is said of robustness."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from lae_fast.attacks import pgd
from lae_fast.experiments.classifiers import TrainedClassifier, classifier
from lae_fast.experiments.recipes import Lab
from lae_fast.training import keep_freed_memory


def madry() -> nn.Sequential:
    """The network of Madry et al. (2018): images [n, 1, 28, 28] -> log probabilities [n, 10]."""
    net = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(7 * 7 * 64, 1024), nn.ReLU(), nn.Linear(1024, 10), nn.LogSoftmax(1),
    )  # fmt: skip
    return net.to(memory_format=torch.channels_last)


NETWORKS = {"report": classifier, "madry": madry}


@dataclasses.dataclass(frozen=True)
class HardenedClassifier(TrainedClassifier):
    """The classifier after training on the worst images that PGD finds within eps (Madry et al., 2018).

    Adam at a constant rate, the whole radius at once and dropout leave it near chance for long. Here nothing is dropped, the
    radius grows from 0 to eps over the first part of the training, and the learning rate takes one cycle (Smith and Topin,
    2018), up to `lr` and down to nothing.

    Args:
        n_updates: minibatches, of `batch_size` images.
        adversarial_steps: of PGD, for each minibatch.
        eps: the radius, L-infinity.
        warm_up: the part of the updates in which it grows.
        network: one of NETWORKS.
    """

    lr: float = 5e-3
    batch_size: int = 64
    n_updates: int | None = 900
    adversarial_steps: int = 5
    eps: float = 0.3
    warm_up: float = 0.4
    network: str = "report"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.n_updates or not self.adversarial_steps:
            raise ValueError(
                f"n_updates is {self.n_updates}, adversarial_steps {self.adversarial_steps}; expected at least 1"
            )
        if self.network not in NETWORKS:
            raise ValueError(f"network is {self.network!r}; expected one of {', '.join(NETWORKS)}")

    def cost(self) -> float:
        return super().cost() * (16 if self.network == "madry" else 2.5)

    def load(self, lab: Lab) -> nn.Sequential:
        """The trained classifier, in evaluation mode."""
        net = NETWORKS[self.network]()
        net.load_state_dict(lab.get(self).weights)
        return net.to(lab.device).eval()

    def train(self, lab: Lab) -> Iterator[tuple[nn.Sequential, int]]:
        """Train; at the end the classifier, in evaluation mode, and how many images it has seen."""
        assert self.n_updates is not None
        torch.manual_seed(self.seed)
        keep_freed_memory()
        net = NETWORKS[self.network]().to(lab.device).train()
        for module in net.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.eval()
        optimizer = torch.optim.Adam(net.parameters())
        schedule = OneCycleLR(optimizer, self.lr, self.n_updates)
        generator = torch.Generator(lab.device).manual_seed(self.seed)
        n_seen = 0
        for minibatches in self.batches(lab, generator):
            for k, (x, y) in enumerate(minibatches, 1):
                eps = self.eps * min(1, k / (self.warm_up * self.n_updates))
                x = pgd(net, x.clamp(0, 1), y, eps=eps, n_steps=self.adversarial_steps, generator=generator)
                optimizer.zero_grad(set_to_none=True)
                F.nll_loss(net(x), y).backward()
                optimizer.step()
                schedule.step()
                n_seen += len(y) // (self.n + 1)
        yield net.eval(), n_seen
