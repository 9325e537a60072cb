"""`ald_sample` and `langevin_sample`: they draw from the posteriors, and say clearly what they cannot do.

A chain is one observation: chains are independent, so the average of a chain over its draws has exactly the
standard error that the spread between chains says, whatever the correlation within.
"""

import dataclasses
import functools
import inspect
import io
import math
import sys

import pytest
import torch
from budget import z_limit
from problems import Histogram, ZScores, expected_moments, second_moments

import lae_fast
from lae_fast import ops
from lae_fast.experiments.toys import (
    PROBLEMS,
    Posterior,
    Problem,
    conjugate,
    conjugate_posterior,
    random_features,
)
from lae_fast.sampling.acceptance import acceptance_warning
from lae_fast.sampling.chains import Chains

N_CHAINS = 2000
THIN = {"Gaussian": 15, "neural": 36}  # steps that make a draw nearly independent of the one before

both_problems = pytest.mark.parametrize("problem", PROBLEMS)
both_samplers = pytest.mark.parametrize("sampler", ["ald", "langevin"])
long_runs = pytest.mark.parametrize(
    ("problem", "sampler"),
    [
        ("Gaussian", "ald"),
        ("Gaussian", "langevin"),
        ("neural", "langevin"),
        pytest.param("neural", "ald", marks=pytest.mark.slow),
    ],
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normals(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@functools.cache
def posterior(problem):
    return Posterior.of(PROBLEMS[problem])


@functools.cache
def long_run(problem, sampler):
    """2.6e5 draws of each posterior; fewer where they take longest."""
    n_draws = 30 if (problem, sampler) == ("neural", "langevin") else 130
    target, options = (
        PROBLEMS[problem],
        dict(n_draws=n_draws, n_warmup=300, thin=THIN[problem], progress=False),
    )
    if sampler == "ald":
        features = random_features(target.x, 16)
        return lae_fast.ald_sample(
            target.energy, features, nz=2, n_chains=N_CHAINS, generator=seeded(201), **options
        )
    return lae_fast.langevin_sample(
        target.energy, normals(202, N_CHAINS, 3, 2), generator=seeded(203), **options
    )


def moments_of_chains(samples, mean):
    """One row for each chain, [C, 5 n]."""
    return second_moments(samples.z.double(), mean).mean(1)


def two_sample_z(a, b):
    """Of the columns of two sets of independent rows, [n, k] and [m, k]."""
    return (a.mean(0) - b.mean(0)) / (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()


def test_the_grid_knows_the_conjugate_answer():
    mean, covariance = conjugate_posterior(PROBLEMS["Gaussian"])
    grid = posterior("Gaussian")
    torch.testing.assert_close(grid.mean, mean, rtol=0, atol=1e-11)
    torch.testing.assert_close(grid.covariance, covariance.expand(3, 2, 2), rtol=0, atol=1e-11)
    for problem in PROBLEMS:
        coarse = Posterior.of(PROBLEMS[problem], n_cells=200)  # the rule has converged
        torch.testing.assert_close(coarse.covariance, posterior(problem).covariance, rtol=1e-9, atol=1e-9)
        assert Histogram(PROBLEMS[problem], posterior(problem)).probability[-1].max() < 0.01


@long_runs
def test_means_and_covariances(problem, sampler):
    grid, samples = posterior(problem), long_run(problem, sampler)
    rows = moments_of_chains(samples, grid.mean)
    z = ZScores.of(rows, expected_moments(grid.mean, grid.covariance)).values
    assert (z.abs() < z_limit("posterior_moments")).all(), z


@long_runs
def test_total_variation_is_that_of_exact_draws(problem, sampler):
    """No alarm by chance: the distance spreads by less than a tenth of itself, so the limit is over 4 deviations away."""
    from arviz_stats import ess

    grid, samples = posterior(problem), long_run(problem, sampler)
    z = samples.z.flatten(0, 1)
    assert ess(samples.to_arviz(), var_names="z")["z"].min() >= 0.77 * len(z)  # 2e5 of 2.6e5
    histogram = Histogram(PROBLEMS[problem], grid)
    exact, distance = histogram.total_variation(grid.draw(len(z), seeded(204))), histogram.total_variation(z)
    assert (distance < 2 * exact).all(), (distance, exact)


def test_enough_features_for_the_product_of_posteriors_and_too_few():
    n, n_chains = 12, 1000
    problem = conjugate(3**0.5 * normals(205, n, 2))
    mean, covariance = conjugate_posterior(problem)

    def rows(d):
        options = dict(n_draws=10, n_warmup=300, thin=20, n_chains=n_chains, nz=2, progress=False)
        features = random_features(problem.x, d)
        return features, lae_fast.ald_sample(problem.energy, features, generator=seeded(206), **options)

    expected = expected_moments(mean, covariance.expand(n, 2, 2))
    for d in (n, n + 4):
        z = ZScores.of(moments_of_chains(rows(d)[1], mean), expected).values
        assert (z.abs() < z_limit("rank_condition")).all(), (d, z)
    with pytest.warns(
        UserWarning, match=r"rank 6 for n = 12 datapoints \(d = 6\).*langevin_sample draws every z_i"
    ):
        features, samples = rows(6)
    # The law of Z is then the product's restriction to the span of the features: P of theirs, P the projection.
    projection = features @ torch.linalg.pinv(features)
    restricted_mean = projection @ mean
    restricted = projection.diagonal()[:, None, None] * covariance
    z = ZScores.of(
        moments_of_chains(samples, restricted_mean), expected_moments(restricted_mean, restricted)
    ).values
    assert (z.abs() < z_limit("rank_condition")).all(), z
    z = ZScores.of(moments_of_chains(samples, mean), expected).values.view(n, 5)
    is_off = (z.abs() > 2 * z_limit("rank_condition")).any(1)
    assert is_off.sum() > n / 2, z  # not all: a datapoint may have a feature to itself, as it were


# Identity features: z = phi.T, and ALD is datapoint-wise Langevin dynamics but for the joint decision.


def run_side_by_side(problem, mh, n_steps):
    """The states of ALD with identity features and of datapoint-wise Langevin on the same noise, [n_steps, n, 2]."""
    n, paths = len(problem.x), ([], [])
    z = normals(207, n, 2)
    ald = lae_fast.ald_init(lambda phi: problem.energy(phi.mT[None])[0], z.mT, 0.1)
    pointwise = lae_fast.ald_init(lambda z: problem.energy(z[None])[0], z, 0.1, n_chains=n)
    noise, uniform = normals(208, n_steps, n, 2), torch.rand(n_steps, generator=seeded(209)).double()
    for eps, u in zip(noise, uniform, strict=True):
        energy = [lambda phi: problem.energy(phi.mT[None])[0], lambda z: problem.energy(z[None])[0]]
        ald, first = lae_fast.ald_step(energy[0], ald, mh=mh, noise=eps.mT, uniform=u)
        pointwise, second = lae_fast.ald_step(energy[1], pointwise, mh=mh, noise=eps, uniform=u.expand(n))
        paths[0].append(ald.phi.mT)
        paths[1].append(pointwise.phi)
        assert n > 1 or first.is_accepted == second.is_accepted
    return torch.stack(paths[0]), torch.stack(paths[1])


@both_problems
def test_identity_features_are_datapoint_wise_langevin(problem):
    target = PROBLEMS[problem]
    ald, pointwise = run_side_by_side(target, mh=False, n_steps=50)
    torch.testing.assert_close(ald, pointwise, rtol=0, atol=1e-12)
    for i in range(3):  # with a decision each: for one datapoint only
        ald, pointwise = run_side_by_side(Problem(target.x[i : i + 1], target.noise, target.decode), True, 50)
        torch.testing.assert_close(ald, pointwise, rtol=0, atol=1e-12)
        assert 5 < (pointwise.diff(dim=0).abs().amax((1, 2)) > 0).sum() < 49  # some accepted, some rejected


def test_identity_features_with_a_joint_decision_have_the_same_marginals():
    target, mean = PROBLEMS["neural"], posterior("neural").mean
    samples = lae_fast.ald_sample(
        target.energy,
        torch.eye(3, dtype=torch.float64),
        nz=2,
        n_chains=N_CHAINS,
        n_draws=20,
        n_warmup=300,
        thin=20,
        generator=seeded(210),
        progress=False,
    )
    z = two_sample_z(
        moments_of_chains(samples, mean), moments_of_chains(long_run("neural", "langevin"), mean)
    )
    assert (z.abs() < z_limit("samplers_agree")).all(), z


# Geweke (2004), "Getting it right": alternate z|x by the sampler and x|z exactly, and (x, z) keeps its prior law.


class LinearModel:
    """x_i = W z_i + noise for three datapoints, z ~ N(0, I)."""

    w = torch.tensor([[1.0, 0.5], [-0.3, 0.8]], dtype=torch.float64)
    noise = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
    features = normals(211, 3, 5)

    def decode(self, z):
        return z @ self.w.T

    def draw_x(self, z, generator):
        white = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        return self.decode(z) + white @ torch.linalg.cholesky(self.noise).T

    def energy(self, x):
        return Problem(x, self.noise, self.decode).energy


def geweke_functions(z, x):
    """Of z and x [C, 3, 2]: means, second moments, and a product across datapoints, [C, 15]."""
    zx = torch.cat((z, x), -1)
    rows, columns = torch.triu_indices(4, 4)
    products = (zx[..., rows] * zx[..., columns]).sum(1)
    return torch.cat((zx.sum(1), products, z[:, :1, 0] * z[:, 1:2, 0]), 1)


def alternate(sampler, seed, n_chains=10_000, n_sweeps=25, step_size=0.1, mh=True, without_prior=False):
    """z and x after n_sweeps, [n_chains, 3, 2], started from their joint law: independent rows."""
    model, generator = LinearModel(), seeded(seed)
    z = torch.randn(n_chains, 3, 2, generator=generator, dtype=torch.float64)
    x, phi = model.draw_x(z, generator), (torch.linalg.pinv(model.features) @ z).mT
    options = dict(n_draws=1, n_warmup=0, thin=2, step_size=step_size, mh=mh)
    for _ in range(n_sweeps):
        energy = model.energy(x)
        if without_prior:
            energy = functools.partial(lambda u, z: u(z) - 0.5 * z.square().sum(-1), energy)
        if sampler == "ald":
            samples = lae_fast.ald_sample(
                energy, model.features, phi, generator=generator, progress=False, **options
            )
            phi = samples.phi
        else:
            samples = lae_fast.langevin_sample(energy, z, generator=generator, progress=False, **options)
        z = samples.z[:, 0]
        x = model.draw_x(z, generator)
    return z, x


@both_samplers
def test_getting_it_right(sampler):
    model, generator = LinearModel(), seeded(212)
    z = torch.randn(50_000, 3, 2, generator=generator, dtype=torch.float64)
    prior = geweke_functions(z, model.draw_x(z, generator))
    scores = two_sample_z(geweke_functions(*alternate(sampler, seed=213)), prior)
    assert (scores.abs() < z_limit("getting_it_right")).all(), scores
    for wrong in (dict(mh=False), dict(without_prior=True)):  # the power of the test
        scores = two_sample_z(geweke_functions(*alternate(sampler, seed=214, **wrong)), prior)
        assert (scores.abs() > 3 * z_limit("getting_it_right")).any(), (wrong, scores)


# Options.


@pytest.mark.parametrize("options", [dict(whiten=False), dict(share_step_size=True)], ids=str)
def test_options_that_leave_the_law_alone(options):
    target, grid = PROBLEMS["Gaussian"], posterior("Gaussian")
    samples = lae_fast.ald_sample(
        target.energy,
        normals(215, 3, 16),
        nz=2,
        n_chains=N_CHAINS,
        n_draws=10,
        n_warmup=300,
        thin=20,
        generator=seeded(216),
        progress=False,
        **options,
    )
    z = ZScores.of(moments_of_chains(samples, grid.mean), expected_moments(grid.mean, grid.covariance)).values
    assert (z.abs() < z_limit("options_leave_the_law")).all(), z
    assert (len(samples.step_size.unique()) == 1) == ("share_step_size" in options)


def test_minibatches_sample_what_theory_says():
    """For a Gaussian: plain Langevin's S (I - eta (n/m) S^-1 / 2)^-1, with eta a step size of z thanks to whitening.

    Without the factor n/m the chain would see m/n of the energy, and draw n/m times the covariance. Chains share
    their minibatches, so here the datapoints are the observations: correlated, if at all, negatively.
    """
    n, m, eta = 128, 32, 0.02
    problem = conjugate(3**0.5 * normals(217, n, 2))
    mean, covariance = conjugate_posterior(problem)
    samples = lae_fast.ald_sample(
        lambda z, index: dataclasses.replace(problem, x=problem.x[index]).energy(z),
        normals(227, n, n + 32),
        nz=2,
        n_chains=32,
        n_draws=1,
        n_warmup=400,
        step_size=eta,
        mh=False,
        batch_size=m,
        generator=seeded(218),
        progress=False,
    )
    assert samples.kind == "unadjusted, minibatches of 32"
    biased = (
        covariance @ (torch.eye(2, dtype=torch.float64) - 0.5 * eta * n / m * covariance.inverse()).inverse()
    )
    moments = second_moments(samples.z[:, 0], mean).mean(0).view(n, 5)
    moments[:, :2] -= mean
    z = ZScores.of(moments, (0.0, 0.0, *biased.flatten()[[0, 1, 3]].tolist())).values
    assert (z.abs() < z_limit("minibatches")).all(), z
    assert samples.potential.shape == (32, 1)


@long_runs
def test_acceptance_after_warm_up_is_near_its_target(problem, sampler):
    """No alarm by chance: over these many steps the mean acceptance is known to 0.001."""
    samples = long_run(problem, sampler)
    assert samples.acceptance_rate.mean().item() == pytest.approx(0.574, abs=0.1)
    assert samples.kind == "Metropolis-Hastings"
    assert samples.n_nonfinite == 0


def short_run(sampler="ald", target=PROBLEMS["Gaussian"], seed=219, **options):
    """Few chains of few draws, as the options say."""
    options = dict(n_draws=6, n_warmup=50, progress=False, generator=seeded(seed)) | options
    if sampler == "ald":
        features = options.pop("features", None)
        features = random_features(target.x, 16) if features is None else features
        return lae_fast.ald_sample(target.energy, features, **(dict(nz=2, n_chains=4) | options))
    return lae_fast.langevin_sample(target.energy, options.pop("z", normals(seed, 4, 3, 2)), **options)


@both_samplers
def test_step_sizes_are_frozen_after_warm_up(sampler):
    short, long = short_run(sampler, n_draws=1), short_run(sampler, n_draws=60)
    assert torch.equal(short.step_size, long.step_size)
    assert torch.equal(short.z[:, 0], long.z[:, 0])


@both_samplers
def test_thinning_keeps_every_second_draw_and_half_the_memory(sampler):
    all_draws, thinned = short_run(sampler, n_draws=12), short_run(sampler, n_draws=6, thin=2)
    assert thinned.z.shape == (4, 6, 3, 2)
    assert torch.equal(thinned.z, all_draws.z[:, 1::2])
    assert torch.equal(thinned.potential, all_draws.potential[:, 1::2])
    pairs = all_draws.acceptance_rate.unflatten(1, (6, 2)).mean(2)
    torch.testing.assert_close(thinned.acceptance_rate, pairs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both_samplers
def test_shapes_types_and_energies(sampler, dtype, device):
    target = Problem(
        *(t.to(device, dtype) for t in (PROBLEMS["Gaussian"].x, PROBLEMS["Gaussian"].noise)), lambda z: z
    )
    options = dict(target=target, generator=torch.Generator(device).manual_seed(220))
    if sampler == "ald":
        options |= dict(features=normals(221, 3, 16).to(device, dtype))
    else:
        options |= dict(z=normals(222, 4, 3, 2).to(device, dtype))
    samples = short_run(sampler, **options)
    per_decision = (4, 6) if sampler == "ald" else (4, 6, 3)
    assert samples.z.shape == (4, 6, 3, 2)
    assert samples.potential.shape == samples.acceptance_rate.shape == per_decision
    assert samples.step_size.shape == (per_decision[:1] + per_decision[2:])
    assert samples.z.dtype == dtype
    assert samples.z.device.type == device
    assert not samples.z.requires_grad
    energy = torch.stack([target.energy(z).double() for z in samples.z.unbind(1)], 1)
    energy = energy.sum(2) if sampler == "ald" else energy
    torch.testing.assert_close(
        samples.potential, energy, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-6
    )


@pytest.mark.parametrize("whiten", [True, False])
def test_the_last_phi_carries_on(whiten):
    target = PROBLEMS["neural"]
    features, phi = random_features(target.x, 16), normals(223, 4, 2, 16)
    first = short_run(target=target, features=features, phi=phi, whiten=whiten)
    torch.testing.assert_close(features @ first.phi.mT, first.z[:, -1], rtol=0, atol=1e-12)
    again = short_run(
        target=target, features=features, phi=first.phi, whiten=whiten, n_warmup=0, step_size=0.0
    )
    torch.testing.assert_close(again.z[:, 0], first.z[:, -1], rtol=0, atol=1e-12)
    unseen = torch.eye(16, dtype=torch.float64) - torch.linalg.pinv(features) @ features
    moved = ((first.phi - phi) @ unseen).abs().max()
    assert (moved < 1e-10) == whiten


def test_chains_start_about_as_wide_as_the_prior():
    problem = conjugate(normals(224, 200, 2))
    features = 50 * random_features(problem.x, 8)  # any scale
    with pytest.warns(UserWarning, match="the features have rank 8"):
        start = short_run(
            target=problem, features=features, n_chains=50, n_draws=1, n_warmup=0, step_size=0.0
        )
    assert 0.8 < start.z.square().mean() < 1.25  # 800 elements of phi, so 5 deviations


def test_frozen_and_needlessly_small_steps_are_named():
    for sampler in ("ald", "langevin"):
        with pytest.warns(UserWarning, match="less than 5% .* frozen"):
            short_run(sampler, step_size=100.0, n_draws=100)
        with pytest.warns(UserWarning, match="more than 95% .* needlessly small"):
            short_run(sampler, step_size=1e-7, n_draws=50, thin=2)
        short_run(sampler, step_size=100.0)  # too short to judge
        samples = short_run(sampler, step_size=1e-7, n_draws=100, mh=False)  # nothing to warn of
        assert samples.kind == "unadjusted"
        assert (samples.acceptance_rate == 1).all()


@both_samplers
def test_proposals_that_are_not_finite_are_rejected_and_counted(sampler):
    """An energy that is NaN outside the disc of radius 2."""
    inner = PROBLEMS["Gaussian"]
    start = inner.x.expand(4, 3, 2) * 0.5
    features = torch.eye(3, dtype=torch.float64)

    def energy(z):
        return torch.where(z.square().sum(-1) < 4, inner.energy(z), math.nan)

    options = dict(n_draws=200, n_warmup=0, step_size=0.1, progress=False, generator=seeded(226))
    if sampler == "ald":
        samples = lae_fast.ald_sample(energy, features, start.mT, **options)
    else:
        samples = lae_fast.langevin_sample(energy, start, **options)
    assert samples.n_nonfinite > 0
    assert (samples.z.square().sum(-1) < 4).all()
    assert samples.potential.isfinite().all()


def test_seeds_and_generators():
    for sampler in ("ald", "langevin"):
        assert torch.equal(short_run(sampler, seed=1).z, short_run(sampler, seed=1).z)
        assert not torch.equal(short_run(sampler, seed=1).z, short_run(sampler, seed=2).z)
        torch.manual_seed(3)
        first, second = (short_run(sampler, generator=None) for _ in range(2))
        torch.manual_seed(3)
        assert torch.equal(short_run(sampler, generator=None).z, first.z)
        assert not torch.equal(first.z, second.z)


@both_samplers
def test_arviz_reads_the_samples(sampler):
    from arviz_stats import summary

    samples = short_run(sampler, n_draws=100)
    tree = samples.to_arviz()
    assert tree.posterior["z"].dims == ("chain", "draw", "datapoint", "latent")
    per_decision = ("chain", "draw") if sampler == "ald" else ("chain", "draw", "datapoint")
    assert tree.sample_stats["lp"].dims == tree.sample_stats["acceptance_rate"].dims == per_decision
    assert (tree.sample_stats["lp"].values == -samples.potential.numpy()).all()
    table = summary(tree)
    assert len(table) == 6
    assert {"mean", "sd", "r_hat", "ess_bulk"} <= set(table.columns)


@both_samplers
def test_a_plot_shows_every_chain(sampler):
    from matplotlib import pyplot

    samples = short_run(sampler, n_draws=20)
    figure = samples.plot()
    pyplot.close(figure)
    acceptance, step_size, energy = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["acceptance rate", "step size", "energy V, nats"]
    n_chains = len(samples.z)
    means = samples.potential.flatten(2).mean(2) if sampler == "langevin" else samples.potential
    for k, line in enumerate(energy.lines):
        torch.testing.assert_close(torch.from_numpy(line.get_ydata()), means[k])
    assert len(energy.lines) == len(step_size.lines) == len(acceptance.lines) == n_chains
    assert len(energy.collections) == (n_chains if sampler == "langevin" else 0)  # bands over the datapoints
    expected = samples.step_size[0].mean().expand(20)
    torch.testing.assert_close(torch.from_numpy(step_size.lines[0].get_ydata()), expected)


def test_a_plot_shows_a_running_mean_of_the_acceptance():
    from matplotlib import pyplot

    samples = short_run("ald", n_draws=120)  # the mean over three steps
    figure = samples.plot()
    pyplot.close(figure)
    shown = torch.from_numpy(figure.axes[0].lines[1].get_ydata())
    rate = samples.acceptance_rate[1]
    torch.testing.assert_close(shown[2:], rate.unfold(0, 3, 1).mean(1))
    torch.testing.assert_close(shown[:2], torch.stack((rate[0], rate[:2].mean())))


def test_samples_are_told_in_a_line():
    samples = short_run("langevin")
    c, n_draws, n, nz = samples.z.shape
    assert samples == samples  # and not tensor by tensor
    assert repr(samples).startswith(f"Samples of z [{c} chains, {n_draws} draws, {n} datapoints, nz {nz}], ")
    assert f"acceptance {samples.acceptance_rate.mean():.2f}, " in repr(samples)
    assert len(repr(samples)) < 200


@both_samplers
def test_the_bar_is_for_terminals(sampler, capfd, monkeypatch):
    short_run(sampler, progress=False)
    short_run(sampler, progress=True)  # stderr is no terminal here
    assert capfd.readouterr() == ("", "")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    short_run(sampler, n_draws=60, progress=True)
    assert "110/110" in terminal.getvalue()
    assert "acceptance 0." in terminal.getvalue()
    terminal.truncate(0)
    short_run(sampler, progress=False)
    assert not terminal.getvalue().strip("\0")


X, H = PROBLEMS["Gaussian"].x, torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n_draws=0), "n_draws is 0; expected at least 1"),
        (dict(n_warmup=-1), "n_warmup is -1; expected at least 0"),
        (dict(thin=0), "thin is 0; expected at least 1"),
        (dict(target_acceptance=1.0), "target_acceptance is 1; expected a finite number > 0 and < 1"),
        (dict(mh=False), "step_size is None with mh=False; expected a number: only Metropolis-Hastings"),
        (dict(n_warmup=0), "n_warmup is 0; expected more, or a step_size"),
        (dict(step_size=-0.1), "step_size is -0.1; expected a finite number >= 0"),
        (dict(step_size=math.inf), "step_size is inf; expected a finite number >= 0"),
        (dict(step_size=torch.ones(3)), "step_size is .*; expected finite and >= 0, one number or 4"),
        (dict(step_size=torch.ones(4, device="meta")), r"step_size is float32 \[4\] on meta; expected finite and >= 0"),
        (dict(step_size=torch.arange(1.0, 5.0), share_step_size=True), "expected finite and >= 0, one number$"),
        (dict(features=H[0]), r"features are float64 \[3\] on cpu; expected float32 or float64 \[n, d\]"),
        (dict(features=H.long()), "features are int64"),
        (dict(nz=None), "phi is None, nz is None; expected one of them"),
        (dict(n_chains=0), "n_chains is 0"),
        (dict(phi=torch.ones(4, 2, 5).double()), r"phi is float64 \[4, 2, 5\] on cpu; expected .* \[C, nz, 3\]"),
        (dict(phi=torch.ones(4, 2, 3)), "phi is float32"),
        (dict(phi=torch.full((4, 2, 3), math.nan).double()), "the energy is nan where the chains start"),
        (dict(capture=True), "capture on cpu; expected a GPU"),
        (dict(batch_size=2), "batch_size is 2 with mh=True; expected 1 to 3 with mh=False"),
        (dict(batch_size=4, mh=False, step_size=0.1), "batch_size is 4 with mh=False; expected 1 to 3"),
        (dict(energy=lambda z: z.sum()), r"energy returned float64 \[\] on cpu; expected floating point \[4, 3\]"),
        (dict(energy=lambda z: torch.ones(4, 3)), r"energy returned float32 \[4, 3\] on cpu, which does not depend on z"),
        (dict(energy=lambda z: torch.ones(4, 3, requires_grad=True) * 2), "does not depend on phi"),
        (dict(energy=lambda z: z.square().sum(-1).half()), r"energy returned float16 \[4, 3\].*expected float32 or float64"),
    ],
)  # fmt: skip
def test_bad_arguments_of_ald_sample_are_named(options, message):
    options = dict(energy=PROBLEMS["Gaussian"].energy, features=H, nz=2, n_draws=2, progress=False) | options
    with pytest.raises(ValueError, match=message):
        lae_fast.ald_sample(**options)


