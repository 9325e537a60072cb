"""One training step, batch 512, the report's network: ours, the report's algorithm, and a plain VAE.

Run with `pytest bench/ --benchmark-only`. The ratios come from one timer that gives all rivals their turn;
they are stored in `extra_info` and printed. Floor: the matrix products of a step cannot be avoided.
"""

import pytest
import torch
from rivals import ReportLAE
from timing import round_robin, summary

from lae_fast import LAE, VAE, Bernoulli, nets

N, NX, NZ, NH = 512, 784, 8, 256


def training_step(model, x):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=False)
        model.loss(x).backward()
        optimizer.step()

    return step


def rivals(n_steps, mh):
    torch.manual_seed(0)
    encoder, decoder = nets.mlp(NX, NZ, NH)
    sizes = dict(nx=NX, nz=NZ, d=NH)
    ours = LAE(encoder, decoder, Bernoulli(), **sizes, n_steps=n_steps, mh=mh)
    report = ReportLAE(encoder, decoder, ours.phi, n_steps, mh, step_size=1e-3 / N)
    vae = VAE(*nets.mlp(NX, NZ, NH), Bernoulli(), **sizes)
    return ours, report, vae


@pytest.mark.parametrize("mh", [True, False])
@pytest.mark.parametrize("n_steps", [2, 10])
@pytest.mark.benchmark(group="training step")
def test_training_step(benchmark, n_steps, mh, capsys):
    x = torch.rand(N, NX, generator=torch.Generator().manual_seed(0))
    ours, report, vae = rivals(n_steps, mh)
    steps = {
        "lae_fast": training_step(ours, x),
        "report": training_step(report, x),
        "VAE": training_step(vae, x),
    }
    rows = summary(round_robin(steps), against="report")
    benchmark.extra_info.update(rows)
    with capsys.disabled():
        print(
            f"\ntraining step, T = {n_steps}, {'MH' if mh else 'no MH'}: milliseconds (quartiles), ratio to report"
        )
        for name, row in rows.items():
            print(f"  {name:<10} {row['ms']:7.2f} ({row['low']:.2f} - {row['high']:.2f})  {row['ratio']:.2f}")
    benchmark.pedantic(steps["lae_fast"], rounds=5, warmup_rounds=1)
