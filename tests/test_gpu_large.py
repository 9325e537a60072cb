"""More than 2^31 elements, for GPUs that have the memory."""

import pytest
import torch
from gpu import DEVICE
from test_noise import normals_of, philox_by_hand

from lae_fast import (
    ops,
)

pytestmark = pytest.mark.gpu

MANY, CHUNK = 2**31, 2**26
large = pytest.mark.xdist_group("large")  # one after the other: each takes most of a GPU's memory


def needs(gigabytes):
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"takes {gigabytes} GiB of GPU memory; {free:.0f} are free")


def ramp(first, last, k):
    """Elements first to last of the k-th of several float32 arrays that are made anew more cheaply than kept: in [-1, 1]."""
    i = torch.arange(first, last, device=DEVICE)
    return ((i * (2 * k + 3)) % 10_007).float() / 5003 - 1


def ramps(shape, k):
    out = torch.empty(shape, device=DEVICE)
    for first, last in chunks_of(out.numel()):
        out.view(-1)[first:last] = ramp(first, last, k)
    return out


def chunks_of(n):
    return [(first, min(first + CHUNK, n)) for first in range(0, n, CHUNK)]


@large
@pytest.mark.parametrize("is_one_chain", [True, False])
def test_a_transition_of_more_than_2_to_the_31_elements(is_one_chain):
    """Chunk by chunk, against float64. All chains accept: what was proposed is known without a second copy."""
    needs(50)
    n_chains, n = shape = (1, MANY + 5) if is_one_chain else (MANY // 2**11 + 1, 2**11)
    total = n_chains * n
    rng = torch.tensor([42, 5, 0], device=DEVICE)
    eps = ops.noise(rng, n_chains, n, torch.float32).view(-1)
    for at in (0, total // 2 // 4 * 4, (n_chains - 1) * n + (n - 1) // 4 * 4):
        words = torch.tensor([philox_by_hand([at % n // 4, at // n, 5, 0], [42, 0])])
        uniforms = torch.stack(
            ((words[0, 0::2] // 256 + 1) * 2.0**-24, (words[0, 1::2] // 256) * 2.0**-24), -1
        ).view(1, -1)
        four = normals_of(uniforms)[0]
        got = eps[at : at + 4].double().cpu()
        assert (got - four[: len(got)]).abs().max() <= 3e-6

    phi, grad, proposal, proposal_grad = (ramps(shape, k) for k in range(4))
    eta, f64 = 0.01, torch.float64
    ratio, scale = torch.zeros(2, n_chains, dtype=f64, device=DEVICE)
    for first, last in chunks_of(total):
        x, g, y, h = (ramp(first, last, k).double() for k in range(4))
        rows = slice(first // n, -(-last // n))
        split = (rows.stop - rows.start, -1)
        ratio[rows] += ((g + h) * (2 * (y - x) + eta * (g - h))).view(split).sum(1)
        scale[rows] += ((g + h).abs() * (2 * (y - x).abs() + (g - h).abs())).view(split).sum(1)
        del x, g, y, h
    potential = torch.zeros(n_chains, dtype=f64, device=DEVICE)
    log_alpha, counters = (
        torch.zeros_like(potential),
        torch.zeros(n_chains, 2, dtype=torch.int64, device=DEVICE),
    )
    is_accepted = torch.zeros(n_chains, dtype=torch.bool, device=DEVICE)
    log_eta = torch.full((1,), eta, dtype=f64, device=DEVICE).log()
    ops.transition(
        phi,
        potential,
        grad,
        proposal,
        rng,
        log_eta,
        counters,
        is_accepted,
        log_alpha,
        adaptation=None,
        proposal_potential=0.25 * ratio - 1,
        proposal_grad=proposal_grad,
    )
    assert is_accepted.all()
    assert ((log_alpha - 1).abs() <= 1e-13 * scale).all()
    assert rng.tolist() == [42, 6, 0]
    for first, last in chunks_of(total):
        y, h, e = ramp(first, last, 2), ramp(first, last, 3), eps[first:last].double()
        assert torch.equal(phi.view(-1)[first:last], y)
        assert torch.equal(grad.view(-1)[first:last], h)
        y, h = y.double(), h.double()
        expected = y - eta * h + (2 * eta) ** 0.5 * e
        bound = 4 * 2.0**-23 * (y.abs() + eta * h.abs() + (2 * eta) ** 0.5 * e.abs())
        assert ((proposal.view(-1)[first:last].double() - expected).abs() <= bound).all()
        del y, h, e, expected, bound


@large
def test_energies_of_more_than_2_to_the_31_pixels():
    needs(12)
    n_rows = 100 * -(-MANY // (100 * 784))
    output, x = ramps((n_rows, 784), 0), ramp(0, 100 * 784, 1).abs().view(100, 784)
    parts = [slice(at, at + 100) for at in (0, n_rows // 200 * 100, n_rows - 100)]
    expected = [ops.energy(output[part].clone(), x, ops.BERNOULLI) for part in parts]
    energy, _ = ops.energy_(output, x, ops.BERNOULLI, None)
    for part, (energies, derivative, _) in zip(parts, expected, strict=True):
        torch.testing.assert_close(energy[part], energies, rtol=1e-13, atol=0)  # summed in another order
        assert torch.equal(output[part], derivative)


@large
@pytest.mark.parametrize("accepted", [True, False])
def test_keep_of_more_than_2_to_the_31_elements(accepted):
    needs(22)
    latest, previous = (ramps((MANY + 5,), k) for k in range(2))
    ops.keep([latest], [previous], torch.tensor([accepted], device=DEVICE))
    for first, last in chunks_of(MANY + 5):
        assert torch.equal(latest[first:last], ramp(first, last, 0 if accepted else 1))
