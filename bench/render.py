"""A report as Markdown: where it was measured, its ceilings and targets, then its tables by group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from targets import TARGETS, Target

_TIMES = ("ms", "low", "high", "ratio", "ratio_low", "ratio_high")  # what `timing.summary` puts into a row


class _Words(NamedTuple):
    """What a report says of measuring on a kind of device."""

    title: str
    command: str
    method: tuple[str, ...]
    on_targets: tuple[str, ...] = ()


_WORDS = {
    "cpu": _Words(
        "Benchmarks on a CPU",
        "`python bench/table.py`",
        (
            "Medians of at least 20 rounds (7 of samplers beside blackjax) in which all rivals of a table take turns; times of different tables do not compare.",
            "All start from an allocator that keeps freed memory: a process that frees no large block may see more page faults.",
            "Speedups (x) are a rival's time over ours; other ratios are times over the time of the row named.",
        ),
    ),
    "cuda": _Words(
        "Benchmarks on a GPU",
        "`bench/on_gpu.sh OUT`, which runs `python bench/table.py` for this table",
        (
            "Medians of rounds in which all rivals of a table take turns, by events on the device; times of different tables do not "
            "compare. float32 products are float32 (no TF32) unless said.",
        ),
        (
            "",
            "The report's tables are no part of these eight minutes: `time python -m lae_fast.experiments table1 table2 table3 "
            "--preset report --seeds 1`, up to 1,000 epochs and T = 50 as the report has them, then "
            '`python bench/table.py --render JSON --measured "tables 1-3=SECONDS"`.',
        ),
    ),
}


def number(value: float) -> str:
    """Three digits, and no powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def with_quartiles(middle: float, low: float, high: float) -> str:
    return f"{number(middle)} ({number(low)} - {number(high)})"


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table, numbers to the right."""
    yield f"| {' | '.join(header)} |"
    yield "|---|" + "---:|" * (len(header) - 1)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def targets(measured: dict[str, float], of: dict[str, Target]) -> Iterator[str]:
    """All targets; those without a measurement say so."""
    rows = []
    for key, target in of.items():
        value, verdict = "not measured", ""
        if key in measured:
            value = target.text(measured[key])
            if target.limit is not None:
                verdict = "met" if target.is_met(measured[key]) else "**missed**"
        rows.append([target.what, target.limit_text(), value, verdict])
    yield from table(["target", "limit", "measured", ""], rows)


def report_targets(report: dict[str, Any]) -> Iterator[str]:
    """Those of the report's device, by its findings and what was measured otherwise."""
    measured: dict[str, float] = dict(report["by_hand"])
    for finding in report["findings"].values():
        measured |= finding["measured"]
    yield from targets(measured, TARGETS[report["where"]["device"]])


def comparison(finding: dict[str, Any]) -> Iterator[str]:
    """One finding: times and ratios with quartiles where there are any, and whatever columns its rows have beyond these."""
    rows, against = finding["rows"], finding["against"]
    more = list(dict.fromkeys(column for row in rows.values() for column in row if column not in _TIMES))
    times = [] if against is None else ["ms (quartiles)", f"ratio to {against} (quartiles)"]
    lines = []
    for name, row in rows.items():
        line = [name]
        if times:
            line.append(with_quartiles(row["ms"], row["low"], row["high"]))
            line.append(with_quartiles(row["ratio"], row["ratio_low"], row["ratio_high"]))
        line += [number(row[column]) if column in row else "" for column in more]
        lines.append(line)
    yield from (f"**{finding['title']}**", "")
    yield from table(["", *times, *more], lines)
    for note in finding["notes"]:
        yield from ("", note)


def render(report: dict[str, Any], log: str = "") -> str:
    """The report as Markdown; `log`: what people have written below."""
    where, findings = report["where"], report["findings"].values()
    words = _WORDS[where["device"]]
    lines = [
        f"# {words.title}" + (f": {where['name'].upper()}" if where["device"] == "cuda" else ""),
        "",
        f"Machine: {where['machine']}. Kernels: {where['kernels']}.",
        f"Versions: {where['versions']}.",
        f"Commit {where['commit']}, {where['date']}. Command: {words.command}.",
        "",
        *words.method,
    ]
    if report["ceilings"]:
        rows = [[name, number(value)] for name, value in report["ceilings"].items()]
        lines += ["", "## Ceilings", "", *table(["", "measured"], rows)]
    lines += ["", "## Targets", "", *report_targets(report), *words.on_targets]
    if report["failures"]:
        lines += ["", "## Failed", "", *(f"- {name}: {error}" for name, error in report["failures"].items())]
    for group in dict.fromkeys(finding["group"] for finding in findings):
        lines += ["", f"## {group}"]
        for finding in findings:
            if finding["group"] == group:
                lines += ["", *comparison(finding)]
    return "\n".join(lines) + "\n" + (f"\n{log}" if log else "")
