"""Findings made one after the other and kept: a report, which is saved as JSON after each of them."""

from __future__ import annotations

import gc
import os
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from finding import Benchmark, Setting
from render import comparison

from lae_fast import info, provenance

ROOT = Path(__file__).resolve().parent.parent


def name_of(card: str) -> str:
    """For a file's name: h200 of "NVIDIA H200", h100 of "NVIDIA H100 80GB HBM3"."""
    words = re.findall(r"[a-z]*\d+[a-z0-9]*", card.lower())
    return words[0] if words else "gpu"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.split("\n")[0].strip() or "unknown"


def facts(device: torch.device) -> dict[str, str]:
    """Where, with what and when something is measured, for people."""
    known = info.report()
    kernels = known[device.type].split(" (")[0]  # without the library's path
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        name = name_of(p.name)
        more = (
            f"compute capability {p.major}.{p.minor}, {p.multi_processor_count} multiprocessors, "
            f"{p.L2_cache_size / 2**20:.0f} MB of L2, {p.total_memory / 2**30:.0f} GiB, driver {_driver()}"
        )
        kernels += f", built for CUDA {known.get('built for CUDA', 'no')}"
    else:
        name = "cpu"
        more = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {platform.system()}"
    return {
        "device": device.type,
        "name": name,
        "machine": f"{provenance.machine(device)}, {more}",
        "kernels": kernels,
        "versions": provenance.versions(),
        "commit": provenance.commit(ROOT),
        "date": time.strftime("%Y-%m-%d"),
    }


def new_report(device: torch.device) -> dict[str, Any]:
    """Nothing measured yet. The ceilings, the findings and the seconds they took, and failures, are by name."""
    return {
        "where": facts(device),
        "ceilings": {},
        "findings": {},
        "failures": {},
        "seconds": {},
        "by_hand": {},
    }


def measure(
    report: dict[str, Any], setting: Setting, benchmarks: Iterable[Benchmark], save: Callable[[], None]
) -> None:
    """Add the findings of these to the report, and save it after each; one that fails is noted, and the next begun."""
    for benchmark in benchmarks:
        start = time.perf_counter()
        try:
            found = benchmark.run(setting).as_dict() | {"group": benchmark.group}
        except Exception as error:
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            report["failures"][benchmark.name] = f"{type(error).__name__}: {lines[0]}"
        else:
            report["findings"][benchmark.name] = found
            print("\n".join(comparison(found)), end="\n\n", flush=True)
        report["seconds"][benchmark.name] = round(time.perf_counter() - start, 1)
        save()
        gc.collect()
        torch.compiler.reset()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def write(path: Path, text: str) -> None:
    """Replace the file whole: if this process is killed, the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)
