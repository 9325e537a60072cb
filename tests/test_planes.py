"""The latent plane in numbers: who neighbours whom, and the images across it."""

import pytest
import torch
from test_experiments import VAE, open_lab
from torch import nn

from lae_fast.experiments.autoencoders import TrainedAutoencoder
from lae_fast.experiments.planes import Plane, confusion, interpolation


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("lab"))


def test_confusion_counts_neighbours():
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    labels = torch.arange(3).repeat_interleave(20)
    z = centres[labels] + torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(confusion(z, labels, 3), torch.eye(3))
    merged = confusion(z, torch.where(labels == 2, torch.arange(60) % 2, labels), 3)
    assert merged[0, 1] > 0.1
    assert merged[2].sum() == 0


def test_figure_5_runs_as_the_report_s_does():
    class Identity(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def decode(self, z):
            return z

    square = interpolation(Identity(), 3)
    assert square[0, 0].tolist() == [-1, 1]  # top left
    assert square[0, 2].tolist() == [1, 1]
    assert square[2, 0].tolist() == [-1, -1]


def test_images_across_the_plane_are_at_the_scale_of_the_codes(lab, monkeypatch):
    """A model whose codes are all a hundred times as large, and whose decoder knows it, is the same model."""

    class Scaled:
        def __init__(self, model, scale):
            self.model, self.scale, self.parameters = model, scale, model.parameters

        def encode(self, x):
            return self.scale * self.model.encode(x) + self.scale

        def decode(self, z):
            return self.model.decode((z - self.scale) / self.scale)

    model, found = VAE.load(lab), []
    for scale in (1.0, 100.0):
        monkeypatch.setattr(TrainedAutoencoder, "load", lambda self, lab, s=scale: Scaled(model, s))
        found.append(Plane(VAE).make(lab).metrics["roughness"])
    assert found[0] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-3)
