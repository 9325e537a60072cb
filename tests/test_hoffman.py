"""Hoffman's method: its gradients against plain autograd, its chain against an exact posterior."""

import math

import pytest
import torch
from budget import z_limit
from problems import ZScores
from test_ais import NX as LINEAR_NX
from test_ais import NZ as LINEAR_NZ
from test_ais import SCALE, linear_model
from test_lae import NX, NZ, images, make
from torch import nn
from torch.func import functional_call

import lae_fast
from lae_fast.models.hoffman import Hoffman
from lae_fast.models.likelihood import Bernoulli, Gaussian, gaussian_rate


@pytest.mark.parametrize("start", ["encoder", "prior"])
@pytest.mark.parametrize("gradient", ["average", "last"])
@pytest.mark.parametrize(("mh", "step_size"), [(True, 0.4), (False, 0.1)])
def test_gradients_by_hand(mh, step_size, gradient, start):
    """The decoder's from the states of T = 3 calls of `ald_step`, the encoder's from the ELBO, by plain autograd."""
    options = dict(n_steps=3, mh=mh, step_size=step_size, gradient=gradient, start=start)
    model = make(Hoffman, **options).double()
    x, rng = images(dtype=torch.float64), model.rng.clone()
    torch.manual_seed(7)
    loss = model.loss(x)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}

    torch.manual_seed(7)
    mean, std = model.posterior(x)
    z = mean + std * torch.randn_like(mean)
    frozen = {f"decoder.{k}": v.detach() for k, v in model.decoder.named_parameters()}
    output = functional_call(model.decoder, {k.removeprefix("decoder."): v for k, v in frozen.items()}, z)
    elbo = model.likelihood.energy(output, x) + gaussian_rate(mean, std)
    encoder = {n: p for n, p in model.named_parameters() if n.startswith(("encoder", "head"))}
    expected = dict(zip(encoder, torch.autograd.grad(elbo.mean(), list(encoder.values())), strict=True))

    begin = z.detach() if start == "encoder" else torch.randn_like(mean)
    with torch.no_grad():
        state = lae_fast.ald_init(lambda z: model.potential(x, z), begin, step_size, n_chains=len(x))
        state, visited, accepted = state._replace(rng=rng), [], []
        for _ in range(3):
            state, info = lae_fast.ald_step(lambda z: model.potential(x, z), state, mh=mh)
            visited.append(state.phi)
            accepted += info.is_accepted.tolist()
    if mh:
        assert set(accepted) == {True, False}  # the case covers both
    energies = [model.potential(x, z).mean() for z in (visited if gradient == "average" else visited[-1:])]
    average = torch.stack(energies).mean()
    decoder = {n: p for n, p in model.named_parameters() if n.startswith("decoder")}
    expected |= dict(zip(decoder, torch.autograd.grad(average, list(decoder.values())), strict=True))

    assert loss.item() == pytest.approx(average.item(), rel=1e-12)
    assert found.keys() == expected.keys()
    for name, e in expected.items():
        torch.testing.assert_close(
            found[name], e, rtol=0, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert model.n_decisions == 3 * len(x)
    assert model.counters[0, 0] == accepted.count(False)
    has_moved = torch.tensor(accepted).view(3, len(x)).any(0)
    assert model.unmoved.item() == pytest.approx(1 - has_moved.double().mean().item())


def test_long_chains_reach_the_posterior():
    """T = 200 steps from the prior for many copies of one image: the exact Gaussian posterior's moments."""
    n, linear = 4000, linear_model()
    model = Hoffman(
        nn.Identity(),
        linear.decoder,
        Gaussian(SCALE),
        nx=LINEAR_NX,
        nz=LINEAR_NZ,
        d=LINEAR_NX,
        n_steps=200,
        step_size=0.2,
        start="prior",
    ).double()
    w, b = (p.detach() for p in linear.decoder.parameters())
    x, _ = linear.double().simulate(1, torch.Generator().manual_seed(3))
    covariance = torch.linalg.inv(torch.eye(LINEAR_NZ, dtype=torch.float64) + w.T @ w / SCALE**2)
    mean = covariance @ w.T @ (x[0].detach() - b) / SCALE**2
    torch.manual_seed(11)
    with torch.no_grad():
        visited, _ = model._run_chain(
            x.detach().expand(n, -1), torch.zeros(n, LINEAR_NZ, dtype=torch.float64)
        )
    assert 0.3 < model.acceptance_rate < 0.95
    centred = visited[-1] - mean
    statistics = torch.cat((centred, centred**2), 1)
    expected = (*[0.0] * LINEAR_NZ, *covariance.diagonal().tolist())
    z = ZScores.of(statistics, expected).values
    assert (z.abs() < z_limit("hoffman_posterior")).all(), z


def test_the_step_size_adapts_to_the_mean_acceptance():
    """512 decisions a batch: the last 50 batches' mean is within 0.03 of 0.574 unless the rule is wrong."""
    model, x, rates = make(Hoffman, adaptation_rate=0.1), images(256), []
    for _ in range(200):
        model.loss(x)
        rates.append(model.acceptance_rate.item())
    assert abs(sum(rates[-50:]) / 50 - 0.574) < 0.03
    assert model.log_step_size.exp() != Hoffman.first_step_size
    fixed = make(Hoffman, step_size=0.1)
    fixed.loss(x)
    assert fixed.log_step_size.item() == math.log(0.1)
    plain = make(Hoffman, mh=False)
    plain.loss(x)
    assert plain.log_step_size.item() == math.log(Hoffman.unadjusted_step_size)


def test_it_learns_and_is_evaluated_like_the_others():
    model, x = make(Hoffman, likelihood=Bernoulli()), images(64)
    before = lae_fast.evaluate(model, x, n_draws=50).negative_elbo
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    after = lae_fast.evaluate(model, x, n_draws=50)
    assert after.negative_elbo < before - 0.2
    assert lae_fast.importance_bound(model, x, n_draws=100).mean() > -after.negative_elbo
    assert model.encode(x).shape == (64, NZ)
    assert model.reconstruct(x).shape == (64, NX)


@pytest.mark.parametrize(
    "options", [{"gradient": "sum"}, {"start": "nowhere"}, {"n_steps": 0}, {"step_size": -1}]
)
def test_bad_options(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        make(Hoffman, **options)