def test_a_warning_names_every_chain_that_deserves_one():
    rates = torch.tensor([0.5, 0.01, 0.99, 0.6, 0.02, math.nan])
    found = acceptance_warning(rates)
    assert "2 of 6 chains accept less than 5%" in found
    assert "1 of 6 chains accept more than 95%" in found
    assert "1 of 6 chains accept a share of the proposals that is not a number" in found
    assert acceptance_warning(rates[:1]) is None
    assert acceptance_warning(rates[:0]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n_draws=0), "n_draws is 0"),
        (dict(mh=False), "step_size is None"),
        (dict(capture=True), "capture on cpu; expected a GPU"),
        (dict(z=X), r"z is float64 \[3, 2\] on cpu; expected float32 or float64 \[C, n, nz\]"),
        (dict(z=X[None].long()), "z is int64"),
        (dict(z=X[None] * math.inf), "the energy is nan where the chains start"),
        (dict(step_size=torch.ones(2)), "step_size is .*; expected finite and >= 0, one number or 3"),
        (dict(energy=lambda z: z.square().sum((1, 2))), r"energy returned float64 \[1\] on cpu; expected floating point \[1, 3\]"),
        (dict(energy=lambda z: torch.ones(1, 3, requires_grad=True) * 2), "does not depend on phi"),
        (dict(energy=lambda z: z.square().sum(-1).half()), "energy returned float16"),
        (dict(value_and_grad=lambda z: (z.square().sum(-1).half(), 2 * z)), "value_and_grad returned float16"),
    ],
)  # fmt: skip
def test_bad_arguments_of_langevin_sample_are_named(options, message):
    options = dict(energy=PROBLEMS["Gaussian"].energy, z=X[None], n_draws=2, progress=False) | options
    with pytest.raises(ValueError, match=message):
        lae_fast.langevin_sample(**options)


