"""Attacks beside worst cases that are known in closed form, and beside a plain loop.

Everything is deterministic given its seeds, which are never retuned. The checks of a law state how often they would
fail by chance.
"""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import lae_fast
from lae_fast import data
from lae_fast.attacks import fgsm, pgd, restarts, robustness
from lae_fast.models import Architecture

BY_CHANCE = 1e-6  # how often each comparison of laws here fails though the code is right, over seeds
WIDE = (-100.0, 100.0)  # bounds that nothing here reaches
M, SIDE = 40, 4


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def images(m=M, seed=0):
    """[m, 1, 4, 4] in [0, 1], float64; float32 would turn a rounding error into a pixel that moves the other way."""
    return torch.rand(m, 1, SIDE, SIDE, generator=seeded(seed), dtype=torch.float64)


def linear(n_classes, seed=1):
    """A linear classifier and its weight [classes, 16]; logits."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, n_classes)).double()
    with torch.no_grad():
        model[1].weight.normal_()
    return model, model[1].weight.detach().clone()


def margin(model, x, labels):
    """How far the true class is ahead of the best other one, [m]."""
    logits = model(x).detach()
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -math.inf).amax(1)


def fooled(model, x, labels):
    return model(x).argmax(1) != labels


def like_fgsm(model, x, labels, *, eps, **options):
    """FGSM by way of `pgd`, with what `pgd` would need for it."""
    options = {k: v for k, v in options.items() if k in ("targeted", "bounds")}
    return fgsm(model, x, labels, eps=eps, **options)


def digit_classifier():
    """A small convolutional classifier of 8 x 8 digits, and 300 images that it has not seen, [300, 1, 8, 8]."""
    d = data.load("digits")
    x, labels = d.train.images.double().view(-1, 1, 8, 8) / 255, d.train.labels
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
    model = nn.Sequential(*layers, nn.LogSoftmax(1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        rows = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        F.nll_loss(model(x[rows]), labels[rows]).backward()
        optimizer.step()
    test = d.test.images[:300].double().view(-1, 1, 8, 8) / 255
    return model, test, d.test.labels[:300]


@pytest.fixture(scope="module")
def digits():
    return digit_classifier()


# --- Closed forms ---


@pytest.mark.parametrize("attack", [pgd, like_fgsm])
def test_two_classes_linf_worst_case(attack):
    model, w = linear(2)
    x, labels = images(), torch.arange(M) % 2
    away = torch.where(labels[:, None] == 0, w[1] - w[0], w[0] - w[1]).view_as(x).sign()
    for eps in (0.03, 0.3):
        worst = (x + eps * away).clamp(0, 1)
        adversary = attack(model, x, labels, eps=eps, generator=seeded(2))
        assert torch.allclose(adversary, worst, rtol=0, atol=1e-12)
    free = attack(model, x, labels, eps=0.3, bounds=WIDE, generator=seeded(2))
    drop = margin(model, x, labels) - margin(model, free, labels)
    assert torch.allclose(drop, 0.3 * (w[0] - w[1]).abs().sum().expand(M))


@pytest.mark.parametrize("random_start", [False, True])
def test_two_classes_l2_worst_case(random_start):
    model, w = linear(2)
    x, labels = images(), torch.arange(M) % 2
    options = dict(bounds=WIDE, random_start=random_start, generator=seeded(3))
    # A step of 0.1 and back to the sphere divides what the start is off by 4/3; the margin is off by its square.
    adversary = pgd(model, x, labels, eps=0.3, norm="l2", n_steps=60, step_size=0.1, **options)
    drop = margin(model, x, labels) - margin(model, adversary, labels)
    assert torch.allclose(drop, 0.3 * (w[0] - w[1]).norm().expand(M), rtol=1e-12)


def test_l2_of_gradients_whose_squares_vanish():
    w, x = torch.randn(SIDE**2, generator=seeded(2)), images().float()

    def sure(
        x,
    ):  # it answers class 1, by about 65 nats: gradients of 1e-28, and 1e-45 is the least number of float32
        z = x.flatten(1) @ w - 65
        return torch.stack([z, torch.zeros_like(z)], 1)

    # Within the ball, to see the length of the step as well.
    options = dict(eps=0.3, norm="l2", n_steps=1, step_size=0.1, bounds=WIDE, random_start=False)
    with pytest.warns(UserWarning, match="gradient vanishes"):  # the true class's part of it, in truth
        moved = pgd(sure, x, torch.ones(M, dtype=torch.int64), **options) - x
    assert torch.allclose(moved, (0.1 * w / w.norm()).view(1, 1, SIDE, SIDE), atol=1e-6)


@pytest.mark.parametrize(("norm", "eps", "dual"), [("linf", 0.1, 1), ("l2", 0.4, 2)])
def test_multi_class_worst_case(norm, eps, dual):
    """Class a overtakes y within eps where the margin is below eps |w_a - w_y| in the dual norm."""
    model, w = linear(5)
    x, labels = images(300), model(images(300)).argmax(1)
    logits = model(x).detach()
    gaps = logits.gather(1, labels[:, None]) - logits  # [m, 5]
    reach = eps * (w[labels, None] - w).norm(dual, dim=2)
    worst = (gaps - reach).scatter(1, labels[:, None], math.inf).amin(1)
    assert 50 < (worst > 0).sum() < 250
    options = dict(eps=eps, norm=norm, bounds=WIDE, generator=seeded(4))
    adversary = pgd(model, x, labels, n_restarts=3, **options)
    assert (margin(model, adversary, labels) >= worst - 1e-12).all()
    # The loss is highest near where the margin is least, and to raise one class is a convex problem: aimed at all in
    # turn, PGD fools whom it can fool, but for a few at the edge.
    aimed = [pgd(model, x, torch.full_like(labels, c), targeted=True, **options) for c in range(5)]
    is_fooled = torch.stack([fooled(model, adversary, labels) for adversary in aimed]).any(0)
    assert is_fooled[worst < -0.1].all()
    assert not is_fooled[worst > 0].any()


def test_fgsm_takes_the_gradient_of_the_cross_entropy():
    model, w = linear(5)
    x, labels = images(), torch.arange(M) % 5
    error = model(x).detach().softmax(1) - F.one_hot(labels, 5)
    sign = (error @ w).sign().view_as(x)
    assert torch.equal(fgsm(model, x, labels, eps=0.2), (x + 0.2 * sign).clamp(0, 1))
    assert torch.equal(fgsm(model, x, labels, eps=0.2, targeted=True), (x - 0.2 * sign).clamp(0, 1))
    several = fgsm(model, x, labels, eps=[0.2, 0.0, 0.1], bounds=(-1, 2))
    assert torch.equal(several, torch.stack([x + 0.2 * sign, x, x + 0.1 * sign]))


def test_fgsm_is_one_step_of_pgd(digits):
    model, x, labels = digits
    one = pgd(model, x, labels, eps=0.1, n_steps=1, step_size=0.1, random_start=False)
    assert torch.allclose(fgsm(model, x, labels, eps=0.1), one, rtol=0, atol=1e-15)


# --- Beside a plain loop, and itself ---


def published_loop(model, x, labels, eps, n_steps=40):
    """PGD as the report describes it, of steps of 0.01 from x itself."""
    adversary = x
    for _ in range(n_steps):
        delta = torch.zeros_like(x, requires_grad=True)
        F.cross_entropy(model(adversary + delta), labels).backward()
        moved = adversary + 0.01 * delta.grad.sign()
        adversary = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return adversary


@pytest.mark.parametrize("n_steps", [3, 40])
def test_the_published_loop(digits, n_steps):
    model, x, labels = digits
    for eps in (0.02, 0.2):
        options = dict(eps=eps, step_size=0.01, n_steps=n_steps, random_start=False)
        theirs = published_loop(copy.deepcopy(model), x, labels, eps, n_steps)
        assert torch.allclose(pgd(model, x, labels, **options), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"norm": "l2"}, {"step_size": 0.01}, {"targeted": True}])
def test_many_eps_are_as_many_calls(digits, options):
    model, x, labels = digits
    x, labels, options = x[:50], labels[:50], dict(options, random_start=False, n_steps=10)
    several = [0.1, 0.0, 0.3]
    together = pgd(model, x, labels, eps=several, **options)
    apart = torch.stack([pgd(model, x, labels, eps=eps, **options) for eps in several])
    assert together.shape == (3, *x.shape)
    assert torch.allclose(together, apart, rtol=0, atol=1e-10)
    assert torch.equal(pgd(model, x, labels, eps=[0.1], **options)[0], apart[0])


def test_the_default_step_size(digits):
    model, x, labels = digits
    options = dict(eps=0.2, n_steps=8, random_start=False)
    explicit = pgd(model, x, labels, step_size=2.5 * 0.2 / 8, **options)
    assert torch.equal(pgd(model, x, labels, **options), explicit)
    assert not torch.equal(pgd(model, x, labels, step_size=0.2 / 8, **options), explicit)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_0_is_no_attack(digits, norm):
    model, x, labels = digits
    assert torch.equal(pgd(model, x, labels, eps=0.0, norm=norm), x)
    assert torch.equal(pgd(model, x, labels, eps=[0.0, 0.1], norm=norm, step_size=0.1)[0], x)
    assert torch.equal(fgsm(model, x, labels, eps=0), x)
    seen = []
    pgd(lambda x: seen.append(len(x)) or model(x), x, labels, eps=[0.0, 0.1], norm=norm, n_steps=2)
    assert set(seen) == {len(x)}  # nor does it cost anything


# --- Robustness ---


def test_robustness_counts_what_the_attack_made(digits):
    model, x, labels = digits
    model.train()
    several, options = [0.0, 0.1, 0.2], dict(n_steps=5, random_start=False)
    for attack, extra in ((pgd, options), (fgsm, {})):
        result = robustness(model, x, labels, eps=several, attack=attack, batch_size=70, **extra)
        adversaries = attack(model, x, labels, eps=several, **extra)
        output = torch.stack([model(adversary) for adversary in adversaries]).detach()  # [K, N, 10]
        assert torch.equal(result.accuracy, (output.argmax(2) == labels).double().mean(1))
        own = output.gather(2, labels.expand(3, -1)[..., None]).squeeze(2)
        assert torch.allclose(result.loss, -own.mean(1), rtol=1e-10)
        assert result.accuracy[0] == (model(x).argmax(1) == labels).double().mean()  # eps 0
        assert result.accuracy.dtype == result.loss.dtype == torch.float64


def test_robustness_is_of_the_model_in_eval_mode():
    model, _ = linear(3)
    model = nn.Sequential(nn.Dropout(0.5), model).train()
    x, labels = images(), torch.arange(M) % 3
    clean = (model.eval()(x).argmax(1) == labels).double().mean()
    result = robustness(model.train(), x, labels, eps=[0.0], batch_size=7)
    assert result.accuracy.item() == clean
    assert model.training
    assert model[0].training


def is_no_worse(fooled_by_more, fooled_by_less):
    """Not significantly fewer images fooled by what should fool more.

    If either of the two attacks were as likely to be the only one to fool an image, the images that one alone fools
    would be split by fair coins: a rejection at the level BY_CHANCE.
    """
    against, n = (fooled_by_less & ~fooled_by_more).sum(), (fooled_by_less != fooled_by_more).sum()
    return stats.binom.sf(int(against) - 1, int(n), 0.5) > BY_CHANCE


def test_more_steps_and_larger_eps_never_help_the_defender(digits):
    model, x, labels = digits
    for norm, several in (("linf", [0.05, 0.1, 0.2]), ("l2", [0.3, 0.6, 1.2])):
        found = {}
        for n_steps in (1, 5, 40):
            adversaries = pgd(model, x, labels, eps=several, norm=norm, n_steps=n_steps, generator=seeded(5))
            found[n_steps] = [fooled(model, adversary, labels) for adversary in adversaries]
        for more, less in ((40, 5), (5, 1)):
            assert all(is_no_worse(a, b) for a, b in zip(found[more], found[less], strict=True))
        for by_eps in found.values():
            assert all(is_no_worse(by_eps[i + 1], by_eps[i]) for i in range(2))
        # And they do help the attacker, or there was nothing to see.
        assert found[40][0].sum() > fooled(model, x, labels).sum() + 10
        assert found[40][2].sum() > found[40][0].sum() + 30
        assert found[40][1].sum() > found[1][1].sum()


# --- Restarts ---


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_restarts_only_add_to_the_fooled(digits, norm):
    model, x, labels = digits
    options = dict(eps=0.1 if norm == "linf" else 0.5, norm=norm, n_steps=2)
    one = pgd(model, x, labels, generator=seeded(6), **options)
    five = pgd(model, x, labels, generator=seeded(6), n_restarts=5, **options)
    by_one, by_five = fooled(model, one, labels), fooled(model, five, labels)
    assert not (by_one & ~by_five).any()
    assert torch.equal(one[by_one], five[by_one])  # settled by the first
    rest = ~by_one & ~by_five
    losses = [F.cross_entropy(model(a), labels, reduction="none")[rest] for a in (one, five)]
    assert (losses[1] >= losses[0]).all()
    assert (
        losses[1] > losses[0]
    ).double().mean() > 0.5  # the first of five is the worst for a fifth of the images


def by_thirds(x):
    """Probabilities of 3 classes for one pixel [m, 1]: below 0.5 the answer is 1 with a loss of 0.80 for class 0, above
    it is 0, with a loss of 1.02: a failure that is no high loss."""
    low, high = torch.tensor([0.45, 0.55, 1e-9]), torch.tensor([0.36, 0.32, 0.32])
    return torch.where(x < 0.5, low, high).log()


def test_a_misclassification_beats_a_higher_loss():
    x, labels = torch.full((200, 1), 0.5), torch.zeros(200, dtype=torch.int64)
    options = dict(eps=0.5, n_steps=0)
    one = pgd(by_thirds, x, labels, generator=seeded(7), **options)
    assert 50 < fooled(by_thirds, one, labels).sum() < 150
    many = pgd(by_thirds, x, labels, generator=seeded(7), n_restarts=40, **options)
    assert fooled(by_thirds, many, labels).all()  # else by chance: 200 / 2^40
    wanted = torch.ones_like(labels)
    many = pgd(by_thirds, x, wanted, generator=seeded(7), n_restarts=40, targeted=True, **options)
    assert not fooled(by_thirds, many, wanted).any()


def faint(x):
    """Two classes, one pixel [m, 1] in [0, 1]: always 0, but the less so the larger x."""
    return torch.cat([2 - x, torch.zeros_like(x)], 1)


@pytest.mark.parametrize("targeted", [False, True])
def test_of_failed_restarts_the_worst_is_kept(targeted):
    x = torch.full((30, 1), 0.5)
    labels = torch.full((30,), int(targeted))
    options = dict(eps=0.5, n_steps=0, targeted=targeted)
    best = pgd(faint, x, labels, n_restarts=4, generator=seeded(8), **options)
    generator = seeded(8)
    tries = torch.stack([pgd(faint, x, labels, generator=generator, **options) for _ in range(4)])
    assert torch.equal(best, tries.amax(0))


def test_who_is_fooled_takes_no_part_in_further_restarts():
    seen = []

    def model(x):
        seen.append(len(x))
        return by_thirds(x)

    x, labels = torch.full((200, 1), 0.5), torch.zeros(200, dtype=torch.int64)
    pgd(model, x, labels, eps=0.5, n_steps=0, n_restarts=60, generator=seeded(9))
    assert seen[0] == 200
    assert all(b <= a for a, b in itertools.pairwise(seen))
    assert len(seen) < 60  # all fooled: no further restart


# --- Targets, constraints, starts ---


def test_targeted(digits):
    model, x, labels = digits
    wanted = (labels + 1) % 10
    for norm, eps in (("linf", 0.3), ("l2", 2.0)):
        adversary = pgd(model, x, wanted, eps=eps, norm=norm, targeted=True, generator=seeded(10))
        assert (model(adversary).argmax(1) == wanted).double().mean() > 0.9
    near = fgsm(model, x, wanted, eps=0.1, targeted=True)
    assert F.nll_loss(model(near), wanted) < F.nll_loss(model(x), wanted) - 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ball_and_bounds(digits, norm, dtype, device):
    model, x, labels = (
        copy.deepcopy(digits[0]).to(device, dtype),
        digits[1].to(device, dtype),
        digits[2].to(device),
    )
    x, bounds = 0.2 + 0.5 * x, (0.2, 0.7)  # many pixels on either bound
    several = torch.tensor([0.01, 0.3, 1.0], device=device, dtype=dtype)
    for options in (dict(n_steps=0), dict(n_steps=10), dict(n_steps=2, n_restarts=3)):
        adversaries = pgd(model, x, labels, eps=several.tolist(), norm=norm, bounds=bounds, **options)
        assert adversaries.dtype == dtype
        low, high = torch.tensor(bounds, dtype=dtype)
        assert adversaries.min() >= low.item()
        assert adversaries.max() <= high.item()
        order = math.inf if norm == "linf" else 2
        distances = (adversaries - x).flatten(2).norm(order, dim=2)
        slack = 10 * torch.finfo(dtype).eps
        assert (distances.amax(1) <= several * (1 + slack) + slack).all()
        if options["n_steps"] == 10:
            assert (distances[0] > 0.009).all()


def test_channels_last_stays_so():
    """Or a convolution would have to convert in every step."""
    strides = set()

    def model(x):
        strides.add(x.stride())
        return x.flatten(1)

    x = torch.rand(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    pgd(model, x, torch.arange(4), eps=[0.1, 0.2], n_restarts=2)
    assert strides == {x.stride()}


def test_random_starts_are_uniform():
    d, m = 3, 4000
    x, labels = torch.zeros(m, d, dtype=torch.float64), torch.zeros(m, dtype=torch.int64)
    model, _ = linear(2)
    model = nn.Linear(d, 2).double()
    options = dict(eps=[0.5, 2.0], n_steps=0, bounds=WIDE, generator=seeded(11))
    box, ball = (pgd(model, x, labels, norm=norm, **options) for norm in ("linf", "l2"))
    laws = []
    for i, eps in enumerate(options["eps"]):
        laws.append(box[i].flatten() / eps)  # U(-1, 1) in every pixel
        radius = ball[i].norm(dim=1)
        laws.append(2 * (radius / eps) ** d - 1)  # P(|z| < r) = r^d in a ball
        laws += list((ball[i] / radius[:, None]).T)  # any coordinate of a point on the sphere (Archimedes)
    for law in laws:
        assert stats.kstest(law.numpy(), stats.uniform(-1, 2).cdf).pvalue > BY_CHANCE
    # Each eps has its own draws.
    assert not torch.allclose(box[0] / 0.5, box[1] / 2.0)
    # Uncorrelated pixels: r sqrt(m) is nearly N(0, 1).
    correlation = torch.corrcoef(box[0].T)[0, 1].item()
    assert abs(correlation) * math.sqrt(m) < stats.norm.isf(BY_CHANCE / 2)


def test_starts_that_leave_the_bounds_are_clamped():
    x, labels = torch.zeros(4000, 1), torch.zeros(4000, dtype=torch.int64)
    start = pgd(faint, x, labels, eps=0.5, n_steps=0, generator=seeded(12))
    n_at_0 = int((start == 0).sum())
    assert stats.binomtest(n_at_0, 4000, 0.5).pvalue > BY_CHANCE  # half of U(-0.5, 0.5)


def test_the_generator_decides(digits):
    model, x, labels = digits
    options = dict(eps=0.1, n_steps=2, n_restarts=2)
    first = pgd(model, x, labels, generator=seeded(13), **options)
    assert torch.equal(pgd(model, x, labels, generator=seeded(13), **options), first)
    assert not torch.equal(pgd(model, x, labels, generator=seeded(14), **options), first)
    torch.manual_seed(15)
    default = pgd(model, x, labels, **options)
    before = torch.get_rng_state()
    pgd(model, x, labels, generator=seeded(13), **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(15)
    assert torch.equal(pgd(model, x, labels, **options), default)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_zero_gradient_leaves_an_image(norm):
    x, labels = images().flatten(1), torch.arange(M) % 2
    x[:10] = 0

    def model(x):
        return x.square()[:, :2] * 5

    with pytest.warns(UserWarning, match="gradient vanishes for 5 of 40"):
        adversary = pgd(model, x, labels, eps=0.1, norm=norm, random_start=False)
    assert torch.equal(adversary[:10], x[:10])
    assert torch.equal(adversary[:, 2:], x[:, 2:])
    assert (adversary[10:, :2] != x[10:, :2]).any(1).all()


def test_gradients_that_share_memory():
    """Sums make gradients that are one number expanded; a model may return what it keeps as a gradient."""
    kept = torch.full((3, 2), -0.7)

    class Keeper(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return kept

    x, labels = torch.rand(3, 2, 5), torch.tensor([0, 1, 0])
    adversary = pgd(lambda x: x.sum(2), x, labels, eps=0.1, bounds=WIDE, random_start=False)
    away = torch.where(F.one_hot(labels, 2).bool(), -1.0, 1.0)[..., None]
    assert torch.allclose(adversary, x + 0.1 * away)
    adversary = pgd(Keeper.apply, x[..., 0], labels, eps=0.1, bounds=WIDE, random_start=False)
    assert torch.allclose(adversary, x[..., 0] - 0.1)
    assert (kept == -0.7).all()


# --- Images and models of other forms ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalised_images_are_within_bounds_that_round_otherwise(dtype):
    """A pixel that is 0 or 1 becomes a number of x's type, the bounds are Python's."""
    mean, std = 0.1307, 0.3081
    x = torch.rand(20, 5, generator=seeded(19), dtype=torch.float64).round().to(dtype)
    x, bounds = (x - mean) / std, ((0 - mean) / std, (1 - mean) / std)
    assert any(v not in bounds for v in x.double().aminmax())
    labels = torch.arange(20) % 5
    result = pgd(lambda x: x, x, labels, eps=[0.0, 0.3], bounds=bounds)
    assert torch.equal(result[0], x)
    low, high = torch.tensor(bounds, dtype=dtype)
    assert result.amin() >= min(x.min(), low)
    assert result.amax() <= max(x.max(), high)
    assert not torch.equal(result[1], x)
    assert torch.equal(
        pgd(lambda x: x, x, labels, eps=0.3, bounds=bounds, step_size=0, random_start=False), x
    )
    with pytest.raises(
        ValueError, match=r"x has values from -0\.\d+ to 2\.\d+; .* clamp x, or give `bounds`"
    ):
        pgd(lambda x: x, x * 1.05, labels, eps=0.1, bounds=bounds)


@pytest.mark.parametrize(
    ("wrap", "logits"),
    [
        (lambda z: (z.square(), z), lambda output: output[1]),
        (lambda z: {"features": z, "logits": z * 1}, lambda output: output["logits"]),
    ],
    ids=["tuple", "dict"],
)
def test_logits_of_any_output(wrap, logits):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Switching()

        def forward(self, x):
            return wrap(self.inner(x))

    x, labels, model = images(), torch.arange(M) % 3, Wrapped().train()
    modes = [module.training for module in model.modules()]
    for attack in (pgd, fgsm):
        expected, found = (
            attack(m, x, labels, eps=[0.1], logits=f, **({"generator": seeded(20)} if attack is pgd else {}))
            for m, f in ((model.inner, None), (model, logits))
        )
        assert torch.equal(found, expected)
    for m, f in ((model.inner, None), (model, logits)):
        found = robustness(m, x, labels, eps=[0.1], logits=f, generator=seeded(20), n_steps=2)
        assert (
            found.accuracy
            == robustness(model.inner, x, labels, eps=[0.1], generator=seeded(20), n_steps=2).accuracy
        )
    assert [module.training for module in model.modules()] == modes
    assert not any(map(any, model.inner.modes))  # always in eval mode
    with pytest.raises(
        TypeError, match=r"the model returned .*; expected a tensor .*, or a function `logits`"
    ):
        pgd(model, x, labels, eps=0.1)
    with pytest.raises(TypeError, match=r"logits is 1 \(int\); expected a function"):
        pgd(model, x, labels, eps=0.1, logits=1)


def test_a_foreign_attack_sees_logits_in_eval_mode():
    model, x, labels, seen = Switching(), images(), torch.arange(M) % 3, []

    def attack(model, x, labels, *, eps):
        seen.append((model.training, model(x).shape, sum(p.numel() for p in model.parameters())))
        return x[None]

    wrapped = nn.Sequential(model).train()
    robustness(wrapped, x, labels, eps=[0.1], attack=attack)
    robustness(wrapped, x, labels, eps=[0.1], attack=attack, logits=lambda z: z[:, :3])
    assert seen == [(False, (M, 3), sum(p.numel() for p in model.parameters()))] * 2
    assert wrapped.training


def test_variations_of_a_gaussian_model_are_attacked():
    """Its means leave [0, 1]: an attack says so, and takes them clamped, or within bounds of their own."""
    torch.manual_seed(0)
    model = lae_fast.models.build(Architecture(nx=16, nz=2, nh=8, depth=1, likelihood="gaussian"))
    x, labels = lae_fast.augment(model, torch.rand(6, 16), torch.arange(6) % 3, n=2)
    classifier = nn.Linear(16, 3)
    with pytest.raises(ValueError, match="clamp x, or give `bounds`"):
        pgd(classifier, x, labels, eps=0.1)
    inside = pgd(classifier, x.clamp(0, 1), labels, eps=0.1)
    assert inside.shape == (18, 16)
    assert ((inside >= 0) & (inside <= 1)).all()
    low, high = (v.item() for v in x.aminmax())
    assert pgd(classifier, x, labels, eps=0.1, bounds=(low, high)).amin() >= low


def test_a_cpu_takes_images_in_parts(digits, monkeypatch):
    """As many as its caches hold; the starts are drawn for all, and each image's result is its own."""
    model, x, labels = digits
    options = dict(eps=[0.1, 0.2], n_steps=3, n_restarts=2)
    whole = pgd(model, x, labels, generator=seeded(21), **options)
    monkeypatch.setattr(restarts, "CHUNK", 40 * x[0].numel() * 8)
    seen = []
    parts = pgd(lambda x: seen.append(len(x)) or model(x), x, labels, generator=seeded(21), **options)
    assert max(seen) == 32  # a multiple of 16
    assert torch.allclose(parts, whole, rtol=0, atol=1e-12)


