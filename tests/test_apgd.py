"""APGD beside the paper's algorithm, worst cases in closed form and PGD; the losses that attacks raise, and their scale.

Everything is deterministic given its seeds, which are never retuned. Comparisons of how many images two attacks fool state
how often they would fail by chance (`is_no_worse`).
"""

import math

import pytest
import torch
import torch.nn.functional as F
from test_attacks import WIDE, M, digit_classifier, fooled, images, is_no_worse, linear, margin, seeded
from torch import nn

from lae_fast.attacks import apgd, pgd, robustness
from lae_fast.attacks.automatic import checkpoints, likely
from lae_fast.attacks.losses import LOSSES, WANTED, ratio_towards


@pytest.fixture(scope="module")
def digits():
    return digit_classifier()


class Scaled(nn.Module):
    """A classifier whose logits are multiplied by a number: the same answers, and another confidence."""

    def __init__(self, model, scale):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x):
        return self.scale * self.model(x)


# --- The paper's algorithm ---


def test_the_paper_s_checkpoints():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]
    assert checkpoints(0) == [0]


def test_steps_of_one_pixel_by_hand():
    """The logits are 1 + |x - 1/2| and 0, so that the margin is highest at 1/2 and never fools; x_0 = 0, eps = 1, eta_0 = 2.

    Checkpoints after 3, 5, 6, 7, ... steps. By hand, z = P(x + eta s) in [-1, 1]:

        1  z = 1,   x = 1                                                  lower than at 0
        2  z = -1,  x = 1 - 3/4 2 + 1/4 1           = -1/4                 lower
        3  z = 1,   x = -1/4 + 3/4 5/4 - 1/4 5/4    = 3/8                  higher: 1 of 3 steps, eta = 1, from 3/8
        4  z = 1,   x = 3/8 + 3/4 5/8 + 1/4 5/8     = 1                    lower
        5  z = 0,   x = 1 - 3/4 + 1/4 5/8           = 13/32                higher: 1 of 2 steps, eta = 1/2, from 13/32
        6  z = 29/32,   x = 13/32 + 3/8 - 1/4 19/32 = 81/128               lower: eta = 1/4, from 13/32
        7  z = 21/32,   x = 13/32 + 3/16            = 19/32                as high, not higher: eta = 1/8, from 13/32
        8  z = 17/32,   x = 13/32 + 3/32            = 1/2                  higher: eta stays
    """
    seen = []

    def model(x):
        seen.append(x.item())
        return torch.cat([1 + (x - 0.5).abs(), torch.zeros_like(x)], 1)

    x, label = torch.zeros(1, 1), torch.tensor([0])
    options = dict(eps=1, loss="cw", random_start=False, bounds=WIDE, n_steps=10)
    with pytest.warns(UserWarning, match="gradient vanishes for 1 of 1"):  # at the top it does
        result = apgd(model, x, label, **options)
    assert seen[:9] == [0, 1, -1 / 4, 3 / 8, 1, 13 / 32, 81 / 128, 19 / 32, 1 / 2]
    assert result.item() == 0.5


def test_a_highest_value_that_stays_halves_the_step_too():
    """Nearly all steps rise, which is enough, but none gets above the start, at 0: after 22 steps of 100 that halves eta, and after
    41 it does not, as eta was halved at the last checkpoint.

    The gradient is always 1, and x is 1 until x_23 = 0 + 3/4 1 + 1/4 (0 - 1); x_24 = 1/2 + 3/4 1/2 + 1/4 1/2.
    """
    gains, seen = iter([0, *range(-100, -78), *range(-100, -81), *[-50] * 59]), []

    def model(x):
        seen.append(x.item())
        return torch.cat([500 - next(gains) - (x - x.detach()), torch.zeros_like(x)], 1)

    options = dict(eps=1, loss="cw", random_start=False, bounds=WIDE, n_steps=100)
    apgd(model, torch.zeros(1, 1), torch.tensor([0]), **options)
    assert seen[:43] == [0, *[1] * 22, 0.5, *[1] * 19]


def landscape(x):
    """Waves and a slope in two pixels x [..., 2] -> [...]."""
    return torch.sin(7 * x[..., 0]) + torch.cos(5 * x[..., 1] + x[..., 0]) + 0.3 * x[..., 1] - 10


