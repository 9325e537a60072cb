"""Verdicts by Student's t, paired by seed, with Holm's correction over the rows of one claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

HOLDS, FAILS, NOISE = "holds", "does not hold", "within noise"
LEVEL = 0.05  # the chance that noise alone makes any row of a claim hold or fail
LEAST_SEEDS = 3
FLOOR = 0.01  # accuracies and recalls below it on both sides are not compared: no 20 of 2,000 images are left


class Row(NamedTuple):
    """What was measured in one row of a claim: differences d, one for each seed."""

    differences: tuple[float, ...]
    sign: int = 1  # sign of d if the claim is true
    margin: float = 0.0  # the claim is sign * d > -margin: "not much worse" instead of "better"
    excluded: str = ""  # why the row is not judged, whatever was measured
    is_on_floor: bool = False  # both sides are too small to be compared


class Verdict(NamedTuple):
    text: str
    p: float | None = None  # of the row alone, two-sided; None: not judged
    corrected: float | None = None  # the same, corrected for all judged rows of the claim


def obstacle(row: Row) -> str:
    """Why a row cannot be judged; nothing if it can."""
    n = len(row.differences)
    if row.excluded:
        return row.excluded
    if row.is_on_floor:
        return f"on the floor, both below {FLOOR:.0%}"
    if n < LEAST_SEEDS:
        return f"fewer than {LEAST_SEEDS} seeds"
    if not all(map(math.isfinite, row.differences)):
        return "not finite"
    # Counts that are too coarse to differ have no standard error, which is no certainty. But for rounding:
    is_constant = math.isclose(min(row.differences), max(row.differences), rel_tol=1e-9, abs_tol=1e-9)
    return "the same difference at each seed" if is_constant else ""


def p_value(differences: Sequence[float], margin: float = 0.0) -> float:
    """Two-sided p value of Student's t test that the mean of n >= 2 differences, not all equal, is -margin; n - 1 degrees of freedom."""
    from scipy.stats import t as student

    n, centre = len(differences), statistics.fmean(differences) + margin
    error = statistics.stdev(differences) / math.sqrt(n)
    return float(2 * student.sf(abs(centre) / error, n - 1))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: below a level alpha only where the chance of any false finding is below alpha."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """The verdicts on the rows of one claim: it holds, it does not, or noise explains the difference (corrected p > 5 %).

    A row that is not judged for what it measured counts in the correction like one with p = 1: else the rows that remain would
    be chosen by their outcome, and noise alone would make one of them hold more often than `LEVEL` says.
    """
    obstacles = [obstacle(row) for row in rows]
    measured = {
        i: row for i, row in enumerate(rows) if not row.excluded and len(row.differences) >= LEAST_SEEDS
    }
    towards = {i: [r.sign * d for d in r.differences] for i, r in measured.items()}
    p = {i: 1.0 if obstacles[i] else p_value(towards[i], r.margin) for i, r in measured.items()}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))

    def verdict(i: int) -> Verdict:
        if obstacles[i]:
            return Verdict(f"not judged: {obstacles[i]}")
        is_true = statistics.fmean(towards[i]) + rows[i].margin > 0
        text = NOISE if corrected[i] > LEVEL else HOLDS if is_true else FAILS
        return Verdict(text, p[i], corrected[i])

    return [verdict(i) for i in range(len(rows))]
