"""The benchmarks' rivals compute what they say."""

import math

import pytest
import torch
from bench_sample import FLOOR, ald_rivals, gaussian, langevin_rivals
from bench_step import rivals
from rivals import (
    energy_and_gradient,
    langevin_proposal,
    log_proposal_density,
    mala,
    posteriors_sgld,
    torchebm_langevin,
    unadjusted_langevin,
)
from timing import round_robin, summary

from lae_fast import ops


@pytest.mark.parametrize("mh", [True, False])
def test_the_report_energy_is_ours_without_the_prior(mh):
    ours, report, _ = rivals(2, mh)
    x = torch.rand(8, ours.nx)
    h = ours.encoder(x)
    mine = ours.likelihood.energy(ours.decoder(h @ ours.phi.T), x).sum()
    torch.testing.assert_close(report.energy(x, h, report.phi).double(), mine, rtol=1e-6, atol=0)


def test_the_report_gradient_is_that_of_the_last_state_alone():
    _, report, _ = rivals(3, False)
    x = torch.rand(8, 784)
    loss = report.loss(x)
    loss.backward()
    expected = report.energy(x, report.encoder(x), report.phi) / len(x)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (grad,) = torch.autograd.grad(expected, report.decoder[0].weight)
    torch.testing.assert_close(report.decoder[0].weight.grad, grad)


def test_rivals_take_turns():
    order = []
    seconds = round_robin(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=20, warmup=1
    )
    assert order == ["a", "b"] + ["a", "b"] * 20
    rows = summary(seconds, against="b")
    assert rows["b"]["ratio"] == 1
    assert rows["a"]["low"] <= rows["a"]["ms"] <= rows["a"]["high"]


def quartic(x):
    """[C, D] -> [C]: not Gaussian, so that a proposal and its reverse differ by more than their centres."""
    return (0.1 * x**4 + 0.5 * x**2 + x.sin()).sum(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_eager_proposal_and_log_alpha_are_those_of_ops(dtype, tolerance):
    torch.manual_seed(0)
    x, noise = torch.randn(2, 64, 8, dtype=dtype)
    step_size, rng = torch.tensor([0.3], dtype=torch.float64), ops.make_rng("cpu")
    energy, grad = energy_and_gradient(quartic, x)
    proposal = langevin_proposal(x, grad, 0.3, noise)
    torch.testing.assert_close(
        proposal, ops.propose(x, grad, step_size, rng, noise)[0], rtol=tolerance, atol=tolerance
    )
    proposed, proposed_grad = energy_and_gradient(quartic, proposal)
    log_alpha = energy - proposed
    log_alpha += log_proposal_density(x, proposal, proposed_grad, 0.3)
    log_alpha -= log_proposal_density(proposal, x, grad, 0.3)
    _, _, expected = ops.decide(
        x, proposal, energy.double(), proposed.double(), grad, proposed_grad, step_size, rng
    )
    scale = (energy + proposed).abs().max().item()  # what the ratio is a difference of
    torch.testing.assert_close(log_alpha.double(), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("mh", [True, False])
def test_eager_chains_walk_as_ops_do_on_the_same_noise(mh):
    step_size, rng = torch.tensor([0.3], dtype=torch.float64), ops.make_rng("cpu")
    x = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    theirs = (mala if mh else unadjusted_langevin)(quartic, x, 0.3, 10)
    torch.manual_seed(1)
    accepted = []
    for _ in range(10):
        energy, grad = energy_and_gradient(quartic, x)
        proposal, _ = ops.propose(x, grad, step_size, rng, noise=torch.randn_like(x))
        proposed, proposed_grad = energy_and_gradient(quartic, proposal)
        uniform = torch.rand(64, dtype=torch.float64) if mh else None
        is_accepted, _, _ = ops.decide(
            x, proposal, energy, proposed, grad, proposed_grad, step_size, rng, mh, uniform
        )
        x = torch.where(is_accepted[:, None], proposal, x)
        accepted.append(is_accepted)
    assert not mh or 0.1 < torch.stack(accepted).double().mean() < 0.9
    torch.testing.assert_close(theirs, x)


@pytest.mark.parametrize("package", [torchebm_langevin, posteriors_sgld])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_packages_take_the_same_steps_on_the_same_noise(package, dtype):
    x = torch.randn(64, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    start, sample = x.clone(), package(quartic, x, 0.1)
    if sample is None:
        pytest.skip("not installed")
    torch.manual_seed(1)
    theirs = sample(10)
    torch.manual_seed(1)
    torch.testing.assert_close(theirs, unadjusted_langevin(quartic, x, 0.1, 10))
    assert torch.equal(x, start)


def rivals_on_gaussians(energy, start, mh):
    """All rows of both tables, by name: chains of the same standard Gaussians from `start` [C, D]."""
    c, d = start.shape
    for whiten in (True, False):
        phi = start.view(c, 2, d // 2)
        for name, run in ald_rivals(energy, torch.eye(d // 2), phi, 0.1, mh, whiten).items():
            yield f"ALD, {whiten}: {name}", run
    for name, run in langevin_rivals(energy, start, 0.1, mh).items():
        yield f"chains: {name}", run


@pytest.mark.parametrize("mh", [True, False])
def test_all_drift_by_eta_with_noise_of_variance_two_eta(mh):
    """From far out, where MH accepts every step inwards. No alarm by chance: at 8 standard deviations."""
    torch.manual_seed(0)
    eta, n = 0.1, 2000 * 8
    for name, run in rivals_on_gaussians(gaussian, torch.full((2000, 8), 100.0), mh):
        if FLOOR in name:
            continue
        moved = run(1).double()
        assert moved.numel() == n, name
        assert (moved.mean() - 100 * (1 - eta)).abs() < 8 * math.sqrt(2 * eta / n), name
        assert (moved.var() - 2 * eta).abs() < 8 * 2 * eta * math.sqrt(2 / n), name


@pytest.mark.parametrize("mh", [True, False])
def test_all_evaluate_once_a_step(mh):
    n_calls = 0

    def energy(z):
        nonlocal n_calls
        n_calls += 1
        return gaussian(z)

    for name, run in rivals_on_gaussians(energy, torch.randn(4, 6), mh):
        n_calls = 0
        run(10)
        assert n_calls in (10, 11), name  # MH needs the start's energy too
