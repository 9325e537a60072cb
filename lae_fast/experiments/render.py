"""`report.md` with its figures, and `report.csv`: the measurements so far, beside the published numbers."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from lae_fast.checkpoint import write_atomically
from lae_fast.experiments.claims import Claim, Metrics
from lae_fast.experiments.recipes import Recipe
from lae_fast.experiments.tables import Column, Row, Table

NOT_YET = "not run yet"
COUNT = Column("", "", 0)
INTRODUCTION = """\
Every table and figure of the report that this package implements, measured beside the numbers it printed (*in italics*), and at the
end its claims, each with a verdict. Mean ± standard deviation over seeds; all numbers, seed by seed, in the units of their columns:
[report.csv](report.csv)."""
CLAIMS = """\
Differences are taken seed by seed. p is that of Student's t test, two-sided, and then corrected by Holm's method for the rows of
the claim. *Holds*: corrected p up to 0.05, in the claimed direction; *does not hold*: the same in the other; else *within noise*, which is
no proof that there is no difference. Not judged: fewer than three seeds; an attack whose steps go no further than at a smaller ε. Not judged for what they
measured, and counted in the correction as if p were 1: the same difference at each seed; accuracies or recalls that are both below 1 %; a seed that does not
reach an accuracy within the limit, and so takes infinitely many epochs."""


def not_run(recipes: Sequence[Recipe]) -> str:
    """What stands in place of numbers that are not there."""
    reasons = dict.fromkeys(filter(None, (r.obstacle() for r in recipes)))
    return f"not run: {', '.join(reasons)}" if reasons else NOT_YET


QUESTIONS = """\
Judged like the claims: paired by seed, and corrected for the rows of one question. Which variations help at all, and whether those of a model help more
than small affine shifts, which need none; whether adversarial training gains by them; and whether our strongest attack misses what AutoAttack finds."""


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.{digits}f}"


def spread(values: Sequence[float], column: Column) -> str:
    """Mean ± standard deviation over seeds; for one seed, the value."""
    scaled = [column.factor * v for v in values]
    middle = statistics.fmean(scaled)
    digits = 0 if abs(middle) >= 1000 else column.digits
    text = _number(middle, digits)
    if len(scaled) == 1 or not math.isfinite(middle):
        return text
    return f"{text} ± {_number(statistics.stdev(scaled), digits)}"


def _count(values: Sequence[float]) -> str:
    """A count that is most often the same for all seeds; else mean ± standard deviation."""
    texts = {_number(value, 0) for value in values}
    return texts.pop() if len(texts) == 1 else spread(values, COUNT)


def printed(row: Row, column: Column) -> str:
    """A published number; a dagger marks one that the report has divided by what it does not state."""
    value, is_divided = row.printed(column)
    return "" if value is None else f"*{value:.5g}*{'†' if is_divided else ''}"


def _seeds(n: int, wanted: int) -> str:
    return str(n) if n == wanted else f"{n} of {wanted}"


def _cells(row: Row, columns: Sequence[Column], found: list[dict[str, float]], n_train: int) -> list[str]:
    """The cells of a measured row: its columns, then the numbers of epochs, training images and seeds."""
    cells = []
    for column in columns:
        values = [m[column.key] for m in found if column.key in m]
        cells.append(spread(values, column) if values else "")
    counts = [[m["epochs"] for m in found], [m.get("n_images", n_train) for m in found]]
    diverged = sum(m.get("is_diverged", 0) for m in found)
    seeds = _seeds(len(found), len(row.recipes)) + (f", {diverged:.0f} diverged" if diverged else "")
    return [*cells, *(_count(values) for values in counts), seeds]


def table(table: Table, metrics: Metrics, n_train: int) -> Iterator[str]:
    """One table in Markdown. A row without some of its seeds, or all, says so; a table without any number says no more than that."""
    number = table.name.removeprefix("table")
    yield f"### {table.title}" if table.is_beyond else f"### Table {number}. {table.title}"
    yield ""
    if not any(row.published or any(metrics(r) for r in row.recipes) for row in table.rows):
        reasons = {not_run(row.recipes) for row in table.rows}
        yield f"{reasons.pop() if len(reasons) == 1 else NOT_YET}.".capitalize()
        yield ""
        return
    headings = [*table.headings, *(c.heading for c in table.columns), "epochs", "images", "seeds"]
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(table.headings)}{'---:|' * (len(headings) - len(table.headings))}"
    for row in table.rows:
        found = [m for recipe in row.recipes if (m := metrics(recipe)) is not None]
        if row.published:
            cells = [printed(row, column) for column in table.columns]
        elif not found:
            cells = [not_run(row.recipes)]
        else:
            cells = _cells(row, table.columns, found, n_train)
        padding = [""] * (len(headings) - len(row.labels) - len(cells))
        yield f"| {' | '.join([*row.labels, *cells, *padding])} |"
    yield ""
    yield table.note
    yield ""


def _difference(values: Sequence[float]) -> str:
    """Mean ± standard deviation; the standard deviation decides the number of digits."""
    middle = statistics.fmean(values)
    if len(values) == 1 or not math.isfinite(middle):
        return f"{middle:+.3g}"
    error = statistics.stdev(values)
    digits = 2 if error == 0 else max(0, min(6, 1 - math.floor(math.log10(error))))
    return f"{middle:+.{digits}f} ± {error:.{digits}f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.1g}" if 0 < value < 0.001 else f"{value:.3f}"


def claims(
    found: Sequence[Claim], metrics: Metrics, headings: str = "section | the report's claim"
) -> Iterator[str]:
    """Each claim with its measurements, one line for each measurement; or one line in all, if there is none."""
    yield f"| {headings} | measured here | mean ± s.d. | seeds | p | corrected | verdict |"
    yield "|---|---|---|---:|---:|---:|---:|---|"
    for claim in found:
        head = f"{claim.section} | {claim.text}"
        if not_run(list(claim.recipes())) == NOT_YET and not any(
            m.differences(metrics) for m in claim.measurements
        ):
            yield f"| {head} | | | | | | {NOT_YET} |"
            continue
        for m, verdict in zip(claim.measurements, claim.verdicts(metrics), strict=True):
            differences = list(m.differences(metrics).values())
            value = _difference([m.factor * d for d in differences]) if differences else ""
            text = verdict.text if differences else not_run((*m.minuend, *m.subtrahend))
            cells = [value, _seeds(len(differences), len(m.minuend)), _p(verdict.p), _p(verdict.corrected)]
            yield f"| {head} | {m.what} | {' | '.join(cells if differences else [''] * 4)} | {text} |"
            head = " | "


def rows_as_csv(tables: Sequence[Table], found: Sequence[Claim], metrics: Metrics) -> bytes:
    """Every number on a separate line, in the unit of its column; measured numbers have six digits.

    Claims follow the tables: the differences that verdicts are about.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("table", "row", "column", "seed", "value"))
    for t in tables:
        for row in t.rows:
            label = ", ".join(row.labels)
            for column in t.columns:
                value, is_divided = row.printed(column)
                if value is not None:
                    heading = column.heading + (", as divided in the report" if is_divided else "")
                    writer.writerow((t.name, label, heading, "published", f"{value:.10g}"))
                for seed, recipe in enumerate(row.recipes):
                    known = metrics(recipe) or {}
                    if column.key in known:
                        measured = f"{column.factor * known[column.key]:.6g}"
                        writer.writerow((t.name, label, column.heading, seed, measured))
    for claim in found:
        for m in claim.measurements:
            for seed, difference in m.differences(metrics).items():
                writer.writerow(("claims", claim.text, m.what, seed, f"{m.factor * difference:.6g}"))
    return file.getvalue().encode()


