"""blackjax's samplers, whole runs jitted by XLA on a CPU: the fastest that others offer. `pip install "lae_fast[bench]"`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from rivals.samplers import installed


def blackjax_langevin(x: Tensor, step_size: float, mh: bool) -> Callable[[int], np.ndarray] | None:
    """MALA, or without `mh` SGLD on whole gradients, of a standard Gaussian from x, n_steps -> [C, D]; None: not installed.

    All chains by vmap, all steps in one scan: a number of steps is compiled by its first call.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # else it may look for a GPU
    jax, blackjax = installed("jax"), installed("blackjax")
    if jax is None or blackjax is None:
        return None
    start = jax.numpy.asarray(x.numpy())

    def log_density(z: Any) -> Any:
        return -0.5 * jax.numpy.square(z).sum()

    mala = blackjax.mala(log_density, step_size)
    sgld = blackjax.sgld(lambda z, batch: jax.grad(log_density)(z))

    def step(state: Any, key: Any) -> Any:
        if mh:
            return mala.step(key, state)[0]
        return sgld.step(key, state, None, step_size)

    def run(n_steps: int, start: Any, key: Any) -> Any:
        def all_chains(states: Any, key: Any) -> tuple[Any, None]:
            return jax.vmap(step)(states, jax.random.split(key, len(start))), None

        states = jax.vmap(mala.init)(start) if mh else start
        states, _ = jax.lax.scan(all_chains, states, jax.random.split(key, n_steps))
        return states.position if mh else states

    jitted = jax.jit(run, static_argnums=0)
    return lambda n_steps: np.asarray(jitted(n_steps, start, jax.random.key(0)))
