"""What README and docs quote from the experiments is what results/ holds: means over seeds, of the report's by report.csv."""

import csv
import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MEASURED = defaultdict(list)  # (table, row, column) -> values, one for each seed
with (ROOT / "results" / "report.csv").open() as file:
    for line in csv.DictReader(file):
        if line["seed"] != "published":
            MEASURED[line["table"], line["row"], line["column"]].append(float(line["value"]))

BCE, NLL, ELBO, ACCURACY = '"BCE"', "-log p(x)", "negative ELBO", "accuracy, %"
REPORT, VAE, LAE = "LAE, report's code", "VAE", "LAE, datapoint decisions, MH"
ATTACK = "ε = 0.1, %", "ε = 0.3, %"


def of(table, column, *rows):
    return [(table, row, column) for row in rows]


def by_size(column, *models):
    return [("table1", f"{nz}, {model}", column) for model in models for nz in (2, 8, 16)]


def few(n, *kinds):
    return of("beyond-few-labels", ACCURACY, *(f"{n}, {kind}" for kind in kinds))


# A quote with a mark of its own form for each number; the numbers are means of these measurements.
QUOTES = [
    ("report", "136.0 / 141.7 | {:.1f} / {:.1f} |", of("table1", BCE, f"2, {REPORT}", f"2, {VAE}")),
    ("report", "-log p(x) is {:.0f} / {:.0f} |", of("table1", NLL, f"2, {REPORT}", f"2, {VAE}")),
    ("report", "85.9 / 103.1 | {:.1f} / {:.1f} |", of("table1", BCE, f"8, {REPORT}", f"8, {VAE}")),
    ("report", "-log p(x) is {:.1f} / {:.1f} |", of("table1", NLL, f"8, {REPORT}", f"8, {VAE}")),
    ("report", "68.2 / 98.8 | {:.1f} / {:.1f} |", of("table1", BCE, f"16, {REPORT}", f"16, {VAE}")),
    ("report", "-log p(x) is {:.0f} / {:.0f} |", of("table1", NLL, f"16, {REPORT}", f"16, {VAE}")),
    (
        "report",
        "136.0 / 136.2 | {:.1f} / {:.1f} |",
        of("table3", BCE, f"off, {REPORT}", f"on, {REPORT}, MH"),
    ),
    (
        "report",
        "95.7 / 94.2 / 94.0 % | {:.1f} / {:.1f} / {:.1f} % |",
        of(
            "table7",
            "validation accuracy, %",
            *(f"{m}, measured" for m in ("none, N = 0", "LAE, N = 2", "VAE, N = 2")),
        ),
    ),
    *(
        (
            "report",
            f"{printed} % | {form} / {form} / {form} % |",
            of("table8", column, *(f"{m}, a" for m in ("none, N = 0", "LAE, N = 2", "VAE, N = 2"))),
        )
        for printed, form, column in (
            ("66.4 / 63.4", "{:.1f}", ATTACK[0]),
            ("0.33 / 0.35", "{:.2f}", ATTACK[1]),
        )
    ),
    *(
        (
            "report",
            f"| {nz} | {{:.1f}} / {{:.1f}} |",
            of("table1", NLL, f"{nz}, {LAE}", f"{nz}, {VAE}"),
        )
        for nz in (2, 8, 16)
    ),
    *(
        ("report", "| {:.1f} / {:.1f} |", of("table1", ELBO, f"{nz}, {LAE}", f"{nz}, {VAE}"))
        for nz in (2, 8, 16)
    ),
    (
        "README",
        "| {:.1f}, {:.1f}, {:.1f} | VAE {:.1f}, {:.1f}, {:.1f}; the report's LAE {:.0f}, {:.1f}, {:.0f} |",
        by_size(NLL, LAE, VAE, REPORT),
    ),
    (
        "README",
        "| {:.1f} ± 0.2 % | small affine shifts {:.1f} ± 0.4 %, no variations {:.1f} ± 0.6 % |",
        few(10, "LAE, new codes, affine", "affine", "none"),
    ),
    *(
        ("variations", f"| {name} | {{:.1f}} ±", few(10, row))
        for name, row in (
            ("noise in 16 principal components", "16 principal components"),
            ("affine: small shifts, turns, sizes", "affine"),
            ("new codes, LAE", "LAE, new codes"),
            ("new codes, then affine, VAE", "VAE, new codes, affine"),
            ("new codes, then affine, LAE, nz 16", "LAE, nz 16, new codes, affine"),
            ("real images whose class the LAE's codes tell, then affine", "LAE, found, affine"),
            ("new images by M2, then affine", "M2, new codes, affine"),
            ("real images whose class M2 tells, then affine", "M2, found, affine"),
        )
    ),
    ("variations", "affine ones more (+3.4, to {:.1f} %)", few(50, "affine")),
    (
        "variations",
        "images whose class M2 tells are as good as affine ones ({:.1f} %",
        few(50, "M2, found, affine"),
    ),
    ("variations", "With 100 labels a class affine ones reach {:.1f} %", few(100, "affine")),
    (
        "variations",
        "the recall of 9 is {:.1f} %, and that by real images that the LAE's codes find {:.1f} %",
        of(
            "beyond-imbalance",
            "recall of 9, %",
            *(f"as they come, {k}" for k in ("none", "LAE, found, affine")),
        ),
    ),
    (
        "variations",
        "drawn equally often it is {:.1f} %, with affine variations {:.1f} %, with residual ones of these {:.1f} %",
        of(
            "beyond-imbalance",
            "recall of 9, %",
            *(f"all classes alike, {k}" for k in ("none", "affine", "LAE, affine, residual")),
        ),
    ),
    *(
        (
            "README",
            quote,
            of("beyond-adversarial", "ε = 0.3, %", f"{attack} 100 images, adversarial, none, N = 0"),
        )
        for quote, attack in (
            ("strongest attack (100 images) | {:.1f} ±", "APGD, the same"),
            ("| AutoAttack {:.1f} ±", "AutoAttack,"),
        )
    ),
    (
        "variations",
        "In accuracy none beats affine ones ({:.1f} %, {:.1f} without any)",
        of("beyond-imbalance", ACCURACY, "all classes alike, affine", "all classes alike, none"),
    ),
]


