"""log p(x) by quadrature, against closed forms, another path through the likelihood, and other estimates."""

import math

import pytest
import torch
from torch import nn

from lae_fast import LAE, VAE, Bernoulli, DiscretizedLogistic, Gaussian, importance_bound
from lae_fast.evaluation import quadrature
from lae_fast.models import nets
from lae_fast.models.likelihood import PAIRED

NX = 12


def linear(nz, scale=0.5):
    torch.manual_seed(nz)
    model = VAE(nn.Identity(), nn.Linear(nz, NX), Gaussian(scale), nx=NX, nz=nz, d=NX).double()
    with torch.no_grad():
        model.decoder.weight.mul_(0.5)
        model.decoder.bias.fill_(0.5)
    return model


def exact(model, x):
    w, scale = model.decoder.weight.detach(), model.likelihood.log_scale.exp()
    covariance = w @ w.T + scale**2 * torch.eye(NX, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(model.decoder.bias.detach(), covariance).log_prob(x)


@pytest.mark.parametrize("x", [(0.25, 0.375), (0.375, 0.25), (0.3125, 0.3125)])
def test_a_posterior_between_two_cells_is_seen(x):
    """0.3 of a cell wide, on an edge: white and black cells have equal shares, rows or columns have not."""
    model = VAE(nn.Linear(2, 4), nn.Identity(), Gaussian(0.075), nx=2, nz=2).double()
    with pytest.warns(UserWarning, match=r"of 1 of 1 images is sharper than the cells"):
        found = quadrature(model, torch.tensor([x], dtype=torch.float64), n_cells=64)
    wanted = torch.distributions.Normal(0.0, (1 + 0.075**2) ** 0.5).log_prob(torch.tensor(x)).sum()
    assert abs(found.item() - wanted) > 0.01


@pytest.mark.parametrize("nz", [1, 2])
def test_a_linear_gaussian_model_to_rounding(nz):
    model, x = linear(nz), torch.rand(30, NX, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(quadrature(model, x), exact(model, x), rtol=0, atol=1e-10)
    with pytest.warns(UserWarning, match=r"of \d+ of 30 images is sharper than the cells: .*n_cells 9\)"):
        coarse = quadrature(model, x, n_cells=9)
    assert (coarse - exact(model, x)).abs().max() > 0.1


def test_a_sharp_posterior_is_resolved():
    model, x = linear(2, scale=0.02), torch.rand(5, NX, generator=torch.Generator().manual_seed(1)).double()
    w = model.decoder.weight.detach()
    deviation = torch.linalg.eigvalsh(torch.eye(2) + w.T @ w / 0.02**2).max() ** -0.5
    assert 0.01 < deviation < 0.05
    torch.testing.assert_close(quadrature(model, x), exact(model, x), rtol=0, atol=0.02)


@pytest.mark.parametrize("likelihood", [Bernoulli, Gaussian, DiscretizedLogistic])
def test_every_likelihood_and_the_importance_bound_below_it(likelihood):
    torch.manual_seed(0)
    model = VAE(*nets.mlp(16, 2, 8, 1), likelihood(), nx=16, nz=2, d=8)
    if model.likelihood.log_scale is not None:
        model.likelihood.log_scale.data.zero_()  # posteriors that q can find
    x = (torch.rand(7, 16, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    output = model.decoder(torch.randn(3, 2)).detach()
    pairs = torch.stack([model.likelihood.energy(o.expand(7, -1), x) for o in output])
    torch.testing.assert_close(model.likelihood.all_pairs(output, x), pairs, rtol=1e-5, atol=1e-5)
    found, bound = quadrature(model, x), importance_bound(model, x, n_draws=20_000)
    assert (bound < found + 0.05).all()
    assert (bound > found - 1).all()
    torch.testing.assert_close(quadrature(model, (x * 255).to(torch.uint8)), found)


def test_a_subclass_counts():
    class Tempered(Bernoulli):
        def energy(self, output, x):
            return 0.1 * super().energy(output, x)

    output, x = torch.randn(3, 16), torch.rand(5, 16).round()
    torch.testing.assert_close(Tempered().all_pairs(output, x), 0.1 * Bernoulli().all_pairs(output, x))


@pytest.mark.parametrize(("n", "most"), [(200, PAIRED), (10_000, 10_000 * 784)])  # at the least one output
def test_pairs_take_bounded_memory(n, most):
    sizes = []

    class Watched(Gaussian):
        def energy(self, output, x):
            sizes.append(output.numel())
            return output[..., 0].double()

    output = torch.arange(100.0)[:, None].expand(-1, 784)
    pairs = Watched().all_pairs(output, torch.zeros(1, 784).expand(n, -1))
    assert max(sizes) <= most
    assert torch.equal(pairs, torch.arange(100.0).double()[:, None].expand(-1, n))


def test_a_box_that_is_too_small_is_told():
    model = linear(2, scale=0.1)
    with torch.no_grad():
        x = model.decoder(torch.tensor([[0.0, 0.0], [0.3, 0.8]], dtype=torch.float64))
    assert 0 < x.min() < x.max() < 1
    with pytest.warns(
        UserWarning, match=r"of 1 of 2 images reaches the edge .* \(half_width 0.8, n_cells 512\)"
    ) as caught:
        found = quadrature(model, x, half_width=0.8)
    assert caught[0].filename == __file__
    is_off = (found - exact(model, x)).abs() > 1e-3
    assert is_off.tolist() == [False, True]


def test_a_model_without_parameters():
    """logit p(x = 1) = z is as often positive as negative, so that p(x) = 1/2."""
    model = LAE(nn.Identity(), nn.Identity(), Bernoulli(), nx=1, nz=1, d=1, decisions="joint")
    x = torch.tensor([[0.0], [1.0]])
    torch.testing.assert_close(
        quadrature(model, x), torch.full((2,), 0.5, dtype=torch.float64).log(), atol=1e-6, rtol=0
    )
    assert model.sample(3).shape == model.simulate(3)[1].shape == (3, 1)


def test_bad_input_is_named():
    x = torch.rand(2, NX).double()
    with pytest.raises(ValueError, match="nz is 3; expected 1 or 2"):
        quadrature(linear(3), x)
    for options in (dict(n_cells=0), dict(half_width=0.0), dict(half_width=math.inf)):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is .*; expected"):
            quadrature(linear(2), x, **options)
    with pytest.raises(ValueError, match="expected floating point"):
        quadrature(linear(2), x[:, :5])
