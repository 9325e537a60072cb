"""The quality of a model: ELBO and importance bound (elbo.py), annealed importance sampling (ais.py), and log p(x) itself
in one or two latent dimensions (grid.py)."""

from lae_fast.evaluation.ais import (
    BASES,
    AISEstimate,
    Schedule,
    anneal,
    annealed_log_likelihood,
    fit_schedule,
    simulated_gap,
)
from lae_fast.evaluation.elbo import Evaluation, evaluate, fit_posterior_scale, importance_bound
from lae_fast.evaluation.grid import quadrature

__all__ = [
    "BASES",
    "AISEstimate",
    "Evaluation",
    "Schedule",
    "anneal",
    "annealed_log_likelihood",
    "evaluate",
    "fit_posterior_scale",
    "fit_schedule",
    "importance_bound",
    "quadrature",
    "simulated_gap",
]
