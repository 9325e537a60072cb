"""`python bench/table.py` runs all benchmarks and writes their ratios to results/bench_cpu.md."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from targets import TARGETS, Target
from timing import columns

ROOT = Path(__file__).resolve().parent.parent


def run_benchmarks() -> dict[str, Any]:
    """What pytest-benchmark has to say of bench/; a benchmark that fails ends it all."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "benchmarks.json")
        command = [sys.executable, "-m", "pytest", str(ROOT / "bench"), "-m", "not gpu", "--benchmark-only"]
        finished = subprocess.run([*command, f"--benchmark-json={path}"], cwd=ROOT)
        if finished.returncode:
            sys.exit(f"the benchmarks ended with exit code {finished.returncode}: no table was written")
        return json.loads(path.read_text())


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


def where(report: dict[str, Any]) -> Iterator[str]:
    """Machine, versions, commit, date and command."""
    machine, commit = report["machine_info"], report["commit_info"]
    own, cpu = machine["lae_fast_bench"], machine.get("cpu", {})
    changes = " with changes" if commit.get("dirty") else ""
    yield (
        f"Machine: {cpu.get('brand_raw', 'unknown processor')}, {own['cores']} cores, {own['threads']} threads, "
        f"{own['simd']}, {own['system']}. Kernels: {own['kernels']}."
    )
    yield f"Versions: Python {own['python']}, torch {own['torch']}, lae_fast {own['lae_fast']}."
    yield f"Commit {(commit.get('id') or 'unknown')[:7]}{changes}, {report['datetime'][:10]}. Command: `python bench/table.py`."


def targets(measured: dict[str, float], of: dict[str, Target]) -> Iterator[str]:
    """All targets; one that nobody measured is shown as such."""
    rows = []
    for key, target in of.items():
        value, verdict = "not measured", ""
        if key in measured:
            value = target.text(measured[key])
            if target.limit is not None:
                verdict = "met" if target.is_met(measured[key]) else "**missed**"
        rows.append([target.what, target.limit_text(), value, verdict])
    yield from table(["target", "limit", "measured", ""], rows)


def comparison(extra: dict[str, Any]) -> Iterator[str]:
    """One benchmark: times and ratios with quartiles, and whatever columns its rows have beyond these."""
    rows, against = extra["rows"], extra["against"]
    more = list(dict.fromkeys(column for row in rows.values() for column in columns(row)))
    lines = []
    for name, row in rows.items():
        line = [name, with_quartiles(row["ms"], row["low"], row["high"])]
        line.append(with_quartiles(row["ratio"], row["ratio_low"], row["ratio_high"]))
        line += [number(row[column]) if column in row else "" for column in more]
        lines.append(line)
    yield from (f"**{extra['title']}**", "")
    yield from table(["", "ms (quartiles)", f"ratio to {against} (quartiles)", *more], lines)
    for note in extra.get("notes", ()):
        yield from ("", note)


def findings(name: str, extra: dict[str, Any]) -> Iterator[str]:
    """One benchmark that stored numbers of its own instead of times that compare."""
    lines = []
    for key, value in extra.items():
        values = {f"{key}, {k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        lines += [[k, number(v)] for k, v in values.items()]
    yield from (f"**{name}**", "")
    yield from table(["", "value"], lines)


def render(report: dict[str, Any]) -> str:
    """pytest-benchmark's JSON as Markdown: the targets, then every benchmark by its group."""
    benchmarks = report["benchmarks"]
    measured: dict[str, float] = {}
    for benchmark in benchmarks:
        measured |= benchmark["extra_info"].get("targets", {})
    lines = ["# Benchmarks on a CPU", "", *where(report), ""]
    lines += [
        "Medians of at least 20 rounds in which all rivals of a table take turns; times of different tables do not compare.",
        "All start from an allocator that keeps freed memory: a process that frees no large block may see more page faults.",
        "Speedups (x) are a rival's time over ours; other ratios are times over the time of the row named.",
        "",
        "## Targets",
        "",
        *targets(measured, TARGETS),
    ]
    for group in dict.fromkeys(benchmark["group"] for benchmark in benchmarks):
        lines += ["", f"## {group}"]
        for benchmark in benchmarks:
            extra = benchmark["extra_info"]
            if benchmark["group"] == group:
                lines += ["", *(comparison(extra) if "rows" in extra else findings(benchmark["name"], extra))]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--json", type=Path, help="render this JSON of pytest-benchmark instead of running anything"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench_cpu.md")
    arguments = parser.parse_args()
    report = json.loads(arguments.json.read_text()) if arguments.json else run_benchmarks()
    arguments.output.write_text(render(report))
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
