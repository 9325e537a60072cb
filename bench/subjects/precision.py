"""What rounding does to a Metropolis-Hastings decision: the error of log alpha, in nats.

A Langevin autoencoder of the report's size is trained for a moment on scikit-learn's digits, enlarged to 28 x 28, so that
its step size is the adapted one. Then 100 steps of its chain on one minibatch: log alpha of every proposal by
float32, TF32 (emulated: factors rounded to 10 bits of mantissa) and bfloat16 products, against float64 throughout.
z = phi h and the decoder's first layer are float32 in all of them. With bfloat16 gradients under float32 energies the ratio
is exact for the drift that was taken; its distance from that of the exact drift is shown. `lae_fast.models.precision` holds
what came of it.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator

import torch
from finding import Finding, Setting
from torch import Tensor

from lae_fast import LAE, Bernoulli, data, ops
from lae_fast.models import nets, products
from lae_fast.models.decoder_pass import decoder_pass
from lae_fast.models.precision import LIMIT, ROOT_MEAN_SQUARE
from lae_fast.training.step import TrainingStep

N_STEPS, BATCH_SIZE, N_PROPOSALS = 400, 512, 100


def digits() -> Tensor:
    """[N, 784] in [0, 1]."""
    images = data.load("digits").train.images.view(-1, 1, 8, 8).float() / 255
    return torch.nn.functional.interpolate(images, (28, 28), mode="bilinear").clamp(0, 1).flatten(1)


def trained(images: Tensor, n_steps: int = N_STEPS) -> LAE:
    """A model whose chain has found its step size."""
    torch.manual_seed(0)
    model = LAE(*nets.mlp(784, 8, 256), Bernoulli(), nx=784, nz=8, d=256, decisions="joint")
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), 1e-3, betas=(0.5, 0.999), fused=True))
    for _ in range(n_steps):
        step(images[torch.randint(len(images), (BATCH_SIZE,))])
    return model


def round_to_tf32(t: Tensor) -> Tensor:
    """float32 to 10 bits of mantissa, to nearest."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextlib.contextmanager
def emulated_tf32() -> Iterator[None]:
    linear = products.linear

    def rounded(
        a: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        if a.shape[1] > 8 and weight.shape[0] > 8:  # not the decoder's first layer, nor its input gradient
            a, weight = round_to_tf32(a.contiguous()), round_to_tf32(weight.contiguous())
        return linear(a, weight, bias, dtype)

    products.linear = rounded
    try:
        yield
    finally:
        products.linear = linear


def potentials(
    model: LAE, x: Tensor, h: Tensor, states: Tensor, energies: str, gradients: str
) -> tuple[Tensor, Tensor]:
    """V [S] and grad V [S, D] at states [S, D], with decoder products of these precisions forward and backward."""
    model.chain_precision, model.precision = energies, gradients
    decoder, values, grads = decoder_pass(model, x), [], []
    for state in states:
        value, z_grad = decoder.evaluate(h @ state.view_as(model.phi).T)
        values.append(value)
        grads.append((z_grad.T @ h).flatten())
    return torch.cat(values), torch.stack(grads)


@torch.no_grad()
def log_alpha_errors(model: LAE, x: Tensor, n_proposals: int = N_PROPOSALS) -> dict[str, float]:
    """Root mean square error of log alpha by precision, over the proposals of a chain on images x [n, nx]."""
    model = copy.deepcopy(model)
    h, rng = model.encoder(x), ops.make_rng("cpu")
    eta = (model.log_step_size - math.log(len(x))).exp()
    exact_model, exact_x, exact_h = copy.deepcopy(model).double(), x.double(), h.double()
    starts, proposals = [model.phi.reshape(1, -1)], []
    for _ in range(n_proposals):  # where the chain goes, by float32
        value, grad = potentials(model, x, h, starts[-1], "float32", "float32")
        proposal, rng = ops.propose(starts[-1], grad, eta, rng)
        new_value, new_grad = potentials(model, x, h, proposal, "float32", "float32")
        accepted, _, _ = ops.decide(starts[-1], proposal, value, new_value, grad, new_grad, eta, rng)
        proposals.append(proposal)
        starts.append(proposal if accepted else starts[-1])
    start, proposal = torch.cat(starts[:-1]), torch.cat(proposals)

    def log_alpha(model: LAE, x: Tensor, h: Tensor, *precisions: str) -> Tensor:
        a, b = (t.to(x.dtype) for t in (start, proposal))
        (value, grad), (new_value, new_grad) = (potentials(model, x, h, t, *precisions) for t in (a, b))
        one_rng = ops.make_rng("cpu")
        return ops.decide(a, b, value, new_value, grad, new_grad, eta, one_rng)[2]

    exact = log_alpha(
        exact_model, exact_x, exact_h, "float32", "float32"
    )  # float64 throughout: the tensors are
    errors = {name: log_alpha(model, x, h, name, name) - exact for name in ("float32", "bf16")}
    errors["bf16 gradients"] = log_alpha(model, x, h, "float32", "bf16") - exact
    with emulated_tf32():
        errors["tf32"] = log_alpha(model, x, h, "float32", "float32") - exact
    return {name: e.square().mean().sqrt().item() for name, e in errors.items()}


def rounding(s: Setting) -> Finding:
    images = digits()
    model = trained(images)
    x = images[:BATCH_SIZE]
    errors = sorted(log_alpha_errors(model, x).items(), key=lambda item: item[1])
    rows = {name: {"nats": error} for name, error in errors} | {"limit": {"nats": LIMIT}}
    for name, recorded in ROOT_MEAN_SQUARE.items():
        rows[name]["recorded"] = recorded
    note = (
        f"Root mean square over {N_PROPOSALS} proposals at the adapted step (acceptance {model.acceptance_rate:.2f}); "
        f"Metropolis-Hastings takes up to {LIMIT}."
    )
    h, phi = model.encoder(x).detach(), model.phi.reshape(1, -1)

    def ours() -> object:
        return potentials(model, x, h, phi, "float32", "float32")

    return Finding("error of log alpha, nats", rows, None, {}, (note,), ours)
