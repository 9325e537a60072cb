"""What a benchmark's JSON should say beside what pytest-benchmark finds out itself."""

import torch
from measuring import facts


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["lae_fast"] = facts(torch.device("cpu"))
