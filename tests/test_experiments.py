"""The report's experiments: every table and figure end to end on 256 digits, the cache, the runner, and the verdicts."""

import csv
import dataclasses
import itertools
import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lae_fast import checkpoint, data, provenance
from lae_fast.evaluation import evaluate
from lae_fast.experiments import __main__ as cli
from lae_fast.experiments import (
    autoencoders,
    convergence,
    drawings,
    figures,
    hardened,
    presets,
    published,
    render,
)
from lae_fast.experiments.autoencoders import TrainedAutoencoder
from lae_fast.experiments.claims import claims
from lae_fast.experiments.classifiers import Attacked, LatentClassifier, TrainedClassifier, as_images
from lae_fast.experiments.convergence import Convergence
from lae_fast.experiments.design import Design
from lae_fast.experiments.hardened import HardenedClassifier
from lae_fast.experiments.m2 import TrainedM2, TrainedOnM2
from lae_fast.experiments.new_images import TrainedOnNewImages
from lae_fast.experiments.planes import Plane, Recognised
from lae_fast.experiments.quality import Quality
from lae_fast.experiments.questions import questions
from lae_fast.experiments.recipes import Lab, Product, Recipe, enlarged, ordered
from lae_fast.experiments.record import Measured, Record
from lae_fast.experiments.report_rule import CountingReportLAE
from lae_fast.experiments.runner import run
from lae_fast.experiments.strongest import WorstCase
from lae_fast.experiments.tables import Column, Row, tables

# Models that have hardly learned, and few temperatures.
pytestmark = pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")

TINY = dataclasses.replace(
    presets.QUICK,
    n_train=256,
    n_test=64,
    nh=16,
    epochs=2,
    attacked_images=8,
    strongest_images=4,
    autoattack_images=2,
    likelihood_images=4,
    n_temperatures=4,
    few_label_updates=3,
)
VAE = TrainedAutoencoder("vae", 2, 0, 1, 1e-3, nh=16)
LAE = TrainedAutoencoder("lae", 2, 0, 2, 1e-3, mh=True, step_size=None, nh=16, decisions="datapoint")
JOINT = dataclasses.replace(LAE, decisions="joint")
REPORT = TrainedAutoencoder("report", 2, 0, 2, 1e-3, mh=True, nh=16)
PLAIN = TrainedClassifier(0, epochs=1)


def open_lab(folder):
    return Lab.open("digits", folder, "cpu", folder, TINY.n_train, TINY.n_test)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What the end-to-end tests share: nothing is trained twice."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def experiments(cache, tmp_path, monkeypatch):
    """Runs the command with a tiny preset; its exit code, report.md and report.csv."""
    monkeypatch.setitem(presets.PRESETS, "quick", TINY)

    def call(*arguments, workers=1, folder=cache):
        code = cli.main(
            [
                *arguments,
                "--preset",
                "quick",
                "--dataset",
                "digits",
                "--cache",
                str(folder),
                "--output",
                str(tmp_path),
                "--workers",
                str(workers),
            ]
        )
        text, rows = tmp_path / "report.md", tmp_path / "report.csv"
        if not text.exists():
            return code, "", []
        with rows.open() as file:
            return code, text.read_text(), list(csv.DictReader(file))

    return call