def test_a_missing_arviz_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match=r'pip install "lae_fast\[diag\]"'):
        short_run().to_arviz()


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        short_run().plot()


def test_a_frozen_step_size_replaces_the_pending_proposal():
    """Its decision would take a step size that the proposal was not made with."""
    generator = torch.Generator().manual_seed(8)
    phi = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    log_step_size = torch.full((5,), math.log(0.1), dtype=torch.float64)
    chains = Chains(
        lambda z: (0.5 * z.square().sum(1), z.clone()), phi, log_step_size, ops.make_rng("cpu", generator)
    )
    chains.set_step_size(log_step_size + 1)
    eps = ops.noise(chains.rng - torch.tensor([0, 1, 0]), 5, 3, torch.float64)
    eta = (log_step_size + 1).exp()[:, None]
    expected = phi - eta * chains.grad + (2 * eta).sqrt() * eps
    torch.testing.assert_close(chains.proposal, expected, rtol=1e-14, atol=1e-14)


def standard_normal(rows):
    return 0.5 * rows.double().square().sum(1), rows


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(evaluate=lambda r: (r.square().sum(1), r)), r"evaluate: potential is float32 \[3\] .*expected float64 \[3\]"),
        (dict(evaluate=lambda r: (r.double().square(), r)), r"evaluate: potential is float64 \[3, 2\].*expected float64 \[3\]"),
        (dict(evaluate=lambda r: (r.double().square().sum(1), r[0])), r"evaluate: grad is float32 \[2\] .*expected float32 \[3, 2\]"),
        (dict(log_step_size=torch.zeros(2).double()), r"Chains: log_step_size is float64 \[2\] .*expected float64 \[3\]"),
        (dict(adaptation=torch.zeros(3, 6).double()), r"Chains: adaptation is float64 \[3, 6\] .*expected float64 \[1, 2 or 6\]"),
        (dict(phi=torch.zeros(3)), r"Chains: phi is float32 \[3\] on cpu; expected float32 or float64 \[C, D\]"),
        (dict(rng=torch.zeros(2)), r"Chains: rng is float32 \[2\] .*expected int64 \[3\]"),
    ],
)  # fmt: skip
def test_bad_arguments_of_chains_are_named_before_a_step(changed, message):
    log_step_size = torch.zeros(1, dtype=torch.float64)
    good = dict(evaluate=standard_normal, phi=torch.zeros(3, 2), log_step_size=log_step_size)
    with pytest.raises(ValueError, match=message):
        Chains(**(good | dict(rng=ops.make_rng("cpu")) | changed))


