"""Langevin samplers and annealing on a GPU, in steps per second. Run by gpu_table.py."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from bench_sample import FLOOR, gaussian
from bench_step import NX, OURS, models
from card import Finding, Setting, compare
from floor import ROUTES, _layers
from graphs import captured
from samplers import energy_and_gradient, mala, posteriors_sgld, torchebm_langevin, unadjusted_langevin
from torch import Tensor, nn

from lae_fast import Schedule, annealed_log_likelihood, langevin_sample
from lae_fast.evaluation.ais import ROWS

SAMPLE, EAGER = "langevin_sample, captured", "langevin_sample"
MANY = (
    50  # times as many steps a call where they are captured: capturing itself takes as long as some hundred
)
# steps/s of torchebm 0.8.9's eager LangevinDynamics on an A100-SXM4-80GB, torch 2.11 (torchebm-benchmarks)
PUBLISHED = {(64, 8): 2163, (1024, 128): 2429}


def rivals(start: Tensor, step_size: float) -> tuple[dict[str, Callable[[int], object]], tuple[str, ...]]:
    """By name, what runs so many steps of chains start [C, D] eagerly; and why some of them do not."""
    c, d = start.shape

    def ours(mh: bool, capture: bool) -> Callable[[int], object]:
        return lambda n_steps: langevin_sample(
            gaussian, start.view(c, 1, d), n_draws=1, n_warmup=0, thin=n_steps, step_size=step_size, mh=mh,
            progress=False, capture=capture,
        ).z  # fmt: skip

    found: dict[str, Callable[[int], object]] = {}
    for name, capture in ((SAMPLE, start.is_cuda), (EAGER, False)):
        found |= {name: ours(False, capture), f"{name}, MH": ours(True, capture)}
    found["eager PyTorch"] = lambda n_steps: unadjusted_langevin(gaussian, start, step_size, n_steps)
    found["eager PyTorch, MH"] = lambda n_steps: mala(gaussian, start, step_size, n_steps)
    why_not = []
    for name, make in (("torchebm", torchebm_langevin), ("posteriors", posteriors_sgld)):
        try:
            run = make(gaussian, start, step_size)
            if run is None:
                why_not.append(f"{name} is not installed.")
                continue
            run(1)
            found[name] = run
        except Exception as error:  # of another package, which may not fit this torch
            reason = (str(error).splitlines() or [""])[0]
            why_not.append(f"{name} failed: {type(error).__name__}: {reason}.")

    def evaluate(n_steps: int) -> None:
        for _ in range(n_steps):
            energy_and_gradient(gaussian, start)

    return found | {FLOOR: evaluate}, tuple(why_not)


def chain_targets(c: int, d: int, rates: dict[str, float]) -> dict[str, float]:
    """Of steps per second by name; {} for sizes nobody published."""
    if (c, d) not in PUBLISHED:
        return {}
    size, published = f"{c} x {d}", PUBLISHED[c, d]
    found = {
        f"{size} / published": rates[SAMPLE] / published,
        f"{size}, eager / published": rates[EAGER] / published,
    }
    if "torchebm" in rates:
        found[f"{size} / torchebm"] = rates[SAMPLE] / rates["torchebm"]
    return found


def langevin(s: Setting, c: int, d: int, step_size: float, n_steps: int = 100, rounds: int = 10) -> Finding:
    """C chains of D elements on a standard Gaussian, one evaluation a step."""
    start = torch.randn(c, d, generator=torch.Generator().manual_seed(0)).to(s.device)
    eager, why_not = rivals(start, step_size)
    counts = {name: MANY if name.startswith(SAMPLE) else 1 for name in eager}
    calls = {name: functools.partial(run, n_steps * counts[name]) for name, run in eager.items()}
    calls[f"{FLOOR}, in a graph"] = captured(
        lambda: energy_and_gradient(gaussian, start), s.device, n_steps
    ).replay
    rows = compare(calls, SAMPLE, s.device, counts, rounds=rounds, warmup=2)
    for row in rows.values():
        row |= {"us a step": 1e3 * row["ms"] / n_steps, "steps/s": 1e3 * n_steps / row["ms"]}
    notes = (
        f"{n_steps} steps; captured, {MANY} times as many a call, its capture included. All on a standard Gaussian, no MH "
        "unless said. Published: torchebm "
        f"{PUBLISHED.get((c, d), 'nothing')} steps/s on an A100, its own target.",
        *why_not,
    )
    measured = chain_targets(c, d, {name: row["steps/s"] for name, row in rows.items()})
    return Finding(f"{c} chains of {d} elements", rows, SAMPLE, measured, notes)


def small_chains(s: Setting) -> Finding:
    return langevin(s, 64, 8, 0.6)


def large_chains(s: Setting) -> Finding:
    return langevin(s, 1024, 128, 0.25)


def decoder_products(decoder: nn.Sequential, n: int) -> Callable[[], None]:
    """The products of one energy and its gradient in z, for n rows: all layers forwards, and their input gradients."""
    layers, route = list(_layers(decoder, n)), ROUTES["torch.mm"]

    def run() -> None:
        for weight, a, _ in layers:
            route.linear(a, weight)
        for weight, _, g in reversed(layers):
            route.input_gradient(g, weight)

    return run


def annealing(
    s: Setting, n_images: int = 512, n_chains: int = 16, n_temperatures: int = 101, nh: int = 256, nz: int = 8
) -> Finding:
    """Annealed importance sampling of log p(x): image-chain-steps per second, and what its products alone would take."""
    model = models(512, nh, nz, 2, True)[OURS].to(s.device)
    x = (torch.rand(n_images, NX, generator=torch.Generator().manual_seed(0)) < 0.2).float().to(s.device)
    f64 = dict(dtype=torch.float64, device=s.device)
    n_moves = n_temperatures - 1
    schedule = Schedule(
        1, "encoder", torch.linspace(0, 1, n_temperatures + 1, **f64), torch.full((n_moves,), 0.1, **f64)
    )
    per_pass = min(n_images, max(1, ROWS // n_chains))
    n_passes = -(-n_images // per_pass)
    z = torch.randn(n_chains, per_pass, nz, device=s.device)

    def ours() -> object:
        return annealed_log_likelihood(model, x, schedule, n_chains=n_chains, seed=0, progress=False)

    def evaluate() -> None:
        for _ in range(n_passes * n_moves):
            leaf = z.detach().requires_grad_()
            torch.autograd.grad(model.potential(x[:per_pass], leaf).sum(), leaf)

    products = captured(decoder_products(model.decoder, n_chains * per_pass), s.device, n_moves)
    calls = {
        "AIS": ours,
        FLOOR: evaluate,
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
        "AIS": rows["AIS"]["million image-chain-steps/s"],
        "AIS / products": rows["AIS"]["ms"] / rows["its products alone, in a graph"]["ms"],
    }
    note = f"{n_passes} passes of {per_pass} images x {n_chains} chains, {n_moves} moves each; nh {nh}, nz {nz}, float32."
    return Finding(
        f"annealed importance sampling, {n_images} images x {n_chains} chains", rows, "AIS", measured, (note,)
    )
