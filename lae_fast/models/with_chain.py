"""Models whose training runs a Langevin chain: its step size, random stream and counters."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lae_fast import checks, ops
from lae_fast.models.autoencoder import Autoencoder, like_of
from lae_fast.models.likelihood import Likelihood
from lae_fast.models.precision import Precision, chosen_chain_precision
from lae_fast.ops.columns import COUNTERS
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE, robbins_monro
from lae_fast.sampling.ald import check_function
from lae_fast.sampling.chains import Chains


class AutoencoderWithChain(Autoencoder):
    """Base of `LAE` and `Hoffman`: in train mode every call of `loss` runs `n_steps` steps of a chain; in eval mode none.

    The chain's step size, random stream and counters are part of the `state_dict`: a model that loads it goes on where the
    other one stopped. Weights from before they were part of it still load, and leave the model's own.

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

    Example:
        >>> from lae_fast import models
        >>> model = models.build(models.Architecture(model="hoffman", nx=64, nz=2, nh=16, depth=1), n_steps=3)
        >>> x = torch.rand(10, 64)
        >>> loss, evaluation = model.train().loss(x), model.eval().loss(x)  # the second one moves nothing
        >>> model.n_decisions.item()
        30
    """

    first_step_size: float
    unadjusted_step_size: float

    step_size: float | None
    log_step_size: Tensor  # float64 [1]
    rng: Tensor  # int64 [3]
    counters: Tensor  # int64 [1, COUNTERS]
    n_decisions: Tensor  # int64 []
    adaptation: Tensor  # float64 [1, 2]
    acceptance_rate: Tensor  # float64 [], of the last minibatch: the mean over chains and steps
    unmoved: Tensor  # float64 [], of the last minibatch: the share of chains that accepted no proposal

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        nx: int | None = None,
        nz: int,
        d: int | None = None,
        shape: Sequence[int] | None = None,
        n_steps: int = 2,
        mh: bool = True,
        step_size: float | None = None,
        adaptation_rate: float = 0.05,
        chain_precision: Precision | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(encoder, decoder, likelihood, nx=nx, nz=nz, d=d, shape=shape, precision=precision)
        self.n_steps, self.mh = checks.count("n_steps", n_steps), checks.flag("mh", mh)
        self.chain_precision = chosen_chain_precision(self.precision, chain_precision, mh)
        adaptation_rate = checks.number("adaptation_rate", adaptation_rate, least=0)
        self.adaptation_rate = adaptation_rate if mh and step_size is None else 0.0
        self.step_size = None if step_size is None else checks.number("step_size", step_size, least=0)
        step_size = self.step_size
        if step_size is None:
            step_size = self.first_step_size if mh else self.unadjusted_step_size
        log_step_size = math.log(step_size) if step_size > 0 else -math.inf
        with torch.device(like_of(self).device):
            self.register_buffer("log_step_size", torch.tensor([log_step_size], dtype=torch.float64))
            self.register_buffer("rng", ops.make_rng(self.log_step_size.device))
            self.register_buffer("counters", torch.zeros(1, COUNTERS, dtype=torch.int64))
            self.register_buffer("n_decisions", torch.zeros((), dtype=torch.int64))
            self.register_buffer("adaptation", self._adaptation(), persistent=False)
            self.register_buffer("acceptance_rate", torch.zeros((), dtype=torch.float64), persistent=False)
            self.register_buffer("unmoved", torch.zeros((), dtype=torch.float64), persistent=False)
        self.register_load_state_dict_pre_hook(_take_weights)
        self.register_load_state_dict_post_hook(_settle)
        self._checked: list[tuple[int, bool]] | None = None

    def _adaptation(self) -> Tensor:
        """[1, 2]: the rule by which the step size adapts."""
        return robbins_monro(1, self.adaptation_rate, TARGET_ACCEPTANCE, self.log_step_size.device)

    def _check_function(self, x: Tensor, z: Tensor, *, by_row: bool) -> None:
        """Raise a ValueError unless the potential is a function of z, without `mh` of z and random numbers; once, and again when
        modules or their modes change.

        Args:
            x, z: images [n, nx] and latent variables [n, nz].
            by_row: each datapoint has a chain, so that its potential has to be a function of its own z alone.
        """
        parts = [*self.decoder.modules(), *self.likelihood.modules()]
        modes = [(id(module), module.training) for module in parts]
        is_waiting_refused = x.is_cuda and torch.cuda.is_current_stream_capturing()
        if modes == self._checked or torch.compiler.is_compiling() or is_waiting_refused:
            return
        buffers = [(b, b.clone()) for module in parts for b in module.buffers(recurse=False)]
        n = (len(x) + 1) // 2 if by_row else len(x)
        moved = torch.cat((z[:n], z[n:] + 1))  # the other half
        as_before = functools.partial(torch.random.fork_rng, [x.device] if x.is_cuda else [])
        with as_before():
            with contextlib.nullcontext() if self.mh else as_before():  # both draw the same, as for Dropout
                first = self.potential(x, z)[:n]
            again = self.potential(x, moved)[:n]
        for buffer, before in buffers:  # as BatchNorm's averages
            buffer.copy_(before)
        try:
            check_function(first, again) if by_row else check_function(first.sum(), again.sum())
        except ValueError as error:
            raise ValueError(
                f"{error}; as fit trains all modules in train mode: LayerNorm or GroupNorm instead of BatchNorm, and Dropout "
                "with mh=False"
            ) from None
        if n < len(x) or not by_row:  # one image has no other half
            self._checked = modes

    def convert(self, weights: dict[str, Tensor], prefix: str) -> None:
        """Turn weights that an older or a differently configured model has saved into this model's, in place."""
        for name, value in self.chain_state().items():
            weights.setdefault(prefix + name, value)

    def chain_state(self) -> dict[str, Tensor]:
        return {
            name: getattr(self, name).clone() for name in ("log_step_size", "rng", "counters", "n_decisions")
        }

    def _keep(self, chains: Chains, log_n: float = 0.0) -> None:
        """Keep what the next minibatch's chains go on from, and what people want to know, after `n_steps` steps.

        Args:
            log_n: log eta of the chains is the model's log step size minus this.
        """
        self.rng.copy_(chains.rng)
        if chains.log_step_size is not self.log_step_size:  # these chains have moved it in place
            self.log_step_size.copy_(chains.log_step_size + log_n)
        counters, n_chains = chains.counters.sum(0), len(chains.counters)
        is_unmoved = chains.counters.sum(1) == self.n_steps  # all were rejected
        means = torch.stack((chains.acceptance.mean() / self.n_steps, is_unmoved.double().mean()))
        if chains.share is not None:
            counters, n_chains = chains.share.total(counters), n_chains * chains.share.size
            means = chains.share.mean(means)
        self.counters += counters
        self.n_decisions += self.n_steps * n_chains
        self.acceptance_rate.copy_(means[0])
        self.unmoved.copy_(means[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AutoencoderWithChain:
        """Move the chain with the model, but keep it in float64: `model.half()` concerns only the networks."""
        names = ("log_step_size", "acceptance_rate", "unmoved")
        kept = {name: getattr(self, name) for name in names}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            if getattr(self, name).dtype != value.dtype:
                setattr(self, name, value.to(getattr(self, name).device))
        self._settle(is_empty=kept["unmoved"].is_meta)
        return self

    def _settle(self, is_empty: bool = False) -> None:
        """Bring what the state_dict does not hold to the chain's device, and make it anew where nothing is in it."""
        device = self.log_step_size.device
        self.adaptation = self._adaptation()
        for name in ("acceptance_rate", "unmoved"):
            if is_empty or getattr(self, name).device != device:
                setattr(self, name, torch.zeros((), dtype=torch.float64, device=device))


def _settle(model: AutoencoderWithChain, _: Any) -> None:
    model._settle()


def _take_weights(model: AutoencoderWithChain, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    model.convert(weights, prefix)
