"""`python bench/gpu_table.py` measures everything on the GPU and writes results/bench_<card>.md: ceilings, targets, tables.

The JSON beside it (`--json`) and the table are written anew after every finding, so that a run that is cut short leaves what
it has. `--render JSON` makes the table from such a file, anywhere. What follows "## Versions tried" in an existing
table is written by people, and stays.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_ops
import gpu_samplers
import gpu_steps
import torch
from card import ROOT, Finding, Setting, machine, settings
from table import comparison, number, table, targets
from targets import GPU_TARGETS, checked

from lae_fast import info

# In order; the compiler, which takes longest, last.
FINDINGS: dict[str, Callable[[Setting], Finding]] = {
    "transition_long": gpu_ops.long_transition,
    "transition_short": gpu_ops.short_transition,
    "energy": gpu_ops.energy,
    "step": gpu_steps.training_step,
    "epoch": gpu_steps.epoch,
    "chains_small": gpu_samplers.small_chains,
    "chains_large": gpu_samplers.large_chains,
    "ais": gpu_samplers.annealing,
    "compiler": gpu_steps.against_compiler,
}
LOG = "## Versions tried"
TABLES = "python -m lae_fast.experiments table1 table2 table3 --preset report --seeds 1"


def write(path: Path, text: str) -> None:
    """All of it or nothing: whoever kills this process leaves the file before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def measure(report: dict[str, Any], s: Setting, names: list[str], save: Callable[[], None]) -> None:
    """Add the findings of these names to the report, and save it after each; one that fails is noted, and the next begun."""
    for name in names:
        start = time.perf_counter()
        try:
            report["findings"][name] = FINDINGS[name](s).as_dict()
        except Exception as error:
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            report["failures"][name] = f"{type(error).__name__}: {lines[0]}"
        else:
            print("\n".join(comparison(report["findings"][name])), end="\n\n", flush=True)
        report["seconds"][name] = round(time.perf_counter() - start, 1)
        save()
        gc.collect()
        torch.compiler.reset()
        if s.device.type == "cuda":
            torch.cuda.empty_cache()


def slug(card: str) -> str:
    """For a file's name: h200 of "NVIDIA H200", h100 of "NVIDIA H100 80GB HBM3"."""
    words = re.findall(r"[a-z]*\d+[a-z0-9]*", card.split(",")[0].lower())
    return words[0] if words else "gpu"


def render(report: dict[str, Any], log: str = "") -> str:
    """The report as Markdown; `log`: what people have written below."""
    found, failures, m = report["findings"], report["failures"], report["machine"]
    measured: dict[str, float] = dict(report.get("by_hand", {}))
    for finding in found.values():
        measured |= finding["measured"]
    lines = [
        f"# Benchmarks on a GPU: {slug(m['card']).upper()}",
        "",
        f"Card: {m['card']}. Driver {m['driver']}. Host: {m['processor']}. Kernels: {m['kernels']}.",
        f"Versions: {m['versions']}.",
        f"Commit {m['commit']}, {m['date']}. Command: `bench/on_gpu.sh OUT`, of it this table: `python bench/gpu_table.py`.",
        "",
        "Medians of rounds in which all rivals of a table take turns, by events on the device; times of different tables do not "
        "compare. float32 products are float32 (no TF32) unless said.",
        "",
        "## Ceilings",
        "",
        *table(["", "measured"], [[name, number(value)] for name, value in report["ceilings"].items()]),
        "",
        "## Targets",
        "",
        *targets(measured, GPU_TARGETS),
        "",
        f"The report's tables are no part of these eight minutes: `time {TABLES}`, up to 1,000 epochs and T = 50 as the report "
        'has them, then `python bench/gpu_table.py --render JSON --measured "tables 1-3=SECONDS"`.',
    ]
    if failures:
        lines += ["", "## Failed", "", *(f"- {name}: {error}" for name, error in failures.items())]
    for finding in found.values():
        lines += ["", f"## {finding['title']}", "", *list(comparison(finding))[2:]]
    return "\n".join(lines) + "\n" + (f"\n{log}" if log else "")


def log_of(path: Path) -> str:
    text = path.read_text() if path.exists() else ""
    return text[text.index(LOG) :] if LOG in text else ""


def by_hand(pairs: list[str]) -> dict[str, float]:
    """`KEY=VALUE`s, for targets that something else has measured."""
    return checked({key: float(value) for key, value in (pair.rsplit("=", 1) for pair in pairs)}, GPU_TARGETS)


def complaints(device: torch.device, kernels: str) -> Iterator[str]:
    """Why nothing should be measured here."""
    if device.type != "cuda":
        yield "there is no GPU here; --render makes the table from a JSON file of one"
    elif not kernels.startswith("compiled"):
        yield f"the CUDA kernels are not in use, and plain PyTorch is not what is to be measured: {kernels}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, default=ROOT / "runs" / "bench_gpu.json", help="what is measured goes here"
    )
    parser.add_argument("--output", type=Path, help="the table; default: results/bench_<card>.md")
    parser.add_argument(
        "--data-dir", type=Path, help="where MNIST lies; without, the epoch takes random images"
    )
    parser.add_argument("--only", nargs="+", choices=FINDINGS, default=list(FINDINGS), help="these findings")
    parser.add_argument("--render", type=Path, metavar="JSON", help="measure nothing, render this")
    parser.add_argument(
        "--measured", nargs="+", default=[], metavar="KEY=VALUE", help="numbers measured otherwise"
    )
    a = parser.parse_args(argv)
    if a.render:
        report = json.loads(a.render.read_text())
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for complaint in complaints(device, info.report()[device.type]):
            print(f"error: {complaint}", file=sys.stderr)
            return 2
        start = time.perf_counter()
        s, ceilings = settings(device, a.data_dir)
        seconds = {"ceilings": round(time.perf_counter() - start, 1)}
        report = {
            "machine": machine(device),
            "ceilings": ceilings,
            "findings": {},
            "failures": {},
            "seconds": seconds,
        }
        print(
            "\n".join(f"{name}: {number(value)}" for name, value in ceilings.items()), end="\n\n", flush=True
        )
    report["by_hand"] = report.get("by_hand", {}) | by_hand(a.measured)
    output = a.output or ROOT / "results" / f"bench_{slug(report['machine']['card'])}.md"
    log = log_of(output)

    def save() -> None:
        if not a.render:
            write(a.json, json.dumps(report, indent=1))
        write(output, render(report, log))

    save()
    if not a.render:
        measure(report, s, a.only, save)
    measured = report["by_hand"] | {
        k: v for f in report["findings"].values() for k, v in f["measured"].items()
    }
    print("\n".join(targets(measured, GPU_TARGETS)))
    print(f"written to {output}")
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