TABLES = tables(Design(TINY))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.slow
def test_every_table_end_to_end(experiments, name):
    code, text, rows = experiments(name)
    assert code == 0
    table = TABLES[name]
    (section,) = re.findall(
        rf"^### (?:Table {name[5:]}\. )?{re.escape(table.title)}$(.*?)^#", text, re.M | re.S
    )
    assert render.NOT_YET not in section
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(table.rows)
    for line, row in zip(lines[1:], table.rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[: len(row.labels)] == list(row.labels)
        impossible = any(r.obstacle() for r in row.recipes)  # its library is not installed
        assert row.published or impossible or cells[-1] == "1"  # seed
    measured = [r for r in rows if r["table"] == name and r["seed"] == "0"]
    assert len(measured) >= len(table.columns) - 2  # a VAE has no acceptance
    assert all(math.isfinite(float(r["value"])) for r in measured)
    printed = [r for r in rows if r["table"] == name and r["seed"] == "published"]
    numbers = [row.printed(column)[0] for row in table.rows for column in table.columns]
    assert len(printed) == sum(number is not None for number in numbers)


@pytest.mark.parametrize(
    "name", ["figure1", "figure2", pytest.param("figure3", marks=pytest.mark.slow), "figure4", "figure5"]
)
def test_every_figure_end_to_end(experiments, tmp_path, name):
    from matplotlib.image import imread

    code, text, _ = experiments(name)
    assert code == 0
    picture = imread(tmp_path / f"{name}.png")
    assert picture.shape[1] > 900
    assert picture.std() > 0.02
    assert f"({name}.png)" in text
    assert f"*Figure {name[6:]}. " in text


@pytest.mark.slow
def test_everything_at_once_says_something_of_every_claim(experiments, capsys):
    code, text, _ = experiments("all")
    assert code == 0
    assert render.NOT_YET not in text
    verdicts = re.findall(r"\| (?:not judged: .*|not run: needs pyautoattack) \|$", text, re.M)
    judged = claims(Design(TINY)) + questions(Design(TINY))
    assert len(verdicts) == sum(len(claim.measurements) for claim in judged)
    assert capsys.readouterr().err == ""
    for fact in (
        "Machine: ",
        "torch ",
        "Commit: ",
        "by `python -m lae_fast.experiments",
        "64 test images",
    ):
        assert fact in text
    experiments("all")
    assert "work      0 of " in capsys.readouterr().out  # nothing twice


def test_what_is_not_run_says_so(experiments, tmp_path):
    code, text, _ = experiments("table3", folder=tmp_path / "fresh")
    assert code == 0
    assert f"| 2 | VAE | {render.NOT_YET} |" in text


@pytest.mark.slow
def test_what_was_measured_before_stays_with_its_commit(experiments, tmp_path):
    """Its products are gone, as they are when code has changed."""
    _, before, rows = experiments("table7")
    path = tmp_path / "report.jsonl"
    path.write_text(path.read_text().replace(provenance.commit(), "0123abc"))
    _, text, now = experiments("table3", folder=tmp_path / "fresh")
    table = before[before.index("### Table 7") : before.index("### Table 8")].strip()
    assert table + " Commit: 0123abc." in text
    assert [r for r in now if r["table"] == "table7"] == [r for r in rows if r["table"] == "table7"]
    assert f"Commit: {provenance.commit()}." in text[text.index("### Table 3") : text.index("### Table 4")]
    assert re.search(r"- Commit: .*0123abc \(\d+ of \d+\)", text)


def test_a_measurement_whose_model_is_gone_is_made_anew(experiments, tmp_path):
    """As after a damaged file, which an error advises to delete."""
    quality = next(TABLES["table1"].recipes())
    lab = open_lab(tmp_path / "cache")
    lab.get(quality)
    lab.path(quality.autoencoder).unlink()
    code, text, _ = experiments("figure1", folder=tmp_path / "cache")
    assert code == 0
    assert f"| 2 | VAE | {render.NOT_YET} |" in text


def test_the_document_counts_what_it_shows_however_often_it_is_written(lab, tmp_path, monkeypatch):
    """All that tables and claims show, the latter's own measurements, too."""
    monkeypatch.setitem(presets.PRESETS, "quick", TINY)
    design = Design(TINY)
    quality, epochs = design.quality(design.vae(2))[0], design.convergence(None, 2)[0]
    made = {"commit": "0123abc", "machine": "one", "versions": "1"}
    record = Record(tmp_path / "report.jsonl", lab.digest)
    record.add(quality, Measured({"ais": 1.0, "epochs": 1.0, "seconds": 3600.0}, made))
    record.add(epochs, Measured({"epochs_to_goal": 2.0}, made | {"commit": "4567def"}))
    record.write()
    options = cli.Options(("figure1",), "quick", output=tmp_path, cache=tmp_path, dataset="digits", workers=1)
    found = cli.Experiments(options)
    for _ in range(2):
        found._write()
        text = (tmp_path / "report.md").read_text()
        assert "- Commit: 0123abc (1 of 2), 4567def (1 of 2)" in text
        assert "- Time: 1.00 hours for 1 of the 2 models and measurements in the record; what else" in text
        assert "by `python -m lae_fast.experiments figure1 --preset quick --dataset digits`; what" in text


@pytest.mark.slow
def test_missing_makes_only_what_nobody_has_measured(experiments, tmp_path, capsys):
    """With an empty cache, as after a change of code: two measurements of the record are gone."""
    experiments("table3")
    recipes = list(dict.fromkeys(TABLES["table3"].recipes()))
    path, gone = tmp_path / "report.jsonl", [r.describe() for r in recipes[:2]]
    kept = [line for line in path.read_text().splitlines() if json.loads(line)["recipe"] not in gone]
    path.write_text("\n".join(kept).replace(provenance.commit(), "0123abc"))
    capsys.readouterr()
    code, text, _ = experiments("table3", "--missing", folder=tmp_path / "fresh")
    assert code == 0
    assert "work      4 of 4 models" in capsys.readouterr().out  # each with its model
    section = text[text.index("### Table 3") : text.index("### Table 4")]
    assert render.NOT_YET not in section
    assert f"Commit: 0123abc ({len(recipes) - 2} of {len(recipes)})" in section
    experiments("table3", "--missing", folder=tmp_path / "fresh")
    assert "work      0 of 0 models" in capsys.readouterr().out


def test_what_missing_leaves_out_needs_no_models(monkeypatch, tmp_path):
    """Those that only a measurement needs that this machine cannot make are not trained; figures need theirs anyway."""
    monkeypatch.setattr(
        WorstCase, "obstacle", lambda self: "it needs a library" if self.n_images == 10 else ""
    )
    monkeypatch.setitem(presets.PRESETS, "quick", TINY)
    options = cli.Options(
        ("all",), "quick", output=tmp_path, cache=tmp_path, dataset="digits", workers=1, missing=True
    )
    made = cli.Experiments(options)
    bare, left_out = Attacked(PLAIN, 1, False, n_images=8), {}
    hidden = WorstCase(dataclasses.replace(PLAIN, seed=7), 10)
    assert made._to_make([bare, hidden], left_out) == [PLAIN, bare]
    assert left_out == {hidden: "it needs a library"}
    made.record.add(VAE, Measured({"epochs": 1.0}, {"commit": "0123abc"}))
    assert made._to_make([VAE, Plane(VAE)], {}) == [VAE, Plane(VAE)]  # whose weights nobody has
    assert made._to_make([VAE], {}) == []
    assert made._to_make([VAE], {}, weights=True) == [VAE]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(workers=2, side_by_side=3), "--side-by-side is 3 with --workers 2; expected --workers 1"),
        (dict(side_by_side=0), "--side-by-side is 0; expected at least 1"),
        (dict(artefacts=("likelihood",), missing=True), "--missing is for tables and claims"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cli.Options(**options)


def test_paths_begin_at_home_and_are_not_empty(capsys):
    options = cli.Options(output=Path("~/x"), cache=Path("~/c"))
    assert (options.output, options.cache) == (Path.home() / "x", Path.home() / "c")
    assert cli.main(["figure1", "--output", ""]) == 2
    assert "--output is empty; expected a value" in capsys.readouterr().err


def test_side_by_side_is_in_one_process(monkeypatch, tmp_path):
    monkeypatch.setitem(presets.PRESETS, "quick", TINY)
    given = dict(preset="quick", output=tmp_path, cache=tmp_path, dataset="digits")
    together = cli.Experiments(cli.Options(side_by_side=3, **given))
    assert (together.workers, together.lab.at_once, together._n_at_once()) == (1, 3, 3)
    by_workers = cli.Experiments(cli.Options(workers=2, **given))
    assert (by_workers.workers, by_workers.lab.at_once, by_workers._n_at_once()) == (2, 1, 2)


def test_presets_do_not_write_into_each_other_s_documents():
    folders = {str(cli.Options(preset=name).folder()) for name in presets.PRESETS}
    assert folders == {"runs/quick", "results", "results/full"}


def test_other_data_have_a_folder_of_their_own(experiments, tmp_path, capsys):
    """Else a document would mix them: its tables, and the figures that lie there."""
    assert experiments("figure1")[0] == 0
    (tmp_path / "report.jsonl").write_text(
        json.dumps({"recipe": VAE.describe(), "data": "others", "metrics": {}, "provenance": {}}) + "\n"
    )
    before = (tmp_path / "report.md").read_bytes()
    assert experiments("figure1")[0] == 2
    assert "holds measurements of other data than scikit-learn's bundled digits" in capsys.readouterr().err
    assert (tmp_path / "report.md").read_bytes() == before


def test_a_figure_is_shown_with_its_commit_and_only_beside_its_own_data(experiments, tmp_path, monkeypatch):
    (tmp_path / "figure4.png").write_bytes(b"of who knows what data")
    assert "figure4.png" not in experiments("figure1")[1]
    monkeypatch.setattr(cli.Experiments, "_asked", lambda self, name: [])
    monkeypatch.setenv("LAE_FAST_COMMIT", "0123abc")
    monkeypatch.setattr(figures, "planes", lambda lab, found: drawings.training())
    text = experiments("figure4")[1]
    assert "](figure4.png)" in text
    assert re.search(r"^\*Figure 4\. The latent plane: .* Commit: 0123abc\.\*$", text, re.M)


def test_what_a_killed_run_left_is_swept_and_what_others_write_now_is_not(experiments, cache, tmp_path):
    left = [folder / f".{age}.ab12_x9z.tmp" for folder in (tmp_path, cache) for age in ("old", "new")]
    for path in left:
        path.mkdir()
    for path in left[::2]:
        os.utime(path, (0, 0))
    assert experiments("figure1")[0] == 0
    assert [path.exists() for path in left] == [False, True, False, True]
    for path in left[1::2]:
        path.rmdir()


def test_counts_that_differ_by_seed_are_a_mean(tmp_path):
    found = [{"epochs": e, "x": 1.0} for e in (121.0, 95.0, 94.0)]
    row = Row(("VAE",), (VAE, VAE, VAE))
    assert render._cells(row, (Column("x", "x"),), found, 55_000) == [
        "1.00 ± 0.00",
        "103 ± 15",
        "55,000",
        "3",
    ]
    assert render._cells(row, (), [{"epochs": e} for e in (9.98, 10.0, 9.98)], 7)[0] == "10"


def test_a_fault_keeps_its_traceback(monkeypatch, capsys):
    """And a worker that something has killed is a line."""

    def fails(_):
        raise error

    monkeypatch.setattr(cli, "_run", fails)
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        cli.main([])
    error = cli.BrokenProcessPool("a worker ended")
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "error: a worker ended\n"


def test_an_unknown_table_is_refused_before_any_work(experiments, capsys, monkeypatch):
    monkeypatch.setattr(cli.Lab, "open", None)
    assert experiments("table10")[0] == 2
    assert "'table10' is unknown; expected all, beyond, table1, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        experiments("table1", "--seeds", "0")
    assert "--seeds is 0; expected at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("meta", "--device is meta; expected auto, cpu or cuda"),
        ("abacus", "--device is 'abacus'; expected a device"),
    ],
)
def test_what_cannot_compute_is_no_device(name, message, experiments, capsys):
    assert experiments("table1", "--device", name)[0] == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_more_seeds_are_more_rows_in_the_csv(experiments):
    _, text, rows = experiments("table7", "--seeds", "2")
    assert {r["seed"] for r in rows if r["table"] == "table7"} == {"0", "1", "published"}
    assert re.search(r"none, N = 0 \| measured \| [\d.]+ ± [\d.]+ \|", text)


