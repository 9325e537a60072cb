"""The samplers that ours are compared with: in eager PyTorch, as they would be written without this package, and
other packages' where they are installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]  # [C, D] -> [C], nats
Run = Callable[[int], object]  # takes so many steps


def energy_and_gradient(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """U(x) [C] and grad U(x) [C, D]: what every Langevin step has to know, and the floor of its time."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        values = energy(leaf)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


def evaluations(energy: Energy, x: Tensor) -> Run:
    """The floor of a sampler: so many energies and gradients at x [C, D], and nothing else."""

    def run(n_steps: int) -> None:
        for _ in range(n_steps):
            energy_and_gradient(energy, x)

    return run


def langevin_proposal(x: Tensor, grad: Tensor, step_size: float, noise: Tensor) -> Tensor:
    return x - step_size * grad + math.sqrt(2 * step_size) * noise


def log_proposal_density(to: Tensor, start: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """log q(to|start) [C] of the proposal above, without its constant."""
    return -((to - start + step_size * grad) ** 2).sum(1) / (4 * step_size)


@torch.no_grad()
def unadjusted_langevin(energy: Energy, x: Tensor, step_size: float, n_steps: int) -> Tensor:
    for _ in range(n_steps):
        _, grad = energy_and_gradient(energy, x)
        x = langevin_proposal(x, grad, step_size, torch.randn_like(x))
    return x


@torch.no_grad()
def mala(energy: Energy, x: Tensor, step_size: float, n_steps: int) -> Tensor:
    """Metropolis-adjusted Langevin by the textbook: a decision for each chain, and the host never waits."""
    current, grad = energy_and_gradient(energy, x)
    for _ in range(n_steps):
        proposal = langevin_proposal(x, grad, step_size, torch.randn_like(x))
        proposed, proposed_grad = energy_and_gradient(energy, proposal)
        log_forward = log_proposal_density(proposal, x, grad, step_size)
        log_reverse = log_proposal_density(x, proposal, proposed_grad, step_size)
        log_alpha = current - proposed + log_reverse - log_forward
        is_accepted = torch.rand_like(log_alpha).log() < log_alpha
        x = torch.where(is_accepted[:, None], proposal, x)
        grad = torch.where(is_accepted[:, None], proposed_grad, grad)
        current = torch.where(is_accepted, proposed, current)
    return x


def installed(name: str) -> ModuleType | None:
    """The module, or None; what it warns of while it is imported is its own affair."""
    if importlib.util.find_spec(name) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def torchebm_langevin(energy: Energy, x: Tensor, step_size: float) -> Callable[[int], Tensor] | None:
    """torchebm's `LangevinDynamics` from x, n_steps -> [C, D]: unadjusted. None: it is not installed."""
    if installed("torchebm") is None:
        return None
    core, samplers = installed("torchebm.core"), installed("torchebm.samplers")

    class Model(core.BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return energy(x)

    sampler = samplers.LangevinDynamics(Model(x.dtype, x.device), step_size, dtype=x.dtype, device=x.device)
    return lambda n_steps: sampler.sample(x, n_steps=n_steps)


def posteriors_sgld(energy: Energy, x: Tensor, step_size: float) -> Callable[[int], Tensor] | None:
    """posteriors' SGLD at temperature 1 from x, n_steps -> [C, D]: unadjusted. None: it is not installed."""
    posteriors = installed("posteriors")
    if posteriors is None:
        return None

    def log_posterior(params: Tensor, batch: None) -> tuple[Tensor, Tensor]:
        return -energy(params).sum(), torch.tensor([])

    sgld = posteriors.sgmcmc.sgld.build(log_posterior, lr=step_size, temperature=1.0)

    def sample(n_steps: int) -> Tensor:
        state = sgld.init(x.clone())
        for _ in range(n_steps):
            state, _ = sgld.update(state, None, inplace=True)
        return state.params

    return sample


def other_packages(energy: Energy, x: Tensor, step_size: float) -> tuple[dict[str, Run], tuple[str, ...]]:
    """Both of these by name, and why one of them does not run here: it may be missing, or not fit this torch."""
    found, why_not = {}, []
    for name, make in (("torchebm", torchebm_langevin), ("posteriors", posteriors_sgld)):
        try:
            run = make(energy, x, step_size)
            if run is None:
                why_not.append(f"{name} is not installed.")
                continue
            run(1)
            found[name] = run
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            why_not.append(f"{name} failed: {type(error).__name__}: {reason}.")
    return found, tuple(why_not)
