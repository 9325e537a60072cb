"""Chains that anneal: from a base r(z|x) at beta = 0 to the posterior at beta = 1, through r(z|x)^(1 - beta) p(x, z)^beta,
one MALA step at each temperature, thousands of images x chains at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.graphs import Replayed
from lae_fast.isolation import differentiable
from lae_fast.models.autoencoder import Autoencoder
from lae_fast.models.decoder_pass import DensePass, whole_pass
from lae_fast.models.likelihood import negative_log_prior
from lae_fast.sampling.acceptance import acceptance_rate

ROWS = 2048  # images x chains of one pass through the decoder


def per_pass(n_chains: int) -> int:
    """Images that one pass of the decoder takes, with their chains."""
    return max(1, ROWS // n_chains)


class Draws(NamedTuple):
    """What the chains of a batch of images draw before they start."""

    rng: Tensor  # int64 [3], of all their moves
    e: Tensor  # [C, n, nz], standard normals

    @classmethod
    def of(cls, x: Tensor, nz: int, n_chains: int, generator: torch.Generator) -> Draws:
        """For images x [n, *shape]."""
        rng = ops.make_rng(x.device, generator)
        shape = (n_chains, len(x), nz)
        return cls(rng, torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device))


class Annealing:
    """Rows e [C, n, nz], moved from N(0, I) at one temperature after another; z = m + s e.

    m and s [n, nz] are mean and standard deviation of the base: in e the base is round, and one step size fits all
    images. All tensors keep their memory, also from one batch of n images to the next: a CUDA graph of a move serves them
    all.

    Args:
        x: the first images, [n, *shape].
    """

    x: Tensor  # [n, *shape]
    images: Tensor  # [C n, nx], the same for each chain, where whole layers are evaluated
    mean: Tensor  # m, [n, nz]
    std: Tensor  # s, [n, nz]
    log_volume: Tensor  # float64 [n], the sum of log s
    rng: Tensor  # int64 [3]
    e: Tensor  # [C, n, nz]
    prior: Tensor  # float64 [C, n], -log N(e)
    log_ratio: Tensor  # float64 [C, n], log p(x, z) - log r(z|x), by which the weights grow
    slope: Tensor  # [C, n, nz], its derivative in e

    def __init__(self, model: Autoencoder, x: Tensor, base: str, draws: Draws) -> None:
        self.model, self.base, self.n_chains = model, base, len(draws.e)
        self.decoder: DensePass | None = None
        if whole_pass(model, x.flatten(1)) is not None:  # it takes a row for each chain
            self._hold(images=x.flatten(1).repeat(self.n_chains, 1))
            self.decoder = whole_pass(model, self.images)
        # beta and step size of the next move, [1] each
        self.beta, self.step_size = torch.zeros(2, 1, dtype=torch.float64, device=x.device)
        self.start(x, draws)

    def start(self, x: Tensor, draws: Draws) -> None:
        """Start the chains of images x [n, *shape], as many as before, at draws of the base."""
        mean, std = x.new_zeros(len(x), self.model.nz), x.new_ones(len(x), self.model.nz)
        if self.base == "encoder":
            mean, std = self.model.posterior(x)
        self._hold(x=x, mean=mean, std=std, log_volume=std.log().sum(-1, dtype=torch.float64))
        self._hold(rng=draws.rng)
        if self.decoder is not None:
            self._hold(images=x.flatten(1).repeat(self.n_chains, 1))
        self.start_at(draws.e)

    def start_at(self, e: Tensor) -> None:
        """Start the chains at e [C, n, nz]."""
        self._hold(e=e)
        prior, log_ratio, slope = self._evaluate(self.e)
        self._hold(prior=prior, log_ratio=log_ratio, slope=slope)

    def start_at_z(self, z: Tensor) -> None:
        """Start all chains of an image at its z [n, nz]."""
        self.start_at(((z - self.mean) / self.std).expand(self.n_chains, -1, -1))

    def _hold(self, **values: Tensor) -> None:
        """Keep values as attributes, each always in the same memory."""
        for name, value in values.items():
            if hasattr(self, name):
                getattr(self, name).copy_(value)
            else:
                setattr(self, name, value.clone(memory_format=torch.contiguous_format))

    def _evaluate(self, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-log N(e) [C, n]; log p(x, z) - log r(z|x) [C, n]; and the derivative of the latter in e [C, n, nz]."""
        potential, gradient = self._by_autograd(e) if self.decoder is None else self._by_hand(e, self.decoder)
        prior = negative_log_prior(e)
        return prior, prior + self.log_volume - potential, e - gradient

    def _by_autograd(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(x, z) [C, n], and its derivative in e [C, n, nz]."""
        with differentiable():
            leaf = e.detach().requires_grad_()
            potential = self.model.potential(self.x, self.mean + self.std * leaf)
            (gradient,) = torch.autograd.grad(potential, leaf, torch.ones_like(potential))
        return potential.detach(), gradient

    def _by_hand(self, e: Tensor, decoder: DensePass) -> tuple[Tensor, Tensor]:
        z = torch.addcmul(self.mean, self.std, e)
        potential, z_grad = decoder.evaluate(z.flatten(0, 1))
        return potential.view(e.shape[:-1]), z_grad.view_as(e) * self.std

    def move(self) -> Tensor:
        """One MALA step that leaves r^(1 - beta) p^beta invariant; its acceptance rates [C, n]."""
        weight = self.beta.to(self.e.dtype)

        def rows(e: Tensor, prior: Tensor, log_ratio: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
            potential, grad = prior - self.beta * log_ratio, e - weight * slope
            return potential.flatten(), grad.flatten(0, 1)

        state = [self.e, self.prior, self.log_ratio, self.slope]
        potential, grad = rows(*state)
        e = self.e.flatten(0, 1)
        proposal, rng = ops.propose(e, grad, self.step_size, self.rng)
        new = [proposal.view_as(self.e), *self._evaluate(proposal.view_as(self.e))]
        new_potential, new_grad = rows(*new)
        accepted, _, log_alpha = ops.decide(
            e, proposal, potential, new_potential, grad, new_grad, self.step_size, rng
        )
        ops.keep([t.flatten(0, 1) for t in state], [t.flatten(0, 1) for t in new], ~accepted)
        self.rng.copy_(rng)
        return acceptance_rate(log_alpha).view_as(self.log_ratio)


def repeated(call: Callable[[], Any], device: torch.device, capture: bool | None) -> Callable[[], Any]:
    """A call on the same memory every time; on a GPU a graph replays it, unless declined."""
    captures = device.type == "cuda" if capture is None else capture
    return Replayed(call, device) if captures else call