def test_an_unadjusted_chain_that_diverges_is_warned_of_where_it_was_called():
    with pytest.warns(UserWarning, match="6 of 6 unadjusted chains .* diverged") as caught:
        lae_fast.langevin_sample(
            lambda z: (z**4).sum(-1),
            3 + normals(9, 2, 3, 2),
            n_draws=50,
            n_warmup=5,
            step_size=3.0,
            mh=False,
            progress=False,
        )
    assert caught[0].filename == __file__


def test_a_gradient_that_is_not_finite_at_the_start_is_named():
    with pytest.raises(ValueError, match="the gradient of the energy is nan where the chains start"):
        lae_fast.langevin_sample(
            lambda z: z.abs().sqrt().sum(-1), torch.zeros(2, 3, 1), n_draws=5, progress=False
        )


@pytest.mark.parametrize("features", [torch.zeros(3, 4), torch.zeros(0, 4), torch.full((3, 4), math.nan)])
def test_features_that_say_nothing_are_named(features):
    with pytest.raises(ValueError, match=r"features are .*; expected at least one, finite and not all 0"):
        lae_fast.ald_sample(lambda z: z.square().sum(-1), features, nz=2, n_draws=5)


@pytest.mark.parametrize("sampler", [lae_fast.ald_sample, lae_fast.langevin_sample])
def test_a_sampler_s_signature_shows_the_plan(sampler):
    shown = inspect.signature(sampler).parameters
    for field in dataclasses.fields(lae_fast.sampling.Plan):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        assert shown[field.name].default == default
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())