def test_fewer_seeds_make_less_and_take_nothing_out_of_the_document(experiments, monkeypatch, tmp_path):
    monkeypatch.setitem(presets.PRESETS, "quick", dataclasses.replace(TINY, n_seeds=2))
    experiments("table7")
    fresh = tmp_path / "fresh"
    code, text, rows = experiments("table7", "--seeds", "1", folder=fresh)
    assert code == 0
    assert {r["seed"] for r in rows if r["table"] == "table7"} == {"0", "1", "published"}
    assert re.search(r"none, N = 0 \| measured \| [\d.]+ ± [\d.]+ \|", text)
    made = [checkpoint.load_weights(p)[1]["recipe"]["seed"] for p in fresh.glob("TrainedClassifier-*")]
    assert set(made) == {0}
    assert len(made) > 2


def test_fewer_seeds_of_likelihoods_need_a_folder_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr(cli, "QUICK", dataclasses.replace(cli.QUICK, n_seeds=2))
    arguments = ["likelihood", "--preset", "quick", "--dataset", "digits", "--seeds", "1"]
    assert cli.main(arguments) == 2
    assert "--seeds is 1, and runs/quick has documents of 2; expected an --output" in capsys.readouterr().err


RECIPES = [
    VAE,
    LAE,
    JOINT,
    REPORT,
    TrainedAutoencoder("hoffman", 2, 1, 1, 1e-3, mh=True, step_size=None, nh=16),
    Quality(LAE, 4, 4, 4),
    LatentClassifier(REPORT, 2),
    Plane(VAE),
    Recognised(VAE, PLAIN),
    TrainedClassifier(0, 2, LAE, epochs=1, is_balanced=True, rare=9),
    TrainedClassifier(1, 1, VAE, n_updates=2, per_class=5, adversarial_steps=2),
    TrainedOnNewImages(1, 1, VAE, n_updates=2, per_class=5, variations="new codes+affine"),
    TrainedOnM2(0, 1, n_updates=2, per_class=5, m2=TrainedM2(2, 0, 1, 1e-3, 5, nh=16)),
    Attacked(PLAIN, 3, True, n_images=16),
    WorstCase(PLAIN, 8, eps=(0.0, 0.3)),
    Convergence(PLAIN, PLAIN, 2),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)
