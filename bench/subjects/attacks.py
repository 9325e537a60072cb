"""PGD on the report's classifier: ours, the published loop, and the floor; beside them APGD of as many gradients.

All but APGD make the same adversaries, from x itself in steps of 0.01. Floor: the model's forward pass and the gradient of its loss in
the input, once a step. The update is what a fused kernel could save.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from finding import Finding, Setting
from memory import peak_bytes
from timing import Calls, compare
from torch import Tensor, nn

from lae_fast.attacks import apgd, pgd
from lae_fast.experiments.classifiers import as_images, classifier

OURS, PUBLISHED, FLOOR = "pgd", "published loop", "floor: forward and input gradient"
UPDATE = "of it the update: sign, addcmul, clamp"
APGD = "apgd"
EPS, STEP = 0.3, 0.01


def published_loop(model: nn.Module, x: Tensor, labels: Tensor, n_steps: int) -> Tensor:
    """What the report's code computes: a new leaf a step, the mean loss, and gradients of all parameters with it."""
    adversary = x
    for _ in range(n_steps):
        delta = torch.zeros_like(x, requires_grad=True)
        F.cross_entropy(model(adversary + delta), labels).backward()
        moved = adversary + STEP * delta.grad.sign()
        adversary = torch.min(torch.max(moved, x - EPS), x + EPS).clamp(0, 1)
    return adversary


def calls(model: nn.Module, x: Tensor, labels: Tensor, n_steps: int) -> Calls:
    """An attack of each, and its parts, on the same images."""
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf)[0]
    sign, lower, upper = torch.empty_like(x), (x - EPS).clamp(min=0), (x + EPS).clamp(max=1)
    adversary, step = x.clone(), torch.full((len(x), 1, 1, 1), STEP)

    def ours() -> Tensor:
        return pgd(model, x, labels, eps=EPS, step_size=STEP, n_steps=n_steps, random_start=False)

    def floor() -> None:
        for _ in range(n_steps):
            torch.autograd.grad(F.cross_entropy(model(leaf), labels, reduction="sum"), leaf)

    def update() -> None:
        for _ in range(n_steps):
            torch.sign(gradient, out=sign)
            adversary.addcmul_(sign, step).clamp_(lower, upper)

    return {
        OURS: ours,
        APGD: lambda: apgd(model, x, labels, eps=EPS, n_steps=n_steps - 1, random_start=False),
        PUBLISHED: lambda: published_loop(model, x, labels, n_steps),
        FLOOR: floor,
        UPDATE: update,
    }


def attack(s: Setting) -> Finding:
    m, n_steps = 500, 10
    torch.manual_seed(0)
    model, generator = classifier().eval(), torch.Generator().manual_seed(0)
    x = as_images(torch.rand(m, 784, generator=generator))
    labels = torch.randint(10, (m,), generator=generator)
    timed = calls(model, x, labels, n_steps)
    rows = compare(timed, OURS, s.device, warmup=1)
    for name, row in rows.items():
        row["ms a step"] = row["ms"] / n_steps
        row["peak MB"] = peak_bytes(timed[name]) / 1e6
    return Finding(f"PGD, {m} images, {n_steps} steps", rows, OURS, {}, ours=timed[OURS])
