"""The Langevin autoencoder's training step, against a hand computation and its own invariants.

Joint decisions here; what is special about a decision for each datapoint: test_datapoint.py."""

import copy
import math

import pytest
import torch
from torch import nn

from lae_fast import ops
from lae_fast.models import nets
from lae_fast.models.hoffman import Hoffman
from lae_fast.models.known_gradients import KnownGradients
from lae_fast.models.lae import LAE
from lae_fast.models.likelihood import Bernoulli, DiscretizedLogistic, Gaussian, Likelihood
from lae_fast.models.vae import VAE
from lae_fast.sampling import chains as chains_module

NX, NZ, NH, N = 16, 3, 8, 6


def make(cls=LAE, likelihood=None, seed=0, **options):
    torch.manual_seed(seed)
    encoder, decoder = nets.mlp(NX, NZ, NH, 2)
    return cls(encoder, decoder, likelihood or Bernoulli(), nx=NX, nz=NZ, d=NH, **options)


def joint(**options):
    return make(decisions="joint", **options)


both = pytest.mark.parametrize("decisions", LAE.kinds)


def images(n=N, seed=1, dtype=torch.float32):
    return torch.rand(n, NX, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("likelihood", [Bernoulli, Gaussian, DiscretizedLogistic])
@pytest.mark.parametrize(("mh", "step_size"), [(True, 0.1), (False, 0.003), (True, None)])
def test_training_step_by_hand(likelihood, mh, step_size):
    """Algorithm 2 with T = 3, written out with plain autograd in float64, on the same noise.

    Without a given step size it adapts after every decision.
    """
    rate = 0.0 if step_size else 0.3
    model = joint(
        likelihood=likelihood(), n_steps=3, mh=mh, step_size=step_size, adaptation_rate=rate
    ).double()
    if step_size is None:
        model.log_step_size.fill_(math.log(0.1))
    x, phi, rng = images(dtype=torch.float64), model.phi.clone(), model.rng.clone()
    eta = model.log_step_size.exp().item() / N

    def potential(phi):  # V, attached to theta and psi, and its gradient in phi
        leaf = phi.clone().requires_grad_()
        z = model.encoder(x) @ leaf.T
        output = model.decoder(z)
        if likelihood is Bernoulli:
            nll = torch.nn.functional.binary_cross_entropy_with_logits(output, x, reduction="sum")
        elif likelihood is Gaussian:
            nll = -torch.distributions.Normal(output, model.likelihood.log_scale.exp()).log_prob(x).sum()
        else:
            nll = model.likelihood.energy(output, x).sum()
        v = nll - torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
        return v, torch.autograd.grad(v, leaf, retain_graph=True)[0]

    def log_q(to, start, grad):
        return -((to - start + eta * grad) ** 2).sum() / (4 * eta)

    visited, outcomes = [], []
    v, grad = potential(phi)
    for t in range(3):
        eps = ops.noise(torch.tensor([rng[0], t, 0]), 1, NZ * NH, torch.float64).view(NZ, NH)
        u = ops.noise(torch.tensor([rng[0], t + 1, 0]), 1, 1, torch.float64, ops.ACCEPT).item()
        proposal = phi - eta * grad + math.sqrt(2 * eta) * eps
        new_v, new_grad = potential(proposal)
        log_alpha = (v - new_v + log_q(phi, proposal, new_grad) - log_q(proposal, phi, grad)).item()
        outcomes.append(not mh or math.log(u) <= log_alpha)
        if outcomes[-1]:
            phi, v, grad = proposal, new_v, new_grad
        visited.append(v)
        eta *= math.exp(rate * (min(1, math.exp(min(log_alpha, 0))) - 0.574))
    if mh and likelihood is Bernoulli:
        assert set(outcomes) == {True, False}  # the case covers both
    average = torch.stack(visited).mean() / N
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(average, [p for p in parameters.values() if p.requires_grad])

    loss = model.loss(x)
    loss.backward()
    assert loss.item() == pytest.approx(average.item(), rel=1e-12)
    torch.testing.assert_close(model.phi, phi, rtol=0, atol=1e-10)
    assert model.log_step_size.exp().item() == pytest.approx(eta * N, rel=1e-10)
    for (name, p), e in zip(
        ((n, p) for n, p in parameters.items() if p.requires_grad), expected, strict=True
    ):
        torch.testing.assert_close(p.grad, e, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
    assert model.counters.tolist() == [[outcomes.count(False), 0]]


@both
@pytest.mark.parametrize("mh", [True, False])
def test_a_nan_proposal_leaves_the_gradients_of_a_rejection(mh, decisions, monkeypatch):
    def poisoned(value):
        def propose(phi, grad, step_size, rng, noise=None):
            return torch.full_like(phi, value), rng + torch.tensor([0, 1, 0])

        return propose

    results = []
    for value in (math.nan, 1e30):  # not finite at all; finite but of infinite energy: an ordinary rejection
        model = make(n_steps=1, mh=mh, decisions=decisions, spread=False)
        before = model.phi.clone()
        monkeypatch.setattr(chains_module.ops, "propose", poisoned(value))
        loss = model.loss(images())
        loss.backward()
        assert torch.equal(model.phi, before)
        results.append((loss, gradients(model), model.counters))
    (loss, grads, counters), (other_loss, other_grads, other_counters) = results
    n_chains = 1 if decisions == "joint" else N
    assert counters.tolist() == [[0, n_chains]]
    assert other_counters.sum() == n_chains
    assert loss.isfinite()
    assert loss == other_loss
    assert grads
    for name, grad in grads.items():
        assert grad.isfinite().all(), name
        assert torch.equal(grad, other_grads[name]), name


@both
def test_phi_moves_by_the_chain_alone(decisions):
    model = make(decisions=decisions)
    assert "phi" in model.state_dict()
    assert "phi" not in dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.loss(images()).backward()
    moved = model.phi.clone()
    optimizer.step()
    assert torch.equal(model.phi, moved)
    assert not torch.equal(moved, make().phi)


@both
def test_every_parameter_gets_its_gradient(decisions):
    model = make(likelihood=Gaussian(), decisions=decisions)
    model.loss(images()).backward()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(gradients(model))
    assert all(g.abs().sum() > 0 for g in gradients(model).values())


@both
def test_the_step_size_adapts_unless_it_is_fixed(decisions):
    kinds = ({}, {"step_size": 1e-3}, {"mh": False})
    adapted, fixed, unadjusted = (make(decisions=decisions, **options) for options in kinds)
    for model in (adapted, fixed, unadjusted):
        start = model.log_step_size.clone()
        model.loss(images())
        assert torch.equal(model.log_step_size, start) == (model is not adapted)
    assert fixed.log_step_size.exp().item() == pytest.approx(1e-3)
    # A batch of another size keeps the step per example.
    fixed.loss(images(3))
    assert fixed.log_step_size.exp().item() == pytest.approx(1e-3)


@both
def test_it_adapts_to_its_target(decisions):
    model = make(adaptation_rate=0.1, decisions=decisions)
    x = images(50)
    for _ in range(600):
        with torch.no_grad():
            model.loss(x)
    rates = []
    for _ in range(400):
        with torch.no_grad():
            model.loss(x)
        rates.append(model.acceptance_rate.item())
    assert sum(rates) / len(rates) == pytest.approx(0.574, abs=0.05)


@both
def test_a_frozen_decoder_still_trains_the_features(decisions):
    model = make(decisions=decisions)
    model.decoder.requires_grad_(False)
    model.loss(images()).backward()
    assert all(name.startswith(("encoder", "log_std")) for name in gradients(model))
    assert any(name.startswith("encoder") for name in gradients(model))


@pytest.mark.parametrize(("cls", "options"), [(LAE, {}), (LAE, {"decisions": "joint"}), (Hoffman, {})])
def test_a_second_derivative_of_the_training_loss_is_refused(cls, options):
    """It would lack what the chain's energies add: of a gradient's penalty the derivative would be silently wrong."""
    model = make(cls, **options)
    model.encoder.is_fast = False  # which can be differentiated twice
    weights = list(model.encoder.parameters())
    first = torch.autograd.grad(model.loss(images()), weights, create_graph=True)
    penalty = sum(g.square().sum() for g in first)
    for second in (lambda: torch.autograd.grad(penalty, weights, retain_graph=True), penalty.backward):
        with pytest.raises(RuntimeError, match="second derivative through the training loss"):
            second()


def test_known_gradients_are_the_same_compiled():
    x, w = images(dtype=torch.float64), torch.ones(NX, dtype=torch.float64, requires_grad=True)

    def loss(w):
        z = x * w
        return 2 * KnownGradients.apply(z.detach().sum(), 0.25, z, z.detach() * 3)

    for function in (loss, torch.compile(loss, backend="eager")):
        (gradient,) = torch.autograd.grad(function(w), w)
        torch.testing.assert_close(gradient, 1.5 * x.square().sum(0))
    torch._dynamo.reset()


class Head(nn.Module):
    """A decoder that is not a Sequential and leaves a parameter unused."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(NZ, NX), nn.Parameter(torch.ones(3))

    def forward(self, z):
        return self.used(z.sin())


@both
def test_any_module_can_be_the_decoder(decisions):
    torch.manual_seed(0)
    encoder, _ = nets.mlp(NX, NZ, NH, 1)
    model = LAE(encoder, Head(), Bernoulli(), nx=NX, nz=NZ, d=NH, decisions=decisions)
    model.loss(images()).backward()
    assert model.decoder.used.weight.grad.abs().sum() > 0
    assert model.decoder.unused.grad.abs().sum() == 0


class Summed(Head):
    """A decoder whose parameters enter as sums, a weight's as a view; without `is_summed` as the first of them alone."""

    def __init__(self, is_summed):
        super().__init__()
        self.is_summed = is_summed
        self.delta, self.shift = nn.Parameter(torch.zeros(NX * NZ)), nn.Parameter(torch.zeros(NX))

    def forward(self, z):
        weight, bias = self.used.weight, self.used.bias
        if self.is_summed:
            weight, bias = weight + self.delta.view(NX, NZ), bias + self.shift
        return nn.functional.linear(z.sin(), weight, bias)


@both
@pytest.mark.parametrize("window", ["last", "after"])
@pytest.mark.parametrize("is_added", [True, False])
def test_parameters_that_enter_as_a_sum_have_the_same_gradient(is_added, window, decisions):
    found = []
    for is_summed in (True, False):
        torch.manual_seed(0)
        encoder, _ = nets.mlp(NX, NZ, NH, 1)
        options = dict(nx=NX, nz=NZ, d=NH, decisions=decisions, decoder_window=window, n_steps=4)
        model = LAE(encoder, Summed(is_summed), Bernoulli(), **options)
        model.add_gradients(images()) if is_added else model.loss(images()).backward()
        found.append(model.decoder)
    summed, plain = found
    for total, term in ((summed.used.weight, summed.delta), (summed.used.bias, summed.shift)):
        assert torch.equal(total.grad.flatten(), term.grad)
        assert total.grad.data_ptr() != term.grad.data_ptr()
    torch.testing.assert_close(summed.used.weight.grad, plain.used.weight.grad)
    torch.testing.assert_close(summed.used.bias.grad, plain.used.bias.grad)


class Laplace(Likelihood):
    """Its scale is a parameter of another module."""

    def __init__(self, owner):
        super().__init__()
        self.owner = owner

    def pixel_energies(self, output, x):
        log_scale = self.owner.unused.sum()
        return (x - output).abs() * torch.exp(-log_scale) + log_scale + math.log(2)


@both
@pytest.mark.parametrize("is_added", [True, False])
def test_what_decoder_and_likelihood_share_gets_its_gradient_once(is_added, decisions):
    found = []
    for is_shared in (True, False):
        torch.manual_seed(0)
        encoder, decoder = nets.mlp(NX, NZ, NH, 1)[0], Head()
        likelihood = Laplace(decoder if is_shared else copy.deepcopy(decoder))
        model = LAE(encoder, decoder, likelihood, nx=NX, nz=NZ, d=NH, decisions=decisions)
        model.add_gradients(images()) if is_added else model.loss(images()).backward()
        found.append([decoder.used.weight.grad, decoder.used.bias.grad, likelihood.owner.unused.grad])
    assert all(torch.equal(shared, own) for shared, own in zip(*found, strict=True))


class Borrowing(nn.Module):
    """A decoder whose last layer is the encoder's first, transposed: registered, or hidden in a list."""

    def __init__(self, lent, is_hidden):
        super().__init__()
        self.first, self.lent = nn.Linear(2, 5), [lent] if is_hidden else nn.ModuleList([lent])

    def forward(self, z):
        return self.first(z).relu() @ self.lent[0].weight


def test_parameters_may_be_computed_from_others():
    """As by an outer loop of training, through torch.func.functional_call: the derivative goes on to what they are made of."""
    torch.manual_seed(0)
    encoder, _ = nets.mlp(NX, NZ, NH, 1)
    model = LAE(encoder, Head(), Bernoulli(), nx=NX, nz=NZ, d=NH)
    scale = torch.ones((), requires_grad=True)
    computed = {name: scale * p for name, p in model.named_parameters()}
    torch.func.functional_call(model, computed, (images(),)).backward()
    assert scale.grad.abs() > 0


@pytest.mark.parametrize("decisions", LAE.kinds)
def test_weights_that_a_decoder_borrows_get_its_gradient_or_are_refused(decisions):
    x, gradients = torch.rand(6, 9).round(), []
    for is_hidden, is_trained in ((False, True), (True, True), (True, False)):
        lent = nn.Linear(9, 5)
        model = LAE(
            nn.Sequential(lent), Borrowing(lent, is_hidden), Bernoulli(), nx=9, nz=2, decisions=decisions
        )
        lent.weight.requires_grad_(is_trained)
        if is_hidden and is_trained:
            before = model.phi.clone()
            with pytest.raises(
                ValueError, match=r"the energy depends on encoder.0.weight, which is no parameter of decoder"
            ):
                model.loss(x)
            assert torch.equal(model.phi, before)
        else:
            model.loss(x).backward()
            gradients.append(lent.weight.grad)
    assert gradients[0].abs().max() > 0
    assert gradients[1] is None


@pytest.mark.parametrize("cls", [LAE, VAE])
@pytest.mark.parametrize("likelihood", [Bernoulli, Gaussian, DiscretizedLogistic])
def test_one_interface(cls, likelihood):
    model, x = make(cls, likelihood()), images()
    assert model.encode(x).shape == (N, NZ)
    assert model.decode(torch.zeros(4, NZ)).shape == (4, NX)
    assert model.reconstruct(x).shape == (N, NX)
    first = model.sample(5, torch.Generator().manual_seed(0))
    assert first.shape == (5, NX)
    assert torch.equal(first, model.sample(5, torch.Generator().manual_seed(0)))
    path = model.interpolate(x[:2], x[2:4], 7)
    assert path.shape == (2, 7, NX)
    torch.testing.assert_close(path[:, 0], model.reconstruct(x[:2]))
    torch.testing.assert_close(path[:, -1], model.reconstruct(x[2:4]))
    mean, std = model.posterior(x)
    assert mean.shape == std.shape == (N, NZ)
    assert model.loss(x).shape == ()


@pytest.mark.parametrize("side", [8, 28])
@pytest.mark.parametrize("cls", [LAE, VAE])
def test_convolutional_network(cls, side):
    torch.manual_seed(0)
    encoder, decoder = nets.conv(side**2, NZ, 32)
    model = cls(encoder, decoder, Bernoulli(), nx=side**2, nz=NZ, d=32)
    x = torch.rand(4, side**2)
    model.loss(x).backward()
    assert model.reconstruct(x).shape == x.shape


def test_initialisation():
    encoder, _ = nets.mlp(NX, NZ, NH, 2)
    weight = encoder[3].weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(NH), rtol=0, atol=1e-5)
    assert encoder[3].bias.abs().sum() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(n_steps=0), "n_steps is 0"),
        (lambda: make(decisions="each"), "decisions is 'each'; expected one of datapoint, joint"),
        (
            lambda: make(decoder_window="never"),
            "decoder_window is 'never'; expected one of after, before, first, last",
        ),
        (lambda: make(feature_window="all"), "feature_window is 'all'"),
        (lambda: make(memory=0), "memory is 0; expected at least 1"),
        (lambda: make(ridge=-1.0), "ridge is -1"),
        (lambda: make(whiten=True), "whiten is True with datapoint decisions"),
        (lambda: make(step_size=-1e-3), "step_size is -0.001"),
        (lambda: make(step_size=math.nan), "step_size is nan"),
        (lambda: LAE(nn.Identity(), nn.Identity(), Bernoulli(), nx=NX, nz=0, d=3), "nz is 0"),
        (
            lambda: make().loss(images() * 2),
            r"images have values from 0\.\d+ to 1\.\d+; expected all in \[0, 1\], or uint8 in 0..255",
        ),
        (lambda: make().loss(images() * math.nan), "images have values from nan"),
        (lambda: make(VAE).loss(images() - 1), "expected all in"),
        (
            lambda: make().loss(images()[:, :5]),
            r"images are float32 \[6, 5\] on cpu; expected floating point \[n, 16\]",
        ),
        (lambda: make().loss(images().view(6, 2, 8).repeat(1, 2, 1)), r"images are float32 \[6, 4, 8\]"),
        (lambda: make().loss(images().to(torch.int16)), "images are int16"),
        (lambda: make().loss(images()[:0]), "with n >= 1"),
        (lambda: nets.conv(15, 2), r"conv got images \[15\]; expected \[c, h, w\], or square ones"),
        (
            lambda: nets.conv((2, 9, 4), 2, depth=5),
            r"depth is 5; expected at most 4: images \[2, 9, 4\] cannot be halved",
        ),
        (lambda: Gaussian(-1), "scale is -1"),
        (lambda: DiscretizedLogistic(0), "scale is 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("window", ["after", "before"])
def test_whitening_is_a_change_of_coordinates(window):
    """The step of an LAE whose features are L^-1 h and whose last layer is phi L, in float64: the same chain."""
    options = dict(n_steps=3, step_size=0.2, decoder_window=window, feature_window=window)
    white, plain = (joint(**options, whiten=w).double() for w in (True, False))
    x = images(20, dtype=torch.float64)
    with torch.no_grad():
        h = white.encoder(x)
    gram = h.T @ h / 20
    root = torch.linalg.cholesky(gram + 0.04 * gram.diagonal().mean() * torch.eye(NH, dtype=torch.float64))
    inverse = nn.Linear(NH, NH, bias=False, dtype=torch.float64).requires_grad_(False)
    inverse.weight.copy_(torch.linalg.inv(root))
    plain.encoder.append(inverse)
    plain.phi.copy_(white.phi @ root)
    plain.rng.copy_(white.rng)
    for model in (white, plain):
        model.loss(x).backward()
    assert 0 < white.counters[0, 0] < 3  # the case covers both decisions
    assert torch.equal(white.counters, plain.counters)
    torch.testing.assert_close(white.phi @ root, plain.phi, rtol=0, atol=1e-10)
    found, expected = gradients(white), gradients(plain)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-10, msg=name)


def test_the_gram_matrix_is_a_running_mean_and_part_of_the_chains_state():
    model = joint(whiten=True, step_size=1e-4)
    batches = [images(seed=s) for s in range(3)]
    for x in batches:
        model.loss(x)
    with torch.no_grad():
        expected = sum(h.T @ h / len(h) for h in map(model.encoder, batches)) / 3
    torch.testing.assert_close(model.gram, expected)
    other = joint(whiten=True, step_size=1e-4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.loss(batches[0]), model.loss(batches[0]))
    assert torch.equal(other.phi, model.phi)
