"""Latent variable models: `LAE`, `VAE` and `Hoffman`, and their parts."""

from lae_fast.models.autoencoder import Autoencoder, asks, images_for
from lae_fast.models.hoffman import Hoffman
from lae_fast.models.lae import LAE
from lae_fast.models.likelihood import (
    LIKELIHOODS,
    Bernoulli,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
    negative_log_prior,
)
from lae_fast.models.mlp import MLP
from lae_fast.models.nets import NETWORKS
from lae_fast.models.registry import MODELS, Architecture, architecture_in, build, load, options_of
from lae_fast.models.vae import VAE
from lae_fast.models.with_chain import AutoencoderWithChain

__all__ = [
    "LAE",
    "LIKELIHOODS",
    "MLP",
    "MODELS",
    "NETWORKS",
    "VAE",
    "Architecture",
    "Autoencoder",
    "AutoencoderWithChain",
    "Bernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "Hoffman",
    "Likelihood",
    "architecture_in",
    "asks",
    "build",
    "images_for",
    "load",
    "negative_log_prior",
    "options_of",
]
