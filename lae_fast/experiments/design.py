"""The recipes of each cell of the report's tables: one recipe for each seed. Equal cells share their recipes."""

from __future__ import annotations

import dataclasses
from typing import Any

from lae_fast.experiments.autoencoders import TrainedAutoencoder
from lae_fast.experiments.classifiers import Attacked, LatentClassifier, TrainedClassifier
from lae_fast.experiments.convergence import Convergence
from lae_fast.experiments.hardened import HardenedClassifier
from lae_fast.experiments.m2 import TrainedM2, TrainedOnM2
from lae_fast.experiments.new_images import NEW, TrainedOnNewImages
from lae_fast.experiments.planes import Plane, Recognised
from lae_fast.experiments.presets import Preset
from lae_fast.experiments.published import TRAININGS as TRAININGS_OF_REPORT
from lae_fast.experiments.quality import Quality
from lae_fast.experiments.strongest import WorstCase

ADAPTED: dict[str, Any] = dict(mh=True, step_size=None)
RULES: dict[str, dict[str, Any]] = {  # how an LAE's chain runs
    "report's code": dict(model="report"),
    "Algorithm 2": dict(model="lae"),
    "datapoint decisions": dict(model="lae", decisions="datapoint", **ADAPTED),  # the default of this package
    "joint, adapted step": dict(model="lae", **ADAPTED),
}
JUDGED = ("report's code", "datapoint decisions")  # rules in claims, and trainings there:
VARIED = TRAININGS_OF_REPORT[1:]
SHOWN = ("report's code", "Algorithm 2", "datapoint decisions")  # rules in figures
SOURCES = {  # LAEs that Algorithm 3 draws from: their rule, and nz
    "lae": ("datapoint decisions", 8),
    "wide": ("datapoint decisions", 16),
    "joint": ("joint, adapted step", 8),
}
TRAININGS = (*TRAININGS_OF_REPORT, ("joint", 2))  # (source, N)
PGD_STEP = 0.01
PROTOCOLS = {  # name -> number of PGD steps, and whether the start is random
    "a": (40, True),  # as Madry et al.
    "b": (40, False),  # as the report's function
    "c": (3, False),  # the default of the report's command
}
M2 = "m2"  # a source that knows labels
NAMES = {
    None: "none",
    "lae": "LAE",
    "wide": "LAE, nz 16",
    "joint": "LAE, joint",
    "vae": "VAE",
    M2: "M2",
}  # of sources
RARE = 9  # the class that the report finds hard to tell from 4
FEW = (10, 50, 100)  # labelled images of each class
DRAWN = {False: "as they come", True: "all classes alike"}  # by `is_balanced`
# Beyond the report: whose variations, and which: those of the report, those that keep the image, new images of a class, and
# controls: real images of a class, and two that know no model.
BEYOND = (
    (None, "report"),
    ("lae", "report"),
    ("vae", "report"),
    ("lae", "residual"),
    ("vae", "residual"),
    ("lae", "new codes"),
    (None, "components"),
    (None, "affine"),
    ("lae", "affine+residual"),
    ("lae", "new codes+affine"),
    ("vae", "new codes+affine"),
    ("wide", "new codes+affine"),
    ("lae", "found+affine"),
)
BEYOND_FEW = (*BEYOND, (M2, "new codes+affine"), (M2, "found+affine"))  # where few images have a label
KINDS = {
    "report": "",
    "residual": ", residual",
    "components": "16 principal components",
    "affine": "affine",
    "affine+residual": ", affine, residual",
    "new codes": ", new codes",
    "new codes+affine": ", new codes, affine",
    "found+affine": ", found, affine",
}
ADVERSARIAL = "adversarial"
HOFFMAN: dict[str, Any] = dict(model="hoffman", **ADAPTED)


def training_name(source: str | None, n: int) -> str:
    """Training with N = n variations from a source, as tables and claims call it."""
    return f"{NAMES[source]}, N = {n}"


def varied_name(source: str | None, kind: str) -> str:
    """Variations of a kind from a source, as tables and questions beyond the report call them."""
    return f"{'' if source is None else NAMES[source]}{KINDS[kind]}" or NAMES[None]


