"""Likelihood estimates against the exact log p(x) of a linear-Gaussian model, and against each other."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from lae_fast import Schedule, annealed_log_likelihood, fit_schedule, importance_bound, seeds
from lae_fast.evaluation import anneal, simulated_gap
from lae_fast.models.likelihood import Bernoulli, DiscretizedLogistic, Gaussian
from lae_fast.models.vae import VAE

NX, NZ, N, SCALE = 12, 3, 100, 0.06


class Linear(VAE):
    """x = W z + 1/2 + noise, with a q(z|x) that is off: the posterior's own mean and twice its deviation."""

    def posterior(self, x):
        w, b = self.decoder.weight, self.decoder.bias
        precision = torch.eye(NZ) + w.T @ w / SCALE**2
        mean = (x - b) @ w @ torch.linalg.inv(precision) / SCALE**2
        return mean, 2 * torch.linalg.inv(precision).diagonal().sqrt().expand_as(mean)


def linear_model():
    torch.manual_seed(0)
    model = Linear(nn.Identity(), nn.Linear(NZ, NX), Gaussian(SCALE), nx=NX, nz=NZ, d=NX)
    with torch.no_grad():
        model.decoder.weight.mul_(0.1)  # pixels stay within [0, 1]
        model.decoder.bias.fill_(0.5)
    return model


def exact_log_likelihood(model, x):
    w = model.decoder.weight.detach().double()
    covariance = w @ w.T + SCALE**2 * torch.eye(NX, dtype=torch.float64)
    mean = model.decoder.bias.detach().double()
    return MultivariateNormal(mean, covariance).log_prob(x.double())


def standard_error(estimate):
    return estimate.standard_error.square().sum().sqrt().item() / len(estimate.standard_error)


@pytest.fixture(scope="module", params=["prior", "encoder"])
def simulated(request):
    model = linear_model()
    x, z = model.simulate(N, torch.Generator().manual_seed(1))
    schedule = fit_schedule(model, x[:30], base=request.param, n_temperatures=300)
    return model, x.detach(), z, schedule


def test_annealing_is_exact_for_a_linear_gaussian_model(simulated):
    model, x, _, schedule = simulated
    estimate = annealed_log_likelihood(model, x, schedule, n_chains=32, progress=False)
    error = (estimate.log_likelihood - exact_log_likelihood(model, x)).mean().item()
    assert abs(error) < 0.05
    assert abs(error) < 3 * standard_error(estimate)
    assert 0.4 < estimate.acceptance_rate.mean() < 0.8


def test_forward_and_reverse_enclose_the_truth(simulated):
    model, x, z, schedule = simulated
    exact = exact_log_likelihood(model, x).mean()
    lower = annealed_log_likelihood(model, x, schedule, n_chains=8, progress=False)
    upper = annealed_log_likelihood(model, x, schedule, n_chains=8, exact=z, progress=False)
    assert lower.log_likelihood.mean() < exact + 3 * standard_error(lower)
    assert upper.log_likelihood.mean() > exact - 3 * standard_error(upper)
    assert 0 <= (upper.log_likelihood - lower.log_likelihood).mean() < 1
    # Hardly any annealing: the bounds stay bounds, and the gap tells.
    coarse = fit_schedule(model, x[:30], base="prior", n_temperatures=3)
    lower = annealed_log_likelihood(model, x, coarse, n_chains=8, progress=False)
    upper = annealed_log_likelihood(model, x, coarse, n_chains=8, exact=z, progress=False)
    assert lower.log_likelihood.mean() < exact < upper.log_likelihood.mean()
    assert (upper.log_likelihood - lower.log_likelihood).mean() > 1


def test_importance_bound(simulated):
    model, x, _, schedule = simulated
    exact = exact_log_likelihood(model, x)
    many = importance_bound(model, x, n_draws=3000)
    assert (many - exact).mean().abs() < 0.02
    few = importance_bound(model, x, n_draws=1, seed=1).mean()
    some = importance_bound(model, x, n_draws=5, seed=2).mean()
    assert few < some < many.mean()  # K = 1 is the ELBO, about a nat below
    ais = annealed_log_likelihood(model, x, schedule, n_chains=16, progress=False)
    assert many.mean() <= ais.log_likelihood.mean() + 3 * standard_error(ais)
    chunked = importance_bound(model, x, n_draws=3000, rows=64)  # fewer rows than images: in batches
    assert (chunked - exact).mean().abs() < 0.02


