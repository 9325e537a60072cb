"""`Plan`: the length of a sampler's run and the choice of its step sizes, for `ald_sample` and `langevin_sample`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.graphs import Replayed
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE

LONG = 100_000  # steps that pay back some seconds of compilation, however cheap they are
AT_ONCE = 50  # steps of a compiled potential in one call; Ctrl-C waits for its end


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Options of both samplers.

    Args:
        n_draws: draws to keep from each chain.
        n_warmup: steps before the first draw.
        thin: steps that lead to each draw.
        step_size: eta (drift eta, noise variance 2 eta), a number or a tensor with one for each chain, not adapted.
            None: dual averaging finds it during warm-up, which requires `mh`.
        initial_step_size: where dual averaging starts. It moves over many orders of magnitude; a good guess saves warm-up.
        mh: Metropolis-Hastings accept or reject. False: unadjusted, biased at order eta, and labelled as unadjusted.
        target_acceptance: the acceptance that dual averaging aims at.
        share_step_size: one step size for all chains, adapted to their mean acceptance, instead of one for each chain.
        chains: those of all chains that this call draws, as range(0, 4): another process draws the others, by the same call with
            its own range. Each chain has the noise, and so the draws, that it has in one call with all chains, but for how an
            energy of fewer rows is rounded. To skip noise takes a little time; and the steps of a compiled energy are one call
            from Python each, unless the range begins with 0. None: all.
        generator: source of all randomness; default: the generator that `torch.manual_seed` sets.
        progress: show a bar with the acceptance, on a terminal.
        capture: on a GPU, replay the steps from a CUDA graph, several times as fast for small problems. The energy then
            runs as Python only a few times. It must not wait for the device, and it may depend only on device tensors
            that keep their place in memory.
        compile: compile the energy and its gradient, some seconds that many cheap steps pay back: on a CPU 50 steps are then one
            call, and Python is out of the way. The draws are the same to rounding. The energy then runs as Python only a
            few times, as with `capture`: what its Python code reads, other than tensors, keeps its first value. None: from
            100,000 steps on. An energy that torch cannot compile, as one that takes values out of PyTorch by `numpy()`, runs as it is,
            with a warning if True asked for it.

    Raises:
        TypeError: an option is of another kind.
        ValueError: a count or the target acceptance is out of range, step_size is None without `mh` or warm-up, or chains are
            some that would adapt a step size together with others.

    Example:
        >>> from lae_fast import sampling
        >>> plan = sampling.Plan(n_draws=500, n_warmup=200, thin=2)
        >>> plan.n_steps, plan.adapts
        (1200, True)
    """

    n_draws: int
    n_warmup: int = 1000
    thin: int = 1
    step_size: float | Tensor | None = None
    initial_step_size: float = 1e-3
    mh: bool = True
    target_acceptance: float = TARGET_ACCEPTANCE
    share_step_size: bool = False
    chains: range | None = None
    generator: torch.Generator | None = None
    progress: bool = True
    capture: bool = False
    compile: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("n_draws", 1), ("n_warmup", 0), ("thin", 1)):
            checks.count(name, getattr(self, name), least)
        for name in ("mh", "share_step_size", "progress", "capture"):
            checks.flag(name, getattr(self, name))
        if self.compile is not None:
            checks.flag("compile", self.compile)
        if self.step_size is not None and not isinstance(self.step_size, Tensor):
            checks.number("step_size", self.step_size, least=0)
        if self.generator is not None:
            checks.generator(
                "generator", self.generator, getattr(self.generator, "device", torch.device("cpu"))
            )
        checks.number("initial_step_size", self.initial_step_size, above=0)
        checks.number("target_acceptance", self.target_acceptance, above=0, below=1)
        if self.step_size is None and not self.mh:
            raise ValueError(
                "step_size is None with mh=False; expected a number: only Metropolis-Hastings tells how large it may be"
            )
        if self.adapts and self.n_warmup < 1:
            raise ValueError("n_warmup is 0; expected more, or a step_size: it is found during warm-up")
        if self.chains is None:
            return
        form = "expected None or a range of at least one chain, as range(0, 4)"
        if not isinstance(self.chains, range):
            raise TypeError(f"chains is {checks.describe(self.chains)}; {form}")
        if self.chains.step != 1 or not 0 <= self.chains.start < self.chains.stop:
            raise ValueError(f"chains is {self.chains}; {form}")
        if self.share_step_size and self.adapts:
            raise ValueError(
                f"share_step_size is True beside chains {self.chains}; expected False, or a step_size: a shared one follows the "
                "acceptance of all chains, which no call knows"
            )

    @property
    def adapts(self) -> bool:
        """Whether step sizes are found during warm-up."""
        return self.step_size is None

    @property
    def n_steps(self) -> int:
        return self.n_warmup + self.n_draws * self.thin

    @property
    def compiles(self) -> bool:
        """Whether the potential is to be compiled."""
        return self.n_steps >= LONG if self.compile is None else self.compile

    def own(self, n_chains: int) -> range:
        """The chains, of n_chains in all, that are drawn.

        Raises:
            ValueError: there are not so many.
        """
        own = range(n_chains) if self.chains is None else self.chains
        if own.stop > n_chains:
            raise ValueError(f"chains is {own}; expected some of range(0, {n_chains}), which are all")
        return own

    def spans(self, at_once: int) -> Iterator[tuple[int, int]]:
        """Where each stretch of up to `at_once` steps begins, and how many it has; none reaches across the end of warm-up."""
        for begin, end in ((0, self.n_warmup), (self.n_warmup, self.n_steps)):
            for t in range(begin, end, at_once):
                yield t, min(at_once, end - t)

    def log_step_sizes(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """log eta, float64 [1] or [R], at the start of R chains, which have this shape in `Samples.step_size`.

        Raises:
            ValueError: a step size is not finite and >= 0, or their number does not fit.
        """
        n_chains = math.prod(shape)
        n = 1 if self.share_step_size else n_chains
        given = self.initial_step_size if self.step_size is None else self.step_size
        if isinstance(given, Tensor):
            checks.tensor("step_size", given, dtypes=checks.REAL)
            if given.shape == shape:
                given = given.flatten()
            if given.shape == (n_chains,) and not given.is_meta and (given == given[0]).all():
                given = given[:1]  # as in the samples of chains that have shared it
        eta = checks.step_sizes("step_size", given, n)
        if not ((eta >= 0) & eta.isfinite()).all():
            raise ValueError(f"step_size is {self.step_size}; expected finite and >= 0")
        return eta.to(device).expand(n).log()

    def prepared(self, step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """`step` itself, or with `capture` its replay from a CUDA graph."""
        if not self.capture:
            return step
        return Replayed(step, device, [g for g in (self.generator,) if g and g.device.type == "cuda"])