def test_fresh_and_kept_products_are_identical(recipe, lab, tmp_path):
    first = lab.get(recipe)
    torch.manual_seed(99)  # whatever was drawn before does not count
    torch.rand(7)
    fresh = open_lab(tmp_path).get(recipe)
    torch.rand(3)
    kept = lab.get(recipe)
    assert kept.metrics == first.metrics
    for other in (kept, fresh):
        assert {k: v for k, v in other.metrics.items() if k != "seconds"} == {
            k: v for k, v in first.metrics.items() if k != "seconds"
        }
        assert other.weights.keys() == first.weights.keys()
        assert all(torch.equal(other.weights[k], w) for k, w in first.weights.items())


def test_a_product_is_kept_under_all_that_decides_it(lab, tmp_path):
    paths = {lab.path(LAE)}
    other = {"str": "vae", "int": 7, "float": 0.5, "bool": False, "NoneType": 0.25}
    for field in dataclasses.fields(LAE):
        value = getattr(LAE, field.name)
        paths.add(lab.path(dataclasses.replace(LAE, **{field.name: other[type(value).__name__]})))
    assert len(paths) == 1 + len(dataclasses.fields(LAE))
    assert lab.path(Plane(LAE)) != lab.path(Plane(VAE))
    assert lab.path(LAE) == open_lab(lab.folder).path(LAE)
    smaller = Lab.open("digits", tmp_path, "cpu", lab.folder, TINY.n_train - 1, TINY.n_test)
    assert smaller.path(LAE) != lab.path(LAE)