def write(
    folder: Path,
    facts: Sequence[str],
    tables: Sequence[Table],
    figures: dict[str, str],
    found: Sequence[Claim],
    asked: Sequence[Claim],
    metrics: Metrics,
    n_train: int,
) -> None:
    """Write report.md and report.csv.

    Args:
        found, asked: the report's claims, and questions beyond it.
        facts: sentences on machine, versions, data, command and time.
        figures: name -> caption; the report shows those whose picture lies in `folder`.
        n_train: training images of the rows that do not state their own number.
    """
    lines = ["# The report, reproduced", "", INTRODUCTION, "", *(f"- {fact}" for fact in facts), ""]

    def pictures(names: Sequence[str]) -> Iterator[str]:
        for name in names:
            if name in figures and (folder / f"{name}.png").exists():
                yield from (
                    f"![{figures[name]}]({name}.png)",
                    "",
                    f"*Figure {name[6:]}. {figures[name]}.*",
                    "",
                )

    lines += ["## The method", "", *pictures(("figure1", "figure2")), "## Tables", ""]
    for t in tables:
        if not t.is_beyond:
            lines += table(t, metrics, n_train)
    lines += ["## Figures", "", *pictures(("figure3", "figure4", "figure5"))]
    lines += ["## Beyond: the report's future work", ""]
    for t in tables:
        if t.is_beyond:
            lines += table(t, metrics, n_train)
    lines += ["## The report's claims", "", CLAIMS, "", *claims(found, metrics), ""]
    judged = claims(asked, metrics, "training | question")
    lines += ["## Questions beyond the report", "", QUESTIONS, "", *judged, ""]
    write_atomically(folder / "report.md", "\n".join(lines).encode())
    write_atomically(folder / "report.csv", rows_as_csv(tables, [*found, *asked], metrics))
