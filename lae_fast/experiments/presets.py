"""The sizes of the report's experiments: for a quick check, for two cores, or as in the report."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Preset:
    """The sizes of a preset. Seeds count from 0; `n_train` and `n_test` None: all images."""

    n_seeds: int
    n_train: int | None
    n_test: int | None
    epochs: int  # most epochs of an autoencoder
    epochs_longest: int  # most epochs of an autoencoder with T = 50
    patience: int
    lr: float  # learning rate of autoencoders; table 7's classifiers take the report's 1e-4
    nh: int
    latent_epochs: int  # epochs of the linear layer on codes
    classifier_epochs: dict[int, int]  # N -> epochs
    attacked_images: int  # under PGD
    strongest_images: int  # under the strongest attack of our own
    autoattack_images: int  # under AutoAttack, which takes seconds an image
    likelihood_images: int
    n_temperatures: int
    few_label_updates: int
    imbalanced_epochs: int
    adversarial_epochs: int  # of the row without attack
    adversarial_updates: int
    adversarial_steps: int
    has_madry: bool  # whether the network of Madry et al. is trained, too
    convergence_limit: int  # most epochs to the accuracy of N = 0, in units of those that N = 0 took


CPU = Preset(
    n_seeds=5,
    n_train=None,
    n_test=None,
    epochs=15,
    epochs_longest=3,
    patience=10,
    lr=1e-3,
    nh=256,
    latent_epochs=20,
    classifier_epochs={0: 10, 2: 10, 5: 3},
    attacked_images=2000,
    strongest_images=200,
    autoattack_images=100,
    likelihood_images=200,
    n_temperatures=200,
    few_label_updates=1000,
    imbalanced_epochs=5,
    adversarial_epochs=3,
    adversarial_updates=900,
    adversarial_steps=5,
    has_madry=False,
    convergence_limit=4,
)
REPORT = dataclasses.replace(
    CPU,
    epochs=1000,
    epochs_longest=1000,
    lr=1e-4,
    classifier_epochs={0: 10, 2: 10, 5: 10},
    attacked_images=10_000,
    strongest_images=2000,
    autoattack_images=1000,
    n_temperatures=500,
    few_label_updates=5000,
    imbalanced_epochs=10,
    adversarial_epochs=20,
    adversarial_updates=18_000,
    adversarial_steps=40,
    has_madry=True,
)
QUICK = dataclasses.replace(
    CPU,
    n_seeds=1,
    n_train=2000,
    n_test=400,
    epochs=2,
    epochs_longest=1,
    nh=64,
    latent_epochs=2,
    classifier_epochs={0: 2, 2: 2, 5: 1},
    attacked_images=100,
    strongest_images=20,
    autoattack_images=10,
    likelihood_images=20,
    n_temperatures=20,
    few_label_updates=30,
    imbalanced_epochs=1,
    adversarial_epochs=1,
    adversarial_updates=20,
    adversarial_steps=2,
)
PRESETS = {"quick": QUICK, "cpu": CPU, "report": REPORT}
