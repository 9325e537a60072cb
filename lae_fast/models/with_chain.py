"""Models whose training runs a Langevin chain: its step size, random stream and counters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lae_fast import ops
from lae_fast.models.autoencoder import Autoencoder
from lae_fast.models.precision import chosen_chain_precision
from lae_fast.ops.columns import COUNTERS
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE, robbins_monro
from lae_fast.sampling.chains import Chains


class AutoencoderWithChain(Autoencoder):
    """Base of `LAE` and `Hoffman`: every call of `loss` runs `n_steps` steps of a chain.

    Args (beyond those of `Autoencoder`):
        n_steps: T >= 1.
        mh: Metropolis-Hastings accept or reject.
        step_size: a fixed step size. None: with `mh`, start at `first_step_size` and adapt during training towards an
            acceptance of 0.574; without `mh` no acceptance can guide it, and `unadjusted_step_size` is used.
        adaptation_rate: the rate at which the logarithm of the step size adapts, per step of the chain.
        chain_precision: the precision of the decoder's products in the energy of proposals; default: `precision`, or
            float32 where `precision` is too coarse for Metropolis-Hastings decisions (precision.py).

    Raises:
        ValueError: n_steps < 1, the step size is not a finite number >= 0, or chain_precision is unknown or too coarse.
    """

    first_step_size: float
    unadjusted_step_size: float

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        *,
        n_steps: int = 2,
        mh: bool = True,
        step_size: float | None = None,
        adaptation_rate: float = 0.05,
        chain_precision: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, decoder, likelihood, **options)
        self.chain_precision = chosen_chain_precision(self.precision, chain_precision, mh)
        if n_steps < 1:
            raise ValueError(f"n_steps is {n_steps}; expected at least 1")
        if step_size is not None and not 0 <= step_size < math.inf:
            raise ValueError(f"step_size is {step_size}; expected a finite number >= 0")
        self.n_steps, self.mh = n_steps, mh
        adapts = mh and step_size is None
        if step_size is None:
            step_size = self.first_step_size if mh else self.unadjusted_step_size
        log_step_size = math.log(step_size) if step_size > 0 else -math.inf
        rate, cpu = adaptation_rate if adapts else 0.0, torch.device("cpu")
        self._chain_buffer("log_step_size", torch.tensor([log_step_size], dtype=torch.float64))
        self._chain_buffer("adaptation", robbins_monro(1, rate, TARGET_ACCEPTANCE, cpu))
        self._chain_buffer("rng", ops.make_rng(cpu))
        self._chain_buffer("counters", torch.zeros(1, COUNTERS, dtype=torch.int64))
        self._chain_buffer("n_decisions", torch.zeros((), dtype=torch.int64))
        # of the last minibatch: the mean over chains and steps, and the share of chains that accepted no proposal
        self._chain_buffer("acceptance_rate", torch.zeros((), dtype=torch.float64))
        self._chain_buffer("unmoved", torch.zeros((), dtype=torch.float64))

    def _chain_buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def chain_state(self) -> dict[str, Tensor]:
        return {
            name: getattr(self, name).clone() for name in ("log_step_size", "rng", "counters", "n_decisions")
        }

    def _keep(self, chains: Chains, log_n: float, acceptance: Tensor, has_moved: Tensor) -> None:
        """Keep what the next minibatch's chains go on from, and what people want to know.

        Args:
            log_n: log eta of the chains is the model's log step size minus this.
            acceptance, has_moved: [C], the mean acceptance rate of each chain, and whether it accepted any proposal.
        """
        self.rng.copy_(chains.rng)
        self.log_step_size.copy_(chains.log_step_size + log_n)
        self.counters += chains.counters.sum(0)
        self.n_decisions += self.n_steps * len(has_moved)
        self.acceptance_rate.copy_(acceptance.mean())
        self.unmoved.copy_(1 - has_moved.double().mean())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AutoencoderWithChain:
        """Move the chain with the model, but keep it in float64: `model.half()` concerns only the networks."""
        names = ("log_step_size", "adaptation", "acceptance_rate", "unmoved")
        kept = {name: getattr(self, name) for name in names}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self
