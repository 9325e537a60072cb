"""The Langevin autoencoder with a decision for each datapoint: its step by hand, its memory, and its chain against answers."""

import math

import pytest
import torch
from budget import z_limit
from problems import ZScores, expected_moments, second_moments
from test_dense import LIKELIHOODS
from test_dense import images as dense_images
from test_dense import model as dense_model
from test_lae import NH, NX, NZ, N, gradients, images, make
from test_sample import normals, two_sample_z
from torch import nn

import lae_fast
from lae_fast import LAE
from lae_fast.experiments.toys import PROBLEMS, Posterior, Problem
from lae_fast.models import nets, products
from lae_fast.models.coordinates import Memory
from lae_fast.models.decoder_pass import decoder_pass
from lae_fast.models.likelihood import Bernoulli, DiscretizedLogistic, Gaussian
from lae_fast.sampling import chains as chains_module

WINDOWS = {"after": [1, 2, 3], "before": [0, 1, 2], "first": [0], "last": [3]}  # states of T = 3 steps


@pytest.mark.parametrize("likelihood", [Bernoulli, Gaussian, DiscretizedLogistic])
@pytest.mark.parametrize(
    ("spread", "mh", "step_size"),
    [(True, True, 2.5), (False, True, 0.8), (True, False, 0.5), (True, True, None)],
)
@pytest.mark.parametrize(
    ("decoder_window", "feature_window"), [(None, None), ("after", "before"), ("before", "last")]
)
def test_training_step_by_hand(likelihood, spread, mh, step_size, decoder_window, feature_window):
    """T = 3 calls of `ald_step` on u, z = f + s u, in float64, on the same noise; all gradients by plain autograd."""
    rate = 0.0 if step_size else 0.3
    windows = dict(decoder_window=decoder_window, feature_window=feature_window)
    options = dict(n_steps=3, mh=mh, step_size=step_size, spread=spread, adaptation_rate=rate, memory=5)
    model = make(likelihood=likelihood(), **options, **windows).double()
    model.set_constant_std(0.7)
    if step_size is None:
        model.log_step_size.fill_(math.log(2.5))
    x, phi, rng = images(dtype=torch.float64), model.phi.clone(), model.rng.clone()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    eta = model.log_step_size.exp()
    if model.likelihood.log_scale is not None:
        model.likelihood.log_scale.data.fill_(math.log(2.0))
    torch.manual_seed(5)
    loss = model.loss(x)
    loss.backward()
    found = gradients(model)

    torch.manual_seed(5)
    h = model.encoder(x)
    codes, std = h @ phi.T, model.log_std(h).exp() if spread else torch.ones(())
    u = torch.randn_like(codes) if spread else codes.detach()
    z_of = (lambda u: codes.detach() + std.detach() * u) if spread else (lambda u: u)
    state = lae_fast.ald_init(lambda u: model.potential(x, z_of(u)), u, eta, n_chains=N)
    state, visited, accepted, rates = state._replace(rng=rng), [u], [], []
    for _ in range(3):
        with torch.no_grad():
            state, info = lae_fast.ald_step(lambda u: model.potential(x, z_of(u)), state, eta, mh=mh)
        visited.append(state.phi)
        accepted.append(info.is_accepted)
        rates.append(info.acceptance_rate.mean().item())
        eta = eta * math.exp(rate * (rates[-1] - 0.574))
    accepted = torch.stack(accepted)
    if mh:
        assert 0 < accepted.sum() < accepted.numel()  # the case covers both
    decoder_states, feature_states = (
        [visited[t] for t in WINDOWS[getattr(model, name)]] for name in ("decoder_window", "feature_window")
    )
    value = torch.stack([model.potential(x, z_of(u)).mean() for u in decoder_states]).mean()
    decoder = {n: p for n, p in parameters.items() if n.startswith(("decoder", "likelihood"))}
    expected = dict(zip(decoder, torch.autograd.grad(value, list(decoder.values())), strict=True))
    frozen = [p.requires_grad_(False) for p in decoder.values()]
    # The features see V at z_t = phi h + a constant; s sees the negative ELBO at the start.
    at = [z_of(u) - codes.detach() for u in feature_states]
    of_features = torch.stack([model.potential(x, codes + move).mean() for move in at]).mean()
    if spread:
        start = model.potential(x, codes.detach() + std * visited[0])
        of_features = of_features + (start - std.log().sum(1)).mean()
    encoder = {n: p for n, p in parameters.items() if n not in decoder}
    expected |= dict(zip(encoder, torch.autograd.grad(of_features, list(encoder.values())), strict=True))
    assert len(frozen) == len(decoder)

    assert loss.item() == pytest.approx(value.item(), rel=1e-12)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    moves = (z_of(visited[-1]) - codes).detach()
    gram = h.T @ h / N
    gram = gram + 0.04 * gram.diagonal().mean() * torch.eye(NH, dtype=torch.float64)
    wanted_phi = phi + torch.linalg.solve(gram, h.T @ moves / N).T
    torch.testing.assert_close(model.phi, wanted_phi.detach(), rtol=0, atol=1e-10)
    assert model.log_step_size.exp().item() == pytest.approx(eta.item(), rel=1e-10)
    assert model.counters.tolist() == [[(~accepted).sum().item(), 0]]
    assert model.n_decisions == 3 * N
    assert model.acceptance_rate.item() == pytest.approx(sum(rates) / 3, rel=1e-12)
    assert model.unmoved.item() == pytest.approx((~accepted.any(0)).double().mean().item())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    "options", [{}, {"mh": False}, {"spread": False}, {"decoder_window": "after", "feature_window": "before"}]
)
def test_the_fast_step_is_the_general_one(likelihood, options):
    """In float64, where no decision can fall differently: selection row by row, and recomputation by autograd."""
    sizes = {"bernoulli": 0.3, "gaussian": 1e-2, "logistic": 0.1}
    results = []
    for is_fast in (True, False):
        step_size = sizes[likelihood] * (0.05 if options.get("spread") is False else 1)
        m = dense_model(
            is_fast, likelihood, torch.float64, decisions="datapoint", **{"step_size": step_size, **options}
        )
        m.set_constant_std(0.2)
        torch.manual_seed(3)
        seen = []
        for _ in range(3):
            loss = m.loss(dense_images(dtype=torch.float64))
            grads = torch.autograd.grad(loss, [p for p in m.parameters() if p.requires_grad])
            seen += [loss, *grads, m.phi.clone(), m.acceptance_rate.clone(), m.unmoved.clone()]
        results.append((seen, m))
    (fast, m), (plain, other) = results
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, b.abs().max().item()))
    assert torch.equal(m.counters, other.counters)
    if options.get("mh", True):
        assert 0.05 < m.counters[0, 0] / (9 * 128) < 0.95  # both outcomes were met


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_nan_in_some_rows_leaves_the_others_alone(is_fast, monkeypatch):
    """Every third datapoint's proposals are NaN, or so far out that their energy is infinite: the same step."""
    results = []
    for value in (math.nan, 1e30):
        original = chains_module.ops.propose

        def propose(phi, *others, value=value, original=original):
            proposal, rng = original(phi, *others)
            proposal[::3] = value
            return proposal, rng

        m = dense_model(is_fast, decisions="datapoint", step_size=0.2, n_steps=1)
        with monkeypatch.context() as patch:
            patch.setattr(chains_module.ops, "propose", propose)
            torch.manual_seed(3)
            loss = m.loss(dense_images())
        grads = torch.autograd.grad(loss, [p for p in m.parameters() if p.requires_grad])
        results.append((loss, m.phi.clone(), *grads))
        assert m.counters.sum() >= 43  # every third of 128, and whoever else is rejected
        if math.isnan(value):
            assert m.counters[0, 1] == 43
    for a, b in zip(*results, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize(("decoder_window", "n_states"), [("last", 1), ("after", 5), ("before", 5)])
def test_weight_gradients_are_made_for_states_only(decoder_window, n_states, monkeypatch):
    calls, original = [], products.weight_gradient
    monkeypatch.setattr(products, "weight_gradient", lambda *a: calls.append(1) or original(*a))
    m = dense_model(True, decisions="datapoint", n_steps=5, step_size=0.2, decoder_window=decoder_window)
    m.loss(dense_images())
    assert len(calls) == n_states * 4  # the decoder's layers; phi takes none


# ---- the memory ----


def test_without_memory_and_ridge_the_codes_are_remembered_exactly():
    """20 datapoints, 30 features of rank 20, in float64: the codes of the moved phi are the z that the chains reached."""
    encoder, decoder = nets.mlp(NX, NZ, 30, 2)
    model = LAE(encoder, decoder, Bernoulli(), nx=NX, nz=NZ, d=30, memory=1, ridge=1e-13, n_steps=4).double()
    x = images(20, dtype=torch.float64)
    z = reached(model, x)
    assert model.counters[0, 0] < 80  # some have moved
    torch.testing.assert_close(model.encode(x), z, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"decisions": "joint", "whiten": True}], ids=str)
