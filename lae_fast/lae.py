"""The Langevin autoencoder (Taniguchi et al., 2022, Algorithm 2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lae_fast.autoencoder import check_images
from lae_fast.chained import ChainedAutoencoder
from lae_fast.chains import Chains


class _KnownGradients(torch.autograd.Function):
    """A value whose gradients with respect to `inputs` have been computed already."""

    @staticmethod
    def forward(ctx, value: Tensor, *inputs_and_gradients: Tensor) -> Tensor:  # noqa: ANN001
        ctx.save_for_backward(*inputs_and_gradients[len(inputs_and_gradients) // 2 :])
        return value.clone()

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001
        gradients = [g * cotangent.to(g.dtype) for g in ctx.saved_tensors]
        return None, *gradients, *([None] * len(gradients))


class LAE(ChainedAutoencoder):
    """An encoder z = phi g(x) whose last layer phi is moved by a Langevin chain instead of an optimizer.

    Every call of `loss` runs `n_steps` steps of the chain on that minibatch's potential
    V(phi) = sum_i U(x_i, phi g(x_i)) and returns its average over time: phi moves by the chain alone, decoder,
    likelihood and features by whatever optimizer follows. phi is a buffer, part of the `state_dict`.

    Arguments as for `ChainedAutoencoder`; `step_size` is per example, as the published code's flag:
    eta = step_size / n for a batch of n.

    Args (beyond those):
        window: which T states the average takes: those "after" each step, t = 1..T, as published; or those "before" each,
            t = 0..T-1. The optimizer then sees what its own last step and the new minibatch cost, V_0, before
            the chain has repaired part of it.
        whiten: move phi L instead of phi, where L L^T is a running average of the features' H^T H / n (plus 0.04 of its
            mean diagonal): all directions then mix alike. Fixed during the T steps of a minibatch; the step size
            is one of those coordinates.

    Raises:
        ValueError: as there, or an unknown window.
    """

    first_step_size = 1e-4
    published_step_size = 1e-3

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        *,
        nx: int,
        nz: int,
        d: int,
        window: str = "after",
        whiten: bool = False,
        **chain: Any,
    ) -> None:
        super().__init__(encoder, decoder, likelihood, nx=nx, nz=nz, d=d, **chain)
        if window not in ("after", "before"):
            raise ValueError(f"window is {window!r}; expected after or before")
        self.window, self.whiten = window, whiten
        self.register_buffer("phi", nn.init.orthogonal_(torch.empty(nz, d)))
        # Of q(z|x) = N(f(x), s^2 I); the published code's value until `fit_posterior_scale`.
        self.register_buffer("posterior_scale", torch.tensor(0.05))
        if whiten:
            self._chain_buffer("gram", torch.zeros(d, d))  # of the features, averaged over minibatches

    def chain_state(self) -> dict[str, Tensor]:
        return super().chain_state() | ({"gram": self.gram.clone()} if self.whiten else {})

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.encoder(x) @ self.phi.T
        return mean, self.posterior_scale.to(mean.dtype).expand_as(mean)

    def _evaluate(self, x: Tensor, h: Tensor, phi: Tensor, theta: list[Tensor]) -> tuple[Tensor, ...]:
        """V [1], dV/dphi [1, nz d], dV/dz [n, nz] and dV/dtheta at phi [nz, d], from one forward and backward."""
        with torch.enable_grad():
            z = (h @ phi.T).requires_grad_()  # [n, nz]
            energy = self.potential(x, z).sum()
            z_grad, *theta_grad = torch.autograd.grad(energy, [z, *theta], allow_unused=True)
        theta_grad = [torch.zeros_like(p) if g is None else g for p, g in zip(theta, theta_grad, strict=True)]
        return energy.detach().reshape(1), (z_grad.T @ h).reshape(1, -1), z_grad, *theta_grad

    def loss(self, x: Tensor) -> Tensor:
        """(1/T) sum_t V_t / n over the window, for images x [n, nx]: nats per image. Advances the chain by T steps.

        T + 1 evaluations, each one forward and one backward pass of the decoder. The gradients of every state are
        *selected*, so that a rejected evaluation leaves no trace, not even a NaN.
        """
        check_images(x, self.nx)
        theta = [p for m in (self.decoder, self.likelihood) for p in m.parameters() if p.requires_grad]
        h = self.encoder(x)  # [n, d]
        with torch.no_grad():
            value, gradients = self._run_chain(x, h.detach(), theta)
        return _KnownGradients.apply(value, h, *theta, *gradients)

    def _root_of_gram(self, h: Tensor) -> Tensor:
        """The lower triangular L [d, d] with L L^T the running Gram matrix, this minibatch included, and its ridge."""
        n_batches = 1 + self.n_decisions // self.n_steps
        self.gram.lerp_(h.T @ h / len(h), (1 / n_batches).clamp(min=0.01).to(h.dtype))
        ridge = 0.04 * self.gram.diagonal().mean() * torch.eye(self.d, dtype=h.dtype, device=h.device)
        return torch.linalg.cholesky_ex(self.gram + ridge).L  # without a look at the device

    def _run_chain(self, x: Tensor, h: Tensor, theta: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """T steps of the chain; the time average of V / n and its gradients in h [n, d] and in theta."""
        n, latest, phi = x.shape[0], [], self.phi
        if self.whiten:  # phi h = (phi L) (L^-1 h)
            root = self._root_of_gram(h)
            h, phi = torch.linalg.solve_triangular(root, h.T, upper=False).T.contiguous(), phi @ root

        def evaluate(rows: Tensor) -> tuple[Tensor, Tensor]:
            potential, grad, *latest[:] = self._evaluate(x, h, rows.view_as(phi), theta)
            return potential, grad

        chain = Chains(
            evaluate, phi.view(1, -1), self.log_step_size - math.log(n), self.rng, mh=self.mh,
            adaptation=self.adaptation,
        )  # fmt: skip
        current = list(latest)  # dV/dz [n, nz] and dV/dtheta at the chain's state
        value, acceptance = torch.zeros_like(chain.potential), torch.zeros_like(chain.potential)
        totals = [torch.zeros_like(t) for t in (h, *theta)]

        def add_state() -> None:
            z_grad, *theta_grad = current
            torch._foreach_add_(totals, [z_grad @ chain.phi.view_as(phi), *theta_grad])  # dV/dh = dV/dz phi
            value.add_(chain.potential)

        for _ in range(self.n_steps):
            if self.window == "before":
                add_state()
            chain.step()
            current = [torch.where(chain.is_accepted[0], a, b) for a, b in zip(latest, current, strict=True)]
            if self.window == "after":
                add_state()
            acceptance += chain.acceptance_rate()
        phi = chain.phi.view_as(phi)
        if self.whiten:
            phi, totals[0] = (
                torch.linalg.solve_triangular(root, t, upper=False, left=False) for t in (phi, totals[0])
            )
        self.phi.copy_(phi)
        self.rng.copy_(chain.rng)
        self.log_step_size.copy_(chain.log_step_size + math.log(n))
        self.counters += chain.counters
        self.n_decisions += self.n_steps
        self.acceptance_rate.copy_(acceptance[0] / self.n_steps)
        scale = 1 / (self.n_steps * n)
        torch._foreach_mul_(totals, scale)
        return value[0] * scale, totals
