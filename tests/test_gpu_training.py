"""What only a GPU can show around training: the command, evaluation, attacks.

Float64 makes a whole evaluation or attack agree to many digits.
"""

import json

import pytest
import torch
from gpu import DEVICE, no_waiting, on_both_devices, report_s_model, same_draws, whole
from test_attacks import linear
from test_lae import NX, make

from lae_fast import (
    LAE,
    VAE,
    Hoffman,
    annealed_log_likelihood,
    attacks,
    data,
    evaluate,
    fit_posterior_scale,
    fit_schedule,
    importance_bound,
)
from lae_fast.evaluation.annealing import Annealing, Draws
from lae_fast.graphs import WARMUP, Replayed
from lae_fast.models import whole_layers
from lae_fast.ops import library
from lae_fast.training import OwnNumbers, SideBySide, TrainingStep, adam
from lae_fast.training.config import Config

pytestmark = pytest.mark.gpu


def main_job():
    """`lae_fast.train`, which takes a package for its command line that a GPU's machine may lack, and quick options."""
    train = pytest.importorskip("lae_fast.train")
    from test_train import QUICK

    return train, QUICK


@pytest.mark.parametrize("kind", ["lae", "vae", "hoffman"])
@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_the_training_loop_never_waits_between_its_looks(kind, binarize, tmp_path):
    train, _ = main_job()
    config = Config(model=kind, nh=16, depth=1, batch_size=100, log_every=10**6, binarize=binarize)
    digits = data.load("digits", binarization=binarize)
    trainer = train.Trainer(config, digits, tmp_path, torch.device(DEVICE))
    batches = trainer.batches()
    for _ in range(WARMUP + 2):
        trainer._step(next(batches))
    with no_waiting():
        for index in batches:
            trainer._step(index)
    assert trainer.progress.step == trainer.n_batches > WARMUP + 4
    assert trainer.window.isfinite().all()


@pytest.mark.parametrize("kind", ["lae", "vae", "hoffman"])
def test_the_main_job_runs_stops_and_goes_on(kind, tmp_path, capsys):
    train, quick = main_job()
    options = [*quick, "--model", kind, "--device", DEVICE, "--cooldown", "0"]
    assert train.main([*options, "--epochs", "3", "--output-dir", str(tmp_path / "whole")]) == 0
    if library.backends["cuda"].is_compiled:
        assert f"kernels   {DEVICE}: compiled kernels" in capsys.readouterr().out
    assert train.main([*options, "--epochs", "1", "--output-dir", str(tmp_path / "parts")]) == 0
    assert train.main(["--resume", str(tmp_path / "parts"), "--epochs", "3"]) == 0
    whole, parts = (
        json.loads((tmp_path / name / "results.json").read_text())["test_negative_elbo"]
        for name in ("whole", "parts")
    )
    # After a pause steps run outside the graph once more, where torch's own noise is another.
    assert parts == pytest.approx(whole, rel=0.05)


@pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")  # so short a schedule
@pytest.mark.parametrize("cls", [LAE, VAE, Hoffman])
def test_a_gpu_evaluates_as_a_cpu_does(cls, monkeypatch):
    """Evaluation, importance sampling and annealing in float64, on the same draws."""
    same_draws(monkeypatch)
    x = (torch.rand(9, 16, generator=torch.Generator().manual_seed(3)) > 0.5).double()

    def scores(device):
        m, batch = make(cls).double().to(device), x.to(device)
        fit_posterior_scale(m, batch)
        schedule = fit_schedule(m, batch, n_temperatures=20, n_chains=3, n_pilot=10)
        estimate = annealed_log_likelihood(m, batch, schedule, n_chains=3, seed=1, progress=False)
        bound = importance_bound(m, batch, n_draws=50, rows=100)
        scale = [m.posterior(batch)[1]]
        return *scale, *evaluate(m, batch, n_draws=2), bound, schedule.beta, schedule.step_size, *estimate

    for expected, got in zip(*on_both_devices(scores), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")  # so short a schedule
def test_one_graph_anneals_all_batches_of_a_size(monkeypatch):
    """27 images in batches of 10: two graphs, and the numbers of the moves without any."""
    monkeypatch.setattr("lae_fast.evaluation.annealing.ROWS", 40)
    n_graphs, captured = 0, Replayed._captured

    def counted(self):
        nonlocal n_graphs
        n_graphs += 1
        return captured(self)

    monkeypatch.setattr(Replayed, "_captured", counted)
    x = (torch.rand(27, 16, generator=torch.Generator().manual_seed(3)) > 0.5).double().to(DEVICE)
    m = make(LAE).double().to(DEVICE)
    schedule = fit_schedule(m, x, n_temperatures=20, n_pilot=10, capture=False)
    replayed, eager = (
        annealed_log_likelihood(m, x, schedule, n_chains=4, seed=1, progress=False, capture=capture)
        for capture in (True, False)
    )
    assert n_graphs == 2
    for a, b in zip(replayed, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@whole
@pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")  # so short a schedule
@pytest.mark.parametrize("base", ["prior", "encoder"])
def test_annealing_by_whole_layers_is_captured(monkeypatch, base):
    """Three batches of 10, 10 and 7 images: the numbers of the same moves outside a graph. Where they start, those of autograd."""
    monkeypatch.setattr("lae_fast.evaluation.annealing.ROWS", 40)
    m, x, _ = report_s_model()
    x, starts = x[:27].round(), []
    for choice in whole_layers.CHOICES:
        monkeypatch.setenv(whole_layers.VARIABLE, choice)
        with torch.no_grad():
            draws = Draws.of(x[:10], m.nz, 4, torch.Generator(DEVICE).manual_seed(0))
            starts.append(Annealing(m, x[:10], base, draws))
    whole_start, other = starts
    assert (whole_start.decoder is None, other.decoder is None) == (False, True)
    torch.testing.assert_close(whole_start.log_ratio, other.log_ratio, rtol=1e-5, atol=1e-2)
    assert (whole_start.slope - other.slope).norm() < 1e-3 * other.slope.norm()
    monkeypatch.setenv(whole_layers.VARIABLE, "whole")
    schedule = fit_schedule(m, x, base=base, n_temperatures=60, n_pilot=20, capture=False)
    replayed, eager = (
        annealed_log_likelihood(m, x, schedule, n_chains=4, seed=1, progress=False, capture=capture)
        for capture in (True, False)
    )
    for a, b in zip(replayed, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_gpu_attacks_as_a_cpu_does(monkeypatch):
    same_draws(monkeypatch)
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = torch.arange(40) % 3
    eps = [0.0, 0.05, 0.3]

    def adversaries(device):
        classifier, batch, classes = linear(3)[0].to(device), x.to(device), labels.to(device)
        return (
            attacks.fgsm(classifier, batch, classes, eps=eps),
            attacks.pgd(classifier, batch, classes, eps=eps, n_steps=7, n_restarts=2),
            attacks.pgd(classifier, batch, classes, eps=0.5, n_steps=7, norm="l2"),
            attacks.apgd(classifier, batch, classes, eps=eps, n_steps=7, loss="dlr", n_restarts=2),
            *attacks.robustness(classifier, batch, classes, eps=eps, batch_size=17, n_steps=3),
        )

    for expected, got in zip(*on_both_devices(adversaries), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


KINDS = {
    "vae": lambda: make(VAE),
    "lae": lambda: make(LAE),
    "joint": lambda: make(LAE, decisions="joint", n_steps=3),
    "hoffman": lambda: make(Hoffman, seed=1),
}


def test_models_side_by_side_become_what_they_become_alone():
    """In float64, captured: branches of one graph, with random numbers of their own, and nobody waits for the device."""
    x = torch.rand(len(KINDS), WARMUP + 6, 32, NX, dtype=torch.float64, device=DEVICE)

    def trained(chosen):
        built = [KINDS[name]().double().to(DEVICE) for name in chosen]
        steps = SideBySide(
            [TrainingStep(m, adam(m, 1e-2), capture=False) for m in built],
            [OwnNumbers(list(KINDS).index(name), DEVICE) for name in chosen],
        )
        torch.manual_seed(3)  # of the program
        given = x[[list(KINDS).index(name) for name in chosen]].unbind(1)
        losses = [steps(minibatches).clone() for minibatches in given[: WARMUP + 1]]
        with no_waiting():
            losses += [steps(minibatches).clone() for minibatches in given[WARMUP + 1 :]]
        return torch.stack(losses, 1), built

    torch.manual_seed(3)
    expected = torch.rand(4, device=DEVICE)
    losses, models = trained(KINDS)
    assert torch.equal(torch.rand(4, device=DEVICE), expected)  # the program's own numbers
    for k, name in enumerate(KINDS):
        (alone,), (model,) = trained([name])
        torch.testing.assert_close(losses[k], alone, rtol=1e-9, atol=0)
        for key, t in models[k].state_dict().items():
            torch.testing.assert_close(t, model.state_dict()[key], rtol=1e-7, atol=1e-9)


def test_recipes_side_by_side_are_those_made_alone(tmp_path):
    """As models come and go, what is left is captured anew."""
    recipes = pytest.importorskip("lae_fast.experiments.autoencoders")
    from lae_fast.experiments.recipes import Lab

    trainings = [
        recipes.TrainedAutoencoder(model, 2, seed, epochs, 1e-3, nh=16, batch_size=64)
        for model, seed, epochs in (("vae", 0, 3), ("lae", 0, 1), ("report", 1, 2), ("vae", 1, 2))
    ]
    found = []
    for at_once in (3, 1):
        folder = tmp_path / str(at_once)
        lab = Lab.open("digits", folder, DEVICE, folder, 600, 64, at_once)
        assert dict(lab.make_all(trainings)) == dict.fromkeys(trainings)
        found.append([lab.get(recipe) for recipe in trainings])
    for together, alone in zip(*found, strict=True):
        assert together.metrics["epochs"] == alone.metrics["epochs"]
        for name, t in alone.weights.items():
            torch.testing.assert_close(together.weights[name], t, rtol=1e-2, atol=1e-3)
