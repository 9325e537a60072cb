"""The code of the README and of the manual runs as it stands there."""

import dataclasses
import importlib.util
import re
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import lae_fast
from lae_fast import Bernoulli, checkpoint
from lae_fast.models import Architecture, build

ROOT = Path(__file__).parent.parent


def python_in(page):
    """The blocks of Python on a page, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


(LOOP,) = python_in("README.md")
FULL_LOOP, SAMPLING, MIXING, JOINT, *_ = python_in("docs/sampling.md")
VARIATIONS, DIAGNOSIS, NEW_IMAGES, STRONGEST, *FOREIGN = python_in("docs/variations.md")
(DATA,) = python_in("docs/data.md")
START = python_in("docs/quickstart.md")


def test_the_loop_of_ten_lines_is_no_longer():
    assert len([line for line in LOOP.splitlines() if line.strip()]) <= 10


def test_the_readme_is_a_shop_window():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))],
)
def test_links_and_pictures_are_there(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        assert target.startswith("http") or ((ROOT / page).parent / target).exists(), target


# The README names what its ten lines import in the sentence before them.
@pytest.mark.parametrize("loop", [f"import lae_fast, torch\n{LOOP}", FULL_LOOP], ids=["README", "manual"])
def test_the_loop_trains(loop):
    torch.manual_seed(0)
    features, decoder = nn.Sequential(nn.Linear(9, 16), nn.ReLU()), nn.Linear(2, 9)
    parameters = [*features.parameters(), *decoder.parameters()]
    phi = 0.1 * torch.randn(2, 16)
    names = dict(
        phi=phi,
        state=phi,
        eta=1e-7,
        batches=[torch.rand(8, 9)] * 30,
        features=features,
        decoder=decoder,
        energy=Bernoulli().energy,
        optimizer=torch.optim.Adam(parameters, 1e-2),
    )
    before = [p.detach().clone() for p in parameters]
    exec(loop, names)  # it is our own text
    assert names["state"].phi.shape == (2, 16)
    assert not torch.equal(names["state"].phi, phi)
    assert names["state"].potential.isfinite()
    assert names["eta"] > 1e-7  # such short steps are all accepted
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_data_are_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("pictures.npz", images=np.zeros((30, 5, 4, 3), np.uint8), labels=np.zeros(30, int))
    names = {}
    exec(DATA, names)
    assert names["dataset"].shape == (3, 5, 4)


def test_the_quickstart_runs(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    architecture = Architecture(shape=(1, 8, 8), nz=2, nh=8, depth=1)
    weights = build(architecture).state_dict()
    checkpoint.save_weights(folder / "best.safetensors", weights, dataclasses.asdict(architecture))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, code = {}, "\n".join(START)
    for theirs, ours in {
        "n_draws=1000": "n_draws=20, n_warmup=20",
        "data.load()": "data.load('digits')",
    }.items():
        assert theirs in code
        code = code.replace(theirs, ours)
    exec(code, names)
    assert names["samples"].z.shape == (4, 20, 8, 2)
    assert names["state"].phi.shape == (64, 8)
    assert 0.5 < names["state"].phi.std() < 1.5  # of a standard normal


def test_the_readme_sampling_samples():
    mpl.use("Agg")
    torch.manual_seed(0)
    x = torch.rand(5, 16)
    names = dict(model=build(Architecture(nx=16, nz=2, nh=8, depth=1)), x=x)
    is_diag = importlib.util.find_spec("arviz_stats") is not None
    pages = (SAMPLING, MIXING, JOINT) if is_diag else (SAMPLING, JOINT)
    code = "\n".join(pages).replace("=1000", "=40")
    assert "=40" in code
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the features of five random images, and a short warm-up
        exec(code, names)
    for samples in (names["samples"], names["joint"]):
        assert samples.z.shape == (4, 40, 5, 2)
        assert samples.z.isfinite().all()
    plt.close("all")


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
    exec(DIAGNOSIS, names)


def test_new_images_of_a_class_are_drawn():
    torch.manual_seed(0)
    model = build(Architecture(nx=16, nz=2, nh=8, depth=1))
    x, y = torch.rand(30, 1, 4, 4), torch.arange(30) % 10
    names = dict(model=model, x=x, y=y, unlabelled=torch.rand(50, 1, 4, 4))
    exec(NEW_IMAGES, names)
    assert names["new"].shape == (30, 16)
    torch.testing.assert_close(names["p"].sum(1), torch.ones(50))


def under_attack(code):
    """Five classes that are told apart by a wide margin or none, and what the code defines."""
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    x = torch.rand(20, 1, 4, 4)
    names = dict(classifier=classifier, x=x, y=classifier(x).argmax(1))
    exec(code, names)
    return names


def test_the_strongest_attack_runs():
    names = under_attack(STRONGEST)
    assert names["found"].accuracy[0] == 1
    assert names["found"].accuracy[2] == 0


@pytest.mark.parametrize(
    ("library", "name"),
    [("pyautoattack", "auto_attack"), ("torchattacks", "torchattacks_pgd"), ("foolbox", "foolbox_pgd")],
)
def test_attacks_of_other_libraries_run_where_they_are_installed(library, name):
    pytest.importorskip(library)
    names = under_attack("\n".join(FOREIGN))
    attack = names[name]
    found = lae_fast.attacks.robustness(
        names["classifier"], names["x"], names["y"], eps=[0.0, 0.5], attack=attack
    )
    assert found.accuracy.tolist() == [1, 0]
