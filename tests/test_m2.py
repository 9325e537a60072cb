"""M2: its bounds beside exact likelihoods, what it learns from few labels, and the classifier that learns from it."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from test_experiments import open_lab

from lae_fast.experiments import m2
from lae_fast.experiments.m2 import M2, TrainedM2, TrainedOnM2
from lae_fast.experiments.recipes import Labelled

NX = 12
FEW = TrainedM2(2, 0, 1, 1e-3, 5, nh=16)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return M2(NX, 1, 8).requires_grad_(False)


@pytest.fixture
def x():
    return (torch.rand(6, NX, generator=seeded()) > 0.5).float()


def exact(model, x):
    """-log p(x, y), nats: float64 [classes, n], by quadrature over z."""
    z = torch.linspace(-8, 8, 4001)[:, None]
    log_prior = -0.5 * z[:, 0].double().square() - 0.5 * math.log(2 * math.pi) + math.log(16 / 4000)
    found = []
    for y in range(10):
        output = model.decoder(torch.cat((z, model.one_hot[y].expand(len(z), -1)), 1))
        energies = model.likelihood.energy(output[:, None].expand(-1, len(x), -1), x)  # [z, n]
        found.append(math.log(10) - (log_prior[:, None] - energies).logsumexp(0))
    return torch.stack(found)


def repeated(function, n=400):
    """Mean and standard error of a bound, which draws z."""
    values = torch.stack([function() for _ in range(n)])
    return values.mean(0), values.std(0) / n**0.5


def test_bounds_lie_above_the_exact_values(model, x):
    """Five standard errors: 66 comparisons, less than one false alarm in 50,000."""
    joint = exact(model, x)
    labels = torch.arange(10)[:, None].expand(-1, len(x))
    for bound, truth in (
        (lambda: model.negative_elbo(x, labels), joint),
        (lambda: model.unlabelled(x), -(-joint).logsumexp(0)),
    ):
        mean, error = repeated(bound)
        assert mean.shape == truth.shape
        assert (mean > truth - 5 * error).all()
        assert (mean < truth + 3).all()  # and not far: q is near the prior, which this decoder hardly leaves


def test_bounds_are_exact_where_q_is(model, x):
    """A decoder that does not read z; q(z|x, y) is the prior, and q(y|x) is Bayes' rule."""
    model.decoder[0].weight[:, 0] = 0
    model.head.weight.zero_()
    model.head.bias.zero_()
    joint = exact(model, x)
    labels = torch.randint(10, (len(x),), generator=seeded())
    assert torch.allclose(model.negative_elbo(x, labels), joint.gather(0, labels[None])[0], atol=1e-4)
    given = (-joint).log_softmax(0).T.float()
    model.classifier.forward = lambda images: given
    assert torch.allclose(model.unlabelled(x), -(-joint).logsumexp(0), atol=1e-4)


def test_each_image_has_its_own_label(model, x):
    labels = torch.tensor([3, 1, 4, 1, 5, 9])
    model.head.weight.zero_()
    model.head.bias.fill_(-40)  # z = -40, whatever is drawn
    model.head.bias[0] = 0.5
    together = model.negative_elbo(x, labels)
    apart = [model.negative_elbo(x[i : i + 1], labels[i : i + 1]) for i in range(len(x))]
    assert torch.allclose(together, torch.cat(apart))
    assert len({round(v, 4) for v in model.negative_elbo(x[:1].expand(6, -1), labels).tolist()}) == 5


