"""What a build makes on this machine, and where it finds torch's headers; setuptools' build backend, with that knowledge.

A build needs the headers of some torch from 2.11 on, and any will do: LibTorch's stable ABI. If the environment that is
installed into has one, its headers serve, and no other torch is downloaded for the build; if there is nothing to compile,
none is needed at all. `setup.py` carries the plan out.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

TORCH_TARGET = "2.11"
# Turing (T4), Ampere (runs on Ada too), Hopper, and PTX for all that come after.
CUDA_ARCHITECTURES = "7.5;8.0;9.0+PTX"
MINIMUM_NVCC = (12, 0)


def asked_for_cxx() -> str:
    """The command in CXX; empty: the user leaves the choice to us."""
    return os.environ.get("CXX", "").strip()


def compiler_of(command: str) -> str | None:
    """The compiler in a command such as "ccache g++ -m64"; None if this machine has none of that name."""
    try:
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), shlex.split(command)))
    except ValueError:  # a quotation without end
        return None
    return next(filter(shutil.which, reversed(words)), None)


def find_cxx() -> str | None:
    """The command that compiles C++: the user's, or else the first that there is."""
    if sys.platform == "win32":
        return None
    own = asked_for_cxx()
    return next(filter(compiler_of, [own] if own else ["c++", "g++", "clang++"]), None)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, candidates)), None)


def nvcc_version(nvcc: str) -> tuple[int, int]:
    out = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", out)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def architectures() -> str:
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES


def gencode_flags() -> str:
    """nvcc's flags for the architectures. A ValueError names an entry that it does not know."""
    flags = []
    for arch in filter(None, re.split(r"[;\s]+", architectures())):
        number = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", arch)
        if not number:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST holds {arch!r}; expected entries like 8.0 or 9.0+PTX")
        n = number[1] + number[2] + number[3]
        code = f"[sm_{n},compute_{n}]" if number[4] else f"sm_{n}"
        flags.append(f"-gencode arch=compute_{n},code={code}")
    return " ".join(flags)


def job_flags() -> list[str]:
    """ninja's flags for MAX_JOBS; what is no number is passed over, as torch does."""
    jobs = os.environ.get("MAX_JOBS", "").strip()
    return ["-j", jobs] if jobs.isdecimal() else []


def torch_version(folder: Path) -> str:
    """The version of the torch in that folder; torch itself is never imported."""
    found = re.search(r"__version__ = '([^']+)'", (folder / "version.py").read_text())
    return found[1] if found else "unknown"


def find_torch() -> Path | None:
    """The folder of a torch with the headers that the build needs: importable here, or, where pip hides it from the build, in
    the environment that is installed into."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [Path(place, "torch") for place in [*site.getsitepackages(), site.getusersitepackages()]]
    least = tuple(map(int, TORCH_TARGET.split(".")))
    for folder in folders:
        if (folder / "include/torch/csrc/stable/library.h").is_file() and (folder / "version.py").is_file():
            version = re.match(r"(\d+)\.(\d+)", torch_version(folder))
            if version and (int(version[1]), int(version[2])) >= least:
                return folder
    return None


class Plan:
    """What LAE_FAST_BUILD and the machine's compilers allow: `libraries`; and `left_out`, with the reasons."""

    def __init__(self) -> None:
        self.request = os.environ.get("LAE_FAST_BUILD", "auto")
        if self.request not in ("auto", "cpu", "cuda", "none"):
            raise SystemExit(f"lae_fast: LAE_FAST_BUILD={self.request!r}; expected auto, cpu, cuda or none")
        self.cxx, self.nvcc = find_cxx(), find_nvcc()
        self.left_out: dict[str, str] = {}
        self.libraries = [name for name in ("cpu", "cuda") if self._wants(name)]

    def _wants(self, name: str) -> bool:
        if self.request == "none" or (self.request == "cpu" and name == "cuda"):
            reason = f"LAE_FAST_BUILD={self.request} asked for none; reinstall without it"
        elif not self.cxx and asked_for_cxx():
            reason = f"CXX={asked_for_cxx()!r} names no compiler that can be found; correct or unset it and reinstall"
        elif not self.cxx:
            reason = "no C++ compiler was found; install g++ or clang++ (or set CXX) and reinstall"
        elif name == "cpu":
            return True
        elif not self.nvcc:
            reason = "nvcc was not found; install the CUDA toolkit (or set CUDA_HOME) and reinstall"
        elif nvcc_version(self.nvcc) < MINIMUM_NVCC:
            found = ".".join(map(str, nvcc_version(self.nvcc)))
            reason = f"nvcc {found} is older than {MINIMUM_NVCC[0]}.{MINIMUM_NVCC[1]}; install a newer CUDA toolkit and reinstall"
        else:
            try:
                gencode_flags()
                return True
            except ValueError as error:
                reason = str(error)
        self.leave_out(name, reason)
        return False

    def leave_out(self, name: str, reason: str) -> None:
        """Note the reason, or stop when this very library was asked for."""
        if self.request == name or (self.request == "cuda" and name == "cpu"):
            raise SystemExit(
                f"lae_fast: LAE_FAST_BUILD={self.request}, but the {name} kernels cannot be built: {reason}"
            )
        self.left_out[name] = reason

    def modules(self) -> list[str]:
        """The top-level modules that are built."""
        return [f"_lae_fast_{name}" for name in [*self.libraries, "build"]] if self.libraries else []

    def build_tag(self) -> str:
        """What is built, as a part of the wheel's name."""
        return f"0.{'_'.join(self.libraries) or 'no'}_kernels"

    def sentence(self) -> str:
        """What is left out and why, for people; empty if nothing is."""
        return "\n".join(
            f"lae_fast: the {name} kernels are left out, plain PyTorch serves instead: {reason}"
            for name, reason in self.left_out.items()
        )


def _missing() -> list[str]:
    return [f"torch>={TORCH_TARGET}"] if Plan().libraries and find_torch() is None else []


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_missing()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_missing()]
