"""The study of likelihoods: end to end on 256 digits, its choices, and the level ground that it stands on."""

import csv
import dataclasses
import itertools
import math

import pytest
import torch
from test_experiments import TINY, open_lab

from lae_fast.experiments import __main__ as cli
from lae_fast.experiments import contenders, presets
from lae_fast.experiments import likelihood as study_module
from lae_fast.experiments.contenders import CONTENDERS, DATA, OURS, Contender, Scored, StepTimes
from lae_fast.experiments.likelihood import (
    AS_GOOD,
    DIVERGED,
    NAMES,
    PAPER,
    PARTS,
    QUICK,
    TIMED,
    Likelihood,
    Unknown,
)
from lae_fast.experiments.likelihood_document import Document, mean_and_error
from lae_fast.experiments.record import Measured

# Models that have hardly learned, and few temperatures.
pytestmark = pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")

SMALL = dataclasses.replace(
    QUICK,
    dimensions=(3,),
    images=256,
    batch_sizes=(32, 64),
    rates=(1e-3,),
    cooldowns=(0.2, 0.5),
    n_scored=5,
    n_temperatures=3,
    nh=8,
    paper_updates=2,
    paper_nh=8,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("lab"))


@pytest.mark.slow
def test_the_whole_study_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(presets.PRESETS, "quick", TINY)
    monkeypatch.setattr(cli, "QUICK", SMALL)
    folders = [
        "--cache",
        str(tmp_path / "cache"),
        "--output",
        str(tmp_path / "out"),
        "--data-dir",
        str(tmp_path),
    ]
    arguments = ["likelihood", "--preset", "quick", "--dataset", "digits", "--workers", "1", *folders]
    assert cli.main(arguments) == 0
    assert "data      scikit-learn's bundled digits" in capsys.readouterr().out
    for part in PARTS:
        text = (tmp_path / "out" / f"likelihood_{part}.md").read_text()
        assert "not run yet" not in text
        for name in PAPER if part == "paper" else NAMES:
            assert f"| {name} | " in text
        with (tmp_path / "out" / f"likelihood_{part}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert all(math.isfinite(float(row["value"])) for row in rows)
        if part == "paper":
            assert {row["name"] for row in rows} == set(PAPER)
            assert "1.177" in text
            continue
        scored = [r for r in rows if (r["kind"], r["metric"], r["data"]) == ("Scored", "nll", part)]
        updates = {name: {r["updates"] for r in scored if r["name"] == name} for name in NAMES}
        own = updates[OURS]
        assert len(own) == 1
        for name in NAMES:  # the timed runs of others make another number of updates
            assert own <= updates[name]
            assert len(updates[name]) <= (2 if part == "binary" and name in TIMED else 1)
        pairs = {(r["name"], r["seed"]) for r in scored if r["updates"] in own}
        assert pairs == set(itertools.product(NAMES, ("0", "1")))
    capsys.readouterr()
    assert cli.main(arguments) == 0  # all is kept
    assert "work" not in capsys.readouterr().out


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["likelihood", "blue"])
    assert "likelihood blue is unknown" in " ".join(capsys.readouterr().err.split()).replace("│ ", "")


def test_what_is_not_known_is_not_named():
    """Choices come before what they decide."""
    known = {}
    study = Likelihood(dataclasses.replace(SMALL, images=6400), known.get)
    assert set(study.recipes("binary")) == set(study.batch_trials().values())
    with pytest.raises(Unknown):
        study.choice("VAE", "binary")
    bounds = iter([100.0, 100.0 + 1.01 * AS_GOOD])
    known |= {trial: {"bound": next(bounds)} for trial in study.batch_trials().values()}
    assert study.batch_size() == 32  # the larger one is too much worse
    known[study.batch_trials()[64]] = {"bound": 100.0 + 0.99 * AS_GOOD}
    assert study.batch_size() == 64
    trials = study.trials("VAE", "binary")
    assert set(study.recipes("binary")) > set(trials.values())
    assert not any(isinstance(r, Scored) for r in study.recipes("binary"))
    for name in NAMES:
        for at, trial in study.trials(name, "binary").items():
            known.setdefault(
                trial, {"bound": 90.0 if at == (1e-3, 0.5) else math.inf}
            )  # inf: it has diverged
    scored = [r for r in study.recipes("binary") if isinstance(r, Scored)]
    assert {r.contender.cooldown for r in scored} == {0.5}
    assert {r.contender.updates for r in scored} == {100}
    assert TUNING not in {r.contender.seed for r in scored}
    known[study.step_times(3)] = {"seconds_LAE": 0.03, "seconds_VAE": 0.01, "seconds_Hoffman's method": 0.04}
    assert [study.in_our_time(name, 3) for name in TIMED] == [300, 75, 100]
    assert {r.contender.updates for r in study.timed("VAE", 3)} == {300}
    assert study.timed(OURS, 3) == study.scored(OURS, "binary", 3)


TUNING = study_module.TUNING_SEED


@pytest.mark.parametrize("kind", DATA)
def test_all_contenders_see_the_same_images(kind, lab):
    seen = []
    for name in CONTENDERS:
        c = Contender(name, kind, 3, 1, 7, 100, 1e-3, 0.2, nh=8)
        seen.append(torch.stack(list(itertools.islice(c.batches(lab), 5))))  # more than one epoch
    assert all(torch.equal(x, seen[0]) for x in seen)
    assert (seen[0].unique().numel() == 2) == (kind == "binary")
    other = Contender("VAE", kind, 3, 2, 7, 100, 1e-3, 0.2, nh=8)
    assert not torch.equal(next(other.batches(lab)), seen[0][0])
    assert not torch.equal(seen[0][0], seen[0][3])  # another epoch, another order