def test_the_pilot_is_frozen_before_anything_is_estimated(simulated):
    model, x, _, schedule = simulated
    before = [t.clone() for t in schedule[2:]]
    first = annealed_log_likelihood(model, x[:5], schedule, n_chains=4, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, schedule[2:], strict=True))
    again = annealed_log_likelihood(model, x[:5], schedule, n_chains=4, progress=False)
    other = annealed_log_likelihood(model, x[:5], schedule, n_chains=4, seed=1, progress=False)
    assert torch.equal(first.log_likelihood, again.log_likelihood)
    assert not torch.equal(first.log_likelihood, other.log_likelihood)
    assert schedule.beta[0] == 0
    assert schedule.beta[-1] == 1
    assert (schedule.beta.diff() > 0).all()
    assert len(schedule.step_size) == len(schedule.beta) - 2


def test_batches_of_images_take_turns_in_the_same_memory(simulated, monkeypatch):
    """The first batch is what it is by itself, and no batch is another's."""
    model, x, z, schedule = simulated
    monkeypatch.setattr("lae_fast.evaluation.annealing.ROWS", 40)  # ten images of four chains
    for exact in (None, z):

        def estimate(n, exact=exact):
            part = None if exact is None else exact[:n]
            return annealed_log_likelihood(
                model, x[:n], schedule, n_chains=4, exact=part, progress=False
            ).log_likelihood

        alone, together = estimate(10), estimate(43)
        assert torch.equal(together[:10], alone)
        error = (together - exact_log_likelihood(model, x[:43])).abs()
        assert error.max() < 3  # nats; the log-likelihoods of other images are tens of nats apart
        assert len(together.unique()) == 43


def test_collapsed_weights_are_warned_of_where_ais_was_called():
    model = linear_model()
    x = model.simulate(30, torch.Generator().manual_seed(1))[0].detach()
    coarse = fit_schedule(model, x, base="prior", n_temperatures=2)
    with pytest.warns(UserWarning, match=r"too low by far more than the standard error") as caught:
        estimate = annealed_log_likelihood(model, x, coarse, n_chains=8, progress=False)
    assert caught[0].filename == __file__
    assert ((estimate.effective_sample_size >= 1) & (estimate.effective_sample_size <= 8)).all()


def test_the_effective_sample_size_is_that_of_the_weights():
    """For a decoder that ignores z all weights are equal."""
    model = linear_model()
    with torch.no_grad():
        model.decoder.weight.zero_()
    x = model.simulate(5, torch.Generator().manual_seed(1))[0].detach()
    schedule = fit_schedule(model, x, base="prior", n_temperatures=10, n_pilot=10)
    estimate = annealed_log_likelihood(model, x, schedule, n_chains=4, progress=False)
    torch.testing.assert_close(estimate.effective_sample_size, torch.full((5,), 4.0).double())


def test_bad_arguments(simulated):
    model, x, z, schedule = simulated
    with pytest.raises(ValueError, match="n_chains is 1; expected at least 2"):
        annealed_log_likelihood(model, x, schedule, n_chains=1)
    with pytest.raises(
        ValueError, match=r"exact is float32 \[3, 3\] on cpu; expected float32 or float64 \[100, 3\]"
    ):
        annealed_log_likelihood(model, x, schedule, exact=z[:3])
    with pytest.raises(ValueError, match="n_temperatures is 1"):
        fit_schedule(model, x, n_temperatures=1)
    with pytest.raises(ValueError, match="base is 'q'; expected one of encoder, prior"):
        fit_schedule(model, x, base="q")
    with pytest.raises(ValueError, match="n_draws is 0"):
        importance_bound(model, x, n_draws=0)
    with pytest.raises(ValueError, match="expected finite ones"):
        importance_bound(model, math.nan * x)
    for call in (lambda v: annealed_log_likelihood(model, v, schedule), lambda v: fit_schedule(model, v)):
        with pytest.raises(ValueError, match=r"expected floating point \[n, 12\]"):
            call(x[:, :5])
    with pytest.raises(ValueError, match="seed is 10000, the pilot run's"):
        annealed_log_likelihood(model, x, schedule, seed=10_000)
    with pytest.raises(ValueError, match=r"schedule\.base is 'priro'"):
        annealed_log_likelihood(model, x, schedule._replace(base="priro"))
    for option in (dict(n_chains=1), dict(n_pilot=0)):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is .*; expected at least"):
            fit_schedule(model, x, **option)


