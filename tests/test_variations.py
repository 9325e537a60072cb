"""Variations of images for the experiments' classifiers: what the controls do is known."""

import itertools
import math

import pytest
import torch
from test_lae import make

from lae_fast import LAE, augment
from lae_fast.experiments import variations
from lae_fast.experiments.classifiers import TrainedClassifier
from lae_fast.experiments.variations import Variations


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=50, side=4):
    return torch.rand(n, 1, side, side, generator=seeded(1))


def test_components_are_those_of_the_covariance():
    x = images(400, 6)
    parts = variations.components(x).flatten(1)
    exact = torch.linalg.eigh(x.flatten(1).T.cov())
    wanted = exact.eigenvalues.flip(0)[: len(parts)]
    torch.testing.assert_close(parts.square().sum(1), wanted, rtol=1e-4, atol=0)
    gram = parts @ parts.T
    assert (gram - gram.diagonal().diag()).abs().max() < 1e-3 * gram.max()


def test_noise_in_components_has_half_of_their_spread():
    parts = variations.components(images())
    x = torch.full((20_000, 1, 4, 4), 0.5)
    moves = (variations.along(0.1 * parts, x, seeded()) - x).flatten(1)  # a tenth: nothing leaves [0, 1]
    wanted = 0.25 * 0.01 * parts.flatten(1).T @ parts.flatten(1)
    torch.testing.assert_close(moves.T.cov(), wanted, rtol=0, atol=0.05 * wanted.max().item())
    assert moves.mean().abs() < 1e-3


def test_affine_moves_an_image_a_little():
    """The centre of mass of a blob moves by the shift; its size changes by the zoom."""
    side = 29
    i = torch.arange(side) - side // 2
    blob = torch.exp(-(i[:, None].square() + i.square()) / 8.0).expand(500, 1, side, side)
    out = variations.affine(blob, seeded())
    mass = out.sum((1, 2, 3))
    centre = torch.stack([(out.sum((1, axis)) * i).sum(1) / mass for axis in (2, 3)], 1)
    assert centre.abs().max() < variations.SHIFT / (1 - variations.ZOOM) * 1.16  # cos + sin of ten degrees
    assert centre.abs().max() > variations.SHIFT * 0.8
    change = mass / blob[0].sum()  # of an area, by the square of the zoom
    assert change.min() > 1 / (1 + variations.ZOOM) ** 2 - 0.01
    assert change.max() < 1 / (1 - variations.ZOOM) ** 2 + 0.01


def test_affine_turns_by_ten_degrees_at_most():
    side = 41
    i = torch.arange(side) - side // 2
    bar = torch.exp(-(i[:, None].square() / 4.0) - i.square() / 100.0).expand(300, 1, side, side)
    out = variations.affine(bar, seeded(3))
    mass = out.sum((1, 2, 3))
    rows, columns = out.sum((1, 3)), out.sum((1, 2))
    y, x = (rows * i).sum(1) / mass, (columns * i).sum(1) / mass
    product = (out[:, 0] * i[:, None] * i).sum((1, 2)) / mass - y * x
    squares = [((t * i.square()).sum(1) / mass) - c.square() for t, c in ((rows, y), (columns, x))]
    angle = 0.5 * torch.atan2(2 * product, squares[1] - squares[0]).abs() * 180 / math.pi
    assert 8 < angle.max() < variations.ANGLE + 0.5


@pytest.mark.parametrize("kinds", ["report", "residual", "components", "affine", "affine+residual"])
def test_blocks_follow_one_another(kinds):
    x, labels = images(), torch.arange(50) % 7
    out, theirs = Variations(kinds, 3, make(LAE), x)(x, labels, seeded())
    assert out.shape == (200, 1, 4, 4)
    assert torch.equal(out[:50], x)
    assert torch.equal(theirs, labels.repeat(4))
    assert ((out >= 0) & (out <= 1)).all()
    blocks = out.view(4, 50, 1, 4, 4)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(blocks))


def test_the_report_s_are_those_of_augment():
    x, labels, model = images(), torch.arange(50), make(LAE)
    out, _ = Variations("report", 2, model, x)(x, labels, seeded())
    wanted, _ = augment(model, x, labels, 2, generator=seeded())
    torch.testing.assert_close(out, wanted)


def test_variations_need_their_source():
    assert TrainedClassifier(0, n=2, variations="affine").n == 2
    with pytest.raises(ValueError, match="without an autoencoder"):
        TrainedClassifier(0, n=2, variations="affine+residual")
    with pytest.raises(
        ValueError, match="variations are 'turn'; expected some of report, residual, components, affine"
    ):
        TrainedClassifier(0, variations="turn")
