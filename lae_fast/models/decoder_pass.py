"""The decoder's part in a Langevin autoencoder's step: energies, gradients, and the choice of those that stay.

A pass serves one call of `LAE.loss`. It evaluates the minibatch's energies at one z after another. Once the chain has
decided, a selection turns the *latest* result into the result of the *current* state, row by row where every datapoint
has a decision of its own. The calls, in this order:

    evaluate(z_0), start()                       the chain's first state
    evaluate(z'), decide(is_accepted)            T times: a proposal, and the decisions about it
    add_weight_gradients(), z_grad               whenever the current state counts, also more than once
    parameters, totals                           at the end: the parameters, and the sums of their gradients
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast import checks, ops
from lae_fast.isolation import differentiable
from lae_fast.models import layers, layers_in_parts, whole_layers
from lae_fast.models.autoencoder import Autoencoder
from lae_fast.models.likelihood import has_kernel, keeps_methods
from lae_fast.models.mlp import MLP
from lae_fast.models.precision import products_in
from lae_fast.models.with_chain import AutoencoderWithChain
from lae_fast.ops.energies import add_prior_unchecked_
from lae_fast.ops.torch_private import is_altered, on_each


def decoder_pass(model: AutoencoderWithChain, x: Tensor, *, by_row: bool = False) -> DecoderPass:
    """The pass for images x [n, nx]. Under a likelihood with a kernel: by hand for an `MLP`, layer by layer for other
    Sequentials of PyTorch's layers. Else by autograd.

    by_row: each of the n datapoints has an energy and a decision of its own, V [n]; else the minibatch has one, V [1].
    """
    if is_dense(model, x):
        return DensePass(model, x, by_row)
    if is_layered(model, x):
        return LayeredPass(model, x, by_row)
    return RecomputingPass(model, x, by_row) if by_row else AutogradPass(model, x, by_row)


def is_dense(model: Autoencoder, x: Tensor) -> bool:
    """Whether the potential of images x [n, nx] is known to the letter: an `MLP` under a likelihood with a kernel."""
    decoder = model.decoder
    return (
        type(decoder) is MLP  # a subclass may have changed anything
        and decoder.is_whole()
        and not any(is_altered(m) for m in (decoder, *decoder))
        and _is_known(model, x)
        and all(p.requires_grad for p in decoder.own_parameters())
    )


def is_layered(model: AutoencoderWithChain, x: Tensor) -> bool:
    """Whether the decoder is a Sequential whose layers tell all weight gradients, under a likelihood with a kernel."""
    # With bf16 autocast would have to round the layers' parts, too.
    rounds = "bf16" in (model.precision, model.chain_precision)
    return not rounds and _is_known(model, x) and layers.layers_of(model.decoder) is not None


def _is_known(model: Autoencoder, x: Tensor) -> bool:
    """Whether the potential of images x [n, nx] is that of a likelihood with a kernel, in the type of x."""
    return (
        has_kernel(model.likelihood)
        and keeps_methods(model, Autoencoder, "potential", "reconstruction", "output")
        and x.dtype in (torch.float32, torch.float64)
        and all(p.dtype == x.dtype for p in model.decoder.parameters())
    )


def whole_pass(model: Autoencoder, x: Tensor) -> DensePass | None:
    """The pass for images x [n, nx], each with an energy of its own, if it evaluates whole layers; else None."""
    if not is_dense(model, x):
        return None
    found = DensePass(model, x, by_row=True)
    return found if found.network is whole_layers else None


class DecoderPass:
    """Base of all passes.

    Attributes:
        parameters: the trained parameters of decoder and likelihood, each once.
        totals: the gradients of V with respect to `parameters`, summed over datapoints and the states added so far.
    """

    def __init__(self, model: Autoencoder, x: Tensor, by_row: bool) -> None:
        self.model, self.x, self.by_row = model, x, by_row
        parts = (model.decoder, model.likelihood)  # which may share some
        self.parameters = list(
            dict.fromkeys(p for part in parts for p in part.parameters() if p.requires_grad)
        )
        self.totals: list[Tensor] = []
        self.latest: _ByAutograd | _AtZ | _ByHand | _ByLayer
        self.current: _ByAutograd | _AtZ | _ByHand | _ByLayer

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """V [n] or [1], float64 in nats, and dV/dz [n, nz] at z [n, nz], which the pass keeps, and may overwrite."""
        raise NotImplementedError

    def weight_gradients(self) -> list[Tensor]:
        """The gradients of the sum of V with respect to `parameters` at the current z, each in memory of its own, for `totals`."""
        raise NotImplementedError

    @property
    def z_grad(self) -> Tensor:
        """dV/dz [n, nz] at the current z."""
        return self.current.z_grad

    def start(self) -> None:
        """Make the latest evaluation the chain's first state."""
        self.current = self.latest

    def decide(self, is_accepted: Tensor) -> None:
        """Replace the current state by the latest evaluation where is_accepted [n] or [1]; what is rejected leaves no
        trace."""
        ops.keep_unchecked(self.latest.tensors(), self.current.tensors(), is_accepted)
        self.current = self.latest

    def add_weight_gradients(self) -> None:
        """Add the weight gradients of the current state to `totals`."""
        gradients = self.weight_gradients()
        if self.totals:
            on_each("add_", self.totals, gradients)
        else:
            self.totals = list(gradients)

    def _by_autograd(
        self, z: Tensor, precision: str, *, to_z: bool = False, to_weights: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The energies [n] at z [n, nz], and the gradients of their sum with respect to z and to `parameters`."""
        with differentiable(), products_in(precision, z.device):
            z = z.detach().requires_grad_(to_z)
            inputs = [z] * to_z + self.parameters * to_weights
            energy = self.model.potential(self.x, z)
            if not torch.compiler.is_compiling() and not hasattr(self, "latest"):  # once for each minibatch
                self._check_leaves(energy, z)
            gradients = torch.autograd.grad(energy.sum(), inputs, allow_unused=True)
        whole = [
            torch.zeros_like(p) if g is None else g.contiguous()
            for p, g in zip(inputs, gradients, strict=True)
        ]
        return energy.detach(), whole

    def _check_leaves(self, energy: Tensor, z: Tensor) -> None:
        """Raise a ValueError if the energy has a derivative by a tensor that is not among `parameters`: nobody would take it."""
        known = {id(t) for t in (z, *self.parameters)}
        names = {id(p): n for n, p in self.model.named_parameters()}
        nodes = [energy.grad_fn]
        # The walk ends at parameters that are computed, as for functional_call.
        seen = {*nodes, *(p.grad_fn for p in self.parameters)}
        while nodes:
            node = nodes.pop()
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in known:
                raise ValueError(
                    f"the energy depends on {names.get(id(leaf), checks.describe(leaf))}, which is no parameter of decoder or "
                    "likelihood and would get no gradient; expected it registered there, or without requires_grad"
                )
            following = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= following
            nodes += following


class _ByAutograd(NamedTuple):
    """The results of one evaluation by autograd."""

    z_grad: Tensor  # [n, nz]
    weight_grads: list[Tensor]  # one for each parameter

    def tensors(self) -> list[Tensor]:
        return [self.z_grad, *self.weight_grads]


class AutogradPass(DecoderPass):
    """For any decoder and likelihood, one decision: an evaluation is one forward and one backward pass, weight gradients
    included."""

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        energy, (z_grad, *weight_grads) = self._by_autograd(
            z, self.model.chain_precision, to_z=True, to_weights=True
        )
        self.latest = _ByAutograd(z_grad, weight_grads)
        return energy.sum().reshape(1), z_grad

    def weight_gradients(self) -> list[Tensor]:
        return [g.clone() for g in self.current.weight_grads]  # copies, as the same state may be added again


class _AtZ(NamedTuple):
    """One evaluation without weight gradients."""

    z: Tensor  # [n, nz]
    z_grad: Tensor  # [n, nz]

    def tensors(self) -> list[Tensor]:
        return [self.z, self.z_grad]


class RecomputingPass(DecoderPass):
    """For any decoder and likelihood, decisions by row: as autograd's weight gradients are sums over rows that may be
    rejected, a state that counts takes a forward and a backward pass of its own."""

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        energy, (z_grad,) = self._by_autograd(z, self.model.chain_precision, to_z=True)
        self.latest = _AtZ(z, z_grad)
        return energy, z_grad

    def weight_gradients(self) -> list[Tensor]:
        if not self.parameters:
            return []
        _, gradients = self._by_autograd(self.current.z, self.model.precision, to_weights=True)
        return [g.clone() for g in gradients]  # autograd gives parameters that enter as a sum one tensor


class _ByHand(NamedTuple):
    """The results of one evaluation by hand: all tensors from which an `MLP`'s weight gradients are made."""

    z_grad: Tensor  # [n, nz]
    slope: Tensor  # float64: dV/dlog_scale [n], or [0] where there is no scale
    trace: layers_in_parts.Trace | whole_layers.Trace
    gradients: layers_in_parts.Gradients | whole_layers.Gradients

    def tensors(self) -> list[Tensor]:
        rows = [self.z_grad, *self.trace.tensors(), *self.gradients.tensors()]
        return rows + ([self.slope] if len(self.slope) else [])


class DensePass(DecoderPass):
    """For an `MLP` under a likelihood with a kernel: input gradients always, weight gradients for states that count.

    Energies are computed in `chain_precision`, gradients in `precision`, which may be coarser: the Metropolis-Hastings
    ratio uses the same drift as the proposal, so the ratio is exact as long as the energies are exact.

    Attributes:
        network: the module whose functions evaluate the decoder: `layers_in_parts`, or `whole_layers` where nothing stands
            against it.
    """

    def __init__(self, model: Autoencoder, x: Tensor, by_row: bool) -> None:
        super().__init__(model, x, by_row)
        of_energies = getattr(model, "chain_precision", model.precision)
        first, *others = model.decoder.layers()
        # The layers round to bfloat16 (except the first: rounding close to z does most harm), the device to TF32.
        dtype, grad_dtype = (torch.bfloat16 if p == "bf16" else None for p in (of_energies, model.precision))
        self.layers = [first, *(layer._replace(dtype=dtype, grad_dtype=grad_dtype) for layer in others)]
        self.forward_context, self.backward_context = (
            p if p == "tf32" else "float32" for p in (of_energies, model.precision)
        )
        precisions = (of_energies, model.precision)
        obstacle = whole_layers.obstacle(x.device, self.layers, precisions)
        self.network = layers_in_parts if obstacle else whole_layers
        scale = model.likelihood.log_scale
        self.log_scale = None if scale is None else scale.to(x.dtype)

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with products_in(self.forward_context, z.device):
            out, trace = self.network.forward(self.layers, z)
        if self.layers[-1].norm_weight is not None:
            out = out.clone()  # the trace needs the network's output, to know where its last ReLU cut off
        energy, slope = ops.energy_unchecked_(out, self.x, self.model.likelihood.kind, self.log_scale)
        with products_in(self.backward_context, z.device):
            # `out` now holds the energy's derivative by the output.
            z_grad, gradients = self.network.backward(self.layers, trace, out)
        add_prior_unchecked_(energy, z_grad, z)
        self.latest = _ByHand(z_grad, slope, trace, gradients)
        return energy if self.by_row else energy.sum().reshape(1), z_grad

    def weight_gradients(self) -> list[Tensor]:
        current = self.current
        with products_in(self.backward_context, current.slope.device):
            result = self.network.parameter_gradients(self.layers, current.trace, current.gradients)
        learned = [p for p in self.model.likelihood.parameters() if p.requires_grad]
        return result + [current.slope.sum().to(p.dtype) for p in learned]


class _ByLayer(NamedTuple):
    """The results of one evaluation layer by layer: all tensors from which the layers' weight gradients are made."""

    z_grad: Tensor  # [n, nz]
    slope: Tensor  # float64: dV/dlog_scale [n], or [0] where there is no scale
    inputs: list[Tensor]  # of every learning layer, [n, ...]
    gradients: list[Tensor]  # at every learning layer's output, [n, ...]

    def tensors(self) -> list[Tensor]:
        return [self.z_grad, *self.inputs, *self.gradients, *([self.slope] if len(self.slope) else [])]


class LayeredPass(DecoderPass):
    """For a Sequential of PyTorch's layers, as convolutions, under a likelihood with a kernel: autograd goes back to z only,
    and the weight gradients of states that count are made from what it met at each layer."""

    def __init__(self, model: AutoencoderWithChain, x: Tensor, by_row: bool) -> None:
        super().__init__(model, x, by_row)
        self.layers = layers.layers_of(model.decoder)

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        likelihood, scale = self.model.likelihood, self.model.likelihood.log_scale
        with products_in(self.model.chain_precision, z.device):
            trace = layers.forward(self.layers, z)
            out = trace.end.detach().reshape(len(z), -1)
            scale = None if scale is None else scale.detach().to(z.dtype)
            energy, slope_of_out, slope = ops.energy(out, self.x, likelihood.kind, scale)
            z_grad, gradients = layers.backward(trace, slope_of_out)
        add_prior_unchecked_(energy, z_grad, z)
        self.latest = _ByLayer(z_grad, slope, trace.inputs, gradients)
        return energy if self.by_row else energy.sum().reshape(1), z_grad

    def weight_gradients(self) -> list[Tensor]:
        current = self.current
        with products_in(self.model.precision, current.z_grad.device):
            result = layers.parameter_gradients(self.layers, current.inputs, current.gradients)
        learned = [p for p in self.model.likelihood.parameters() if p.requires_grad]
        return result + [current.slope.sum().to(p.dtype) for p in learned]
