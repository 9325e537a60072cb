"""Classifiers under the strongest attacks known: ours, and AutoAttack, which checks ours."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lae_fast.attacks import apgd, robustness
from lae_fast.experiments.classifiers import TrainedClassifier, as_images
from lae_fast.experiments.recipes import Lab, Product, Recipe
from lae_fast.training import keep_freed_memory

LIBRARY = "pyautoattack"  # no dependency of this package: who wants the rows of AutoAttack installs it


def strongest(
    net: nn.Module, x: Tensor, labels: Tensor, *, eps: Sequence[float], generator: torch.Generator
) -> Tensor:
    """APGD on the cross-entropy; on the images that it leaves, APGD by targeted DLR at each wrong class in turn: [K, m, ...]."""
    worst = apgd(net, x, labels, eps=eps, generator=generator)
    for adversaries, radius in zip(worst, eps, strict=True):
        with torch.no_grad():
            left = net(adversaries).argmax(1) == labels
        if left.any():
            adversaries[left] = apgd(
                net,
                x[left],
                labels[left],
                eps=radius,
                loss="dlr-targeted",
                n_restarts=9,
                generator=generator,
            )
    return worst


def auto_attack(
    net: nn.Module, x: Tensor, labels: Tensor, *, eps: Sequence[float], generator: torch.Generator
) -> Tensor:
    """The standard version of AutoAttack (Croce and Hein, 2020), by its authors: [K, m, ...]."""
    from pyautoattack import AutoAttack

    def within(radius: float) -> Tensor:
        if radius == 0:
            return x
        attack = AutoAttack(net, norm="Linf", eps=radius, seed=generator.initial_seed(), device=x.device)
        adversaries: Tensor = attack.run_standard_evaluation(x, labels)[0]
        return adversaries

    return torch.stack([within(radius) for radius in eps])


ATTACKS: dict[str, Callable[..., Tensor]] = {"ours": strongest, "AutoAttack": auto_attack}


@dataclasses.dataclass(frozen=True)
class WorstCase(Recipe):
    """A classifier's accuracy on the first test images, without attack (eps 0) and under a strongest attack, L-inf."""

    classifier: TrainedClassifier
    n_images: int
    attack: str = "ours"  # of ATTACKS
    eps: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise ValueError(f"attack is {self.attack!r}; expected one of {', '.join(ATTACKS)}")

    def cost(self) -> float:
        return (2 if self.attack == "AutoAttack" else 0.4) * self.n_images

    def obstacle(self) -> str:
        is_there = self.attack != "AutoAttack" or importlib.util.find_spec(LIBRARY)
        return "" if is_there else f"needs {LIBRARY}"

    def make(self, lab: Lab) -> Product:
        keep_freed_memory()
        images, labels = (t[: self.n_images] for t in lab.test)
        found = robustness(
            self.classifier.load(lab),
            as_images(images),
            labels,
            eps=self.eps,
            attack=ATTACKS[self.attack],
            generator=torch.Generator(lab.device).manual_seed(self.classifier.seed),
        )
        return Product(
            {}, {f"accuracy_{e:g}": a for e, a in zip(self.eps, found.accuracy.tolist(), strict=True)}
        )