@pytest.mark.parametrize("features", ["few images", "dead", "alike"])
def test_without_a_ridge_features_of_a_lower_rank_train(features, options):
    """Fewer images than features, or features that are 0 or nearly the same: their second moments have no inverse."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU())
    if features == "dead":
        encoder[0].bias.data[::2] = -100
    if features == "alike":
        encoder[0].weight.data[1:] = encoder[0].weight.data[:1] + 1e-4 * encoder[0].weight.data[1:]
        encoder[0].bias.data[:] = 1
    model = LAE(encoder, nn.Linear(2, 20), Bernoulli(), nx=20, nz=2, ridge=0.0, **options)
    x = torch.rand(64, 20).round()
    start = model.phi.norm().item()
    losses = lae_fast.fit(
        model, x, epochs=4, batch_size=8 if features == "few images" else 64, progress=False
    )
    assert losses[-1] < losses[0] + 1
    assert model.phi.norm() < 100 * start


def test_phi_is_the_least_squares_fit_to_the_targets_of_all_minibatches():
    """While all count equally; with a forgetting of 1/4, the fit with weights (3/4)^k."""
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(50, 5, generator=generator, dtype=torch.float64) for _ in range(6)]
    targets = [torch.randn(50, 2, generator=generator, dtype=torch.float64) for _ in batches]
    for length, weights in ((6, [1.0] * 6), (1, [0.0] * 5 + [1.0])):
        phi, gram = torch.zeros(2, 5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)
        for k, (h, y) in enumerate(zip(batches, targets, strict=True)):
            memory = Memory(gram, h, torch.tensor(k), length, 0.0)
            phi, gram = phi + memory.step(y - h @ phi.T), memory.gram
        root = torch.cat([w**0.5 * h for w, h in zip(weights, batches, strict=True)])
        y = torch.cat([w**0.5 * y for w, y in zip(weights, targets, strict=True)])
        torch.testing.assert_close(phi, torch.linalg.lstsq(root, y).solution.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(gram, root.T @ root / (50 * sum(weights)), rtol=0, atol=1e-12)
    # A constant weight of 1/4 on what is new leaves (3/4)^k on what is k minibatches old.
    phi, gram = torch.zeros(2, 5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)
    for k, (h, y) in enumerate(zip(batches, targets, strict=True)):
        memory = Memory(gram, h, torch.tensor(k), 4, 0.0)
        phi, gram = phi + memory.step(y - h @ phi.T), memory.gram
    weights = [0.75**2 / 4] * 4 + [0.75 / 4, 1 / 4]
    root = torch.cat([w**0.5 * h for w, h in zip(weights, batches, strict=True)])
    y = torch.cat([w**0.5 * y for w, y in zip(weights, targets, strict=True)])
    torch.testing.assert_close(phi, torch.linalg.lstsq(root, y).solution.T, rtol=0, atol=1e-12)


def test_ridge_and_memory_belong_to_the_chain_s_state():
    model, batches = make(), [images(seed=s) for s in range(3)]
    for x in batches:
        model.loss(x)
    other = make()
    other.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    first = model.loss(batches[0])
    torch.manual_seed(1)
    assert torch.equal(other.loss(batches[0]), first)
    assert torch.equal(other.phi, model.phi)
    with torch.no_grad():
        h = [model.encoder(x) for x in (*batches, batches[0])]
    torch.testing.assert_close(model.gram, sum(h.T @ h / N for h in h) / 4)


# ---- the chain, against answers ----


def reached(model, x, start=None):
    """The z [n, nz] that a call of the chain reaches for images x, started at `start`, or as the model starts."""
    with torch.no_grad():
        h = model.encoder(x)
        coordinates = model.coordinates(h, model.log_std(h) if model.spread else None)
        if start is not None:
            coordinates.start = lambda *_: (start - coordinates.codes) / coordinates.std
        last, finish = [], coordinates.finish
        coordinates.finish = lambda rows: last.append(coordinates.z(rows)) or finish(rows)
        model._run_chain(decoder_pass(model, x, by_row=True), coordinates)
    return last[0]


class Posed(LAE):
    """A problem's posteriors; images are the numbers of its datapoints, and the features follow them in a table."""

    def __init__(self, problem, features, **options):
        super().__init__(
            Table(features), nn.Identity(), Bernoulli(), nx=1, nz=2, d=features.shape[1], **options
        )
        self.problem = problem
        self.double()

    def potential(self, x, z):
        return Problem(self.problem.x[x[:, 0].long()], self.problem.noise, self.problem.decode).energy(z)


