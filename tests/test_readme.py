"""The README's loop runs as it stands there."""

import re
from pathlib import Path

import torch
from torch import nn

from lae_fast import Bernoulli


def test_the_readme_loop_trains():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
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
    exec(code, names)  # it is our own text
    assert names["state"].phi.shape == (2, 16)
    assert not torch.equal(names["state"].phi, names["phi"])
    assert names["loss"].isfinite()
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
