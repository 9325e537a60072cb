"""`python bench/table.py` measures everything and writes results/bench_cpu.md, or on a GPU results/bench_<card>.md.

Ceilings where there are any, targets, tables. The JSON beside it (`--json`) and the table are written anew after every
finding, so that a run that is cut short leaves what it has. `--render JSON` makes the table from such a file, anywhere.
What follows "## Versions tried" in an existing table is written by people, and stays.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ceilings import ceilings
from finding import Setting
from measuring import ROOT, measure, new_report, write
from registry import chosen
from render import number, render, report_targets
from targets import TARGETS, checked

from lae_fast import info

LOG = "## Versions tried"


def log_of(path: Path) -> str:
    text = path.read_text() if path.exists() else ""
    return text[text.index(LOG) :] if LOG in text else ""


def by_hand(pairs: list[str], device: str) -> dict[str, float]:
    """`KEY=VALUE`s, for targets that something else has measured."""
    values = {key: float(value) for key, value in (pair.rsplit("=", 1) for pair in pairs)}
    return checked(values, TARGETS[device])


def complaints(device: str, n_cards: int, kernels: str) -> Iterator[str]:
    """Why nothing should be measured here. On a CPU the table says what serves it."""
    if device == "cuda" and not n_cards:
        yield "there is no GPU here; --render makes the table from a JSON file of one"
    elif device == "cuda" and not kernels.startswith("compiled"):
        yield f"the CUDA kernels are not in use, and plain PyTorch is not what is to be measured: {kernels}"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=TARGETS, help="default: cuda where there is a GPU, else cpu")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these findings, or those that begin so")
    parser.add_argument(
        "--json", type=Path, help="what is measured goes here; default: runs/bench_<name>.json"
    )
    parser.add_argument("--output", type=Path, help="the table; default: results/bench_<name>.md")
    parser.add_argument(
        "--data-dir", type=Path, help="where MNIST lies; without, a GPU's epoch takes random images"
    )
    parser.add_argument("--render", type=Path, metavar="JSON", help="measure nothing, render this")
    parser.add_argument(
        "--measured", nargs="+", default=[], metavar="KEY=VALUE", help="numbers measured otherwise"
    )
    found = parser.parse_args(argv)
    found.device = found.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found.benchmarks = chosen(found.device, found.only)
    except ValueError as error:
        parser.error(str(error))
    return found


def set_out(report: dict[str, Any], device: torch.device, data_dir: Path | None) -> Setting:
    """The ceilings of a GPU, and a CPU as it is."""
    if device.type == "cpu":
        return Setting(device, data_dir=data_dir)
    start = time.perf_counter()
    setting, report["ceilings"] = ceilings(device, data_dir)
    report["seconds"]["ceilings"] = round(time.perf_counter() - start, 1)
    lines = (f"{name}: {number(value)}" for name, value in report["ceilings"].items())
    print("\n".join(lines), end="\n\n", flush=True)
    return setting


def main(argv: Sequence[str] | None = None) -> int:
    a = arguments(argv)
    if a.render:
        report = json.loads(a.render.read_text())
    else:
        for complaint in complaints(a.device, torch.cuda.device_count(), info.report()[a.device]):
            print(f"error: {complaint}", file=sys.stderr)
            return 2
        device = torch.device(a.device)
        report = new_report(device)
        setting = set_out(report, device, a.data_dir)
    where = report["where"]
    report["by_hand"] |= by_hand(a.measured, where["device"])
    output = a.output or ROOT / "results" / f"bench_{where['name']}.md"
    kept = a.json or ROOT / "runs" / f"bench_{where['name']}.json"
    log = log_of(output)

    def save() -> None:
        if not a.render:
            write(kept, json.dumps(report, indent=1))
        write(output, render(report, log))

    save()
    if not a.render:
        measure(report, setting, a.benchmarks, save)
    print("\n".join(report_targets(report)))
    print(f"written to {output}")
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