# --- What must stay as it was ---


class Switching(nn.Module):
    """A classifier with dropout and a frozen batch norm, that notes its mode and fails at a given call."""

    def __init__(self, fails_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop = nn.BatchNorm2d(1).double(), nn.Dropout(0.5)
        self.body = linear(3)[0]
        self.train()
        self.norm.eval()
        self.body[1].bias.requires_grad_(False)
        self.body[1].weight.grad = torch.ones_like(self.body[1].weight)
        self.fails_at, self.modes = fails_at, []

    def forward(self, x):
        self.modes.append([module.training for module in self.modules()])
        if len(self.modes) == self.fails_at:
            raise KeyError("as asked")
        return self.body(self.drop(self.norm(x)))


def call(attack, model, x, labels):
    if attack is robustness:
        return robustness(model, x, labels, eps=[0.1, 0.2], n_steps=2).loss
    options = {"n_steps": 3, "n_restarts": 2, "generator": seeded(16)} if attack is pgd else {}
    return attack(model, x, labels, eps=0.1, **options)


@pytest.mark.parametrize("fails_at", [None, 1, 2])
@pytest.mark.parametrize("attack", [pgd, fgsm, robustness])
def test_the_model_and_the_images_stay_as_they_were(attack, fails_at):
    if attack is fgsm and fails_at:
        fails_at = 1  # its only call
    model, x, labels = Switching(fails_at), images().requires_grad_(), torch.arange(M) % 3
    modes = [module.training for module in model.modules()]
    state, values = copy.deepcopy(model.state_dict()), x.detach().clone()
    grads = [parameter.grad for parameter in model.parameters()]
    wants = [parameter.requires_grad for parameter in model.parameters()]
    if fails_at:
        with pytest.raises(KeyError, match="as asked"):
            call(attack, model, x, labels)
    else:
        result = call(attack, model, x, labels)
        assert not result.requires_grad
        assert result.data_ptr() != x.data_ptr()
    assert not any(map(any, model.modes))  # eval mode, everywhere and always
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wants
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert (model.body[1].weight.grad == 1).all()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, values)
    assert x.grad is None
    assert x.requires_grad
    assert torch.is_grad_enabled()


