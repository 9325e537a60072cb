"""C chains moved in place by the fused transition: the loop of the samplers and of the models with a chain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.ops.arguments import expect
from lae_fast.ops.columns import COUNTERS
from lae_fast.ops.langevin import adapt
from lae_fast.sampling.acceptance import acceptance_rate
from lae_fast.sharing import Shared

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


class Chains:
    """C chains of D elements and their state between steps, all on the device of phi.

    Args:
        evaluate: rows [C, D] -> V [C], float64 in nats, and grad V [C, D], both detached; the next call may overwrite them.
        phi: the start of the chains, [C, D].
        log_step_size: [S], float64, S = 1 (shared) or C.
        rng: [3], from `ops.make_rng`; copied.
        mh: Metropolis-Hastings accept or reject.
        adaptation: [S, K], from adaptation.py, updated in place; None: the step sizes stay.
        share: other processes have more chains of this kind, with the same step size [1] and rng: noise is drawn, and the step
            size adapts, as if all were one set of chains, in the order of ranks. None: no step size is shared with others.
        first: where these chains begin among all that have this rng; those before are somebody else's, who draws their noise.
        copies: False: phi and log_step_size are the chains' own from now on, and may be moved in place; read the attributes.

    Attributes:
        acceptance: [C], float64: min(1, alpha), summed over the steps so far.
        counters: [C, COUNTERS], rejections and non-finite proposals so far.

    Raises:
        TypeError, ValueError: a tensor, or what `evaluate` returns for phi, is of another shape, type or device.

    Example:
        >>> from lae_fast import ops, sampling
        >>> def evaluate(phi):  # [C, D] -> V [C] and its gradient [C, D], of standard normals
        ...     return 0.5 * phi.double().square().sum(1), phi
        >>> start, log_step_size = torch.zeros(64, 3), torch.full((1,), -1.0, dtype=torch.float64)
        >>> chains = sampling.Chains(evaluate, start, log_step_size, ops.make_rng("cpu"))
        >>> for _ in range(20):
        ...     chains.step()
        >>> chains.phi.shape, bool(0.7 < chains.phi.std() < 1.3)
        (torch.Size([64, 3]), True)
    """

    def __init__(
        self,
        evaluate: Evaluate,
        phi: Tensor,
        log_step_size: Tensor,
        rng: Tensor,
        *,
        mh: bool = True,
        adaptation: Tensor | None = None,
        share: Shared | None = None,
        first: int = 0,
        copies: bool = True,
    ) -> None:
        expect("Chains", phi, log_step_size, log_step_size=log_step_size, rng=rng, adaptation=adaptation)
        n_chains = phi.shape[0]
        self.evaluate, self.mh, self.adaptation, self.share = evaluate, mh, adaptation, share
        self.first = first if share is None else share.rank * n_chains
        self.phi, self.log_step_size = phi.detach().contiguous(), log_step_size
        if copies:
            self.phi = phi.detach().clone(memory_format=torch.contiguous_format)
            self.log_step_size = log_step_size.clone()
        self.rng = rng  # the first proposal comes with an rng of the chains' own
        potential, grad = evaluate(self.phi)
        expect("evaluate", self.phi, self.log_step_size, potential=potential, grad=grad)
        # Copies, as `evaluate` may need its own again.
        self.potential, self.grad = (
            t.clone(memory_format=torch.contiguous_format) for t in (potential, grad)
        )
        self.counters = torch.zeros(n_chains, COUNTERS, dtype=torch.int64, device=phi.device)
        self.acceptance = torch.zeros_like(self.potential)
        self.is_accepted = torch.empty(n_chains, dtype=torch.bool, device=phi.device)  # of the last step
        self.log_alpha = torch.empty_like(self.potential)
        self._propose()

    def _propose(self) -> None:
        noise = self._drawn(ops.NORMALS)
        self.proposal, self.rng = ops.propose(self.phi, self.grad, self.log_step_size.exp(), self.rng, noise)
        self.known_finite = None if self.mh else torch.zeros_like(self.is_accepted)

    def _drawn(self, kind: int) -> Tensor | None:
        """These chains' noise; None where they begin with 0, as the ops then draw it themselves. The ops count rows, so the
        noise of all chains before comes first."""
        if self.share is None and self.first == 0:
            return None
        n_chains, n_elements = self.phi.shape
        return ops.noise(self.rng, self.first + n_chains, n_elements, self.phi.dtype, kind)[self.first :]

    def set_step_size(self, log_step_size: Tensor) -> None:
        """Use log_step_size [S] from now on, without adaptation; the pending proposal is drawn again."""
        self.log_step_size, self.adaptation = log_step_size.clone(), None
        self._propose()

    def _state(self) -> tuple[Tensor, ...]:
        """What `transition` and `walk` update, in their schemas' order."""
        return (
            self.phi,
            self.potential,
            self.grad,
            self.proposal,
            self.rng,
            self.log_step_size,
            self.counters,
            self.is_accepted,
            self.log_alpha,
        )

    def step(self) -> None:
        """Evaluate the proposal; then one fused transition decides, selects, adapts and proposes again."""
        potential, grad = self.evaluate(self.proposal)
        noise, uniform = self._drawn(ops.NORMALS), self._drawn(ops.ACCEPT) if self.mh else None
        ops.transition_unchecked(
            *self._state(),
            self.adaptation if self.share is None else None,
            potential,
            grad.contiguous(),
            self.mh,
            noise,
            None if uniform is None else uniform[:, 0],
            self.acceptance,
            self.known_finite,
        )
        if self.share is not None and self.adaptation is not None and self.mh:
            acceptance = self.share.mean(self.acceptance_rate().mean(0, keepdim=True))  # [1], of all chains
            adapt(self.log_step_size, self.adaptation, acceptance)
            eta = self.log_step_size.exp()  # the same noise once more, by the new one
            self.proposal, _ = ops.propose(self.phi, self.grad, eta, self.rng, noise)

    def walk(
        self, library: str, constants: list[Tensor], n_steps: int, thin: int, since: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """n_steps steps in one call, on a CPU, with the energies of a compiled potential: see ops/walk.py. At each draw the sum
        `acceptance` starts again.

        Returns:
            phi [K, C, D], V [K, C] and the mean acceptances [K, C] at the K draws that these steps complete.
        """
        n_draws = (since + n_steps) // thin
        draws = self.phi.new_empty(n_draws, *self.phi.shape)
        energies = self.potential.new_empty(n_draws, *self.potential.shape)
        rates = torch.empty_like(energies)
        ops.walk_unchecked(
            library,
            constants,
            *self._state(),
            self.adaptation,
            self.acceptance,
            draws,
            energies,
            rates,
            n_steps,
            thin,
            since,
            self.mh,
        )
        return draws, energies, rates

    def acceptance_rate(self) -> Tensor:
        """min(1, alpha) of the last step, [C]; there has to be one."""
        return acceptance_rate(self.log_alpha)
