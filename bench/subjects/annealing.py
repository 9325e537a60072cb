"""Annealed importance sampling of log p(x) on a GPU."""

from __future__ import annotations

import floor
import torch
from finding import Finding, Setting
from graphs import captured
from rivals.samplers import evaluations
from timing import compare

from lae_fast import Schedule, annealed_log_likelihood
from lae_fast.evaluation.annealing import per_pass
from subjects.contestants import NX, OURS, models
from subjects.samplers import FLOOR


def annealing(
    s: Setting, n_images: int = 512, n_chains: int = 16, n_temperatures: int = 101, nh: int = 256, nz: int = 8
) -> Finding:
    """In image-chain-steps per second, and what its products alone would take."""
    model = models(512, nh, nz, 2, True)[OURS].to(s.device)
    x = (torch.rand(n_images, NX, generator=torch.Generator().manual_seed(0)) < 0.2).float().to(s.device)
    f64 = dict(dtype=torch.float64, device=s.device)
    n_moves = n_temperatures - 1
    schedule = Schedule(
        1, "encoder", torch.linspace(0, 1, n_temperatures + 1, **f64), torch.full((n_moves,), 0.1, **f64)
    )
    n_each = min(n_images, per_pass(n_chains))
    n_passes = -(-n_images // n_each)
    z = torch.randn(n_chains, n_each, nz, device=s.device)
    evaluate = evaluations(lambda z: model.potential(x[:n_each], z), z)

    def ours() -> object:
        return annealed_log_likelihood(model, x, schedule, n_chains=n_chains, seed=0, progress=False)

    layers = floor.linear_layers(model.decoder, n_chains * n_each)
    products = captured(lambda: floor.evaluate(layers, floor.ROUTES["torch.mm"]), s.device, n_moves)
    calls = {
        "AIS": ours,
        FLOOR: lambda: evaluate(n_passes * n_moves),
        "its products alone, in a graph": lambda: [products.replay() for _ in range(n_passes)],
    }
    rows = compare(calls, "AIS", s.device, rounds=5, warmup=1)
    n_steps = n_images * n_chains * n_moves
    for row in rows.values():
        row |= {
            "us a move": 1e3 * row["ms"] / (n_passes * n_moves),
            "million image-chain-steps/s": n_steps / row["ms"] / 1e3,
        }
    measured = {
        "AIS, us": rows["AIS"]["us a move"],
        "AIS": rows["AIS"]["million image-chain-steps/s"],
        "AIS / products": rows["AIS"]["ms"] / rows["its products alone, in a graph"]["ms"],
    }
    note = f"{n_passes} passes of {n_each} images x {n_chains} chains, {n_moves} moves each; nh {nh}, nz {nz}, float32."
    title = f"annealed importance sampling, {n_images} images x {n_chains} chains"
    return Finding(title, rows, "AIS", measured, (note,), ours)