def test_a_module_that_does_more_than_to_set_a_flag():
    """As when low-rank weights are merged for evaluation only: `train` has to be called again."""
    model, _ = linear(2)
    told = []
    model.register_module("extra", child := nn.Identity())
    child.train = lambda mode=True: told.append(mode) or nn.Module.train(child, mode)
    pgd(model, images(), torch.zeros(M, dtype=torch.int64), eps=0.1, n_steps=1)
    assert told == [False, True]
    told.clear()
    pgd(model.eval(), images(), torch.zeros(M, dtype=torch.int64), eps=0.1, n_steps=1, logits=lambda z: z)
    assert told == [False]  # by this test; the attack has nothing to switch


@pytest.mark.parametrize("attack", [pgd, fgsm, robustness])
def test_callers_without_gradients(attack):
    model, x, labels = Switching(), images(), torch.arange(M) % 3
    torch.manual_seed(17)
    expected = call(attack, model, x, labels)
    with torch.no_grad():
        torch.manual_seed(17)
        assert torch.equal(call(attack, model, x, labels), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        torch.manual_seed(17)
        assert torch.equal(call(attack, model, x.clone(), labels.clone()), expected)
        assert torch.is_inference_mode_enabled()


def test_another_attack_has_its_gradients():
    model, x, labels = Switching(), images(), torch.arange(M) % 3

    def attack(model, x, labels, *, eps):
        leaf = x.detach().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf)[0]
        return torch.stack([(x + e * gradient.sign()).clamp(0, 1) for e in eps])

    model.eval()
    expected = robustness(model, x, labels, eps=[0.1, 0.2], attack=fgsm).loss
    with torch.no_grad():
        assert torch.equal(robustness(model, x, labels, eps=[0.1, 0.2], attack=attack).loss, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype):
    model, x, labels = linear(3)[0], images(), torch.arange(M) % 3
    for attack in (pgd, fgsm, robustness):
        torch.manual_seed(18)
        expected = call(attack, model, x, labels)
        torch.manual_seed(18)
        assert torch.equal(call(attack, model, x, labels.to(dtype)), expected)


