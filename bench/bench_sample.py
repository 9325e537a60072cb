"""Langevin samplers on Gaussians, in steps per second: ours, eager PyTorch's, and other packages' where installed.

Run with `pytest bench/ --benchmark-only`. In every table all rivals run the same number of steps a call, from
the same state, with one evaluation of the energy a step; ratios come from one timer that gives all their turn.
Floor: the energies and their gradients alone. Ours also check and set up once a call (`ald_sample` decomposes the
features), which is part of its row and named below the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from samplers import energy_and_gradient, mala, posteriors_sgld, torchebm_langevin, unadjusted_langevin
from timing import round_robin, summary
from torch import Tensor

from lae_fast import ald_sample, langevin_sample

FLOOR = "energy and gradient alone"
Rivals = dict[str, Callable[[int], object]]  # by name, what runs so many steps


def gaussian(z: Tensor) -> Tensor:
    """Nats of a standard Gaussian, without its constant: [..., D] -> [...]."""
    return 0.5 * z.square().sum(-1)


def others(potential: Callable[[Tensor], Tensor], start: Tensor, step_size: float, mh: bool) -> Rivals:
    """Everyone's sampler but ours for `potential` [C, D] -> [C], and the floor; with `mh` the eager one alone."""
    if mh:
        rivals = {"eager PyTorch": lambda n_steps: mala(potential, start, step_size, n_steps)}
    else:
        rivals = {
            "eager PyTorch": lambda n_steps: unadjusted_langevin(potential, start, step_size, n_steps),
            "torchebm": torchebm_langevin(potential, start, step_size),
            "posteriors": posteriors_sgld(potential, start, step_size),
        }

    def evaluate(n_steps: int) -> None:
        for _ in range(n_steps):
            energy_and_gradient(potential, start)

    return {name: call for name, call in rivals.items() if call is not None} | {FLOOR: evaluate}


def ald_rivals(
    energy: Callable[[Tensor], Tensor],
    features: Tensor,
    phi: Tensor,
    step_size: float,
    mh: bool,
    whiten: bool,
) -> Rivals:
    """Chains of phi [C, nz, d]; energy as `ald_sample` has it. The others move phi as it is."""

    def ours(n_steps: int) -> Tensor:
        return ald_sample(
            energy, features, phi, n_draws=1, n_warmup=0, thin=n_steps, step_size=step_size, mh=mh,
            whiten=whiten, progress=False,
        ).phi  # fmt: skip

    def potential(rows: Tensor) -> Tensor:
        return energy((rows.view(phi.shape) @ features.T).mT).sum(1)  # the faster order of the two

    return {"ald_sample": ours} | others(potential, phi.flatten(1), step_size, mh)


def langevin_rivals(energy: Callable[[Tensor], Tensor], start: Tensor, step_size: float, mh: bool) -> Rivals:
    """C chains of D elements, start [C, D]; energy [..., D] -> [...]."""
    c, d = start.shape

    def ours(n_steps: int) -> Tensor:
        return langevin_sample(
            energy, start.view(c, 1, d), n_draws=1, n_warmup=0, thin=n_steps, step_size=step_size, mh=mh,
            progress=False,
        ).z  # fmt: skip

    return {"langevin_sample": ours} | others(energy, start, step_size, mh)


def compare(benchmark, capsys, title: str, rivals: Rivals, n_steps: int) -> None:
    """Time all, print the table, store it; the first rival is what the others are compared with."""
    ours = next(iter(rivals))
    calls = {name: lambda run=run: run(n_steps) for name, run in rivals.items()}
    seconds = round_robin(calls | {"one step": lambda: rivals[ours](1)}, rounds=20, warmup=1)
    rows = summary(seconds, against=ours)
    one_step = rows.pop("one step")["ms"]
    once = (n_steps * one_step - rows[ours]["ms"]) / (n_steps - 1)
    for row in rows.values():
        row["steps_per_second"] = 1e3 * n_steps / row["ms"]
    later = 1e3 / (rows[ours]["ms"] - once) * n_steps
    note = f"{once:.2f} ms of a call of {ours} are spent once; without them: {later:.0f} steps/s"
    title = f"{title}, {n_steps} steps a call"
    benchmark.extra_info.update(title=title, rows=rows, against=ours, notes=[note])
    with capsys.disabled():
        print(f"\n{title}: steps/s, microseconds a step (quartiles), ratio to {ours}")
        for name, row in rows.items():
            us, low, high = (1e3 * row[key] / n_steps for key in ("ms", "low", "high"))
            print(
                f"  {name:<26}{row['steps_per_second']:7.0f}  {us:7.1f} ({low:.1f} - {high:.1f})  {row['ratio']:.2f}"
            )
        print(f"  {note}")
    benchmark.pedantic(calls[ours], rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("mh", [True, False])
@pytest.mark.parametrize(
    ("nz", "n", "d", "step_size", "n_steps"),
    [(1, 16, 16, 0.6, 100), (8, 256, 256, 0.1, 100), (8, 16, 4096, 0.2, 50)],
)
@pytest.mark.benchmark(group="one chain of ALD")
def test_ald(benchmark, capsys, nz, n, d, step_size, n_steps, mh):
    torch.manual_seed(0)
    # n = d: phi is a standard Gaussian of nz d elements; n < d: the n z are one, seen through random features
    features = torch.eye(d) if n == d else torch.randn(n, d) / math.sqrt(d)
    rivals = ald_rivals(gaussian, features, torch.randn(1, nz, d), step_size, mh, whiten=n == d)
    title = f"one chain of ALD, phi {nz} x {d}, n = {n}, {'MH' if mh else 'no MH'}"
    compare(benchmark, capsys, title, rivals, n_steps)


@pytest.mark.parametrize("mh", [True, False])
@pytest.mark.parametrize(("c", "d", "step_size"), [(64, 8, 0.6), (1024, 128, 0.25)])
@pytest.mark.benchmark(group="C chains")
def test_chains(benchmark, capsys, c, d, step_size, mh):
    torch.manual_seed(0)
    start = torch.randn(c, d)
    rivals = langevin_rivals(gaussian, start, step_size, mh)
    amortized = ald_rivals(gaussian, torch.eye(d), start.view(c, 1, d), step_size, mh, whiten=True)
    rivals = {
        "langevin_sample": rivals.pop("langevin_sample"),
        "ald_sample, features I": amortized["ald_sample"],  # the same law, by a matrix product more
    } | rivals
    compare(benchmark, capsys, f"{c} chains of {d} elements, {'MH' if mh else 'no MH'}", rivals, n_steps=50)