def test_a_decoder_that_ignores_z_is_no_trouble():
    model = linear_model()
    with torch.no_grad():
        model.decoder.weight.zero_()
    x, _ = model.simulate(5, torch.Generator().manual_seed(1))
    schedule = fit_schedule(model, x.detach(), base="prior", n_temperatures=10, n_pilot=10)
    estimate = annealed_log_likelihood(model, x.detach(), schedule, n_chains=4, progress=False)
    torch.testing.assert_close(
        estimate.log_likelihood, exact_log_likelihood(model, x.detach()), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.2), DiscretizedLogistic(0.05)])
def test_draws_of_a_likelihood_follow_its_energy(likelihood):
    """E[-log p(x)] over draws x ~ p is the entropy, here of one pixel by summing or integrating p."""
    output = torch.full((200_000, 1), 0.3)
    x = likelihood.sample(output, torch.Generator().manual_seed(2))
    surprise = likelihood.energy(output, x).detach()
    if isinstance(likelihood, Gaussian):
        grid = torch.linspace(-1, 2, 3001)
        weight = 0.001
    else:
        grid = torch.linspace(0, 1, 2 if isinstance(likelihood, Bernoulli) else 256)
        weight = 1
    energy = likelihood.energy(torch.full((len(grid), 1), 0.3), grid[:, None]).detach()
    assert (weight * (-energy).exp()).sum().item() == pytest.approx(1, abs=1e-4)
    entropy = (weight * energy * (-energy).exp()).sum().item()
    assert surprise.mean().item() == pytest.approx(entropy, abs=5 * surprise.std().item() / math.sqrt(len(x)))


def test_the_gap_on_simulated_images_closes_with_more_temperatures():
    """Reverse minus forward: far apart after 2 temperatures, together after 300, and never negative but for noise."""
    model = linear_model()
    x = model.simulate(30, torch.Generator().manual_seed(1))[0].detach()
    gaps = []
    coarse, fine = (fit_schedule(model, x, base="prior", n_temperatures=k) for k in (2, 300))
    with pytest.warns(
        UserWarning, match=r"weights of \d+ of 50 images have collapsed: of 8 chains less than 2 count"
    ):
        gaps.append(simulated_gap(model, coarse, 50, n_chains=8))
    gaps.append(simulated_gap(model, fine, 50, n_chains=8))
    assert gaps[0] > 1
    assert abs(gaps[1]) < 0.1


def test_simulated_images_and_their_chains_share_no_random_numbers():
    """Starts at the numbers that made the images are near their posteriors: the lower bound would be none."""
    drawn = []

    class Observed(Linear):
        def simulate(self, n, generator=None):
            x, z = super().simulate(n, generator)
            drawn.append(z)
            return x, z

        def potential(self, x, z):
            drawn.append(z.detach())
            return super().potential(x, z)

    model = Observed(nn.Identity(), nn.Linear(NZ, NX), Gaussian(SCALE), nx=NX, nz=NZ, d=NX)
    schedule = Schedule(
        seeds.apart(0), "prior", torch.tensor([0, 0.5, 1]).double(), torch.tensor([0.1]).double()
    )
    simulated_gap(model, schedule, 40, n_chains=2)
    z, start, *_ = drawn
    pilot = torch.randn(500, generator=torch.Generator().manual_seed(schedule.seed))
    assert start.shape == (2, 40, NZ)
    assert not torch.isin(z, torch.cat((start.flatten(), pilot))).any()


@pytest.mark.parametrize("wrong", [{"n_chains": 1}, {"progress": 1}])
def test_arguments_are_looked_at_before_pilot_runs(wrong, monkeypatch):
    monkeypatch.setattr("lae_fast.evaluation.ais.fit_schedule", lambda *_, **__: pytest.fail("it has run"))
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        anneal(linear_model(), torch.zeros(4, 5), **wrong)
