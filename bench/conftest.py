"""What a benchmark's JSON should say beside what pytest-benchmark finds out itself."""

import os
import platform

import torch

import lae_fast
from lae_fast import info


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["lae_fast_bench"] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "kernels": info.report()["cpu"].split(" (")[0],  # without the library's path
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lae_fast": lae_fast.__version__,
    }
