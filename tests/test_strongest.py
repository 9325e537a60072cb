"""The strongest attacks in the report, ours and AutoAttack, which not everybody has; and what they are used on."""

import dataclasses
import importlib.util
import re
import sys
import types

import pytest
import torch
from test_experiments import PLAIN, TINY, open_lab
from torch import nn

from lae_fast.experiments import __main__ as cli
from lae_fast.experiments import presets, strongest
from lae_fast.experiments.classifiers import measure
from lae_fast.experiments.design import ADVERSARIAL, Design
from lae_fast.experiments.hardened import HardenedClassifier, madry
from lae_fast.experiments.questions import questions
from lae_fast.experiments.strongest import WorstCase, auto_attack
from lae_fast.experiments.tables import Column, Row, Table, tables
from lae_fast.experiments.verdicts import FAILS, HOLDS

DESIGN = Design(presets.CPU)
EPS = (0.0, 0.05, 0.1, 0.2)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("lab"))


class Brightest(nn.Module):
    """The class of five pixels is the brightest one; so sure of it that the gradient of the cross-entropy vanishes."""

    def forward(self, x):
        return 1e4 * x.flatten(1)


def pixels(n=60):
    """Images [n, 1, 1, 5], their classes, and by how much the brightest pixel leads, [n]."""
    x = 0.25 + 0.5 * torch.rand(n, 1, 1, 5, generator=torch.Generator().manual_seed(0))
    top = x.flatten(1).topk(2)
    return x, top.indices[:, 0], top.values[:, 0] - top.values[:, 1]


def seeded():
    return torch.Generator().manual_seed(3)


@pytest.mark.filterwarnings("ignore:the gradient vanishes")
def test_ours_fools_all_that_can_be_fooled_where_cross_entropy_fools_none():
    x, labels, lead = pixels()
    net = Brightest()
    found = strongest.strongest(net, x, labels, eps=EPS, generator=seeded())
    assert found.shape == (4, *x.shape)
    for adversaries, eps in zip(found, EPS, strict=True):
        assert (adversaries - x).abs().max() <= eps + 1e-6
        assert torch.equal(net(adversaries).argmax(1) != labels, lead < 2 * eps)
    alone = strongest.apgd(net, x, labels, eps=0.1, generator=seeded())
    assert (net(alone).argmax(1) == labels)[(lead > 0.02) & (lead < 0.2)].any()


def test_targeted_attacks_are_on_what_is_left(monkeypatch):
    """Of radius 0.1 the first attack takes all but three images; of 0.2, all."""
    x, labels, _ = pixels(10)
    net, seen = Brightest(), []
    away = x.roll(1, -1)  # another pixel is the brightest

    def attack(net, x, labels, *, eps, generator, loss="ce", n_restarts=1):
        seen.append((loss, eps, len(x), n_restarts))
        if loss == "ce":
            return torch.stack([torch.cat((x[:3], away[3:])), away])
        return x

    monkeypatch.setattr(strongest, "apgd", attack)
    found = strongest.strongest(net, x, labels, eps=(0.1, 0.2), generator=seeded())
    assert seen == [("ce", (0.1, 0.2), 10, 1), ("dlr-targeted", 0.1, 3, 9)]
    assert torch.equal(found[0], torch.cat((x[:3], away[3:])))


@pytest.mark.slow
def test_it_is_measured_on_the_kept_classifier(lab):
    trained = dataclasses.replace(PLAIN, epochs=20, lr=5e-3)
    metrics = WorstCase(trained, 64, eps=(0.0, 0.3)).make(lab).metrics
    assert metrics["accuracy_0"] == lab.get(trained).metrics["accuracy"] > 0.6
    assert metrics["accuracy_0.3"] < metrics["accuracy_0"] - 0.5
    with pytest.raises(ValueError, match="attack is 'fgsm'; expected one of ours, AutoAttack"):
        WorstCase(trained, 64, "fgsm")


def test_auto_attack_is_its_authors_standard_run(monkeypatch):
    x, labels, _ = pixels(4)
    seen = []

    class AutoAttack:
        def __init__(self, net, *, norm, eps, seed, device):
            assert device == x.device
            seen.append((norm, eps, seed))

        def run_standard_evaluation(self, x, labels):
            return x + 0.01, labels

    monkeypatch.setitem(sys.modules, "pyautoattack", types.SimpleNamespace(AutoAttack=AutoAttack))
    found = auto_attack(Brightest(), x, labels, eps=(0.0, 0.1, 0.3), generator=seeded())
    assert torch.equal(found, torch.stack((x, x + 0.01, x + 0.01)))
    assert seen == [("Linf", 0.1, 3), ("Linf", 0.3, 3)]


@pytest.mark.slow
def test_auto_attack_itself_where_it_is_installed(lab):
    pytest.importorskip("pyautoattack")
    theirs, ours = (
        WorstCase(PLAIN, 16, attack, (0.0, 0.02)).make(lab).metrics for attack in ("AutoAttack", "ours")
    )
    assert theirs["accuracy_0"] == ours["accuracy_0"]
    assert abs(theirs["accuracy_0.02"] - ours["accuracy_0.02"]) <= 1 / 16


def without_the_library(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pyautoattack" else found(name, *a)
    )