class Table(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, x):
        return self.rows


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("d", [100, pytest.param(300, marks=pytest.mark.slow), 400])
def test_the_chains_reach_the_posteriors_whatever_d_and_n_are(problem, d, spread):
    """n = 300: 100 copies of 3 datapoints, features of their own for each; 300 steps from the codes."""
    target, copies = PROBLEMS[problem], 100
    x = torch.arange(3, dtype=torch.float64).repeat(copies)[:, None]
    features = normals(301, 300, d) / d**0.5
    options = dict(n_steps=300, step_size=(0.5 if spread else 0.25) if problem == "Gaussian" else 0.1)
    model, draws = Posed(target, features, spread=spread, **options), []
    model.set_constant_std(0.7)
    torch.manual_seed(302)
    for _ in range(12):
        z = reached(model, x)
        draws.append(z.view(copies, 3, 2))
        assert 0.2 < model.acceptance_rate < 0.97
    grid = Posterior.of(target)
    rows = second_moments(torch.cat(draws), grid.mean)
    z = ZScores.of(rows, expected_moments(grid.mean, grid.covariance)).values
    assert (z.abs() < z_limit("datapoint_posteriors")).all(), z


def linear(n, d, **options):
    """An LAE for x = W z + 1/2 + noise with features that do not see x, and x, z [n, ...] drawn from it."""
    decoder = nn.Linear(2, 4)
    with torch.no_grad():
        decoder.weight.copy_(0.1 * normals(303, 4, 2))
        decoder.bias.fill_(0.5)
    features = torch.eye(n, dtype=torch.float64) if d == n else normals(304, n, d) / d**0.5
    model = LAE(Table(features), decoder, Gaussian(0.1), nx=4, nz=2, d=d, **options).double()
    model.requires_grad_(False)
    x, z = model.simulate(n, torch.Generator().manual_seed(305))
    return model, x, z