def published(x0, eps, n_steps, seen):
    """Algorithm 1 of the paper for one image in a box; why eta was halved goes into `seen`."""

    def f(x):
        return landscape(x).item()

    def ascent(x, eta):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(landscape(leaf), leaf)
        return P(x + eta * gradient.sign())

    def P(x):
        return torch.minimum(torch.maximum(x, x0 - eps), x0 + eps)

    eta, w = 2 * eps, [0, *checkpoints(n_steps)]
    x = [x0, ascent(x0, 2 * eps)]
    values = [f(x[0]), f(x[1])]
    rises = [values[1] > values[0]]
    x_max = max(x, key=f)
    etas, tops = {0: eta}, {0: values[0]}
    for k in range(1, n_steps + 1):
        # x[k] is known; conditions 1 and 2 of equation 3 come before the next step
        if k in w:
            last = w[w.index(k) - 1]
            etas[k], tops[k] = eta, f(x_max)
            first = sum(rises[last:k]) < 0.75 * (k - last)
            second = etas[last] == etas[k] and tops[last] == tops[k]
            seen.append((first, second))
            if first or second:
                eta, x[k] = eta / 2, x_max
        if k == n_steps:
            return x_max
        z = ascent(x[k], eta)
        x.append(P(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1])))
        rises.append(f(x[k + 1]) > f(x[k]))
        if f(x[k + 1]) > f(x_max):
            x_max = x[k + 1]


