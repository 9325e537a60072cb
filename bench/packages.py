"""`python bench/packages.py` says which packages are missing here, and what that costs. Exit code 1: nothing can be built."""

from __future__ import annotations

import importlib.util
import sys

# import name: what it is for
BUILD = dict.fromkeys(("torch", "setuptools", "ninja", "pybind11"), "the build")
OTHERS = {
    "pytest": "all tests and benchmarks",
    "scipy": "tests of distributions",
    "numpy": "tests, data",
    "tqdm": "samplers",
    "PIL": "benchmark of an epoch",
    "safetensors": "checkpoints and their tests",
    "tyro": "command lines and their tests",
    "tensorboard": "curves, and tests of the main job",
    "yaml": "options from a file, and their tests",
    "matplotlib": "pictures and their tests",
    "sklearn": "bundled digits and tests that use them",
    "torchvision": "data sets beside MNIST",
    "arviz_base": "a test of to_arviz",
    "triton": "torch.compile",
    "pytest_benchmark": "`pytest bench/`; bench/table.py does without",
    "torchebm": "a rival",
    "posteriors": "a rival",
    "blackjax": "a rival",
}


def missing(names: dict[str, str]) -> dict[str, str]:
    return {name: what for name, what in names.items() if importlib.util.find_spec(name) is None}


def main() -> int:
    fatal = missing(BUILD)
    for name, what in (fatal | missing(OTHERS)).items():
        print(f"missing: {name} ({what})")
    return 1 if fatal else 0


if __name__ == "__main__":
    sys.exit(main())
