"""An epoch of 60,000 images with the loading of its data: ours against the report's DataLoader and ToTensor.

Run with `pytest bench/ --benchmark-only`. A turn is a slice of an epoch, so many minibatches of an iterator that goes on
where the last turn left it; seconds an epoch are that slice's, scaled to 60,000 images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from bench_step import OURS, eager_step, models, our_step
from loading import loader_batches, resident_batches, synthetic_images
from targets import record
from timing import Rows, round_robin, show, summary
from torch import Tensor

N_IMAGES, N, SLICE = 60_000, 512, 8
REPORT, OURS_BF16 = "report, DataLoader + ToTensor", "LAE, bf16"


def slice_of(
    batches: Iterator[Tensor], step: Callable[[Tensor], object], n_batches: int
) -> Callable[[], None]:
    """What takes the next so many minibatches and a step on each."""

    def run() -> None:
        for _ in range(n_batches):
            step(next(batches))

    return run


def epoch_targets(rows: Rows) -> dict[str, float]:
    return {
        "epoch": rows[REPORT]["ms"] / rows[OURS]["ms"],
        "epoch, bf16": rows[REPORT]["ms"] / rows[OURS_BF16]["ms"],
    }


@pytest.mark.benchmark(group="epoch")
def test_epoch(benchmark, capsys):
    images, nets = synthetic_images(N_IMAGES), models(N, nh=256, nz=8, n_steps=2, mh=True)

    def ours(step: Callable[[Tensor], object]) -> Callable[[], None]:
        return slice_of(resident_batches(images, N), step, SLICE)

    def rival(step: Callable[[Tensor], object]) -> Callable[[], None]:
        return slice_of(loader_batches(images, N), step, SLICE)

    def nothing(x: Tensor) -> None:
        pass

    calls = {
        OURS: ours(our_step(nets[OURS])),
        OURS_BF16: ours(our_step(nets["LAE, bf16"])),
        "its data alone": ours(nothing),
        REPORT: rival(eager_step(nets["report"])),
        "plain VAE, DataLoader + ToTensor": rival(eager_step(nets["plain VAE"])),
        "their data alone": rival(nothing),
    }
    rows = summary(round_robin(calls, warmup=1), against=OURS)
    for row in rows.values():
        per_image = row["ms"] / 1e3 / (N * SLICE)
        row |= {"images/s": 1 / per_image, "s an epoch": per_image * N_IMAGES}
    title = f"{SLICE} minibatches of an epoch, batch {N}, nh 256, nz 8, T = 2, MH"
    show(benchmark, capsys, title, rows, against=OURS)
    record(benchmark, epoch_targets(rows))
    benchmark.pedantic(calls[OURS], rounds=3, warmup_rounds=1)
