"""New images of each class: the mixture of codes that says of which class they are, and the classifier that learns from them."""

import dataclasses

import pytest
import torch
from test_experiments import LAE, open_lab

from lae_fast.experiments import new_images
from lae_fast.experiments.new_images import TrainedOnNewImages


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("lab"))


def batches(lab, **options):
    recipe = TrainedOnNewImages(0, 2, LAE, epochs=1, per_class=5, **options)
    ((minibatch,),) = [list(minibatches) for minibatches in recipe.batches(lab, seeded())]
    return recipe, *minibatch


@pytest.mark.parametrize("kind", ["new codes", "found"])
def test_new_images_follow_the_labelled_ones(kind, lab):
    recipe, x, y = batches(lab, variations=kind)
    assert x.shape == (150, 1, 28, 28)
    assert ((x >= 0) & (x <= 1)).all()
    assert torch.equal(y, y[:50].repeat(3))
    known = {bytes(image) for image in lab.train.images.numpy()}
    seen = [bytes(image) for image in (x * 255).round().to(torch.uint8).flatten(1).numpy()]
    labelled = {bytes(image) for image in recipe.training_set(lab.train).images.numpy()}
    assert set(seen[:50]) == labelled
    is_real = [image in known for image in seen[50:]]
    assert all(is_real) if kind == "found" else not any(is_real)
    shifted = batches(lab, variations=f"{kind}+affine")[1]
    assert torch.equal(shifted[:50], x[:50])
    assert (shifted[50:] - x[50:]).abs().amax((1, 2, 3)).min() > 0.01


def test_found_images_are_of_their_class_as_codes_tell_it(lab, monkeypatch):
    """With codes that are the labels, all are."""
    by_image = {bytes(i): k for i, k in zip(lab.train.images.numpy(), lab.train.labels, strict=True)}

    class Reader(torch.nn.Module):
        def encode(self, x):
            labels = torch.stack([by_image[bytes(i)] for i in (x * 255).round().to(torch.uint8).numpy()])
            centres = torch.eye(10)[labels]
            return centres + 0.01 * torch.randn(centres.shape, generator=seeded())

    monkeypatch.setattr(type(LAE), "load", lambda self, lab: Reader())
    _, x, y = batches(lab, variations="found")
    images = (x * 255).round().to(torch.uint8).flatten(1).numpy()
    assert [by_image[bytes(image)].item() for image in images] == y.tolist()


def test_what_new_images_need():
    with pytest.raises(ValueError, match="there is no autoencoder; expected one"):
        TrainedOnNewImages(0, 2)
    with pytest.raises(
        ValueError, match="variations are 'affine'; expected one of new codes, new codes\\+affine"
    ):
        TrainedOnNewImages(0, 2, LAE, variations="affine")


def test_it_trains_on_them(lab):
    recipe = TrainedOnNewImages(0, 2, LAE, epochs=0, per_class=5, n_updates=3)
    metrics = lab.get(recipe).metrics
    assert metrics["n_images"] == 50
    assert metrics["epochs"] == pytest.approx(3)
    assert lab.path(recipe) != lab.path(dataclasses.replace(recipe, variations="found"))


def test_labelled_images_are_not_counted_twice(lab, monkeypatch):
    seen = []
    monkeypatch.setattr(new_images, "fit_classes", lambda z, y, others: seen.append((z, y, others)) or 1 / 0)
    recipe = TrainedOnNewImages(0, 2, LAE, epochs=1, per_class=3, variations="new codes")
    with pytest.raises(ZeroDivisionError):
        recipe.make(lab)
    ((z, labels, others),) = seen
    images, expected = recipe.training_set(lab.train)
    assert torch.equal(labels, expected)
    assert torch.allclose(z, LAE.load(lab).encode(images / 255), atol=1e-5)
    assert len(others) == len(lab.train.images) - len(z)
    assert not (others[:, None] == z[None]).all(2).any()
