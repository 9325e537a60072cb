"""The training step on a GPU, captured, against everybody else's; and an epoch. Run by gpu_table.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from bench_epoch import slice_of
from bench_step import NX, OFFICIAL, OURS, eager_step, models
from card import Finding, Setting, compare
from floor import ROUTES, floor
from graphs import captured
from loading import synthetic_images
from timing import Rows
from torch import Tensor, nn

from lae_fast import data
from lae_fast.training.step import TrainingStep
from lae_fast.training.step import adam as capturable_adam

OURS_EAGER, OURS_TF32, OURS_BF16, COMPILED = "LAE, eager", "LAE, tf32", "LAE, bf16", "LAE, torch.compile"
PRODUCTS, PRODUCTS_BF16 = "products alone", "products alone, bf16"
ROUTE_NAMES = {PRODUCTS: "torch.mm", f"{PRODUCTS}, by our routes": "fastest route"}
WARMUP = 6  # calls before anything is timed: captures and compilers are done by then


def step_of(model: nn.Module, capture: bool | None = None) -> TrainingStep:
    """Our step, captured on a GPU unless that is declined."""
    return TrainingStep(model, capturable_adam(model, 1e-4), capture=capture)


def random_images(n: int, device: torch.device) -> Tensor:
    return (torch.randint(256, (n, NX), generator=torch.Generator().manual_seed(0)) / 255).to(device)


def contestants(
    device: torch.device, n: int, nh: int, nz: int, n_steps: int, mh: bool
) -> dict[str, nn.Module]:
    """`bench_step.models` on the device, those with a Bernoulli energy; and ours with TF32 where there is that."""
    found = {
        name: m.to(device) for name, m in models(n, nh, nz, n_steps, mh).items() if "logistic" not in name
    }
    if device.type == "cuda":
        found[OURS_TF32] = copy.deepcopy(found[OURS])
        found[OURS_TF32].precision = "tf32"  # not of energies: chain_precision stays
    return found


def step_targets(rows: Rows) -> dict[str, float]:
    def ratio(a: str, b: str) -> float:
        return rows[a]["ms"] / rows[b]["ms"]

    return {
        "official / step": ratio(OFFICIAL, OURS),
        "report / step": ratio("report", OURS),
        "step / products": max(ratio(OURS, name) for name in ROUTE_NAMES),  # the faster of the two
        "step / VAE": ratio(OURS, "plain VAE"),
    }


def training_step(
    s: Setting, n: int = 512, nh: int = 256, nz: int = 8, n_steps: int = 2, mh: bool = True, **options: int
) -> Finding:
    """One step of each, on the same images: ours captured, the published ones and a plain VAE eager."""
    found, x = contestants(s.device, n, nh, nz, n_steps, mh), random_images(n, s.device)
    calls: dict[str, Callable[[], object]] = {}
    for name, model in found.items():
        step = step_of(model) if name.startswith(("LAE", "VAE")) else eager_step(model)
        calls[name] = lambda step=step: step(x)
    eager = step_of(copy.deepcopy(found[OURS]), capture=False)
    calls[OURS_EAGER] = lambda: eager(x)
    bodies = [copy.deepcopy(body).to(s.device) for body in (found[OURS].encoder, found[OURS].decoder)]
    graphs = {}
    for name, route in ROUTE_NAMES.items():
        graphs[name] = captured(floor(*bodies, n, n_steps, ROUTES[route]), s.device)
    rounded = [copy.deepcopy(body).bfloat16() for body in bodies]
    graphs[PRODUCTS_BF16] = captured(floor(*rounded, n, n_steps, ROUTES["torch.mm"]), s.device)
    calls |= {name: graph.replay for name, graph in graphs.items()}
    rows = compare(calls, OURS, s.device, **{"warmup": WARMUP, "loops": 5} | options)
    for name in (OURS, OURS_TF32, OURS_BF16, "VAE"):  # the steps' own graphs do not tell: once more
        if name in found:
            again = step_of(copy.deepcopy(found[name]), capture=False)
            graphs[name] = captured(lambda again=again: again(x), s.device)
    for name, graph in graphs.items():
        if graph.n_launches is not None:
            rows[name] |= {"launches": graph.n_launches, "copies and fills": graph.n_others}
    notes = (
        "LAE and VAE without further word: captured in a CUDA graph by `TrainingStep`, the copy of the images into it included. "
        "float32 products unless said (TF32 and bfloat16: gradients and encoder; energies stay float32). "
        "Weights, optimizer state and activations of a step lie in L2, as in training.",
        "Products alone: those of the floor (bench/floor.py), in a graph; the target takes the faster float32 row.",
    )
    title = f"training step, batch {n}, nh {nh}, nz {nz}, T = {n_steps}, {'MH' if mh else 'no MH'}"
    return Finding(title, rows, OURS, step_targets(rows), notes)


def compiled_step(model: nn.Module) -> Callable[[Tensor], None]:
    """Our eager step as a user of torch.compile would have it: the loss compiled forwards and backwards, fused Adam."""
    torch.compiler.reset()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    loss = torch.compile(model.loss, mode="reduce-overhead")

    def step(x: Tensor) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return step


def against_compiler(
    s: Setting, n: int = 512, nh: int = 256, nz: int = 8, n_steps: int = 2, mh: bool = True, **options: int
) -> Finding:
    """Our step captured, eager, and left to `torch.compile`. Apart from the others: compiling takes most of a minute."""
    from torch._dynamo.utils import counters  # takes seconds to import

    counters.clear()
    found, x = contestants(s.device, n, nh, nz, n_steps, mh)[OURS], random_images(n, s.device)
    compiled = compiled_step(copy.deepcopy(found))
    for _ in range(
        WARMUP
    ):  # before ours is captured: a recording frees cuBLAS's workspaces, also where graphs use them
        compiled(x)
    steps = {
        OURS: step_of(found),
        OURS_EAGER: step_of(copy.deepcopy(found), capture=False),
        COMPILED: compiled,
    }
    calls = {name: lambda step=step: step(x) for name, step in steps.items()}
    rows = compare(calls, OURS, s.device, **{"warmup": WARMUP, "loops": 5} | options)
    note = (
        'torch.compile(model.loss, mode="reduce-overhead"), backward pass included; Adam fused, not compiled. '
        f"Graphs that its CUDA graphs did not serve: {counters['inductor']['cudagraph_skips']}."
    )
    measured = {"compiled / step": rows[COMPILED]["ms"] / rows[OURS]["ms"]}
    return Finding(f"against torch.compile, batch {n}, nh {nh}, T = {n_steps}", rows, OURS, measured, (note,))


def training_images(s: Setting, n_images: int) -> tuple[Tensor, str]:
    """Bytes [n_images, 784] on the device, and what they are: MNIST where it is at hand."""
    if s.data_dir is None:
        return synthetic_images(n_images).to(s.device), "random bytes"
    dataset = data.load("mnist", s.data_dir, validation=0)
    return dataset.train.images[:n_images].to(s.device), dataset.name


def shuffled_batches(images: Tensor, n: int) -> Iterator[Tensor]:
    """Epoch after epoch of minibatches [n, 784] of images on the device, as `lae_fast.train` makes them."""
    seed = 0
    while True:
        for index in data.shuffled(len(images), n, seed, images.device):
            yield images[index] / 255
        seed += 1


def epoch(
    s: Setting, n_images: int = 60_000, n: int = 512, nh: int = 256, nz: int = 8, rounds: int = 7
) -> Finding:
    """All minibatches of an epoch, with their data, T = 2, MH."""
    found = contestants(s.device, n, nh, nz, 2, True)
    images, kind = training_images(s, n_images)
    n_batches = len(images) // n
    steps: dict[str, Callable[[Tensor], object]] = {
        name: step_of(found[name]) for name in (OURS, OURS_TF32, OURS_BF16, "VAE") if name in found
    }
    steps["plain VAE"] = eager_step(found["plain VAE"])
    steps["data alone"] = lambda x: None
    calls = {name: slice_of(shuffled_batches(images, n), step, n_batches) for name, step in steps.items()}
    rows = compare(calls, OURS, s.device, rounds=rounds, warmup=1)
    for row in rows.values():
        row["million images/s"] = n_batches * n / row["ms"] / 1e3
    note = f"{n_batches} minibatches of {n}, shuffled anew, {kind}, resident on the device as bytes."
    title = f"epoch of {len(images):,} images, nh {nh}, nz {nz}, T = 2, MH"
    return Finding(title, rows, OURS, {"epoch": rows[OURS]["ms"]}, (note,))
