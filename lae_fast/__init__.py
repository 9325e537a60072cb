"""Amortized Langevin dynamics and Langevin autoencoders on fused kernels."""

from lae_fast import attacks, ops
from lae_fast._version import __version__
from lae_fast.augmentation import augment, diagnose_variations
from lae_fast.evaluation import (
    AISEstimate,
    Evaluation,
    Schedule,
    annealed_log_likelihood,
    evaluate,
    fit_posterior_scale,
    fit_schedule,
    importance_bound,
    quadrature,
)
from lae_fast.mixtures import fit_classes
from lae_fast.models import LAE, MLP, VAE, Bernoulli, DiscretizedLogistic, Gaussian, Hoffman, load
from lae_fast.sampling import (
    ALDInfo,
    ALDState,
    Samples,
    SamplingInterrupted,
    adapt_step_size,
    ald_init,
    ald_sample,
    ald_step,
    langevin_sample,
)
from lae_fast.training import TrainingStep, fit

__all__ = [
    "LAE",
    "MLP",
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
    "SamplingInterrupted",
    "Schedule",
    "TrainingStep",
    "__version__",
    "adapt_step_size",
    "ald_init",
    "ald_sample",
    "ald_step",
    "annealed_log_likelihood",
    "attacks",
    "augment",
    "diagnose_variations",
    "evaluate",
    "fit",
    "fit_classes",
    "fit_posterior_scale",
    "fit_schedule",
    "importance_bound",
    "langevin_sample",
    "load",
    "ops",
    "quadrature",
]
