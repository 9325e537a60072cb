"""Who takes a training step of the report's network, and how: ours and the published algorithms, from the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from rivals.models import OfficialLAE, PlainVAE
from torch import Tensor, nn

from lae_fast import LAE, VAE, Bernoulli, DiscretizedLogistic
from lae_fast.experiments.report_rule import ReportLAE
from lae_fast.models import nets
from lae_fast.training.step import TrainingStep
from lae_fast.training.step import adam as capturable_adam

NX = 784
# Joint decisions, as the published models have them; and a decision for each datapoint, which nothing published has.
OURS, OURS_EACH, OURS_LOGISTIC = "LAE", "LAE, datapoint", "LAE, discretized logistic"
OURS_BF16, OURS_TF32 = "LAE, bf16", "LAE, tf32"
OFFICIAL, OFFICIAL_LOGISTIC = "official", "official, discretized logistic"


def random_images(n: int, device: torch.device | str = "cpu") -> Tensor:
    """[n, 784], of 256 levels."""
    return (torch.randint(256, (n, NX), generator=torch.Generator().manual_seed(0)) / 255).to(device)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)


def eager_step(model: nn.Module) -> Callable[[Tensor], None]:
    """What takes one training step on images [n, nx], as everybody writes it."""
    optimizer = adam(model)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()

    return step


def our_step(model: nn.Module, capture: bool | None = None) -> TrainingStep:
    """Our step, captured on a GPU unless that is declined."""
    return TrainingStep(model, capturable_adam(model, 1e-4), capture=capture)


def models(n: int, nh: int, nz: int, n_steps: int, mh: bool) -> dict[str, nn.Module]:
    """Ours and the rivals by name, all from the same encoder and decoder, for batches of n; the published LAEs also from the first's phi."""
    torch.manual_seed(0)
    encoder, decoder = nets.mlp(NX, nz, nh)
    sizes = dict(nx=NX, nz=nz, d=nh)

    def lae(likelihood: nn.Module, decisions: str = "joint", **options) -> LAE:
        bodies = copy.deepcopy((encoder, decoder))
        return LAE(*bodies, likelihood, **sizes, n_steps=n_steps, mh=mh, decisions=decisions, **options)

    ours = lae(Bernoulli())
    vae = VAE(*copy.deepcopy((encoder, decoder)), Bernoulli(), **sizes)
    published = (encoder, decoder, ours.phi, n_steps, mh)
    return {
        OURS: ours,
        OURS_EACH: lae(Bernoulli(), "datapoint"),
        OURS_BF16: lae(Bernoulli(), precision="bf16"),
        OURS_LOGISTIC: lae(DiscretizedLogistic()),
        "VAE": vae,
        "report": ReportLAE(*published, step_size=1e-3 / n),
        OFFICIAL: OfficialLAE(*published, step_size=1e-4),
        OFFICIAL_LOGISTIC: OfficialLAE(*published, step_size=1e-4, likelihood="logistic"),
        "plain VAE": PlainVAE(vae.encoder, vae.decoder, vae.head),
    }


def models_on(device: torch.device, n: int, nh: int, nz: int, n_steps: int, mh: bool) -> dict[str, nn.Module]:
    """`models` on the device, those with a Bernoulli energy; and ours with TF32 where there is that."""
    found = {
        name: m.to(device) for name, m in models(n, nh, nz, n_steps, mh).items() if "logistic" not in name
    }
    if device.type == "cuda":
        found[OURS_TF32] = copy.deepcopy(found[OURS])
        found[OURS_TF32].precision = "tf32"  # not of energies: chain_precision stays
    return found
