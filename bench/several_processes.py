"""A training step of one process and of several, and what their messages cost: the points behind docs/several_processes.md.

    torchrun --standalone --nproc-per-node 2 bench/several_processes.py [--quick]

prints the tables of results/several_processes.md. All calls take turns, so that a busy moment of the machine hits all alike; and
beside the time on the wall stands the CPU time of a process, which other programs on the same cores hardly change. A process that
waits for another one sleeps.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from lae_fast import console, provenance
from lae_fast.models import Architecture, build
from lae_fast.sharing import Shared
from lae_fast.training import TrainingStep
from lae_fast.training.trainer import N_PARTS

KINDS = {"datapoint": {}, "joint": {"decisions": "joint", "step_size": 1e-4}}
CASES = (
    ("datapoint", 256, 256),
    ("joint", 256, 256),
    ("datapoint", 256, 2048),
    ("datapoint", 1024, 256),
    ("datapoint", 1024, 1024),
)
BYTES = (8, 2**12, 2**16, 2**20, 2**22, 2**24)
TURNS = 7

Times = list[tuple[float, float]]  # of each turn: seconds on the wall, and of the CPU


def step_of(kind: str, nh: int, n: int, *, shares: bool, n_parts: int | None = None) -> Callable[[], Any]:
    """A training step with n images of this process."""
    torch.manual_seed(0)
    model = build(Architecture(nx=784, nz=8, nh=nh, depth=3), **KINDS[kind]).train()
    if shares:
        model.share_minibatches()
    optimizer = torch.optim.Adam(model.parameters(), model.lr, fused=True)
    step = TrainingStep(model, optimizer, n_parts=n_parts)
    return functools.partial(step, torch.rand(n, 784).round())


def timed(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Of one call, the mean over as many as the first process makes in about `seconds`; all processes begin together."""
    distributed.barrier()
    start = time.perf_counter()
    call()
    loops = [max(1, round(seconds / (time.perf_counter() - start)))]
    distributed.broadcast_object_list(loops)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(loops[0]):
        call()
    return (time.perf_counter() - wall) / loops[0], (time.process_time() - cpu) / loops[0]


def messages_of(call: Callable[[], object]) -> list[int]:
    """The bytes of each all-reduce of a call."""
    found, all_reduce = [], distributed.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        found.append(tensor.nbytes)
        return all_reduce(tensor, *args, **options)

    distributed.all_reduce = counted
    try:
        call()
    finally:
        distributed.all_reduce = all_reduce
    return found


def fitted(times: dict[int, Times]) -> tuple[float, float]:
    """a and b of a + b bytes, the seconds of an all-reduce: least squares of relative errors at medians."""
    rows = torch.tensor([[1.0, size] for size in times], dtype=torch.float64)
    seconds = torch.tensor([statistics.median(w for w, _ in t) for t in times.values()], dtype=torch.float64)
    a, b = (
        torch.linalg.lstsq(rows / seconds[:, None], torch.ones(len(rows), 1, dtype=torch.float64))
        .solution[:, 0]
        .tolist()
    )
    return max(a, 0.0), b


def shown(times: Times) -> str:
    """Median and quartiles on the wall, and the median of the CPU, ms."""
    low, middle, high = statistics.quantiles((w for w, _ in times), n=4)
    return f"{1e3 * middle:.2f} ({1e3 * low:.2f} - {1e3 * high:.2f}) | {1e3 * statistics.median(c for _, c in times):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one case, few turns: does it run?")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()

    def say(text: str) -> None:
        if rank == 0:
            console.say(text)

    turns, seconds = (2, 0.01) if quick else (TURNS, 0.5)
    say(
        f"{provenance.machine()}; {size} processes of one thread each, Gloo; commit {provenance.commit()}; {provenance.versions()}\n"
    )
    buffers = {b: torch.zeros(b, dtype=torch.uint8) for b in BYTES}
    reductions: dict[int, Times] = {b: [] for b in BYTES}
    for _ in range(turns):
        for b, buffer in buffers.items():
            reductions[b].append(timed(functools.partial(distributed.all_reduce, buffer), seconds / 5))
    a, each = fitted(reductions)
    say("| bytes of an all-reduce | ms (quartiles) | CPU ms |\n|---|---|---|")
    for b, times in reductions.items():
        say(f"| {b:,} | {shown(times)} |")
    say(f"\na = {1e6 * a:.0f} us, b = {1e9 * each:.3f} ns a byte ({1e-9 / each:.2f} GB/s)\n")
    say(
        "| decisions, nh, images | messages | bytes | alone, all images, ms | CPU ms | alone, a part each, ms | CPU ms | shared, ms | "
        "CPU ms | in parts: alone, ms | CPU ms | shared, ms | CPU ms | by the formula, ms |"
    )
    say("|" + 14 * "---|")
    share = Shared()
    for kind, nh, n in CASES[:1] if quick else CASES:

        def alone(
            n_parts: int | None = None, given: tuple[str, int, int] = (kind, nh, n)
        ) -> Callable[[], Any]:
            return step_of(*given, shares=False, n_parts=n_parts) if rank == 0 else lambda: None

        part, shared = (step_of(kind, nh, n // size, shares=s) for s in (False, True))
        messages = messages_of(shared)
        calls = {"whole": alone(), "part": part, "shared": shared, "whole, in parts": alone(N_PARTS)}
        calls["shared, in parts"] = step_of(kind, nh, n // size, shares=True, n_parts=N_PARTS)
        found: dict[str, Times] = {name: [] for name in calls}
        for _ in range(turns):
            for name, call in calls.items():
                mine = timed(call, seconds)
                found[name].append(
                    mine if name.startswith("whole") else tuple(share.mean(torch.tensor(mine)).tolist())
                )
        medians = {name: statistics.median(w for w, _ in times) for name, times in found.items()}
        predicted = medians["part"] + sum(a + each * b for b in messages)
        say(
            f"| {kind}, {nh}, {n} | {len(messages)} | {sum(messages):,} | "
            + " | ".join(shown(times) for times in found.values())
            + f" | {1e3 * predicted:.2f} |"
        )
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