@pytest.mark.parametrize(("page", "quote", "measured"), QUOTES)
def test_a_quoted_number_is_the_mean_of_its_measurements(page, quote, measured):
    text = (ROOT / ("README.md" if page == "README" else f"docs/{page}.md")).read_text()
    numbers = [statistics.fmean(MEASURED[key]) for key in measured]
    assert quote.format(*numbers) in re.sub(r"\s+", " ", text)


def test_autoattack_fools_at_most_two_more_of_100_images():
    """What the README says of every classifier, ε and seed."""
    ours = {key: value for key, value in MEASURED.items() if key[1].startswith("APGD, the same 100")}
    assert len(ours) >= 16
    for (table, row, column), values in ours.items():
        if column.startswith(("clean", "ε")):
            theirs = MEASURED[table, row.replace("APGD, the same 100", "AutoAttack, 100"), column]
            assert len(theirs) == len(values) == 5
            assert max(a - b for a, b in zip(values, theirs, strict=True)) <= 2 + 1e-9, (row, column)


SPREAD = re.compile(r"[-\u2212+]?\d+\.\d+ ± \d+\.\d+")


def spreads(text):
    return [s.replace("\u2212", "-") for s in SPREAD.findall(text)]


def section(page, start, end):
    text = (ROOT / page).read_text()
    return text[text.index(start) : text.index(end)]


@pytest.mark.parametrize(
    ("page", "start", "end", "part", "n"),
    [
        ("README.md", "| -log p(x), binary MNIST", "| -log p(x), as the report trains", "binary", 21),
        (
            "docs/measured.md",
            "## How likely do they find binary",
            "At nz 2 and 8 the differences",
            "binary",
            36,
        ),
        ("docs/measured.md", "## And grey MNIST", "## The paper's own row", "grey", 21),
    ],
)
def test_a_quoted_likelihood_stands_in_the_study(page, start, end, part, n):
    quoted = spreads(section(page, start, end))
    assert len(quoted) == n
    assert set(quoted) <= set(spreads((ROOT / "results" / f"likelihood_{part}.md").read_text()))
