"""What the benchmarks compare with: algorithms in eager PyTorch, as they would be written without this package,
and other packages' samplers where they are installed.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Energy = Callable[[Tensor], Tensor]  # [C, D] -> [C], nats


def energy_and_gradient(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """U(x) [C] and grad U(x) [C, D]: what every Langevin step has to know, and the floor of its time."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        values = energy(leaf)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


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


def _installed(name: str) -> ModuleType | None:
    """The module, or None; what it warns of while it is imported is its own affair."""
    if importlib.util.find_spec(name) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def torchebm_langevin(energy: Energy, x: Tensor, step_size: float) -> Callable[[int], Tensor] | None:
    """torchebm's `LangevinDynamics` from x, n_steps -> [C, D]: unadjusted. None: it is not installed."""
    if _installed("torchebm") is None:
        return None
    core, samplers = _installed("torchebm.core"), _installed("torchebm.samplers")

    class Model(core.BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return energy(x)

    sampler = samplers.LangevinDynamics(Model(x.dtype, x.device), step_size, dtype=x.dtype, device=x.device)
    return lambda n_steps: sampler.sample(x, n_steps=n_steps)


def posteriors_sgld(energy: Energy, x: Tensor, step_size: float) -> Callable[[int], Tensor] | None:
    """posteriors' SGLD at temperature 1 from x, n_steps -> [C, D]: unadjusted. None: it is not installed."""
    posteriors = _installed("posteriors")
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


class ReportLAE(nn.Module):
    """The report's LAE, on copies of given encoder and decoder bodies.

    Faithful to what the report's code computes per training step: two evaluations of the energy for every
    Langevin step with MH (at the current state and at the proposal; one without), a Bernoulli reconstruction
    without prior term, drift with the batch-sum gradient and noise of variance 2 eta / n, a reverse proposal
    centred on the current state, a host decision for every acceptance, and the parameters' gradient from one
    more evaluation, of the last state alone. Nothing is repaired: these are the published rules, not good ones.

    Args:
        phi: where its last layer starts, [nz, d].
        step_size: eta as in its code: multiplies the batch-sum gradient.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, phi: Tensor, n_steps: int, mh: bool, step_size: float
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = copy.deepcopy(encoder), copy.deepcopy(decoder)
        self.register_buffer("phi", phi.clone())
        self.n_steps, self.mh, self.step_size = n_steps, mh, step_size

    def energy(self, x: Tensor, h: Tensor, phi: Tensor) -> Tensor:
        """Reconstruction of the whole batch, nats: no prior term."""
        return F.binary_cross_entropy_with_logits(self.decoder(h @ phi.T), x, reduction="sum")

    def energy_and_gradient(self, x: Tensor, h: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = phi.detach().requires_grad_()
            energy = self.energy(x, h, leaf)
            return energy.detach(), torch.autograd.grad(energy, leaf)[0]

    @torch.no_grad()
    def langevin_step(self, x: Tensor, h: Tensor) -> None:
        variance = 2 * self.step_size / len(x)
        energy, grad = self.energy_and_gradient(x, h, self.phi)
        mean = self.phi - self.step_size * grad
        proposal = mean + math.sqrt(variance) * torch.randn_like(self.phi)
        if self.mh:
            new_energy, new_grad = self.energy_and_gradient(x, h, proposal)
            reverse_mean = self.phi - self.step_size * new_grad  # published so; right would be proposal - ...
            log_forward = -((proposal - mean) ** 2).sum() / (2 * variance)
            log_reverse = -((self.phi - reverse_mean) ** 2).sum() / (2 * variance)
            accept_rate = torch.exp(energy - new_energy + log_reverse - log_forward).clamp(max=1)
            if torch.rand(()) >= accept_rate:  # here the host waits for the device
                return
        self.phi.copy_(proposal)

    def loss(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        for _ in range(self.n_steps):
            self.langevin_step(x, h.detach())
        return self.energy(x, h, self.phi) / len(x)