def test_small_images_are_enlarged_and_others_left():
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    large = enlarged(images)
    assert large.shape == (3, 784)
    assert large.dtype == torch.uint8
    assert large.float().mean().item() == pytest.approx(images.float().mean().item(), rel=0.1)
    assert torch.equal(enlarged(large.view(3, 1, 28, 28)), large)


# ---- models ----


def test_the_report_s_model_is_judged_with_the_weights_that_its_rule_trained(lab):
    """Its energy, by the transcription, is the reconstruction of the model that evaluation sees."""
    model = REPORT.load(lab)
    rule = CountingReportLAE(model, 2, False, 1e-3)
    x = lab.test.images[:20] / 255
    with torch.no_grad():
        expected = rule.energy(x, rule.encoder(x), rule.phi)
        found = model.reconstruction(x, model.encode(x)).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    start = TrainedAutoencoder.build(REPORT, lab.nx)
    assert not torch.equal(model.phi, start.phi)
    assert not torch.equal(model.decoder[0].weight, start.decoder[0].weight)


def test_the_report_s_decisions_are_counted(lab):
    always, sometimes = (
        lab.get(dataclasses.replace(REPORT, mh=mh, step_size=1e-3)).metrics["acceptance"]
        for mh in (False, True)
    )
    assert always == 1
    assert 0 <= sometimes < 1


@pytest.mark.parametrize("recipe", [VAE, LAE])
def test_the_quality_of_a_model_is_that_of_its_own_q(recipe, lab):
    """Not of the report's q, by which its "BCE" is measured."""
    found = lab.get(Quality(recipe, 4, 4, 4)).metrics
    own = evaluate(recipe.load(lab), lab.test.images, n_draws=5)
    assert own.rate > 0
    assert own._asdict().items() <= found.items()


def test_the_report_s_bce_is_two_quantities(lab):
    vae, lae = (lab.get(Quality(recipe, 4, 4, 4)).metrics for recipe in (VAE, LAE))
    assert vae["report_bce"] == pytest.approx(vae["negative_elbo"], rel=0.05)
    assert lae["report_bce"] < lae["negative_elbo"] - 0.5 * lae["rate"]


