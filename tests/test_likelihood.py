"""Energies against torch.distributions and float64, at the extremes too."""

import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from lae_fast.likelihood import Bernoulli, DiscretizedLogistic, Gaussian

G = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (5, 40), generator=G) / 255
OUTPUT = torch.randn(5, 40, generator=G)
LOGITS = torch.cat((torch.linspace(-100, 100, 35), torch.tensor([0.0, 1e-6, -1e-6, 17.0, -17.0]))).repeat(
    5, 1
)


@pytest.mark.parametrize("logits", [OUTPUT, LOGITS])
def test_bernoulli(logits):
    exact = -(X.double() * logits.double() - torch.nn.functional.softplus(logits.double()))
    energy = Bernoulli().energy(logits, X)
    assert energy.dtype == torch.float64
    assert ((energy - exact.sum(1)).abs() <= 1e-6 * exact.abs().sum(1) + 1e-6).all()
    binary = (X > 0.5).double()
    torch.testing.assert_close(
        Bernoulli().energy(OUTPUT.double(), binary),
        -TorchBernoulli(logits=OUTPUT.double()).log_prob(binary).sum(1),
    )


def test_bernoulli_derivative():
    logits = LOGITS.clone().requires_grad_()
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (grad,) = torch.autograd.grad((Bernoulli().energy(logits, X) * weights).sum(), logits)
    exact = weights[:, None] * (torch.sigmoid(LOGITS.double()) - X.double())
    assert ((grad - exact).abs() <= 2.0**-22 * weights[:, None]).all()
    assert torch.autograd.gradcheck(
        lambda logits: Bernoulli().energy(logits, X.double()), OUTPUT.double().requires_grad_()
    )
    total = (Bernoulli().energy(logits, X) * weights.requires_grad_()).sum()
    (first,) = torch.autograd.grad(total, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("scale", [None, 0.5])
def test_gaussian(scale):
    likelihood = Gaussian(scale).double()
    expected = -Normal(OUTPUT.double(), likelihood.log_scale.exp()).log_prob(X.double()).sum(1)
    torch.testing.assert_close(likelihood.energy(OUTPUT.double(), X.double()), expected)
    assert likelihood.log_scale.requires_grad == (scale is None)


@pytest.mark.parametrize("scale", [1e-3, 0.03, 1.0])
def test_discretized_logistic_is_a_probability(scale):
    likelihood = DiscretizedLogistic(scale).double()
    levels = (torch.arange(256, dtype=torch.float64) / 255)[:, None]  # 256 "images" of one pixel
    for mean in (-0.2, 0.0, 0.3, 0.501, 1.0, 1.4):
        energy = likelihood.energy(torch.full((256, 1), mean, dtype=torch.float64), levels)
        assert energy.isfinite().all()
        assert math.isclose((-energy).exp().sum().item(), 1, rel_tol=1e-9)


def test_discretized_logistic_in_float32():
    for scale in (1e-3, 0.05):
        single, double = DiscretizedLogistic(scale), DiscretizedLogistic(scale).double()
        output = OUTPUT * 0.1 + X
        exact = double.energy(output.double(), X.double())
        assert ((single.energy(output, X) - exact).abs() <= 1e-5 * exact.abs() + 1e-3).all()


def test_mean_images():
    for likelihood in (Bernoulli(), DiscretizedLogistic()):
        mean = likelihood.mean(3 * OUTPUT)
        assert mean.min() >= 0
        assert mean.max() <= 1
    assert torch.equal(Gaussian().mean(OUTPUT), OUTPUT)
