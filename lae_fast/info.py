"""`python -m lae_fast.info`: versions, and the kernels that serve each device. Paste the output into bug reports."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lae_fast import console, provenance
from lae_fast._version import SCHEMA_VERSION, __version__
from lae_fast.models import whole_layers
from lae_fast.ops import library


def _serving(device: str) -> str:
    backend = library.backends[device]
    if backend.is_compiled:
        detail = f", SIMD level {library.simd_level()}" if device == "cpu" else ""
        return f"compiled kernels{detail} ({backend.path})"
    return f"plain PyTorch: {backend.reason}"


def _layers() -> str:
    """How the layers of fully connected networks are evaluated on the machine's best device."""
    obstacle = whole_layers.obstacle(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return (
        f"a product and a norm each: {obstacle}" if obstacle else f"one kernel each, {whole_layers.CONDITION}"
    )


def report() -> dict[str, str]:
    """Everything a bug report needs, in order."""
    build = library.build_info
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "lae_fast": f"{__version__} ({Path(__file__).parent})",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'}), {torch.get_num_threads()} threads",
        "numpy": provenance.version("numpy"),
        "torchvision": provenance.version("torchvision"),
        "processor": f"{platform.machine()}, {provenance.processor()}",
        "gpu": ", ".join(gpus) or "none visible",
        "schema version": str(SCHEMA_VERSION),
        "cpu": _serving("cpu"),
        "cuda": _serving("cuda"),
        "network layers": _layers(),
    }
    if build is not None:
        facts |= {
            "built with": build.compiler,
            "built against": f"torch {build.torch_headers} headers, stable ABI of {build.torch_target}",
            "built for CUDA": f"{build.cuda_version}, architectures {build.cuda_architectures}"
            if build.cuda_version
            else "no",
        }
    return facts


def _print() -> int:
    for name, value in report().items():
        console.say(f"{name:<15} {value}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line, which has no options. Returns the exit code."""
    prog = " ".join(console.typed("info"))
    argparse.ArgumentParser(prog, description="Versions, and the kernels that serve each device.").parse_args(
        argv
    )
    return console.run(_print, (), "stopped")


if __name__ == "__main__":
    sys.exit(main())