@pytest.mark.parametrize(("recipe", "beta1"), [(JOINT, 0.5), (LAE, 0.9), (VAE, 0.9), (REPORT, 0.9)])
def test_momentum_is_that_of_the_model_or_of_the_rule(recipe, beta1, lab, monkeypatch):
    def adam(model, lr, beta1=0.9):
        seen.append(beta1)
        return original(model, lr, beta1)

    seen, original = [], autoencoders.adam
    monkeypatch.setattr(autoencoders, "adam", adam)
    dataclasses.replace(recipe, epochs=1).make(lab)
    assert seen == [beta1]


def test_training_stops_when_patience_is_over_and_keeps_the_best(lab, monkeypatch):
    losses, seen = itertools.chain([9.0, 7.0, 8.0, 6.0, 6.5, 6.0], itertools.repeat(99.0)), []

    def scripted(self, model, lab):
        seen.append({name: t.clone() for name, t in model.state_dict().items()})
        return next(losses)

    monkeypatch.setattr(TrainedAutoencoder, "validation_loss", scripted)
    product = dataclasses.replace(VAE, epochs=30, patience=2).make(lab)
    assert product.metrics["epochs"] == len(seen) == 6
    assert product.metrics["best_epoch"] == 4
    assert all(torch.equal(product.weights[name], t) for name, t in seen[3].items())
    assert not all(torch.equal(product.weights[name], t) for name, t in seen[5].items())