# --- Errors ---

GOOD = dict(x=torch.full((2, 3), 0.5), labels=torch.tensor([0, 1]), eps=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((2, 3), 1.5)}, r"x has values from 1.5 to 1.5; expected all in \[0, 1\]"),
        ({"x": torch.full((2, 3), math.nan)}, "x has values from nan to nan"),
        ({"bounds": (0.6, 1)}, r"x has values from 0.5 to 0.5; expected all in \[0.6, 1\]"),
        ({"x": torch.ones(2, 3, dtype=torch.uint8)}, r"x is uint8 \[2, 3\] on cpu; expected floating point"),
        ({"x": torch.ones(0, 3)}, r"x is float32 \[0, 3\] on cpu; .* m >= 1"),
        ({"x": torch.ones(2)}, r"x is float32 \[2\]"),
        (
            {"labels": torch.tensor([0.0, 1.0])},
            r"labels are float32 \[2\] on cpu; expected integers \[2\] on",
        ),
        ({"labels": torch.tensor([True, False])}, r"labels are bool \[2\]"),
        ({"labels": torch.tensor([0])}, r"labels are int64 \[1\] on cpu; expected integers \[2\]"),
        ({"labels": torch.zeros(2, dtype=torch.int64, device="meta")}, r"on meta; expected .* on cpu"),
        ({"labels": torch.tensor([0, -100])}, "labels go down to -100; expected classes from 0 on"),
        ({"labels": torch.tensor([0, 5])}, r"returned \[2, 3\]; expected \[2, classes\] with classes >= 6"),
        ({"eps": -0.1}, "eps is -0.1; expected a finite number >= 0"),
        ({"eps": math.inf}, "eps is inf"),
        ({"eps": math.nan}, "eps is nan"),
        ({"eps": []}, r"eps is \[\]; .* at least one"),
        ({"eps": [0.1, -1]}, r"eps is \[0.1, -1\]"),
        ({"eps": [[0.1]]}, r"eps is \[\[0.1\]\]"),
        ({"bounds": (1, 0)}, r"bounds are \(1, 0\); expected the lower one first"),
        ({"bounds": (0, math.nan)}, "bounds are"),
        ({"norm": "l1"}, "norm is 'l1'; expected one of linf, l2"),
        ({"n_steps": -1}, "n_steps is -1; expected at least 0"),
        ({"n_restarts": 0}, "n_restarts is 0; expected at least 1"),
        ({"n_restarts": 2, "random_start": False}, "n_restarts is 2 without random_start; expected 1"),
        ({"step_size": -0.1}, "step_size is -0.1; expected a finite number >= 0"),
        ({"step_size": math.nan}, "step_size is nan"),
        ({"step_size": math.inf}, "step_size is inf"),
        ({"model": lambda x: x[..., None]}, r"returned \[2, 3, 1\]; expected \[2, classes\]"),
        ({"model": lambda x: x[:1]}, r"returned \[1, 3\]; expected \[2, classes\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        pgd(**{"model": lambda x: x, **GOOD, **change})
    if change.keys() <= {"x", "labels", "eps", "bounds", "model"}:
        with pytest.raises(ValueError, match=message):
            fgsm(**{"model": lambda x: x, **GOOD, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.1}, "eps is 0.1; expected a sequence"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"targeted": True}, "targeted is True; expected False"),
        (
            {"attack": lambda model, x, labels, *, eps: x},
            r"images are float32 \[2, 3\] on cpu; expected float32 \[1, 2, 3\]",
        ),
        ({"labels": torch.tensor([0])}, r"labels are int64 \[1\]"),
        ({"bounds": (0.6, 1)}, r"x has values from 0.5 to 0.5; expected all in \[0.6, 1\]"),
    ],
)
def test_bad_arguments_of_robustness_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        robustness(**{"model": lambda x: x, **GOOD, "eps": [0.1], **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "net"}, TypeError, r"model is 'net' \(str\); expected a function"),
        ({"model": lambda x: x.tolist()}, TypeError, r"the model returned .* \(list\); expected a tensor"),
        ({"model": lambda x: x.long()}, ValueError, r"the model returned int64 .* expected floating point"),
        ({"model": lambda x: x.to_sparse()}, ValueError, "the model returned sparse_coo .* dense on cpu"),
        ({"model": lambda x: x.detach()}, ValueError, "the model's output has no gradient by the images"),
        ({"x": [[0.5]]}, TypeError, r"x is \[\[0.5\]\] \(list\); expected a dense tensor"),
        ({"x": GOOD["x"].to_sparse()}, ValueError, "x is sparse_coo float32 .* expected a dense tensor"),
        ({"x": GOOD["x"].to("meta")}, ValueError, "x is float32 .* on meta; expected a dense tensor"),
        ({"labels": [0, 1]}, TypeError, r"labels are \[0, 1\] \(list\); expected integers \[2\]"),
        ({"eps": "0.1"}, ValueError, "eps is 0.1; expected a finite number"),
        ({"eps": True}, ValueError, "eps is True; expected a finite number"),
        ({"eps": [[0.1], [0.2, 0.3]]}, ValueError, r"eps is \[\[0.1\], \[0.2, 0.3\]\]"),
        ({"eps": 1e300}, ValueError, r"eps is 1e\+300; expected at most .*, for x of torch.float32"),
        ({"bounds": (0, 0.5, 1)}, TypeError, r"bounds are \(0, 0.5, 1\) \(tuple\); expected two numbers"),
        ({"bounds": "01"}, TypeError, "bounds are '01'"),
        (
            {"bounds": (0, 1e300)},
            ValueError,
            r"bounds are \(0, 1e\+300\); expected infinity, or numbers up to",
        ),
        ({"targeted": 1}, TypeError, r"targeted is 1 \(int\); expected True or False"),
        ({"n_steps": 2.0}, TypeError, r"n_steps is 2.0 \(float\); expected a whole number"),
        ({"n_steps": 10**12}, ValueError, "n_steps is 1000000000000; expected at most 1000000"),
        ({"n_restarts": True}, TypeError, r"n_restarts is True"),
        ({"step_size": "0.1"}, TypeError, r"step_size is '0.1' \(str\); expected a number"),
        ({"step_size": 1e25, "norm": "l2"}, ValueError, r"step_size is 1e\+25; expected at most"),
        ({"random_start": "no"}, TypeError, r"random_start is 'no' \(str\); expected True or False"),
        ({"generator": 0}, TypeError, r"generator is 0 \(int\); expected a torch.Generator"),
        ({"norm": 2}, ValueError, "norm is 2; expected one of linf, l2"),
    ],
)
def test_arguments_of_another_kind_are_named(change, error, message):
    good = {"model": lambda x: x, **GOOD}
    with pytest.raises(error, match=message):
        pgd(**good | change)
    if change.keys() <= {"model", "x", "labels", "eps", "bounds", "targeted"}:
        with pytest.raises(error, match=message):
            fgsm(**good | change)


