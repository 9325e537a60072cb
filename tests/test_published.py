"""The report's numbers as our document prints them: each one, in its row, and in the unit of its column."""

import csv
import io
import re
from pathlib import Path

import pytest

from lae_fast.experiments import presets, published, render
from lae_fast.experiments.design import Design
from lae_fast.experiments.tables import tables

ROOT = Path(__file__).parent.parent
REPORT = (ROOT / "results" / "report.md").read_text()
TABLES = tables(Design(presets.QUICK))
HEADINGS = {  # metric -> heading, whose unit is the number's
    "report_bce": '"BCE"',
    "mse_divided": "MSE",
    "train_loss_divided": "train loss",
    "train_accuracy_divided": "train accuracy, %",
    "test_loss_divided": "validation loss",
    "test_accuracy_divided": "validation accuracy, %",
    "loss_divided": "validation loss",
    "accuracy": "validation accuracy, %",
    "accuracy_0": "clean, %",
    **{f"accuracy_{eps}": f"ε = {eps}, %" for eps in ("0.01", "0.1", "0.2", "0.3")},
    **{f"loss_{eps}": f"ε = {eps}, nats" for eps in ("0.01", "0.1", "0.2", "0.3")},
}


def by_label(numbers, rows):
    return {(label, f"{model.upper()}, as published"): numbers[key] for label, model, key in rows}


def trainings(numbers, kind):
    names = ("none, N = 0", "LAE, N = 2", "VAE, N = 2", "LAE, N = 5", "VAE, N = 5")
    return {
        (name, "as published"): {k: v for k, v in numbers[training].items() if k.startswith(kind)}
        for name, training in zip(names, published.TRAININGS, strict=True)
    }


SIZES = [(str(nz), model, (model, nz, 2, False)) for nz in (2, 8, 16) for model in ("vae", "lae")]
STEPS = [(str(t), "lae", ("lae", 2, t, False)) for t in (2, 10, 50)]
DECISIONS = [("off", "lae", ("lae", 2, 2, False)), ("on", "lae", ("lae", 2, 2, True))]
EXPECTED = {  # table -> labels -> its numbers
    **{f"table{1 + i}": by_label(published.AUTOENCODERS, r) for i, r in enumerate((SIZES, STEPS, DECISIONS))},
    **{f"table{4 + i}": by_label(published.CODES, r) for i, r in enumerate((SIZES, STEPS, DECISIONS))},
    "table7": trainings(published.CLASSIFIERS, ""),
    "table8": trainings(published.ATTACKED, "accuracy"),
    "table9": trainings(published.ATTACKED, "loss"),
    "beyond-few-labels": {},
    "beyond-imbalance": {},
    "beyond-adversarial": {
        ("PGD, 100 steps", "adversarial, as published by Madry et al.", "none, N = 0"): published.MADRY
    },
}


def rendered(table, metrics=lambda recipe: None):
    return cells_of(table, render.table(table, metrics, 1))


def committed(table):
    """The same of results/report.md."""
    after = REPORT.split(next(iter(render.table(table, lambda recipe: None, 1))) + "\n")[1]
    return cells_of(table, after.split("\n#")[0].splitlines())


def cells_of(table, lines):
    """Labels -> heading -> cell."""
    lines = [line for line in lines if line.startswith("| ")]
    if not lines:  # no number of it is known
        return {}
    head, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    n = len(table.headings)
    return {tuple(c[:n]): dict(zip(head[n:], c[n:], strict=True)) for c in body}


def rows_of_csv(metrics=lambda recipe: None):
    text = render.rows_as_csv(list(TABLES.values()), (), metrics).decode()
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("source", [rendered, committed])
@pytest.mark.parametrize("name", TABLES)
def test_every_published_number_stands_in_its_place_and_unit(name, source):
    found = {
        (labels, heading): cell
        for labels, cells in source(TABLES[name]).items()
        for heading, cell in cells.items()
        if cell.startswith("*")
    }
    assert found == {
        (labels, HEADINGS[metric]): f"*{value * (100 if '%' in HEADINGS[metric] else 1):.5g}*"
        + ("†" if metric.endswith("_divided") else "")
        for labels, numbers in EXPECTED[name].items()
        for metric, value in numbers.items()
    }