# ---- some of the chains ----

PARTS = [range(0, 2), range(2, 3), range(3, 7)]


SPLIT = {
    "langevin": (lae_fast.langevin_sample, dict(z=torch.zeros(7, 3, 5))),
    "langevin, unadjusted": (lae_fast.langevin_sample, dict(z=torch.zeros(7, 3, 5), mh=False, step_size=0.1)),
    "ald": (lae_fast.ald_sample, dict(features=torch.eye(3), nz=5, n_chains=7)),
    "ald, minibatches": (
        lae_fast.ald_sample,
        dict(
            features=torch.eye(3),
            nz=5,
            n_chains=7,
            batch_size=2,
            mh=False,
            step_size=0.01 * torch.arange(1, 8),
        ),
    ),
}


@pytest.mark.parametrize("kind", SPLIT)
def test_chains_that_several_calls_share_are_those_of_one_call(kind):
    sampler, given = SPLIT[kind]

    def energy(
        z, index=slice(None)
    ):  # no product over rows, which would be rounded differently for fewer of them
        return (z * torch.arange(1, 4)[index, None]).square().sum(-1)

    def drawn(chains):
        return sampler(
            energy,
            **given,
            chains=chains,
            n_draws=20,
            n_warmup=30,
            thin=2,
            generator=torch.Generator().manual_seed(5),
            progress=False,
        )

    whole, joined = drawn(None), lae_fast.Samples.joined([drawn(part) for part in PARTS])
    for name, value in vars(whole).items():
        found = getattr(joined, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name
    assert not torch.equal(whole.z[0], whole.z[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(chains=range(0, 0)),
            r"chains is range\(0, 0\); expected None or a range of at least one chain",
        ),
        (dict(chains=range(0, 4, 2)), r"chains is range\(0, 4, 2\); expected None or a range"),
        (dict(chains=range(2, 8)), r"chains is range\(2, 8\); expected some of range\(0, 7\), which are all"),
        (
            dict(chains=range(2, 4), share_step_size=True),
            "share_step_size is True beside chains .* expected False",
        ),
    ],
)
def test_chains_that_cannot_be_drawn_alone_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lae_fast.langevin_sample(lambda z: z.square().sum(-1), torch.zeros(7, 3, 5), n_draws=2, **options)