@dataclasses.dataclass(frozen=True)
class Design:
    """All recipes of a preset. Each method returns one recipe for each seed."""

    preset: Preset

    def autoencoders(
        self, model: str, nz: int, n_steps: int = 2, *, epochs: int | None = None, **options: Any
    ) -> tuple[TrainedAutoencoder, ...]:
        p = self.preset
        if epochs is None:
            epochs = p.epochs_longest if n_steps >= 50 else p.epochs
        return tuple(
            TrainedAutoencoder(
                model, nz, seed, epochs, p.lr, n_steps, patience=p.patience, nh=p.nh, **options
            )
            for seed in range(p.n_seeds)
        )

    def vae(self, nz: int) -> tuple[TrainedAutoencoder, ...]:
        return self.autoencoders("vae", nz)

    def lae(self, rule: str, nz: int, n_steps: int = 2, **options: Any) -> tuple[TrainedAutoencoder, ...]:
        return self.autoencoders(nz=nz, n_steps=n_steps, **(RULES[rule] | options))

    def hoffman(self, nz: int) -> tuple[TrainedAutoencoder, ...]:
        """Hoffman's method, for the first seed only: the report does not have this model, only our figures show it."""
        return self.autoencoders(nz=nz, **HOFFMAN)[:1]

    def source(self, model: str | None) -> tuple[TrainedAutoencoder | None, ...]:
        """The model from which Algorithm 3 draws: the VAE, nz 8, or one of `SOURCES`; or None."""
        if model is None:
            return (None,) * self.preset.n_seeds
        return self.vae(8) if model == "vae" else self.lae(*SOURCES[model])

    def quality(self, models: tuple[TrainedAutoencoder, ...]) -> tuple[Quality, ...]:
        p = self.preset
        return tuple(Quality(m, p.likelihood_images, p.n_temperatures) for m in models)

    def codes(self, models: tuple[TrainedAutoencoder, ...]) -> tuple[LatentClassifier, ...]:
        return tuple(LatentClassifier(m, self.preset.latent_epochs) for m in models)

    def planes(self, models: tuple[TrainedAutoencoder, ...]) -> tuple[Plane, ...]:
        return tuple(map(Plane, models))

    def recognised(self, models: tuple[TrainedAutoencoder, ...]) -> tuple[Recognised, ...]:
        """The models' interpolated images, judged by table 7's classifiers without variations."""
        return tuple(map(Recognised, models, self.classifiers(None, 0)))

    def classifiers(self, model: str | None, n: int, **options: Any) -> tuple[TrainedClassifier, ...]:
        """Table 7's classifiers, or others with `options` of `TrainedClassifier`."""
        options = dict(epochs=self.preset.classifier_epochs.get(n)) | options
        sources = enumerate(self.source(model))
        return tuple(TrainedClassifier(seed, n, source, **options) for seed, source in sources)

    def convergence(self, model: str | None, n: int) -> tuple[Convergence, ...]:
        """Epochs to the accuracy of training without variations for the epochs of N = n."""
        epochs = self.preset.classifier_epochs[n]
        goals = self.classifiers(None, 0, epochs=epochs)
        trained = goals if model is None else self.classifiers(model, n)
        limit = epochs * self.preset.convergence_limit
        return tuple(Convergence(c, goal, limit) for c, goal in zip(trained, goals, strict=True))

    def attacked(self, trained: tuple[TrainedClassifier, ...], protocol: str) -> tuple[Attacked, ...]:
        n_steps, is_random_start = PROTOCOLS[protocol]
        n_images = self.preset.attacked_images
        options: dict[str, Any] = dict(step_size=PGD_STEP, n_images=n_images)
        return tuple(Attacked(c, n_steps, is_random_start, **options) for c in trained)

    def worst_case(self, trained: tuple[TrainedClassifier, ...]) -> tuple[WorstCase, ...]:
        """Under our strongest attack."""
        return tuple(WorstCase(c, self.preset.strongest_images) for c in trained)

    def beside_autoattack(
        self, trained: tuple[TrainedClassifier, ...]
    ) -> tuple[tuple[WorstCase, ...], tuple[WorstCase, ...]]:
        """Under AutoAttack, and under ours on the same images."""
        theirs, ours = (
            tuple(WorstCase(c, self.preset.autoattack_images, attack) for c in trained)
            for attack in ("AutoAttack", "ours")
        )
        return theirs, ours

    def few_labels(self, model: str | None, per_class: int, variations: str) -> tuple[TrainedClassifier, ...]:
        options: dict[str, Any] = dict(
            epochs=0, lr=1e-3, per_class=per_class, n_updates=self.preset.few_label_updates
        )
        if model != M2:
            return self.varied(model, variations, **options)
        return tuple(
            TrainedOnM2(m2.seed, 2, variations=variations, m2=m2, **options) for m2 in self.m2(per_class)
        )

    def m2(self, per_class: int) -> tuple[TrainedM2, ...]:
        p = self.preset
        options: dict[str, Any] = dict(nh=p.nh, patience=p.patience)
        return tuple(TrainedM2(8, seed, p.epochs, p.lr, per_class, **options) for seed in range(p.n_seeds))

    def imbalanced(
        self, model: str | None, is_balanced: bool, variations: str
    ) -> tuple[TrainedClassifier, ...]:
        options = dict(epochs=self.preset.imbalanced_epochs, lr=1e-3, rare=RARE, is_balanced=is_balanced)
        return self.varied(model, variations, **options)

    def varied(self, model: str | None, variations: str, **options: Any) -> tuple[TrainedClassifier, ...]:
        """Two variations of each image; none of what a model draws without a model."""
        n = 0 if model is None and variations == "report" else 2
        kind = TrainedOnNewImages if variations.startswith(NEW) else TrainedClassifier
        sources = enumerate(self.source(model))
        return tuple(kind(seed, n, source, variations=variations, **options) for seed, source in sources)

    def hardened(self) -> dict[tuple[str, str], tuple[TrainedClassifier, ...]]:
        """(training, variations) -> classifiers; the first is trained plainly, all others are adversarial."""
        p = self.preset
        none = training_name(None, 0)
        found = {("plain", none): self.classifiers(None, 0, epochs=p.adversarial_epochs, lr=1e-3)}
        options: dict[str, Any] = dict(n_updates=p.adversarial_updates, adversarial_steps=p.adversarial_steps)
        for model in (None, "lae", "vae"):
            n, sources = 0 if model is None else 1, enumerate(self.source(model))
            found[ADVERSARIAL, training_name(model, n)] = tuple(
                HardenedClassifier(seed, n, source, **options) for seed, source in sources
            )
        if p.has_madry:
            found[f"{ADVERSARIAL}, network of Madry et al.", none] = tuple(
                HardenedClassifier(seed, network="madry", **options) for seed in range(p.n_seeds)
            )
        return found
