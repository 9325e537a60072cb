"""An epoch of 60,000 images with the loading of its data.

On the CPU ours against the report's DataLoader and ToTensor: a turn is a slice of an epoch, so many minibatches of an iterator
that goes on where the last turn left it; seconds an epoch are that slice's, scaled to 60,000 images. On a GPU all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finding import Finding, Setting
from loading import loader_batches, resident_batches, synthetic_images
from timing import Rows, compare
from torch import Tensor

from lae_fast import data
from subjects.contestants import OURS, OURS_BF16, OURS_TF32, eager_step, models, models_on, our_step

N_IMAGES, N, SLICE = 60_000, 512, 8
REPORT = "report, DataLoader + ToTensor"


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


def epoch_slice(s: Setting) -> Finding:
    """On the CPU."""
    images, nets = synthetic_images(N_IMAGES), models(N, nh=256, nz=8, n_steps=2, mh=True)

    def ours(step: Callable[[Tensor], object]) -> Callable[[], None]:
        return slice_of(resident_batches(images, N), step, SLICE)

    def rival(step: Callable[[Tensor], object]) -> Callable[[], None]:
        return slice_of(loader_batches(images, N), step, SLICE)

    def nothing(x: Tensor) -> None:
        pass

    calls = {
        OURS: ours(our_step(nets[OURS])),
        OURS_BF16: ours(our_step(nets[OURS_BF16])),
        "its data alone": ours(nothing),
        REPORT: rival(eager_step(nets["report"])),
        "plain VAE, DataLoader + ToTensor": rival(eager_step(nets["plain VAE"])),
        "their data alone": rival(nothing),
    }
    rows = compare(calls, OURS, s.device, warmup=1)
    for row in rows.values():
        per_image = row["ms"] / 1e3 / (N * SLICE)
        row |= {"images/s": 1 / per_image, "s an epoch": per_image * N_IMAGES}
    title = f"{SLICE} minibatches of an epoch, batch {N}, nh 256, nz 8, T = 2, MH"
    return Finding(title, rows, OURS, epoch_targets(rows), ours=calls[OURS])


def training_images(s: Setting, n_images: int) -> tuple[Tensor, str]:
    """Bytes [n_images, 784] on the device, and what they are: MNIST where it is at hand."""
    if s.data_dir is None:
        return synthetic_images(n_images).to(s.device), "random bytes"
    dataset = data.load("mnist", s.data_dir, validation=0)
    return dataset.train.images[:n_images].flatten(1).to(s.device), dataset.name


def whole_epoch(
    s: Setting, n_images: int = 60_000, n: int = 512, nh: int = 256, nz: int = 8, rounds: int = 7
) -> Finding:
    """On a GPU: all minibatches of an epoch, T = 2, MH."""
    found = models_on(s.device, n, nh, nz, 2, True)
    images, kind = training_images(s, n_images)
    n_batches = len(images) // n
    steps: dict[str, Callable[[Tensor], object]] = {
        name: our_step(found[name]) for name in (OURS, OURS_TF32, OURS_BF16, "VAE") if name in found
    }
    steps["plain VAE"] = eager_step(found["plain VAE"])
    steps["data alone"] = lambda x: None
    calls = {name: slice_of(resident_batches(images, n), step, n_batches) for name, step in steps.items()}
    rows = compare(calls, OURS, s.device, rounds=rounds, warmup=1)
    for row in rows.values():
        row["million images/s"] = n_batches * n / row["ms"] / 1e3
    note = f"{n_batches} minibatches of {n}, shuffled anew, {kind}, resident on the device as bytes."
    title = f"epoch of {len(images):,} images, nh {nh}, nz {nz}, T = 2, MH"
    return Finding(title, rows, OURS, {"epoch": rows[OURS]["ms"]}, (note,), calls[OURS])