def test_chains_drawn_alone_may_have_one_step_size_that_is_given():
    options = dict(n_draws=5, n_warmup=0, share_step_size=True, step_size=0.1, progress=False)
    whole, part = (
        lae_fast.langevin_sample(
            lambda z: z.square().sum(-1), torch.zeros(4, 3, 2), chains=own, generator=seeded(0), **options
        )
        for own in (None, range(2, 4))
    )
    assert torch.equal(part.z, whole.z[2:])


def test_parts_may_come_one_by_one():
    def drawn(chains):
        options = dict(step_size=0.1, n_draws=2, n_warmup=0, progress=False, generator=seeded(1))
        return lae_fast.langevin_sample(
            lambda z: z.square().sum(-1), torch.ones(4, 1, 2), chains=chains, **options
        )

    joined = lae_fast.Samples.joined(map(drawn, (range(0, 1), range(1, 4))))
    assert torch.equal(joined.z, drawn(None).z)


def test_samples_of_other_calls_are_not_joined():
    few, many = (
        lae_fast.langevin_sample(
            lambda z: z.square().sum(-1), torch.zeros(2, 1, 2), n_draws=n, n_warmup=1, progress=False
        )
        for n in (2, 3)
    )
    with pytest.raises(ValueError, match="parts are 2 Samples of 2 forms; expected at least one, all of"):
        lae_fast.Samples.joined([few, many])
    with pytest.raises(ValueError, match="parts are 0 Samples of 0 forms"):
        lae_fast.Samples.joined([])
    with pytest.raises(TypeError, match=r"part 1 is 3 .*expected Samples"):
        lae_fast.Samples.joined([few, 3])