def test_a_contender_loads_as_it_was_trained(lab):
    c = Contender(OURS, "binary", 3, 0, 3, 100, 1e-3, 0.5, nh=8)
    model, metrics = c.load(lab), lab.get(c).metrics
    assert not model.training
    assert model.spread
    assert metrics.keys() >= {"acceptance", "unmoved", "step_size"}
    assert (model.phi != c.build(lab.nx).phi).any()


def test_sgd_is_the_authors_optimizer(lab, monkeypatch):
    seen = []
    original = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda p, lr: seen.append(lr) or original(p, lr))
    c = Contender("VAE", "grey", 3, 0, 2, 100, 1e-4, 0.0, 8, "logistic", "sgd")
    c.make(lab)
    assert seen == [1e-4]


def test_step_times_take_turns(lab, monkeypatch):
    """Each takes as many seconds, by a clock of its own, as it is asked to."""
    taken, clock = [], [0.0]

    def made(model, _optimizer):
        def step(_):
            taken.append(type(model).__name__)
            clock[0] += {"VAE": 1.0, "Hoffman": 2.0, "LAE": 5.0}[taken[-1]]
            return torch.zeros(())

        return step

    monkeypatch.setattr(contenders, "TrainingStep", made)
    monkeypatch.setattr(contenders.time, "perf_counter", lambda: clock[0])
    metrics = StepTimes(TIMED, 3, 64, 8, n_turns=3).make(lab).metrics
    assert taken == ["VAE", "Hoffman", "LAE"] * 3
    assert metrics == {"seconds_VAE": 1.0, "seconds_Hoffman's method": 2.0, f"seconds_{OURS}": 5.0}


def test_what_has_diverged_says_so():
    """A model that cannot be trained loses every choice, and is no empty cell."""
    known = {}
    study = Likelihood(
        SMALL,
        lambda r: known.get(
            r, DIVERGED if getattr(r, "contender", r).name == "VAE" else {"bound": 1.0, "nll": 2.0}
        ),
    )
    known |= {trial: {"bound": 1.0} for trial in study.batch_trials().values()}
    text = "\n".join(Document(study, "grey", (), "Digits", 100, 50).lines())
    (row,) = (line for line in text.splitlines() if line.startswith("| VAE | diverged | diverged |"))
    assert "| LAE | 2.00 ± 0.00 |  |" in text
    assert "# How well do the models fit grey Digits, on level ground?" in text
    assert mean_and_error([1.0, math.inf]) == "diverged"
    assert row


def test_differences_are_paired():
    assert mean_and_error([1.0, 3.0]) == "2.00 ± 1.00"
    assert mean_and_error([1.5]) == "1.50"
    assert mean_and_error([-1.0, -1.1], "+.2f") == "-1.05 ± 0.05"
    assert mean_and_error([1.0], "+.2f") == "+1.00"


def test_bold_is_what_noise_does_not_explain():
    """By Student's t and Holm over the table: two standard errors of four seeds are p = 0.14."""
    study = dataclasses.replace(SMALL, n_seeds=4, dimensions=(2,))
    scores = {
        "LAE": (1.0, 2.0, 3.0, 4.0),
        "VAE": (2.0, 3.1, 3.9, 5.0),  # -1.0, -1.1, -0.9, -1.0
        # -1.0, -1.5, -0.4, -2.0: p = 0.037 alone, 0.074 with the next
        "Hoffman's method": (2.0, 3.5, 3.4, 6.0),
        "LAE, joint, fixed step": (2.0, 1.0, 3.9, 3.0),  # -1.0, 1.0, -0.9, 1.0
    }

    def metrics(recipe):
        contender = getattr(recipe, "contender", None)
        if isinstance(recipe, Scored) and contender.name in scores:
            return {"nll": scores[contender.name][contender.seed]}
        return {"bound": 1.0}

    likelihood = Likelihood(study, metrics)
    document = Document(likelihood, "grey", (), "Digits", 100, 50)
    found = document._differences(list(scores)[1:], lambda name, nz: likelihood.scored(name, "grey", nz))
    assert list(found.values()) == ["**-1.00 ± 0.04**", "-1.23 ± 0.34", "+0.03 ± 0.56"]
    assert list(found) == [(name, 2) for name in list(scores)[1:]]


def test_a_study_that_has_only_begun_keeps_what_was_measured(tmp_path, monkeypatch):
    options = cli.Options(
        ("likelihood", "paper"),
        "quick",
        output=tmp_path,
        cache=tmp_path / "cache",
        dataset="digits",
        workers=1,
    )
    recipes = [Likelihood(QUICK, {}.get).paper(name) for name in ("VAE", "Hoffman's method")]
    measured = Measured({"per_dimension": 1.25}, {"commit": "0123abc"})
    first = cli.Experiments(options)
    first.record.add(recipes[0], measured)
    first.record.write()

    def stopped(self, todo, after_each):
        self.record.add(recipes[1], measured)
        after_each()
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Experiments, "_make", stopped)
    with pytest.raises(KeyboardInterrupt):
        cli.Experiments(options).run_likelihood("paper")
    text = (tmp_path / "likelihood_paper.md").read_text()
    assert "| VAE | 1.189 | 1.250 |" in text
    assert "- Commit: 0123abc" in text
    kept = cli.Experiments(options).record
    assert kept.find(recipes[0]) == kept.find(recipes[1]) == measured