def test_every_image_follows_the_published_algorithm():
    x = torch.rand(40, 2, generator=seeded(0), dtype=torch.float64)
    seen = []
    expected = torch.stack([published(row, 0.4, 30, seen) for row in x])
    assert {(False, False), (True, False), (True, True)} == set(seen)  # below: the second condition alone

    def model(x):  # [R, 2] -> [R, 2], whose margin for class 0 is the landscape: it fools nobody
        return torch.stack([-landscape(x), torch.zeros(len(x))], 1)

    options = dict(eps=0.4, loss="cw", random_start=False, bounds=WIDE, n_steps=30)
    result = apgd(model, x, torch.zeros(40, dtype=torch.int64), **options)
    assert torch.allclose(result, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", ["ce", "dlr", "cw", "dlr-targeted"])
def test_the_worst_image_of_the_path_is_kept(digits, loss):
    model, x, labels = digits
    paths = []

    def watched(x):
        paths.append(x.detach().clone())
        return model(x)

    result = apgd(watched, x[:60], labels[:60], eps=0.08, loss=loss, n_steps=12, generator=seeded(1))
    path = torch.stack(paths[1:] if loss == "dlr-targeted" else paths)  # it asks for the likely classes first
    assert len(path) == 13
    is_fooled = torch.stack([fooled(model, a, labels[:60]) for a in path]).any(0)
    assert torch.equal(fooled(model, result, labels[:60]), is_fooled)
    assert 10 < is_fooled.sum() < 50
    if loss in ("ce", "cw"):

        def value(a):
            output = model(a).detach()
            return (
                F.nll_loss(output, labels[:60], reduction="none")
                if loss == "ce"
                else -margin(model, a, labels[:60])
            )

        values = torch.stack([value(a) for a in path])
        assert torch.equal(value(result)[~is_fooled], values.amax(0)[~is_fooled])


def test_a_misclassification_beats_a_higher_loss():
    """The first point is answered wrongly with a cross-entropy of 0.80, the second one rightly with 1.02."""
    answers = iter(torch.tensor([[0.45, 0.55, 1e-9], [0.36, 0.32, 0.32]]).log())

    def model(x):
        return next(answers) + (x - x.detach()) * torch.tensor([[-1.0, 0, 0]])

    x = torch.full((1, 1), 0.5)
    assert apgd(model, x, torch.tensor([0]), eps=0.1, n_steps=1, random_start=False) == 0.5


# --- Closed forms ---


@pytest.mark.parametrize("loss", ["ce", "cw"])
def test_two_classes_worst_case(loss):
    model, w = linear(2)
    x, labels = images(), torch.arange(M) % 2
    away = torch.where(labels[:, None] == 0, w[1] - w[0], w[0] - w[1]).view_as(x)
    options = dict(loss=loss, generator=seeded(2))
    for eps in (0.03, 0.3):
        worst = (x + eps * away.sign()).clamp(0, 1)
        assert torch.allclose(apgd(model, x, labels, eps=eps, **options), worst, rtol=0, atol=1e-12)
    in_ball = apgd(model, x, labels, eps=0.3, norm="l2", bounds=WIDE, **options)
    drop = margin(model, x, labels) - margin(model, in_ball, labels)
    assert torch.allclose(drop, 0.3 * (w[0] - w[1]).norm().expand(M), rtol=1e-5)


@pytest.mark.parametrize(("norm", "eps", "dual"), [("linf", 0.1, 1), ("l2", 0.4, 2)])
def test_targeted_dlr_fools_whom_a_linear_classifier_lets_it(norm, eps, dual):
    """Class a overtakes y within eps where the margin is below eps |w_a - w_y| in the dual norm."""
    model, w = linear(5)
    x, labels = images(300), model(images(300)).argmax(1)
    z = model(x).detach()
    gaps = z.gather(1, labels[:, None]) - z  # [m, 5]
    reach = eps * (w[labels, None] - w).norm(dual, dim=2)
    worst = (gaps - reach).scatter(1, labels[:, None], math.inf).amin(1)
    assert 50 < (worst > 0).sum() < 250
    options = dict(eps=eps, norm=norm, loss="dlr-targeted", n_steps=50, bounds=WIDE, generator=seeded(4))
    is_fooled = fooled(model, apgd(model, x, labels, n_restarts=4, **options), labels)
    assert is_fooled[worst < -0.01].all()
    assert not is_fooled[worst > 0].any()
    one = fooled(model, apgd(model, x, labels, n_restarts=1, **options), labels)
    assert one.sum() < is_fooled.sum()  # some fall to a class that is not the likeliest


def test_the_wrong_classes_by_their_rank():
    """Also where one has no probability at all."""
    z = torch.tensor([[3.0, 2, 1, 0.5, -torch.inf], [0, 5, 5, 1, 2]])
    labels = torch.tensor([0, 2])
    ranked = torch.stack([likely(z, labels, rank) for rank in range(5)], 1)
    assert ranked.tolist() == [[1, 2, 3, 4, 1], [1, 4, 3, 0, 1]]


# --- Losses ---


def test_losses_by_hand():
    """Logits 5, 3, 1, 0: of label 0 the margin is 3 - 5, over 5 - 1; of label 1 5 - 3."""
    z, y = torch.tensor([[5.0, 3, 1, 0]] * 2), torch.tensor([0, 1])
    assert LOSSES["cw"].function(z, y).tolist() == [-2, 2]
    assert LOSSES["dlr"].function(z, y).tolist() == [-0.5, 0.5]
    assert torch.allclose(ratio_towards(torch.tensor([2, 3]))(z, y), torch.tensor([-4 / 4.5, -3 / 4.5]))
    assert torch.allclose(WANTED["dlr"].function(z, y), torch.tensor([-2 / 4.5, 2 / 4.5]))
    equal = torch.zeros(1, 4, requires_grad=True)  # no logit is ahead: no division by 0
    for function in (LOSSES["dlr"].function, ratio_towards(torch.tensor([2]))):
        (gradient,) = torch.autograd.grad(function(equal, y[:1]).sum(), equal)
        assert gradient.isfinite().all()
        assert gradient[0, 0] < 0


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize("loss", ["ce", "dlr", "cw"])
def test_every_loss_fools_and_aims(digits, attack, loss):
    model, x, labels = digits
    options = dict(loss=loss, n_steps=20, generator=seeded(5))
    adversary = attack(model, x, labels, eps=0.3, **options)
    assert fooled(model, adversary, labels).double().mean() > 0.95
    wanted = (labels + 1) % 10
    aimed = attack(model, x, wanted, eps=0.4, targeted=True, **options)
    assert (model(aimed).argmax(1) == wanted).double().mean() > 0.7


@pytest.mark.parametrize("loss", ["dlr", "dlr-targeted"])
def test_dlr_does_not_depend_on_the_scale_of_the_logits(digits, loss):
    """A power of two, by which no product is rounded."""
    model, x, labels = digits
    options = dict(eps=[0.05, 0.15], loss=loss, n_steps=8, n_restarts=2)
    plain = apgd(model, x[:100], labels[:100], generator=seeded(6), **options)
    scaled = apgd(Scaled(model, 128), x[:100], labels[:100], generator=seeded(6), **options)
    assert torch.equal(plain, scaled)


def test_confident_models_only_look_robust_to_the_cross_entropy(digits):
    model, x, labels = digits
    sure, x = Scaled(model, 100).float(), x.float()
    options = dict(eps=0.2, n_steps=10, generator=seeded(7))
    try:
        with pytest.warns(UserWarning, match=r"gradient vanishes for \d+ of 300 .* take loss=\"dlr\""):
            masked = fooled(sure, pgd(sure, x, labels, **options), labels)
        with pytest.warns(UserWarning, match="gradient vanishes"):
            apgd(sure, x, labels, **options)
        by_dlr = fooled(sure, pgd(sure, x, labels, loss="dlr", **options), labels)
        by_margin = fooled(sure, pgd(sure, x, labels, loss="cw", **options), labels)
    finally:
        model.double()
    assert masked.double().mean() < 0.6
    assert by_dlr.double().mean() > 0.9
    assert by_margin.double().mean() > 0.9


# --- Beside PGD ---


@pytest.mark.parametrize(("norm", "several"), [("linf", [0.05, 0.1, 0.15]), ("l2", [0.3, 0.6, 0.9])])
def test_it_is_no_weaker_than_pgd_of_as_many_gradients(digits, norm, several):
    model, x, labels = digits
    options = dict(eps=several, norm=norm, generator=seeded(8))
    by_pgd = pgd(model, x, labels, n_steps=30, **options)
    for loss in ("ce", "dlr"):
        by_apgd = apgd(model, x, labels, n_steps=29, loss=loss, **options)
        for a, b in zip(by_apgd, by_pgd, strict=True):
            assert is_no_worse(fooled(model, a, labels), fooled(model, b, labels))


def test_restarts_skip_the_fooled(digits):
    model, x, labels = digits
    seen = []

    def watched(x):
        seen.append(len(x))
        return model(x)

    apgd(
        watched,
        x[:50],
        labels[:50],
        eps=0.1,
        loss="dlr-targeted",
        n_steps=5,
        n_restarts=3,
        generator=seeded(9),
    )
    assert len(seen) == 3 * 7
    assert seen[0] == 50 > seen[7] >= seen[14]
    assert all(len(set(seen[i : i + 7])) == 1 for i in (0, 7, 14))


def test_many_eps_are_as_many_calls(digits):
    model, x, labels = digits
    options = dict(random_start=False, n_steps=10, loss="dlr")
    together = apgd(model, x[:50], labels[:50], eps=[0.1, 0.0, 0.3], **options)
    apart = [apgd(model, x[:50], labels[:50], eps=eps, **options) for eps in (0.1, 0.0, 0.3)]
    assert torch.allclose(together, torch.stack(apart), rtol=0, atol=1e-10)
    assert torch.equal(together[1], x[:50])


def test_robustness_under_it(digits):
    model, x, labels = digits
    options = dict(attack=apgd, loss="dlr-targeted", n_steps=10, n_restarts=9, generator=seeded(10))
    clean, small, large = robustness(model, x[:100], labels[:100], eps=[0, 0.05, 0.3], **options).accuracy
    assert clean == (~fooled(model, x[:100], labels[:100])).double().mean()
    assert clean > small > large == 0


# --- Errors ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'; expected one of ce, dlr, cw, dlr-targeted"),
        (
            {"loss": "dlr-targeted"},
            r"returned \[2, 3\]; expected \[2, classes\] with classes >= 4 for this loss",
        ),
        ({"model": lambda x: x[:, :2], "loss": "dlr"}, r"returned \[2, 2\]; .* classes >= 3 for this loss"),
        (
            {"loss": "dlr-targeted", "targeted": True},
            "targeted is True with loss 'dlr-targeted'; expected False",
        ),
        ({"n_restarts": 2, "random_start": False}, "n_restarts is 2 without random_start"),
        ({"n_steps": -1}, "n_steps is -1; expected at least 0"),
        ({"norm": "l1"}, "norm is 'l1'; expected one of linf, l2"),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = dict(model=lambda x: x, x=torch.full((2, 3), 0.5), labels=torch.tensor([0, 1]), eps=0.1)
    with pytest.raises(ValueError, match=message):
        apgd(**good | change)
    if change == {"loss": "hinge"}:
        with pytest.raises(ValueError, match=r"expected one of ce, dlr, cw$"):
            pgd(**good | change)


def test_what_is_not_finite_on_the_path_is_an_error():
    x, labels = torch.tensor([[0.0, 0.5], [0.5, 0.5]]), torch.tensor([0, 1])

    def model(x):
        return x + torch.where(x < 0.2, math.nan, 0)

    with pytest.raises(RuntimeError, match="not finite for 1 of 2 attacked images"):
        apgd(model, x, labels, eps=0.1, n_steps=3)