@pytest.mark.slow
def test_without_the_library_its_rows_say_so_and_all_others_are_made(tmp_path, monkeypatch, capsys):
    without_the_library(monkeypatch)
    recipes = {attack: (WorstCase(PLAIN, 8, attack),) for attack in ("ours", "AutoAttack")}
    rows = tuple(Row((attack,), made) for attack, made in recipes.items())
    small = Table("beyond-small", "Small", ("attack",), (Column("clean, %", "accuracy_0", 2, 100),), rows, "")
    monkeypatch.setitem(presets.PRESETS, "quick", TINY)
    monkeypatch.setattr(cli, "tables", lambda design: {small.name: small})
    monkeypatch.setattr(cli, "questions", lambda design: questions(design)[-1:])
    monkeypatch.setattr(cli, "claims", lambda design: [])
    command = [*("beyond", "--preset", "quick", "--dataset", "digits", "--workers", "1")]
    assert cli.main([*command, "--cache", str(tmp_path), "--output", str(tmp_path)]) == 0
    text, output = (tmp_path / "report.md").read_text(), capsys.readouterr()
    assert "left out  1 measurements: needs pyautoattack, which is not installed" in output.out
    assert output.err == ""
    assert "| AutoAttack | not run: needs pyautoattack |" in text
    assert text.count("| not run: needs pyautoattack |") == 1 + len(questions(Design(TINY))[-1].measurements)
    assert re.search(r"\| ours \| [\d.]+ \|", text)


def test_both_attacks_are_on_the_same_images_of_the_same_classifiers():
    rows = {row.labels: row.recipes for row in tables(DESIGN)["beyond-adversarial"].rows}
    pairs = [
        (recipes, rows["APGD, the same 100 images", training, variations])
        for (attack, training, variations), recipes in rows.items()
        if attack == "AutoAttack, 100 images"
    ]
    assert len(pairs) == 4
    for theirs, ours in pairs:
        assert len(theirs) == 5
        assert ours == tuple(dataclasses.replace(r, attack="ours") for r in theirs)
        assert theirs[0].attack == "AutoAttack"


# ---- what is said of them ----


def claim(text):
    (found,) = (c for c in questions(DESIGN) if c.text == text)
    return found


def test_variations_are_compared_with_none_under_our_strongest_attack():
    measured = claim("Variations make adversarial training more robust").measurements
    assert [m.what.split(", APGD")[0] for m in measured] == [
        f"{source}, N = 1, ε {eps}" for source in ("LAE", "VAE") for eps in (0.1, 0.2, 0.3)
    ]
    for m in measured:
        for seed, (with_them, without) in enumerate(zip(m.minuend, m.subtrahend, strict=True)):
            assert with_them.attack == without.attack == "ours"
            assert with_them.n_images == without.n_images == presets.CPU.strongest_images
            trained = with_them.classifier
            assert isinstance(trained, HardenedClassifier)
            assert (trained.seed, trained.n, trained.autoencoder.seed) == (seed, 1, seed)
            assert without.classifier == dataclasses.replace(trained, n=0, autoencoder=None)


@pytest.mark.parametrize(
    ("lower_by", "verdict"), [(0.0, HOLDS), (0.01, HOLDS), (0.03, FAILS), (-0.05, HOLDS)]
)
def test_two_points_less_than_auto_attack_leaves_are_too_many(lower_by, verdict):
    """AutoAttack leaves less of the accuracy than our attack does."""

    def metrics(recipe):
        seed, is_theirs = recipe.classifier.seed, recipe.attack == "AutoAttack"
        accuracy = 0.8 + 1e-2 * seed - (lower_by + 1e-4 * seed if is_theirs else 0.0)
        return {f"accuracy_{eps}": accuracy for eps in (0.1, 0.2, 0.3)}

    verdicts = claim("Our strongest attack finds what AutoAttack finds").verdicts(metrics)
    assert len(verdicts) == 12
    assert {v.text for v in verdicts} == {verdict}


# ---- the network of Madry et al. ----


def test_the_network_of_madry_et_al():
    net = madry()
    assert [tuple(p.shape) for p in net.parameters() if p.dim() > 1] == [
        *((32, 1, 5, 5), (64, 32, 5, 5), (1024, 3136), (10, 1024))
    ]
    assert sum(p.numel() for p in net.parameters()) == 3_274_634
    assert torch.allclose(net(torch.rand(2, 1, 28, 28)).exp().sum(1), torch.ones(2))


def test_it_is_trained_and_loaded_again(lab):
    recipe = HardenedClassifier(0, batch_size=16, n_updates=3, adversarial_steps=1, network="madry")
    metrics = lab.get(recipe).metrics
    assert measure(recipe.load(lab), lab.test)["loss"] == metrics["loss"]
    assert recipe.cost() > dataclasses.replace(recipe, network="report").cost()
    with pytest.raises(ValueError, match="network is 'large'; expected one of report, madry"):
        HardenedClassifier(0, network="large")


def test_preset_report_alone_trains_it_and_its_row_says_so():
    for name, preset in presets.PRESETS.items():
        named = [r for r in tables(Design(preset))["beyond-adversarial"].rows if "network of" in r.labels[1]]
        assert len(named) == (4 if name == "report" else 0)
        for row in named:
            assert row.labels[1:] == (f"{ADVERSARIAL}, network of Madry et al.", "none, N = 0")
            for measured in row.recipes:
                trained = measured.classifier
                assert (trained.network, trained.n_updates, trained.adversarial_steps) == (
                    "madry",
                    18_000,
                    40,
                )