def test_getting_it_right():
    """Geweke (2004): z|x by the chain, from the z that phi remembers, and x|z exactly; (x, z) keeps its law."""

    def functions(z, x):
        zx = torch.cat((z, x), -1)
        rows, columns = torch.triu_indices(6, 6)
        return torch.cat((zx, zx[:, rows] * zx[:, columns]), 1)

    def alternate(**options):
        n = 400
        model, x, z = linear(n, n, spread=False, memory=1, ridge=0.0, n_steps=2, step_size=0.3, **options)
        model.phi.copy_(z.T)
        found, generator = [], torch.Generator().manual_seed(306)
        for _ in range(250):
            z = reached(model, x)
            torch.testing.assert_close(model.encode(x), z, rtol=0, atol=1e-12)
            x = model.likelihood.sample(model.decoder(z), generator)
            found.append(functions(z, x))
        return torch.stack(found[20:]).mean(0)  # rows of n independent runs

    _, x, z = linear(50_000, 1)
    prior = functions(z, x)
    scores = two_sample_z(alternate(), prior)
    assert (scores.abs() < z_limit("datapoint_getting_it_right")).all(), scores
    scores = two_sample_z(alternate(mh=False), prior)
    assert (scores.abs() > 2 * z_limit("datapoint_getting_it_right")).any(), scores  # the power of the test


