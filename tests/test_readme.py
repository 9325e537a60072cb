"""The README's code runs as it stands there."""

import re
import warnings
from pathlib import Path

import torch
from torch import nn

import lae_fast
from lae_fast import Bernoulli
from lae_fast.models import Architecture, build

TEXT = (Path(__file__).parent.parent / "README.md").read_text()
LOOP, SAMPLING, VARIATIONS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_readme_loop_trains():
    torch.manual_seed(0)
    features, decoder = nn.Sequential(nn.Linear(9, 16), nn.ReLU()), nn.Linear(2, 9)
    parameters = [*features.parameters(), *decoder.parameters()]
    names = dict(
        phi=0.1 * torch.randn(2, 16),
        batches=[torch.rand(8, 9)] * 30,
        features=features,
        decoder=decoder,
        energy=Bernoulli().energy,
        optimizer=torch.optim.Adam(parameters, 1e-2),
    )
    before = [p.detach().clone() for p in parameters]
    exec(LOOP, names)  # it is our own text
    assert names["state"].phi.shape == (2, 16)
    assert not torch.equal(names["state"].phi, names["phi"])
    assert names["loss"].isfinite()
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_the_readme_sampling_samples():
    torch.manual_seed(0)
    x = torch.rand(5, 16)
    names = dict(model=build(Architecture(nx=16, nz=2, nh=8, depth=1)), x=x, lae_fast=lae_fast)
    code = SAMPLING.replace("=1000", "=40")
    assert code != SAMPLING
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the features of five random images, and a short warm-up
        exec(code, names)
    assert names["samples"].z.shape == (4, 40, 5, 2)
    assert names["samples"].z.isfinite().all()


def test_the_readme_variations_and_attacks_run():
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    names = dict(
        model=build(Architecture(nx=16, nz=2, nh=8, depth=1)),
        classifier=classifier,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(classifier.parameters(), 1e-2),
        batches=[(torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]))] * 3,
    )
    before = classifier[1].weight.detach().clone()
    exec(VARIATIONS, names)
    assert not torch.equal(classifier[1].weight, before)
    assert names["x"].shape == (12, 1, 4, 4)
    assert names["worst"].shape == (2, 12, 1, 4, 4)
