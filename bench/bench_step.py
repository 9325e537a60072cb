"""One training step of the report's network: ours, the published algorithms, a plain VAE, and the floor.

Run with `pytest bench/ --benchmark-only`. Everybody starts from the same weights and images and has the same fused
Adam. Floor: the matrix products that a step cannot do without, by torch.mm and by the fastest route there is. Peak
MB: all that a step needs beyond weights, optimizer state and images at its highest moment, gradients included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from floor import ROUTES, floor
from memory import peak_bytes
from rivals import OfficialLAE, PlainVAE
from targets import record
from timing import Calls, Rows, round_robin, show, summary
from torch import Tensor, nn

from lae_fast import LAE, VAE, Bernoulli, DiscretizedLogistic
from lae_fast.experiments.report_rule import ReportLAE
from lae_fast.models import nets
from lae_fast.training.step import TrainingStep

NX = 784
OURS, OURS_LOGISTIC = "LAE", "LAE, discretized logistic"
OFFICIAL, OFFICIAL_LOGISTIC = "official", "official, discretized logistic"
FASTEST_FLOOR, MM_FLOOR = "floor, fastest route", "floor, torch.mm"


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)


def eager_step(model: nn.Module):
    """What takes one training step on images [n, nx], as everybody writes it."""
    optimizer = adam(model)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()

    return step


def our_step(model: nn.Module):
    return TrainingStep(model, adam(model))


def models(n: int, nh: int, nz: int, n_steps: int, mh: bool) -> dict[str, nn.Module]:
    """Ours and the rivals by name, all from the same encoder and decoder, for batches of n; the published LAEs also from the first's phi."""
    torch.manual_seed(0)
    encoder, decoder = nets.mlp(NX, nz, nh)
    sizes = dict(nx=NX, nz=nz, d=nh)

    def lae(likelihood: nn.Module, **options) -> LAE:
        bodies = copy.deepcopy((encoder, decoder))
        return LAE(*bodies, likelihood, **sizes, n_steps=n_steps, mh=mh, **options)

    ours = lae(Bernoulli())
    vae = VAE(*copy.deepcopy((encoder, decoder)), Bernoulli(), **sizes)
    published = (encoder, decoder, ours.phi, n_steps, mh)
    return {
        OURS: ours,
        "LAE, bf16": lae(Bernoulli(), precision="bf16"),
        OURS_LOGISTIC: lae(DiscretizedLogistic()),
        "VAE": vae,
        "report": ReportLAE(*published, step_size=1e-3 / n),
        OFFICIAL: OfficialLAE(*published, step_size=1e-4),
        OFFICIAL_LOGISTIC: OfficialLAE(*published, step_size=1e-4, likelihood="logistic"),
        "plain VAE": PlainVAE(vae.encoder, vae.decoder, vae.head),
    }


def calls(found: dict[str, nn.Module], n: int) -> Calls:
    """One training step of each of `models`, and the floors, on the same n images."""
    x = torch.randint(256, (n, NX), generator=torch.Generator().manual_seed(0)) / 255
    steps = {}
    for name, model in found.items():
        step = our_step(model) if isinstance(model, (LAE, VAE)) else eager_step(model)
        steps[name] = lambda step=step: step(x)
    ours = found[OURS]
    for name, route in ((FASTEST_FLOOR, "fastest route"), (MM_FLOOR, "torch.mm")):
        steps[name] = floor(ours.encoder, ours.decoder, n, ours.n_steps, ROUTES[route])
    return steps


def peak_megabytes(step: Callable[[], object], model: nn.Module) -> float:
    """Of a training step of the model, its gradients included: they are there when a step begins."""
    peak = peak_bytes(step)
    return (peak + sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)) / 1e6


def step_targets(rows: Rows) -> dict[str, float]:
    """The targets of a step with MH, T = 2, by their keys."""

    def ratio(a: str, b: str) -> float:
        return rows[a]["ms"] / rows[b]["ms"]

    return {
        "step / floor": ratio(OURS, FASTEST_FLOOR),
        "step / torch.mm floor": ratio(OURS, MM_FLOOR),
        "report / step": ratio("report", OURS),
        "official / step": ratio(OFFICIAL, OURS),
        "official / step, logistic": ratio(OFFICIAL_LOGISTIC, OURS_LOGISTIC),
        "bf16 step / VAE": ratio("LAE, bf16", "plain VAE"),
    }


def growth_targets(rows: Rows) -> dict[str, float]:
    """What the steps beyond the second cost, ours and the products alone: their ratios by the targets' keys."""

    def growth(name: str) -> float:
        return rows[name]["ms"] - rows[f"{name}, T = 2"]["ms"]

    return {
        "growth / floor": growth(OURS) / growth(FASTEST_FLOOR),
        "growth / torch.mm floor": growth(OURS) / growth(MM_FLOOR),
    }


@pytest.mark.parametrize(
    ("n", "nh", "nz", "n_steps", "mh"),
    [
        (512, 256, 8, 2, True),
        (512, 256, 8, 2, False),
        (512, 256, 8, 10, True),
        (512, 256, 8, 50, True),
        (100, 1024, 8, 2, True),
    ],
)
@pytest.mark.benchmark(group="training step")
def test_training_step(benchmark, capsys, n, nh, nz, n_steps, mh):
    found = models(n, nh, nz, n_steps, mh)
    steps = calls(found, n)
    if n_steps == 50:  # for the growth from T = 2, by the same timer
        short = calls(models(n, nh, nz, 2, mh), n)
        steps |= {f"{name}, T = 2": short[name] for name in (OURS, FASTEST_FLOOR, MM_FLOOR)}
    rows = summary(round_robin(steps, warmup=1 if n_steps == 50 else 3), against=OURS)
    for name, model in found.items():
        rows[name]["peak MB"] = peak_megabytes(steps[name], model)
    title = f"training step, batch {n}, nh {nh}, nz {nz}, T = {n_steps}, {'MH' if mh else 'no MH'}"
    show(benchmark, capsys, title, rows, against=OURS)
    if (n, nh, n_steps, mh) == (512, 256, 2, True):
        record(benchmark, step_targets(rows))
    if n_steps == 50:
        record(benchmark, growth_targets(rows))
    benchmark.pedantic(steps[OURS], rounds=3, warmup_rounds=1)
