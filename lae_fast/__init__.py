"""Amortized Langevin dynamics and Langevin autoencoders on fused kernels."""

from lae_fast import attacks
from lae_fast._version import __version__
from lae_fast.ais import AISEstimate, Schedule, annealed_log_likelihood, fit_schedule
from lae_fast.ald import ALDInfo, ALDState, ald_init, ald_step
from lae_fast.augment import augment
from lae_fast.evaluate import Evaluation, evaluate, fit_posterior_scale, importance_bound
from lae_fast.hoffman import Hoffman
from lae_fast.lae import LAE
from lae_fast.likelihood import Bernoulli, DiscretizedLogistic, Gaussian
from lae_fast.sample import Samples, ald_sample, langevin_sample
from lae_fast.vae import VAE

__all__ = [
    "LAE",
    "VAE",
    "AISEstimate",
    "ALDInfo",
    "ALDState",
    "Bernoulli",
    "DiscretizedLogistic",
    "Evaluation",
    "Gaussian",
    "Hoffman",
    "Samples",
    "Schedule",
    "__version__",
    "ald_init",
    "ald_sample",
    "ald_step",
    "annealed_log_likelihood",
    "attacks",
    "augment",
    "evaluate",
    "fit_posterior_scale",
    "fit_schedule",
    "importance_bound",
    "langevin_sample",
]
