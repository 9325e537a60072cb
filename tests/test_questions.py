"""Questions beyond the report: what is compared with what, and what invented accuracies make of it."""

import pytest

from lae_fast.experiments import render
from lae_fast.experiments.design import BEYOND, BEYOND_FEW, FEW, Design
from lae_fast.experiments.presets import CPU
from lae_fast.experiments.questions import questions
from lae_fast.experiments.tables import tables
from lae_fast.experiments.verdicts import FAILS, HOLDS, NOISE

DESIGN = Design(CPU)
QUESTIONS = [
    q for q in questions(DESIGN) if q.section in ("few labels", "class imbalance")
]  # others: test_strongest.py
NOISES = (0.002, -0.001, 0.0, 0.001, -0.002)  # of the five seeds
GAINS = {"report": 0.0, "residual": 0.02, "components": 0.02, "affine": 0.08, "affine+residual": 0.07, "new codes": 0.08, "new codes+affine": 0.1, "found+affine": 0.12}  # fmt: skip


def invented(recipe):
    """The luck of a seed's images is ten times larger than the noise, and the same for all variations of them."""
    kind, source = recipe.variations, recipe.autoencoder
    shift = sum(map(ord, kind)) + (ord(source.model[0]) if source else 0) + 3 * hasattr(recipe, "m2")
    noise = NOISES[(recipe.seed + shift) % 5] * (1 + shift % 7 / 10)  # another one for each kind
    accuracy = 0.8 + 0.02 * recipe.seed + GAINS[kind] + noise
    return {"accuracy": accuracy, "recall_9": accuracy - 0.3}


def verdicts(claim):
    return {
        m.what.split(":")[0]: v.text
        for m, v in zip(claim.measurements, claim.verdicts(invented), strict=True)
    }


def asked(text):
    return [q for q in QUESTIONS if text in q.text]


@pytest.mark.parametrize("claim", asked("variations help"), ids=lambda q: q.text)
def test_variations_help_where_they_add_more_than_noise(claim):
    of_m2 = {"M2, new codes, affine": HOLDS, "M2, found, affine": HOLDS} if "a class" in claim.text else {}
    assert verdicts(claim) == of_m2 | {
        "LAE": NOISE,
        "VAE": NOISE,
        "LAE, residual": HOLDS,
        "VAE, residual": HOLDS,
        "LAE, new codes": HOLDS,
        "16 principal components": HOLDS,
        "affine": HOLDS,
        "LAE, affine, residual": HOLDS,
        "LAE, new codes, affine": HOLDS,
        "VAE, new codes, affine": HOLDS,
        "LAE, nz 16, new codes, affine": HOLDS,
        "LAE, found, affine": HOLDS,
    }


@pytest.mark.parametrize("claim", asked("help more than affine"), ids=lambda q: q.text)
def test_those_of_a_model_are_compared_with_affine_ones(claim):
    of_m2 = {"M2, new codes, affine": HOLDS, "M2, found, affine": HOLDS} if "a class" in claim.text else {}
    assert verdicts(claim) == of_m2 | {
        "LAE": FAILS,
        "VAE": FAILS,
        "LAE, residual": FAILS,
        "VAE, residual": FAILS,
        "LAE, new codes": NOISE,
        "LAE, affine, residual": FAILS,
        "LAE, new codes, affine": HOLDS,
        "VAE, new codes, affine": HOLDS,
        "LAE, nz 16, new codes, affine": HOLDS,
        "LAE, found, affine": HOLDS,
    }


def test_decoded_images_are_compared_with_real_ones():
    (claim,) = asked("more than real ones")
    assert [v.text for v in claim.verdicts(invented)] == [FAILS] * 2 * len(FEW)
    assert claim.measurements[0].differences(invented)[0] == pytest.approx(-0.02, abs=0.005)


def test_every_row_of_the_tables_is_asked_about():
    """And each pair differs in the variations alone: the same labelled images, minibatches and updates."""
    asked_about = {m.minuend for claim in asked("variations help") for m in claim.measurements}
    beyond = [tables(DESIGN)[name] for name in ("beyond-few-labels", "beyond-imbalance")]
    rows = {row.recipes for table in beyond for row in table.rows}
    assert len(rows) == len(FEW) * len(BEYOND_FEW) + 2 * len(BEYOND)
    none = {recipes for recipes in rows if recipes[0].n == 0}
    assert rows - asked_about == none
    alike = ("seed", "epochs", "lr", "batch_size", "per_class", "rare", "is_balanced", "n_updates")
    for claim in QUESTIONS:
        for m in claim.measurements:
            for a, b in zip(m.minuend, m.subtrahend, strict=True):
                assert [getattr(a, name) for name in alike] == [getattr(b, name) for name in alike]


def test_questions_have_a_section_and_lines_of_the_csv_of_their_own(tmp_path):
    render.write(tmp_path, [], [], {}, [], QUESTIONS, invented, 1)
    section = (tmp_path / "report.md").read_text().split("## Questions beyond the report")[1]
    assert section.count(f"| {HOLDS} |") > 50
    n = sum(len(q.measurements) for q in QUESTIONS)
    lines = (tmp_path / "report.csv").read_text().splitlines()[1:]
    assert len({line.rsplit(",", 1)[0] for line in lines}) == len(lines) == 5 * n
