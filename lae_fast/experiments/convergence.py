"""How long a classifier trains until it is as accurate as another one ends."""

from __future__ import annotations

import dataclasses
import math

from lae_fast.experiments.classifiers import TrainedClassifier, measure
from lae_fast.experiments.recipes import Lab, Product, Recipe


@dataclasses.dataclass(frozen=True)
class Convergence(Recipe):
    """The epochs after which the training of `classifier` first has the accuracy on test images that `goal` ends with.

    Its first epochs are those of the classifier, bit for bit; accuracy is taken after each epoch, and straight between
    two. `epochs_to_goal` is infinite where the limit comes first.
    """

    classifier: TrainedClassifier
    goal: TrainedClassifier
    limit: int  # most epochs

    def cost(self) -> float:
        return dataclasses.replace(self.classifier, epochs=self.limit).cost() / 2

    def make(self, lab: Lab) -> Product:
        goal = lab.get(self.goal).metrics["accuracy"]
        before = 0.1  # of a guess
        for epoch, (net, _) in enumerate(dataclasses.replace(self.classifier, epochs=self.limit).train(lab)):
            after = measure(net, lab.test)["accuracy"]
            if after >= goal:
                share = (goal - before) / (after - before) if before < goal else 0.0
                return Product({}, {"epochs_to_goal": epoch + share})
            before = after
        return Product({}, {"epochs_to_goal": math.inf})
