"""The quality of a model: ELBO and importance bound (elbo.py), annealed importance sampling (ais.py) by chains (annealing.py)
at the temperatures of a pilot run (schedule.py), and log p(x) itself in one or two latent dimensions (grid.py)."""

from lae_fast.evaluation.ais import AISEstimate, anneal, annealed_log_likelihood, simulated_gap
from lae_fast.evaluation.elbo import Evaluation, evaluate, fit_posterior_scale, importance_bound
from lae_fast.evaluation.grid import quadrature
from lae_fast.evaluation.schedule import BASES, Schedule, fit_schedule

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