def patterns(n, seed):
    """Ten classes of 28 x 28 images, each a pattern whose pixels are turned at random, one in ten."""
    centres = torch.rand(10, 784, generator=seeded(7)) > 0.5
    labels = torch.arange(10).repeat(n // 10)
    is_turned = torch.rand(n, 784, generator=seeded(seed)) < 0.1
    return Labelled((centres[labels] ^ is_turned).byte() * 255, labels), centres.float()


def test_it_learns_classes_from_three_labels_each(monkeypatch):
    shifted = []  # a pattern of single pixels cannot be shifted
    monkeypatch.setattr(m2, "affine", lambda x, generator: shifted.append(x.shape) or x)
    (train, centres), (test, _) = patterns(1000, 1), patterns(200, 2)
    lab = SimpleNamespace(train=train, validation=test, test=test, nx=784, device=torch.device("cpu"))
    recipe = TrainedM2(2, 0, 5, 1e-2, 3, batch_size=50, nh=32)
    product = recipe.make(lab)
    assert product.metrics["accuracy"] > 0.95
    assert shifted == [(m2.N_LABELLED, 1, 28, 28)] * 5 * (1000 // 50)
    n_turned = ((test.images > 0) != (centres[test.labels] > 0)).sum(1).double()
    truth = math.log(10) - (n_turned * math.log(0.1) + (784 - n_turned) * math.log(0.9)).mean().item()
    assert truth < product.metrics["bound"] < truth + 8  # what is lost to weights from 1,000 images
    lab.get = lambda recipe: product
    model, labels = recipe.load(lab), torch.arange(10)
    assert not any(p.requires_grad for p in model.parameters())
    drawn = model.draw(labels, seeded())
    assert torch.equal(torch.cdist(drawn, centres).argmin(1), labels)
    assert torch.equal(model.posterior(centres.byte() * 255).argmax(1), labels)


def test_it_reads_the_labels_of_its_classifier_alone(lab):
    """With all other labels changed it becomes the same."""
    of_classifier = TrainedOnM2(0, 2, per_class=5, n_updates=1, m2=FEW)
    kept = of_classifier.kept(lab.train.labels)
    is_kept = torch.zeros(len(lab.train.labels), dtype=torch.bool)
    is_kept[kept] = True
    seen = []

    def product(labels):
        train = Labelled(lab.train.images, labels)
        other = SimpleNamespace(**{**vars(lab), "train": train})
        found = FEW.make(other)
        seen.append(found.metrics["accuracy"])
        return found.weights

    weights = product(lab.train.labels)
    with pytest.MonkeyPatch.context() as patch:  # the same images are kept, whatever the labels say of others
        patch.setattr(m2.TrainedClassifier, "kept", lambda self, labels: kept)
        others = product(torch.where(is_kept, lab.train.labels, 9 - lab.train.labels))
        swapped = product(torch.where(is_kept, 9 - lab.train.labels, lab.train.labels))
    assert all(torch.equal(others[name], w) for name, w in weights.items())
    assert not all(torch.equal(swapped[name], w) for name, w in weights.items())


def test_the_best_weights_are_kept(lab, monkeypatch):
    bounds = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    states = []

    def bound(model, images):
        assert images is lab.validation.images
        states.append({name: t.clone() for name, t in model.state_dict().items()})
        return next(bounds)

    monkeypatch.setattr(m2, "_bound", bound)
    product = dataclasses.replace(FEW, epochs=9, patience=2).make(lab)
    assert product.metrics["best_epoch"] == 2
    assert product.metrics["bound"] == 1.0
    assert len(states) == 4  # two epochs without a better one
    assert all(torch.equal(states[1][name], w) for name, w in product.weights.items())


@pytest.mark.parametrize(("bounds", "best"), [([2.0, math.nan], 1), ([math.inf], None)])
def test_training_that_diverges_keeps_what_was_good(bounds, best, lab, monkeypatch):
    left = iter(bounds)
    monkeypatch.setattr(m2, "_bound", lambda model, images: next(left))
    recipe = dataclasses.replace(FEW, epochs=3)
    if best is None:
        with pytest.raises(ArithmeticError, match="diverged in its first epoch"):
            recipe.make(lab)
    else:
        assert recipe.make(lab).metrics["best_epoch"] == best


def test_the_bound_of_validation_is_that_of_unlabelled_images(model):
    images = (torch.rand(501, NX, generator=seeded()) * 255).byte()
    torch.manual_seed(1)
    expected = torch.cat([model.unlabelled(x / 255) for x in (images[:500], images[500:])]).mean().item()
    torch.manual_seed(1)
    assert m2._bound(model, images) == pytest.approx(expected)


def test_labels_count_as_said():
    """The labelled bounds, and 0.1 n times each classification loss, per image of n."""
    labelled = Labelled(torch.zeros(30, 784, dtype=torch.uint8), torch.full((30,), 4))
    model = M2(784, 1, 8)
    model.negative_elbo = lambda x, y: torch.full(y.shape, 500.0)
    model.classifier.forward = lambda x: torch.zeros(len(x), 10)
    loss = m2._of_labels(model, labelled, 6000, seeded())
    assert loss.item() == pytest.approx((30 * 500 + 0.1 * 6000 * 30 * math.log(10)) / 6000)


@pytest.mark.parametrize("change", [dict(seed=1), dict(per_class=6)])
def test_a_classifier_has_an_m2_of_its_own_labels(change):
    with pytest.raises(ValueError, match=r"m2 has seed and per_class \(\d, \d\); expected \(0, 5\)"):
        TrainedOnM2(0, 2, per_class=5, m2=dataclasses.replace(FEW, **change))


@pytest.mark.parametrize("kind", ["new codes", "found"])
def test_a_classifier_learns_from_its_images(kind, lab):
    recipe = TrainedOnM2(0, 2, epochs=1, per_class=5, variations=kind, m2=FEW)
    ((minibatch,),) = [list(minibatches) for minibatches in recipe.batches(lab, seeded())]
    x, y = minibatch
    assert x.shape == (150, 1, 28, 28)
    assert torch.equal(y, y[:50].repeat(3))
    known = {bytes(image) for image in lab.train.images.numpy()}
    is_real = [bytes(i) in known for i in (x * 255).round().to(torch.uint8).flatten(1).numpy()[50:]]
    assert all(is_real) if kind == "found" else not any(is_real)
    model = FEW.load(lab)
    if kind == "found":  # the 20 that q(y|x) is surest of
        p = model.posterior((x[50:] * 255).round().flatten(1))
        n = len(lab.train.images) // 20
        least = model.posterior(lab.train.images).topk(n, 0).values[-1]
        assert (p.gather(1, y[50:, None])[:, 0] >= least[y[50:]] - 1e-5).all()
    else:
        assert torch.allclose(x[50:].flatten(1), model.draw(y[50:], seeded()), atol=1e-6)
