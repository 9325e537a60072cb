"""What the decoder contributes to a Langevin autoencoder's step: energies, gradients, and who keeps them.

A pass evaluates the energy of a minibatch at one z after another. What it has computed *last* becomes its *current*
state's by selection, when the chain has decided; weight gradients are added up for current states only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lae_fast import dense, ops
from lae_fast.autoencoder import Autoencoder
from lae_fast.dense import MLP, Gradients, has_hooks
from lae_fast.likelihood import LIKELIHOODS
from lae_fast.precision import products_in

if TYPE_CHECKING:
    from lae_fast.lae import LAE


def decoder_pass(model: LAE, x: Tensor) -> AutogradPass | DensePass:
    """The pass for images x [n, nx]: by hand for an `MLP` under one of this package's likelihoods, else by autograd."""
    decoder, kind = model.decoder, type(model)
    is_dense = (
        type(decoder) is MLP  # of subclasses nobody knows what they changed
        and decoder.is_whole()
        and not any(has_hooks(m) for m in (decoder, *decoder))
        and type(model.likelihood) in LIKELIHOODS.values()
        and (kind.potential, kind.reconstruction) == (Autoencoder.potential, Autoencoder.reconstruction)
        and x.dtype in (torch.float32, torch.float64)
        and all(p.dtype == x.dtype and p.requires_grad for p in decoder.own_parameters())
    )
    return DensePass(model, x) if is_dense else AutogradPass(model, x)


class _Pass:
    """Attributes: `parameters`, of decoder and likelihood; `totals`, their gradients over the states added so far."""

    def __init__(self, model: LAE, x: Tensor) -> None:
        self.model, self.x = model, x
        self.parameters = [
            p for m in (model.decoder, model.likelihood) for p in m.parameters() if p.requires_grad
        ]
        self.totals: list[Tensor] = []
        self.latest: list[Tensor] = []
        self.current: list[Tensor] = []

    def _all_parameters(self) -> list[nn.Parameter]:
        return [*self.model.decoder.parameters(), *self.model.likelihood.parameters()]

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """V [1], float64 in nats, and dV/dz [n, nz] at z [n, nz]."""
        raise NotImplementedError

    def weight_gradients(self) -> list[Tensor]:
        """dV/dparameters at the current z."""
        raise NotImplementedError

    @property
    def z_grad(self) -> Tensor:
        """dV/dz [n, nz] at the current z."""
        return self.current[0]

    def start(self) -> None:
        """What was evaluated last is the chain's first state."""
        self.current = self.latest

    def decide(self, is_accepted: Tensor) -> None:
        """What was evaluated last replaces the current state if is_accepted [1]; a rejected value leaves no trace."""
        ops.keep(self.latest, self.current, is_accepted)
        self.current = self.latest

    def add_weight_gradients(self) -> None:
        """Add those of the current state to `totals`."""
        gradients = self.weight_gradients()
        if self.totals:
            torch._foreach_add_(self.totals, gradients)
        else:
            self.totals = list(gradients)


class AutogradPass(_Pass):
    """Any decoder and likelihood: every evaluation one forward and one backward pass, weight gradients included."""

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), products_in(self.model.chain_precision, z.device):
            z = z.detach().requires_grad_()
            energy = self.model.potential(self.x, z).sum()
            gradients = torch.autograd.grad(energy, [z, *self.parameters], allow_unused=True)
        leaves = (z, *self.parameters)
        self.latest = [
            torch.zeros_like(p) if g is None else g.contiguous()
            for p, g in zip(leaves, gradients, strict=True)
        ]
        return energy.detach().reshape(1), self.latest[0]

    def weight_gradients(self) -> list[Tensor]:
        return [g.clone() for g in self.current[1:]]  # the same state may count again


class DensePass(_Pass):
    """An `MLP` under one of our likelihoods: input gradients at every evaluation, weight gradients where they count.

    Energies are computed in `chain_precision`, gradients in `precision`, which may be coarser: whatever drift a proposal
    has, its Metropolis-Hastings ratio is that of this very drift, and exact as long as the energies are.
    """

    def __init__(self, model: LAE, x: Tensor) -> None:
        super().__init__(model, x)
        first, *others = model.decoder.layers()
        # bfloat16 is the layers' affair (but for the first: close to z rounding does most harm), TF32 the device's
        dtype, grad_dtype = (
            torch.bfloat16 if p == "bf16" else None for p in (model.chain_precision, model.precision)
        )
        self.layers = [first, *(layer._replace(dtype=dtype, grad_dtype=grad_dtype) for layer in others)]
        self.forward_context, self.backward_context = (
            p if p == "tf32" else "float32" for p in (model.chain_precision, model.precision)
        )
        self.prior_constant = 0.5 * model.nz * math.log(2 * math.pi) * len(x)
        scale = model.likelihood.log_scale
        self.log_scale = None if scale is None else scale.to(x.dtype)

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with products_in(self.forward_context, z.device):
            out, trace = dense.forward(self.layers, z)
        energy, slope = ops.energy_(out, self.x, self.model.likelihood.kind, self.log_scale)
        with products_in(self.backward_context, z.device):
            z_grad, gradients = dense.backward(self.layers, trace, out)  # out is its own derivative now
        z_grad += z  # of the prior's ||z||^2 / 2
        self.latest = [z_grad, slope.sum().reshape(1), *trace.inputs, *gradients.outputs, *gradients.sums]
        prior = 0.5 * z.square().sum(dtype=torch.float64) + self.prior_constant
        return (energy.sum() + prior).reshape(1), z_grad

    def weight_gradients(self) -> list[Tensor]:
        n = len(self.layers)
        _, slope, *rest = self.current
        inputs, gradients = rest[:n], Gradients(rest[n : 2 * n], rest[2 * n :])
        with products_in(self.backward_context, slope.device):
            result = dense.parameter_gradients(self.layers, inputs, gradients)
        return result + [slope[0].to(p.dtype) for p in self.model.likelihood.parameters() if p.requires_grad]