def test_numbers_are_those_that_the_report_prints():
    assert rendered(TABLES["table1"])["16", "LAE, as published"]['"BCE"'] == "*68.156*"
    assert rendered(TABLES["table7"])["none, N = 0", "as published"]["validation accuracy, %"] == "*95.66*"
    assert rendered(TABLES["table8"])["VAE, N = 5", "as published"]["ε = 0.3, %"] == "*0.41*"
    assert rendered(TABLES["table9"])["LAE, N = 2", "as published"]["ε = 0.3, nats"] == "*5.5999*"
    (cells,) = (c for labels, c in rendered(TABLES["beyond-adversarial"]).items() if "Madry" in labels[1])
    assert (cells["clean, %"], cells["ε = 0.3, %"]) == ("*98.53*", "*92.52*")


def test_a_column_of_the_csv_has_one_unit():
    """Where every measured metric is a half, that is 50 wherever the heading says percent, and published numbers are percent."""
    keys = {c.key: 0.5 for table in TABLES.values() for c in table.columns} | {"epochs": 1, "n_images": 1}
    rows = rows_of_csv(lambda recipe: keys)
    assert {r["value"] for r in rows if r["seed"] == "0" and "%" in r["column"]} == {"50"}
    assert {r["value"] for r in rows if r["seed"] == "0" and "%" not in r["column"]} == {"0.5"}
    printed = [r for r in rows if r["seed"] == "published"]
    assert len(printed) == sum(len(n) for table in EXPECTED.values() for n in table.values())
    shared = {(r["table"], r["column"]) for r in rows if r["seed"] == "0"}
    apart = {(r["table"], r["column"]) for r in printed if r["column"].endswith(", as divided in the report")}
    assert {(r["table"], r["column"]) for r in printed} - apart <= shared
    assert not apart & shared
    percent = [
        float(r["value"]) for r in printed if r["table"] in ("table7", "table8") and "%" in r["column"]
    ]
    assert sorted(percent)[-1] == 95.66
    assert sorted(percent)[0] == 0.16


@pytest.mark.parametrize("name", TABLES)
def test_measured_cells_are_in_the_unit_of_their_heading(name):
    keys = {c.key: 0.5 for c in TABLES[name].columns} | {"epochs": 1, "n_images": 1}
    columns = len(TABLES[name].columns)
    for labels, cells in rendered(TABLES[name], lambda recipe: keys).items():
        if labels not in EXPECTED[name]:
            for heading, cell in list(cells.items())[:columns]:
                assert float(cell) == (50 if "%" in heading else 0.5), (labels, heading)


def test_a_table_without_any_number_says_no_more():
    few = TABLES["beyond-few-labels"]
    assert list(render.table(few, lambda recipe: None, 1))[2:] == ["Not run yet.", ""]
    first = few.rows[0].recipes[0]
    assert len(rendered(few, {first: {"epochs": 1}}.get)) == len(few.rows)


def test_a_row_shows_the_seeds_that_it_has():
    table = tables(Design(presets.CPU))["table7"]
    known = {r: {"loss": 0.5, "accuracy": 0.5, "epochs": 1} for r in table.rows[1].recipes[1:4]}
    rows = rendered(table, known.get)
    assert rows["none, N = 0", "measured"]["seeds"] == "3 of 5"
    assert rows["none, N = 0", "measured"]["validation accuracy, %"] == "50.00 ± 0.00"
    assert rows["LAE, N = 2", "measured"]["validation loss"] == render.NOT_YET


def test_no_document_names_a_folder_of_a_machine():
    documents = [*(ROOT / "results").rglob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    assert not [p.name for p in documents if re.search(r"/(tmp|home|work|root|mnt)/", p.read_text())]
