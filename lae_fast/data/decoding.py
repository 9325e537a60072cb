"""Pictures from files into one array, by all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lae_fast import progress


def decoded(name: str, n: int, shape: tuple[int, ...], read: Callable[[int], np.ndarray]) -> np.ndarray:
    """uint8 [n, *shape]: what `read` returns for 0 to n - 1. Decoders of pictures let other threads run.

    A bar shows where it takes longer. What `read` raises is raised here.
    """
    images = np.empty((n, *shape), np.uint8)

    def place(i: int) -> None:
        images[i] = read(i)

    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        with progress.bar(total=n, desc=name, unit=" images", delay=2, leave=False) as bar:
            for _ in pool.map(place, range(n)):
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C
    return images