def test_infinite_bounds_are_none():
    x, labels = torch.tensor([[3.0, -4.0]]), torch.tensor([0])
    adversary = pgd(lambda x: x, x, labels, eps=1, bounds=(-math.inf, math.inf), random_start=False)
    assert torch.equal(adversary, torch.tensor([[2.0, -3.0]]))


def test_robustness_checks_what_a_foreign_attack_makes():
    good = {"model": lambda x: x, **GOOD, "eps": [0.1]}
    for answer, error, message in (
        (lambda *a, **k: None, TypeError, r"the attack's images are None \(NoneType\)"),
        (lambda m, x, labels, eps: x[None].double(), ValueError, "images are float64 .*; expected float32"),
        (lambda m, x, labels, eps: x[None] * math.nan, ValueError, "images that are not finite"),
    ):
        with pytest.raises(error, match=message):
            robustness(**good, attack=answer)

    def nan(x):
        return x * math.nan

    with pytest.raises(RuntimeError, match="the model's output is NaN for attacked images"):
        robustness(**good | {"model": nan}, attack=lambda m, x, labels, eps: x[None])
    with pytest.raises(TypeError, match="attack is 'pgd'"):
        robustness(**good, attack="pgd")


@pytest.mark.parametrize("attack", [pgd, fgsm])
def test_what_is_not_finite_is_an_error(attack):
    x, labels = torch.tensor([[0.0, 0.5], [0.5, 0.5]]), torch.tensor([0, 1])
    for model in (
        lambda x: (
            x + torch.where(x > 0.2, (x - 0.2).sqrt(), 0)
        ),  # its gradient: 0 times that of a root of < 0
        lambda x: x + torch.where(x < 0.2, math.nan, 0),  # its value
        lambda x: x + torch.where(x < 0.2, -math.inf, 0),  # the loss, but not the gradient
    ):
        with pytest.raises(RuntimeError, match="not finite for 1 of 2 attacked images"):
            attack(model, x, labels, eps=0.1)
