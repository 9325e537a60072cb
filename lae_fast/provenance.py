"""Which machine, which versions, which commit: what every record of a measurement says."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from lae_fast._version import __version__

_TREE = Path(__file__).resolve().parent.parent


def _git(tree: Path, *arguments: str) -> str:
    """What git says of a source tree; nothing where there is none."""
    command = ["git", "-C", str(tree), *arguments]
    try:
        found = subprocess.run(command, capture_output=True, check=True)
        return found.stdout.decode(errors="replace").strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit(tree: Path = _TREE) -> str:
    """A source tree's commit, by default this package's, and whether files differ from it, but for those of results/, which
    measurements write; LAE_FAST_COMMIT where it came without its history."""
    if given := os.environ.get("LAE_FAST_COMMIT"):
        return given
    is_ours = _git(tree, "ls-files", "lae_fast/_version.py")  # not a repository that this one is installed in
    found = _git(tree, "rev-parse", "--short", "HEAD") if is_ours else ""
    changes = " with changes" if _git(tree, "status", "--porcelain", "--", ".", ":!results") else ""
    return f"{found}{changes}" if found else "unknown"


def processor() -> str:
    """The processor's name where the system tells it, with the numbers that tell apart what virtual machines call alike; else
    its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.machine()
    found: dict[str, str] = {}  # of the first core
    for name, _, value in (line.partition(":") for line in lines):
        found.setdefault(name.strip(), value.strip())
    if not found.get("model name"):
        return platform.machine()
    numbers = [
        f"{word} {found[name]}"
        for word, name in (("family", "cpu family"), ("model", "model"))
        if name in found
    ]
    return found["model name"] + (f" ({', '.join(numbers)})" if numbers else "")


def machine(device: torch.device | str = "cpu") -> str:
    """Processor and cores, and the card where the work is done on one."""
    card = f"; {torch.cuda.get_device_name(device)}" if torch.device(device).type == "cuda" else ""
    return f"{processor()}, {os.cpu_count()} cores{card}"


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> str:
    cuda = f" (CUDA {torch.version.cuda})" if torch.version.cuda else ""
    return f"Python {platform.python_version()}, torch {torch.__version__}{cuda}, lae_fast {__version__}"


def record(device: torch.device | str = "cpu") -> dict[str, str]:
    """All three, for a file of results."""
    return {"commit": commit(), "machine": machine(device), "versions": versions()}
