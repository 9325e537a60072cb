"""Normal distributions of the codes of each class, from few labels."""

import pytest
import torch

from lae_fast import mixtures


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Three classes in a plane, whose distributions overlap little; two labels of each.
MEANS = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
FACTORS = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.0], [0.0, 2.0]], [[1.5, 0.0], [-1.0, 1.0]]])


def test_codes_are_drawn_from_their_class():
    labels = torch.tensor([2, 0]).repeat(40_000)
    z = mixtures.ClassMixture(MEANS, FACTORS).draw(labels, seeded())
    for k in (0, 2):
        of_class = z[labels == k]
        torch.testing.assert_close(of_class.mean(0), MEANS[k], rtol=0, atol=0.05)
        torch.testing.assert_close(of_class.T.cov(), FACTORS[k] @ FACTORS[k].T, rtol=0, atol=0.1)


def test_the_posterior_is_bayes():
    z = 4 * torch.randn(50, 2, generator=seeded())
    normal = torch.distributions.MultivariateNormal(MEANS, scale_tril=FACTORS)
    wanted = normal.log_prob(z[:, None]).softmax(1)
    torch.testing.assert_close(mixtures.ClassMixture(MEANS, FACTORS).posterior(z), wanted)


def test_two_labels_of_a_class_are_enough_where_classes_stand_apart():
    truth = mixtures.ClassMixture(MEANS, FACTORS)
    labels = torch.arange(3).repeat(3000)
    z = truth.draw(labels, seeded())
    few = slice(0, 6)
    found = mixtures.fit_classes(z[few], labels[few], z[6:])
    assert (found.posterior(z).argmax(1) == labels).double().mean() > 0.98
    torch.testing.assert_close(found.means, MEANS, rtol=0, atol=0.15)
    covariances = FACTORS @ FACTORS.mT
    pooled = covariances.mean(0)
    wanted = (1 - mixtures.POOLED) * covariances + mixtures.POOLED * pooled
    torch.testing.assert_close(found.factors @ found.factors.mT, wanted, rtol=0, atol=0.35)


def test_labels_are_believed():
    """A labelled code stays in its class, however far it lies there."""
    z = torch.cat((torch.zeros(5, 2), torch.ones(5, 2))) + 0.1 * torch.randn(10, 2, generator=seeded())
    labels = torch.tensor([0, 1] * 5)  # not what the codes say
    found = mixtures.fit_classes(z, labels)
    for k in (0, 1):
        torch.testing.assert_close(found.means[k], z[labels == k].mean(0))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (dict(labels=torch.tensor([0, 0, 2, 2, 0, 2])), "label 1 is of no code; expected each from 0 to 2"),
        (dict(labels=torch.tensor([0, 1, -1, 1, 0, 1])), "labels are from -1 to 1; expected all from 0"),
        (dict(labels=torch.arange(2)), r"labels are int64 \[2\] on cpu; expected one for each of 6 codes"),
        (
            dict(labels=torch.arange(6)),
            "there are 6 codes with labels; expected at least 8, of 6 classes and 2 dimensions",
        ),
        (dict(labels=torch.rand(6)), "labels are float32"),
        (dict(z=torch.zeros(6, 2)), "codes do not differ"),
        (dict(labels=torch.tensor([0, 1, 0, 1, 0, 2**40])), "labels are from 0 to 1099511627776, of 6 codes"),
        (dict(unlabelled=torch.full((1, 2), torch.nan)), "codes have values that are not finite"),
        (
            dict(unlabelled=torch.zeros(4, 3)),
            r"unlabelled is float32 \[4, 3\] on cpu; expected float32 \[N, 2\]",
        ),
    ],
)
def test_codes_that_cannot_be_fitted_are_refused(given, error):
    good = dict(z=torch.randn(6, 2, generator=seeded()), labels=torch.tensor([0, 1] * 3))
    with pytest.raises((TypeError, ValueError), match=error):
        mixtures.fit_classes(**(good | given))


def test_what_a_mixture_does_not_know_is_refused():
    found = mixtures.ClassMixture(MEANS, FACTORS)
    with pytest.raises(ValueError, match="labels are from 0 to 3; expected all from 0 to 2"):
        found.draw(torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"z is float32 \[5, 3\] on cpu; expected float32 \[n, 2\]"):
        found.posterior(torch.zeros(5, 3))


def test_draws_and_posteriors_are_exact_in_any_program():
    found, labels = mixtures.ClassMixture(MEANS, FACTORS), torch.tensor([0, 1, 2])
    expected = found.draw(labels, seeded())
    of_class = found.posterior(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found.draw(labels, seeded()), expected)
        assert torch.equal(found.posterior(expected), of_class)


def test_codes_in_a_plane_are_told_apart_there():
    """The third dimension is the first one once more."""
    labels = torch.arange(3).repeat(1000)
    z = mixtures.ClassMixture(MEANS, FACTORS).draw(labels, seeded())
    wanted = mixtures.fit_classes(z[:9], labels[:9], z[9:]).posterior(z).argmax(1)
    z = torch.cat((z, z[:, :1]), 1).double()
    found = mixtures.fit_classes(z[:9], labels[:9], z[9:]).posterior(z)
    assert found.isfinite().all()
    assert (found.argmax(1) == labels).double().mean() > (wanted == labels).double().mean() - 0.01
