"""What the benchmarks are asked to show. A benchmark stores what it measured under the target's key."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """A ratio with a limit: of times, to stay below; or of a rival's time to ours, to stay above ("x faster")."""

    what: str
    limit: float
    is_speedup: bool

    def is_met(self, measured: float) -> bool:
        return measured >= self.limit if self.is_speedup else measured <= self.limit


def _below(what: str, limit: float) -> Target:
    return Target(what, limit, False)


def _above(what: str, limit: float) -> Target:
    return Target(what, limit, True)


_STEP = "LAE step, MH, T = 2, float32"
TARGETS = {
    "step / floor": _below(f"{_STEP} / floor (products by the fastest route)", 1.20),
    "step / torch.mm floor": _below(f"{_STEP} / floor (products by torch.mm)", 1.20),
    "report / step": _above(f"{_STEP}: faster than the report's, eager, Bernoulli", 2.0),
    "official / step": _above(f"{_STEP}: faster than the official one, eager, Bernoulli", 2.7),
    "official / step, logistic": _above(
        f"{_STEP}: faster than the official one, both discretized logistic", 4
    ),
    "bf16 step / VAE": _below(
        "LAE step, MH, T = 2, bf16 wherever allowed / plain eager float32 VAE step", 1.0
    ),
    "growth / floor": _below("growth from T = 2 to 50 / that of its products by the fastest route", 1.20),
    "growth / torch.mm floor": _below("growth from T = 2 to 50 / that of its products by torch.mm", 1.20),
    "energy": _above("Bernoulli energy and derivative: faster than binary_cross_entropy_with_logits", 8),
    "transition 2^11": _above("transition, D = 2,048: faster than eager PyTorch", 5),
    "transition 2^20": _above("transition, D = 2^20: faster than eager PyTorch", 5),
    "epoch": _above("epoch with its data, float32: faster than the report's", 2.4),
    "epoch, bf16": _above("epoch with its data, bf16: faster than the report's in float32", 3.5),
}


def record(benchmark, measured: dict[str, float]) -> None:
    """Store measured ratios by their targets' keys."""
    if unknown := measured.keys() - TARGETS.keys():
        raise ValueError(f"no target is called {', '.join(sorted(unknown))}")
    benchmark.extra_info["targets"] = measured
