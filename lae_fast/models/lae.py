"""The Langevin autoencoder (Taniguchi et al., 2022, Algorithm 2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lae_fast.models import products
from lae_fast.models.autoencoder import check_images
from lae_fast.models.decoder_pass import DecoderPass, decoder_pass
from lae_fast.models.precision import check_float32, products_in
from lae_fast.models.with_chain import AutoencoderWithChain
from lae_fast.sampling.chains import Chains


class _KnownGradients(torch.autograd.Function):
    """scale * value, whose gradients with respect to `inputs` are scale * gradients, which are already computed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float, *inputs_and_gradients: Tensor) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(*inputs_and_gradients[len(inputs_and_gradients) // 2 :])
        return value * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        factor, gradients = (cotangent * ctx.scale).to(ctx.saved_tensors[0].dtype), []
        for g in ctx.saved_tensors:
            # Some gradients are transposed in memory; the results are contiguous, like the parameters.
            out = torch.empty_like(g, memory_format=torch.contiguous_format)
            gradients.append(torch.mul(g, factor.to(g.dtype), out=out))
        return None, None, *gradients, *([None] * len(gradients))


def averaged_gram(gram: Tensor, h: Tensor, n_batches: Tensor) -> Tensor:
    """The average [d, d] of H^T H / n over minibatches: `gram` [d, d] updated by the new features h [n, d].

    n_batches [] counts the minibatches, the new one included. The first hundred count equally, then each new minibatch
    counts for a hundredth.
    """
    return gram.lerp(h.T @ h / len(h), (1 / n_batches).clamp(min=0.01).to(h.dtype))


def whitening_root(gram: Tensor) -> Tensor:
    """The lower triangular L [d, d] with L L^T = gram [d, d] plus a ridge, without a host synchronisation."""
    ridge = 0.04 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.cholesky_ex(gram + ridge).L


class LAE(AutoencoderWithChain):
    """An encoder z = phi g(x) whose last layer phi is moved by a Langevin chain instead of an optimizer.

    Every call of `loss` runs `n_steps` steps of the chain on that minibatch's potential
    V(phi) = sum_i U(x_i, phi g(x_i)) and returns the average of V over these steps. Only the chain moves phi; the
    optimizer moves decoder, likelihood and features. phi [nz, d] is a buffer, part of the `state_dict`.

    Arguments are those of `AutoencoderWithChain`; `step_size` is per example, like the published code's flag:
    eta = step_size / n for a batch of n.

    Args (beyond those of `AutoencoderWithChain`):
        window: the T states in the average: "after" takes the state after each step, t = 1..T, as published; "before"
            takes the state before each step, t = 0..T-1. With "before" the optimizer sees V_0, the cost of its own last
            step and of the new minibatch, before the chain has repaired part of this cost.
        whiten: move phi L instead of phi, where L L^T is a running average of the features' H^T H / n (plus 0.04 of its
            mean diagonal): all directions then mix equally fast. L is fixed during the T steps of a minibatch; the step
            size is a step size of phi L.

    Raises:
        ValueError: as for `AutoencoderWithChain`, or the window is unknown.
    """

    windows = ("after", "before")
    first_step_size = 1e-4
    published_step_size = 1e-3

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        *,
        window: str = "after",
        whiten: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(encoder, decoder, likelihood, **options)
        if window not in self.windows:
            raise ValueError(f"window is {window!r}; expected {' or '.join(self.windows)}")
        self.window, self.whiten = window, whiten
        self.register_buffer("phi", nn.init.orthogonal_(torch.empty(self.nz, self.d)))
        # s of q(z|x) = N(f(x), s^2 I): the published code's value until `fit_posterior_scale`.
        self.register_buffer("posterior_scale", torch.tensor(0.05))
        if whiten:
            self._chain_buffer("gram", torch.zeros(self.d, self.d))  # H^T H / n, averaged over minibatches

    @property
    def beta1(self) -> float:
        """0.5 for a loss that averages V after each step: the chain has undone part of what momentum remembers."""
        return 0.5 if self.window == "after" else 0.9

    def chain_state(self) -> dict[str, Tensor]:
        return super().chain_state() | ({"gram": self.gram.clone()} if self.whiten else {})

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.encoder(x) @ self.phi.T
        return mean, self.posterior_scale.to(mean.dtype).expand_as(mean)

    def loss(self, x: Tensor) -> Tensor:
        """(1/T) sum_t V_t / n [] over the window, for images x [n, nx]: nats per image. Advances the chain by T steps.

        V is evaluated T + 1 times. The gradients of every state are *selected*, so that a rejected evaluation leaves no
        trace, not even a NaN; with an `MLP` as decoder, weight gradients are computed for states, not for proposals.

        Raises:
            ValueError: images have another form or require a gradient, or PyTorch's settings round the products that
                `mh` needs exact.
        """
        check_images(x, self.nx)
        check_float32(self.mh)
        if x.requires_grad:
            raise ValueError(
                "images require a gradient; expected none: the chain's loss has no derivative by them"
            )
        with products_in(self.precision, x.device):
            h = self.encoder(x).to(x.dtype)  # [n, d]
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            decoder = decoder_pass(self, x.contiguous())
            value, h_grad = self._run_chain(decoder, h.detach())
        return _KnownGradients.apply(
            value, 1 / (self.n_steps * len(x)), h, *decoder.parameters, h_grad, *decoder.totals
        )

    def next_gram(self, h: Tensor) -> Tensor:
        """The value [d, d] that `gram` takes after a minibatch of features h [n, d]; changes nothing."""
        return averaged_gram(self.gram, h, 1 + self.n_decisions // self.n_steps)

    def _run_chain(self, decoder: DecoderPass, h: Tensor) -> tuple[Tensor, Tensor]:
        """T steps of the chain on features h [n, d]; the sums over the window of V [] and of its gradient [n, d]."""
        n, phi = len(h), self.phi
        if self.whiten:  # phi h = (phi L) (L^-1 h)
            self.gram.copy_(self.next_gram(h))
            root = whitening_root(self.gram)
            h, phi = torch.linalg.solve_triangular(root, h.T, upper=False).T.contiguous(), phi @ root

        def evaluate(rows: Tensor) -> tuple[Tensor, Tensor]:
            potential, z_grad = decoder.evaluate(products.linear(h, rows.view_as(phi)))
            return potential, products.weight_gradient(z_grad, h).reshape(1, -1)

        chain = Chains(
            evaluate,
            phi.view(1, -1),
            self.log_step_size - math.log(n),
            self.rng,
            mh=self.mh,
            adaptation=self.adaptation,
        )
        decoder.start()
        value, acceptance = torch.zeros_like(chain.potential), torch.zeros_like(chain.potential)
        h_grad = torch.zeros_like(h)

        def add_state() -> None:
            decoder.add_weight_gradients()
            h_grad.addmm_(decoder.z_grad, chain.phi.view_as(phi))
            value.add_(chain.potential)

        for _ in range(self.n_steps):
            if self.window == "before":
                add_state()
            chain.step()
            decoder.decide(chain.is_accepted)
            if self.window == "after":
                add_state()
            acceptance += chain.acceptance_rate()
        phi = chain.phi.view_as(phi)
        if self.whiten:
            phi, h_grad = (
                torch.linalg.solve_triangular(root, t, upper=False, left=False) for t in (phi, h_grad)
            )
        self.phi.copy_(phi)
        self.rng.copy_(chain.rng)
        self.log_step_size.copy_(chain.log_step_size + math.log(n))
        self.counters += chain.counters
        self.n_decisions += self.n_steps
        self.acceptance_rate.copy_(acceptance[0] / self.n_steps)
        return value[0], h_grad
