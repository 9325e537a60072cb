"""Evaluation against a model whose negative ELBO is known in closed form."""

import math

import pytest
import torch
from torch import nn

from lae_fast import evaluate, fit_posterior_scale
from lae_fast.models.lae import LAE
from lae_fast.models.likelihood import Bernoulli, Gaussian
from lae_fast.models.vae import VAE

NX, NZ, N = 6, 2, 3000
SCALE = 0.4


def linear_lae(**options):
    """z = phi x, p(x|z) = N(W z, 0.4^2 I)."""
    torch.manual_seed(0)
    decoder = nn.Linear(NZ, NX, bias=False)
    return LAE(nn.Identity(), decoder, Gaussian(SCALE), nx=NX, nz=NZ, d=NX, **options)


def closed_form(model, x, s):
    """Reconstruction and rate of q = N(phi x, s^2 I) for the linear model, float64 means over x."""
    w, x, f = model.decoder.weight.detach().double(), x.double(), (x @ model.phi.T).double()
    squares = (x - f @ w.T).square().sum(1) + s**2 * w.square().sum()
    log_normaliser = NX * torch.tensor(SCALE * (2 * torch.pi) ** 0.5).log()
    reconstruction = squares / (2 * SCALE**2) + log_normaliser
    rate = 0.5 * (f.square().sum(1) + NZ * (s**2 - 1 - 2 * torch.tensor(s).log()))
    return reconstruction.mean().item(), rate.mean().item()


def test_against_the_closed_form():
    model, x = linear_lae(), torch.rand(N, NX, generator=torch.Generator().manual_seed(1))
    model.set_constant_std(0.3)
    result = evaluate(model, x, n_draws=200, batch_size=700)
    reconstruction, rate = closed_form(model, x, 0.3)
    assert result.reconstruction == pytest.approx(reconstruction, abs=5e-3)
    assert result.rate == pytest.approx(rate, abs=1e-5)
    assert result.negative_elbo == result.reconstruction + result.rate
    assert result.mse == pytest.approx((model.reconstruct(x) - x).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("options", [{"decisions": "joint"}, {"spread": False}])
def test_the_best_posterior_scale_has_a_value_for_each_dimension(options):
    model, x = linear_lae(**options), torch.rand(N, NX, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.decoder.weight *= torch.tensor([2.0, 0.3])
    fit_posterior_scale(model, x)
    # The derivative by s_j of the closed form vanishes where s_j^2 (|W_j|^2 / scale^2 + 1) = 1.
    best = (model.decoder.weight.detach().double().square().sum(0) / SCALE**2 + 1) ** -0.5
    assert best[1] > 1.5 * best[0]
    torch.testing.assert_close(model.posterior_scale.double(), best, rtol=0.03, atol=0)


def test_a_model_that_has_diverged_has_a_scale_and_no_likelihood():
    """Whoever validates it sees that from the number, and goes on with other models."""
    diverged, x = linear_lae(decisions="joint"), torch.rand(50, NX)
    diverged.phi.fill_(math.nan)
    fit_posterior_scale(diverged, x)
    assert diverged.posterior_scale.isfinite().all()
    assert math.isnan(evaluate(diverged, x).negative_elbo)


def test_a_trained_scale_is_left_alone():
    model = linear_lae()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    fit_posterior_scale(model, torch.rand(50, NX))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("scale", [torch.tensor(0.3), torch.tensor([0.2, 0.4])])
@pytest.mark.parametrize("options", [{}, {"spread": False}, {"decisions": "joint"}])
def test_weights_with_a_constant_scale_load_into_every_lae(scale, options):
    """Files of earlier versions hold one number, those of models that do not train s one for each dimension."""
    weights = linear_lae(decisions="joint").state_dict() | {"posterior_scale": scale}
    model = linear_lae(**options)
    model.load_state_dict(weights)
    torch.testing.assert_close(model.posterior(torch.rand(5, NX))[1], scale.expand(5, NZ))
    assert torch.equal(weights["posterior_scale"], scale)  # the caller's dict stays as it was


def test_the_draws_depend_on_the_seed_alone():
    model, x = linear_lae(), torch.rand(50, NX)
    torch.manual_seed(0)
    first = evaluate(model, x)
    assert evaluate(model, x) == first
    assert evaluate(model, x, seed=1) != first


def test_uint8_images_and_the_vae():
    torch.manual_seed(0)
    model = VAE(nn.Identity(), nn.Linear(NZ, NX), Gaussian(), nx=NX, nz=NZ, d=NX)
    x = torch.randint(0, 256, (30, NX), dtype=torch.uint8)
    assert evaluate(model, x) == evaluate(model, x / 255)
    fit_posterior_scale(model, x)  # nothing to fit, no error


def test_bad_images_are_named():
    model = linear_lae()
    for wrong, given in ((torch.rand(3, NX + 1), r"\[3, 7\]"), (torch.rand(NX), r"\[6\]")):
        with pytest.raises(
            ValueError, match=rf"images are float32 {given} .* expected floating point \[n, 6\]"
        ):
            evaluate(model, wrong)
    assert math.isfinite(evaluate(model, torch.full((3, NX), 2.0)).mse)  # a Gaussian's pixels have no bounds
    with pytest.raises(ValueError, match=r"values from nan to nan; expected finite ones"):
        evaluate(model, torch.full((3, NX), math.nan))
    model.likelihood = Bernoulli()
    with pytest.raises(ValueError, match=r"values from .* expected all in \[0, 1\]"):
        evaluate(model, torch.full((3, NX), 2.0))
