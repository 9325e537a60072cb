"""Amortized Langevin dynamics and Langevin autoencoders on fused kernels."""

from lae_fast._version import __version__
from lae_fast.ald import ALDInfo, ALDState, ald_init, ald_step
from lae_fast.evaluate import Evaluation, evaluate, fit_posterior_scale
from lae_fast.lae import LAE
from lae_fast.likelihood import Bernoulli, DiscretizedLogistic, Gaussian
from lae_fast.sample import Samples, ald_sample, langevin_sample
from lae_fast.vae import VAE

__all__ = [
    "LAE",
    "VAE",
    "ALDInfo",
    "ALDState",
    "Bernoulli",
    "DiscretizedLogistic",
    "Evaluation",
    "Gaussian",
    "Samples",
    "__version__",
    "ald_init",
    "ald_sample",
    "ald_step",
    "evaluate",
    "fit_posterior_scale",
    "langevin_sample",
]