def test_training_that_diverges_keeps_what_was_good_or_says_so(lab, monkeypatch):
    def poisoned(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        loss = original(self, x)
        return loss * math.nan if self.calls > limit else loss

    original = autoencoders.LAE.loss
    monkeypatch.setattr(autoencoders.LAE, "loss", poisoned)
    limit = 1
    product = dataclasses.replace(LAE, batch_size=256, epochs=5, seed=5).make(lab)
    assert product.metrics["is_diverged"] == 1
    assert product.metrics["epochs"] == 1
    assert all(w.isfinite().all() for w in product.weights.values())
    limit = 0
    with pytest.raises(ArithmeticError, match="diverged in its first epoch"):
        dataclasses.replace(LAE, batch_size=256, seed=5).make(lab)


# ---- classifiers ----


def test_what_classifiers_need_is_asked_for_before_they_learn(tmp_path):
    images = data.from_images(torch.zeros(40, 8, 8))
    with pytest.raises(ValueError, match="images has no labels; expected a data set of classes"):
        Lab(images, torch.device("cpu"), tmp_path)
    with pytest.raises(ValueError, match="n is 2 without an autoencoder; expected 0"):
        TrainedClassifier(0, 2)


def test_few_labels_and_a_rare_class(lab):
    few = dataclasses.replace(PLAIN, per_class=3).training_set(lab.train)
    assert few.labels.bincount().tolist() == [3] * 10
    rare = dataclasses.replace(PLAIN, rare=9).training_set(lab.train)
    expected = lab.train.labels.bincount()
    expected[9] = max(1, expected[9] // 100)
    assert torch.equal(rare.labels.bincount(), expected)
    originals = {(x.numpy().tobytes(), y.item()) for x, y in zip(*lab.train, strict=True)}
    assert all((x.numpy().tobytes(), y.item()) in originals for x, y in zip(*few, strict=True))
    other = dataclasses.replace(PLAIN, per_class=3, seed=1).training_set(lab.train)
    assert not torch.equal(few.images, other.images)


def test_minibatches(lab):
    labels = lab.train.labels
    passes = [list(batches) for batches in dataclasses.replace(PLAIN, epochs=3).passes(labels)]
    assert [[len(b) for b in batches] for batches in passes] == [[128] * 2] * 3
    plain = [b for batches in passes for b in batches]
    assert torch.equal(torch.cat(plain[:2]).sort().values, torch.arange(256))
    assert not torch.equal(plain[0], plain[2])
    (few,) = dataclasses.replace(PLAIN, n_updates=5, epochs=0).passes(labels)
    assert len(list(few)) == 5
    skewed = torch.tensor([0] * 250 + [1] * 6)
    balanced = dataclasses.replace(PLAIN, is_balanced=True, epochs=20)
    drawn = torch.cat(list(itertools.chain.from_iterable(balanced.passes(skewed))))
    share = (skewed[drawn] == 1).double().mean().item()  # 5,120 draws: five standard deviations are 0.035
    assert abs(share - 0.5) < 0.035


def test_the_classifier_is_the_report_s(lab):
    net = PLAIN.load(lab)
    with torch.no_grad():
        log_p = net(as_images(lab.test.images[:5]))
    assert log_p.shape == (5, 10)
    assert torch.allclose(log_p.exp().sum(1), torch.ones(5))
    kinds = [type(m).__name__ for m in net]
    assert kinds == [
        "Conv2d",
        "MaxPool2d",
        "ReLU",
        "Conv2d",
        "Dropout2d",
        "MaxPool2d",
        "ReLU",
        "Flatten",
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
        "LogSoftmax",
    ]
    assert sum(p.numel() for p in net.parameters()) == 21_840


def test_attacks_are_on_the_kept_classifier(lab):
    trained = dataclasses.replace(PLAIN, epochs=30, lr=3e-3)
    metrics = lab.get(Attacked(trained, 5, False, (0.0, 0.3), step_size=0.1, n_images=64)).metrics
    assert metrics["accuracy_0"] == lab.get(trained).metrics["accuracy"] > 0.6
    assert metrics["accuracy_0.3"] < metrics["accuracy_0"] - 0.2
    assert metrics["loss_0.3"] > metrics["loss_0"]


def test_epochs_to_an_accuracy(lab, monkeypatch):
    """They are those of the recipe's own training, whose accuracies are scripted here: straight between two epochs."""
    trained = dataclasses.replace(PLAIN, epochs=30, lr=3e-3)
    found = {}
    for goal in (PLAIN, trained):
        recipe = Convergence(trained, goal, 40)
        found[goal] = lab.get(recipe).metrics["epochs_to_goal"]
    assert found[PLAIN] < found[trained] <= 30
    accuracies = []

    def scripted(net, split):
        accuracies.append(0.2 * len(accuracies))
        return {"accuracy": accuracies[-1]}

    monkeypatch.setattr(convergence, "measure", scripted)
    monkeypatch.setattr(lab, "get", lambda recipe: Product({}, {"accuracy": 0.55}))
    assert Convergence(PLAIN, PLAIN, 9).make(lab).metrics["epochs_to_goal"] == pytest.approx(3.75)
    assert len(accuracies) == 4
    accuracies.clear()
    assert Convergence(PLAIN, PLAIN, 3).make(lab).metrics["epochs_to_goal"] == math.inf


@pytest.mark.slow
def test_adversarial_training_hardens(lab):
    """Of 200 digits it learns a little; within its radius PGD then takes less than of the plain classifier, which is the better one
    of the images as they are."""
    options = dict(eps=(0.0, 0.1), n_steps=10, is_random_start=False, step_size=0.02, n_images=64)
    plain = dataclasses.replace(PLAIN, epochs=60, lr=3e-3)
    hard = HardenedClassifier(0, n_updates=120, adversarial_steps=2, eps=0.15)
    plain, hard = (lab.get(Attacked(c, **options)).metrics for c in (plain, hard))
    assert hard["accuracy_0"] > 0.5
    assert plain["accuracy_0"] - plain["accuracy_0.1"] > hard["accuracy_0"] - hard["accuracy_0.1"] + 0.2


def test_the_radius_grows_and_nothing_is_dropped(lab, monkeypatch):
    seen = []

    def attack(net, x, y, *, eps, **options):
        seen.append((eps, [m.training for m in net.modules() if "Dropout" in type(m).__name__]))
        return x

    monkeypatch.setattr(hardened, "pgd", attack)
    net = HardenedClassifier(0, n_updates=10, adversarial_steps=3).make(lab)
    assert [eps for eps, _ in seen] == pytest.approx([0.3 * k / 4 for k in range(1, 5)] + [0.3] * 6)
    assert all(modes == [False, False] for _, modes in seen)
    assert net.metrics["epochs"] * net.metrics["n_images"] == 10 * 64
    with pytest.raises(ValueError, match="n_updates is None, adversarial_steps 5; expected at least 1"):
        HardenedClassifier(0, n_updates=None)


def test_codes_tell_classes_apart_when_they_do(lab, monkeypatch):
    """On codes that are the labels, one for each latent dimension, the linear layer finds them."""
    recipe = LatentClassifier(dataclasses.replace(VAE, nz=10), epochs=60, lr=0.05, batch_size=64)

    def codes(self, model, images):
        labels = lab.train.labels if len(images) == len(lab.train.labels) else lab.test.labels
        return 5 * nn.functional.one_hot(labels, 10).float(), torch.zeros(len(labels), 10)

    monkeypatch.setattr(LatentClassifier, "codes", codes)
    metrics = recipe.make(lab).metrics
    assert metrics["train_accuracy"] == metrics["test_accuracy"] == 1
    assert metrics["test_loss"] < 0.1


# ---- runner ----


@dataclasses.dataclass(frozen=True)
class Step(Recipe):
    number: int
    before: Recipe | None = None
    fails: bool = False

    def cost(self):
        return 1.0

    def make(self, lab):
        if self.fails:
            raise ArithmeticError("no number")
        earlier = lab.get(self.before).metrics["number"] if self.before else 0
        return Product({}, {"number": float(self.number + earlier)})


def test_what_is_needed_comes_first():
    a = Step(1)
    b, c = Step(2, a), Step(3, a)
    assert ordered([c, b, a]) == [a, c, b]


def test_a_failure_takes_along_only_what_needs_it(lab, tmp_path, monkeypatch):
    made, make = [], Step.make
    monkeypatch.setattr(Step, "make", lambda self, lab: made.append(self) or make(self, lab))
    bad = Step(1, fails=True)
    recipes = ordered([Step(3, Step(2, bad)), Step(5, Step(4))])
    found = dict(run(recipes, lambda: open_lab(tmp_path), 1))
    assert found == {
        bad: "no number",
        Step(2, bad): "no number",
        Step(3, Step(2, bad)): "no number",
        Step(4): None,
        Step(5, Step(4)): None,
    }
    assert open_lab(tmp_path).get(Step(5, Step(4))).metrics["number"] == 9
    assert made == [bad, Step(4), Step(5, Step(4))]  # what failed is not tried again


def test_other_errors_end_the_run_and_keep_what_is_done(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Step,
        "make",
        lambda self, lab: Product({}, {"number": 1 / (2 - self.number)}) if self.number != 3 else 1 / "a",
    )
    results = run([Step(1), Step(3)], lambda: open_lab(tmp_path), 1)
    assert next(results) == (Step(1), None)
    with pytest.raises(TypeError):
        next(results)
    assert open_lab(tmp_path).has(Step(1))


@pytest.mark.slow
def test_two_processes_make_what_one_does(experiments, tmp_path):
    code, text, rows = experiments("beyond", workers=2, folder=tmp_path / "two")
    assert code == 0
    _, _, expected = experiments("beyond")
    beyond = [[r for r in found if r["table"].startswith("beyond")] for found in (rows, expected)]
    assert beyond[0] == beyond[1] != []
    assert render.NOT_YET not in text.split("## Beyond")[1].split("## The report's claims")[0]


# ---- claims and tables ----


def test_every_claim_names_metrics_that_exist(lab):
    """One recipe of each kind tells which there are."""
    known = {
        type(r): set(lab.get(r).metrics)
        for r in (
            Quality(LAE, 4, 4, 4),
            LatentClassifier(REPORT, 2),
            Plane(VAE),
            Recognised(VAE, PLAIN),
            PLAIN,
        )
    }
    known[Convergence] = {"epochs_to_goal"}
    known[Attacked] = set(lab.get(Attacked(PLAIN, 1, False, n_images=8)).metrics)
    known[TrainedOnNewImages] = known[TrainedOnM2] = known[TrainedClassifier]
    known[WorstCase] = set(lab.get(WorstCase(PLAIN, 2)).metrics)
    for claim in claims(Design(TINY)) + questions(Design(TINY)):
        for m in claim.measurements:
            assert m.key in known[type(m.minuend[0])], m
            assert (m.subtrahend_key or m.key) in known[type(m.subtrahend[0])], m


def test_published_numbers_stand_in_rows_of_their_own():
    counts = {name: sum(bool(row.published) for row in table.rows) for name, table in TABLES.items()}
    in_report = dict(table1=6, table2=3, table3=2, table4=6, table5=3, table6=2, table7=5, table8=5, table9=5)
    assert {name: n for name, n in counts.items() if not TABLES[name].is_beyond} == in_report
    rows = [row for table in TABLES.values() for row in table.rows if row.published]
    assert all(not row.recipes for row in rows)
    assert published.AUTOENCODERS["lae", 16, 2, False]["report_bce"] == 68.15598


def test_columns_show_mean_and_deviation():
    assert render.spread([0.5, 0.7], Column("", "", 1, 100)) == "60.0 ± 14.1"
    assert render.spread([1.2345], Column("", "", 2)) == "1.23"
    assert render.spread([12000.5, 12003.5], Column("", "", 2)) == "12,002 ± 2"
    assert render.spread([1.0, math.inf], Column("", "", 2)) == "inf"
    assert render.spread([1.0, math.nan], Column("", "", 2)) == "nan"