@pytest.mark.parametrize("mh", [True, False])
def test_one_datapoint_with_one_feature_is_the_same_chain_as_joint_decisions(mh):
    """z = phi then: the same noise, the same decisions, the same phi, for 30 minibatches of T = 3 steps."""
    models = []
    for decisions in LAE.kinds:
        torch.manual_seed(0)
        _, decoder = nets.mlp(NX, NZ, NH, 1)
        options = dict(
            decisions=decisions, spread=False, memory=1, ridge=0.0, n_steps=3, mh=mh, step_size=0.4
        )
        features = Table(torch.ones(1, 1, dtype=torch.float64))
        models.append(LAE(features, decoder, Bernoulli(), nx=NX, nz=NZ, d=1, **options).double())
    each, together = models
    together.phi.copy_(each.phi), together.rng.copy_(each.rng)
    path = []
    for i in range(30):
        losses = [m.loss(images(1, seed=i, dtype=torch.float64)) for m in models]
        if each.decoder_window == "last":
            assert losses[0].isfinite()
        torch.testing.assert_close(each.phi, together.phi, rtol=0, atol=1e-12)
        path.append(each.phi.clone())
    assert torch.equal(each.counters, together.counters)
    assert torch.equal(each.rng, together.rng)
    if mh:
        assert 0 < each.counters[0, 0] < 90


def visits(start_from):
    """Two visits of 20 minibatches of 100 datapoints with 30 features; z-scores of z's moments after each round."""
    model, x, z = linear(2000, 30, memory=5, n_steps=2, step_size=0.6)
    features, w = model.encoder.rows, model.decoder.weight
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / 0.1**2
    covariance = precision.inverse()
    mean = (x - 0.5) @ w @ covariance / 0.1**2
    model.set_constant_std(0.5)
    torch.manual_seed(307)
    z, scores = z.clone(), []
    for _ in range(2):
        for rows in torch.arange(2000).split(100):
            model.encoder.rows = features[rows]
            z[rows] = reached(model, x[rows], z[rows] if start_from == "kept z" else None)
        root = torch.linalg.cholesky(precision)
        white = (z - mean) @ root  # standard normal, if z is a draw of the posterior
        statistics = torch.stack(
            (white[:, 0], white[:, 1], white[:, 0] ** 2, white.prod(1), white[:, 1] ** 2), 1
        )
        scores.append(ZScores.of(statistics, (0, 0, 1, 0, 1)).values)
    assert 0.3 < model.acceptance_rate < 0.95
    assert torch.allclose(covariance @ precision, torch.eye(2, dtype=torch.float64))
    return torch.cat(scores)


def test_what_is_invariant_through_minibatches_of_write_back():
    """Draws of the posteriors stay such draws where each visit starts at the kept z; not where it starts around phi's codes."""
    kept = visits("kept z")
    assert (kept.abs() < z_limit("kept_z")).all(), kept
    from_phi = visits("phi")
    assert (from_phi.abs() > 2 * z_limit("kept_z")).any(), from_phi
