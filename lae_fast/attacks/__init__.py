"""Adversarial images: FGSM, PGD and APGD in L-infinity and L2, and a classifier's accuracy under them.

An attack runs the model in eval mode, leaves model and images unchanged, and takes all values of eps in one call.
"""

from lae_fast.attacks.automatic import apgd
from lae_fast.attacks.one_step import fgsm
from lae_fast.attacks.projected import pgd
from lae_fast.attacks.under_attack import Robustness, robustness

__all__ = ["Robustness", "apgd", "fgsm", "pgd", "robustness"]
