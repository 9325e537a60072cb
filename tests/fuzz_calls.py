"""The table of fuzz.py: for each public function a call that it accepts. One entry adds one function:

    @entry("langevin_sample", free=("start",))
    def _():
        return lae_fast.langevin_sample, dict(potential=..., start=torch.zeros(2, 3), n_samples=3)

The decorator's options are the attributes of `Call`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fuzz import CALLABLES, Call

from lae_fast import attacks, ops

CALLS: dict[str, Call] = {}


def entry(name: str, **options: Any) -> Callable:
    def add(make: Callable) -> Callable:
        CALLS[name] = Call(make, **options)
        return make

    return add


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- ops ----

C, D, F64 = 3, 8, torch.float64


def halves() -> dict[str, Any]:
    """The arguments that all Langevin ops share."""
    return dict(phi=normal(C, D), grad=normal(C, D, seed=1), rng=torch.tensor([7, 5, 0]))


@entry("ops.propose", free=("phi", "grad", "step_size", "noise"))
def _():
    step_size = torch.full((C,), 0.1, dtype=F64)
    return ops.propose, halves() | dict(step_size=step_size, noise=None)


@entry("ops.propose, given noise", free=("phi", "grad", "step_size", "noise"))
def _():
    step_size = torch.full((1,), 0.1, dtype=F64)
    return ops.propose, halves() | dict(step_size=step_size, noise=normal(C, D, seed=2))


def decision() -> dict[str, Any]:
    return halves() | dict(
        proposal=normal(C, D, seed=3),
        potential=normal(C, dtype=F64),
        proposal_potential=normal(C, dtype=F64, seed=1),
        proposal_grad=normal(C, D, seed=4),
    )


VALUES = ("phi", "grad", "proposal", "potential", "proposal_potential", "proposal_grad", "noise", "uniform")


@entry("ops.decide", free=(*VALUES, "step_size"))
def _():
    own = dict(step_size=torch.full((C,), 0.1, dtype=F64), mh=True, uniform=torch.full((C,), 0.5, dtype=F64))
    return ops.decide, decision() | own


@entry("ops.transition", free=(*VALUES, "log_step_size", "log_alpha", "adaptation"))
def _():
    own = dict(
        log_step_size=torch.full((C,), -2.0, dtype=F64),
        counters=torch.zeros(C, 2, dtype=torch.int64),
        is_accepted=torch.zeros(C, dtype=torch.bool),
        log_alpha=torch.zeros(C, dtype=F64),
        adaptation=torch.tensor([[0.574, 0.05]] * C, dtype=F64),
        mh=True,
        noise=normal(C, D, seed=5),
        uniform=torch.full((C,), 0.5, dtype=F64),
    )
    arguments = decision() | own

    def transition(**arguments: Any) -> list[Any]:
        ops.transition(**arguments)
        return list(arguments.values())

    return transition, arguments


TOO_LARGE = (2**31,)  # for the memory of most machines: torch's own error says so


@entry("ops.noise", without=dict(n_chains=TOO_LARGE, n_elements=TOO_LARGE))
def _():
    arguments = dict(
        rng=torch.tensor([7, 5, 0]), n_chains=3, n_elements=9, dtype=torch.float32, kind=ops.NORMALS
    )
    return ops.noise, arguments


@entry("ops.make_rng", also=dict(device=("cuda:77", "nowhere"), generator=("cpu",)))
def _():
    return ops.make_rng, dict(device="cpu", generator=torch.Generator().manual_seed(0))


def pixels() -> dict[str, Any]:
    return dict(x=normal(4, 6).sigmoid(), kind=ops.GAUSSIAN, log_scale=torch.tensor(-1.0))


PIXELS = ("output", "x", "log_scale")


@entry("ops.energy", free=PIXELS)
def _():
    return ops.energy, dict(output=normal(2, 4, 6, seed=1)) | pixels()


@entry("ops.energy, Bernoulli", free=PIXELS)
def _():
    return ops.energy, dict(output=normal(4, 6, seed=1)) | pixels() | dict(kind=ops.BERNOULLI, log_scale=None)


@entry("ops.energy_", free=PIXELS)
def _():
    return ops.energy_, dict(output=normal(8, 6, seed=1)) | pixels() | dict(kind=ops.LOGISTIC)


@entry("ops.in_unit_range")
def _():
    return ops.in_unit_range, dict(x=normal(4, 6).sigmoid())


@entry("ops.norm_relu", free=("y", "weight", "bias"))
def _():
    return ops.norm_relu, dict(y=normal(4, 6), weight=normal(6), bias=normal(6, seed=1), eps=1e-5)


ROWS = ("grad", "out", "normalized", "y_grad", "rstd", "weight")


@entry("ops.norm_relu_backward", free=ROWS)
def _():
    rows = {name: normal(4, 6, seed=i) for i, name in enumerate(ROWS[:3])}
    return ops.norm_relu_backward, rows | dict(rstd=normal(4).abs(), weight=normal(6))


@entry("ops.norm_relu_sums", free=ROWS)
def _():
    return ops.norm_relu_sums, {name: normal(4, 6, seed=i) for i, name in enumerate(ROWS[:4])}


@entry("ops.keep", says={"latest": "previous", "previous": "latest"})
def _():
    latest, previous = ([normal(4, 6, seed=s), normal(4, seed=s)] for s in (0, 1))
    return ops.keep, dict(
        latest=latest, previous=previous, is_accepted=torch.tensor([True, False, True, False])
    )


@entry("ops.is_compiled")
def _():
    return ops.is_compiled, dict(device=torch.device("cpu"))


# ---- attacks ----


def classifier(x: torch.Tensor) -> torch.Tensor:
    """[n, 6] -> [n, 3]; what does not fit a model is the model's own affair, so this one names it."""
    if x.shape[1:] != (6,) or x.dtype != torch.float32:
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; this model expects float32 [n, 6]")
    return x @ normal(6, 3, seed=9)


def images() -> dict[str, Any]:
    return dict(
        model=classifier, x=normal(4, 6).sigmoid(), labels=torch.tensor([0, 1, 2, 1]), bounds=(0.0, 1.0)
    )


ATTACKED = dict(
    also=dict(bounds=((0, 1, 2), (1, 0), (0, "1"), "01"), eps=(["0.1"], [0.1, -1], [[0.1], [0.2]], [True])),
    without=dict(model=CALLABLES, attack=CALLABLES),
)


@entry("attacks.fgsm", **ATTACKED)
def _():
    return attacks.fgsm, images() | dict(eps=0.1, targeted=True)


@entry("attacks.pgd", **ATTACKED)
def _():
    options = dict(eps=[0.1, 0.2], norm="linf", n_steps=2, step_size=None, random_start=True, n_restarts=2)
    return attacks.pgd, images() | options | dict(targeted=False, generator=torch.Generator())


@entry("attacks.pgd, l2", **ATTACKED)
def _():
    options = dict(eps=torch.tensor([0.1, 0.2]), norm="l2", n_steps=2, step_size=0.1, generator=None)
    return attacks.pgd, images() | options


@entry("attacks.robustness", **ATTACKED)
def _():
    return attacks.robustness, images() | dict(eps=[0.0, 0.1], attack=attacks.fgsm, batch_size=3)
