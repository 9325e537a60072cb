"""What the benchmarks are asked to show. A finding holds what it measured by the target's key."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """A number with a limit."""

    what: str
    limit: float | None  # None: to be reported, not judged
    is_least: bool  # the measured number should not be below the limit; else it should not be above
    unit: str = ""

    def is_met(self, measured: float) -> bool:
        return measured >= self.limit if self.is_least else measured <= self.limit

    def limit_text(self) -> str:
        if self.limit is None:
            return "reported"
        digits = {"": 2, "x": 1, " us": 1}.get(self.unit, 0)
        return f"{'≥' if self.is_least else '≤'} {self.limit:.{digits}f}{self.unit}"

    def text(self, measured: float) -> str:
        digits = 0 if self.unit == " launches" else 1 if self.unit.strip() in ("%", "ms", "s") else 2
        return f"{measured:,.{digits}f}{self.unit}"


def _below(what: str, limit: float | None, unit: str = "") -> Target:
    """A ratio of times, or a time in some unit."""
    return Target(what, limit, False, unit)


def _above(what: str, limit: float | None, unit: str = "x") -> Target:
    """A rival's time over ours ("x faster"), or a rate in some unit."""
    return Target(what, limit, True, unit)


_STEP = "LAE step, MH, T = 2, float32"
_CAPTURED_STEP = "LAE step (batch 512, nh 256, nz 8, T = 2, MH), captured"
_BESIDE = "ten LAE steps (batch 512, nh 256, nz 8, T = 2, MH) side by side: faster"
_OF_COPY = "of measured copy bandwidth"
# by the device's type, then by key
TARGETS: dict[str, dict[str, Target]] = {
    "cpu": {
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
        "datapoint / joint": _below(f"{_STEP}: a decision for each datapoint / a joint one", 1.0),
        "growth / floor": _below("growth from T = 2 to 50 / that of its products by the fastest route", 1.20),
        "growth / torch.mm floor": _below("growth from T = 2 to 50 / that of its products by torch.mm", 1.20),
        "energy": _above("Bernoulli energy and derivative: faster than binary_cross_entropy_with_logits", 8),
        "transition 2^11": _above("transition, D = 2,048: faster than eager PyTorch", 5),
        "transition 2^20": _above("transition, D = 2^20: faster than eager PyTorch", 5),
        "epoch": _above("epoch with its data, float32: faster than the report's", 2.4),
        "epoch, bf16": _above("epoch with its data, bf16: faster than the report's in float32", 3.5),
    },
    "cuda": {
        "transition, no MH": _above(f"transition, D = 2^26, no MH: {_OF_COPY}, its 5 arrays once", 75, " %"),
        "transition, accepted": _above(
            f"transition, D = 2^26, MH, accepted: {_OF_COPY}, two passes, 4 + 5 arrays", 85, " %"
        ),
        "transition, rejected": _above(
            f"transition, D = 2^26, MH, rejected: {_OF_COPY}, two passes, 4 + 3 arrays", 85, " %"
        ),
        "transition 2^11": _below("transition, D = 2,048, in a graph", 3.2, " us"),
        "transition 2^11, launches": _below("the same", 1, " launches"),
        "energy": _above(f"Bernoulli energy and derivative, [8192, 784], L2-cold: {_OF_COPY}", 85, " %"),
        "layer": _below("a decoder's layer, [512, 256] to 256, forward with its norm, in a graph", 3, " us"),
        "official / step": _above(
            f"{_CAPTURED_STEP}: faster than the official algorithm, eager, Bernoulli", 15
        ),
        "report / step": _above(f"{_CAPTURED_STEP}: faster than the report's, eager, Bernoulli", 8),
        "compiled / step": _above(
            f'{_CAPTURED_STEP}: faster than our own eager one under torch.compile(mode="reduce-overhead")',
            1.3,
        ),
        "step / products": _below(f"{_CAPTURED_STEP} / its float32 products alone, in a graph", 0.6),
        "step / VAE": _below(f"{_CAPTURED_STEP} / plain eager VAE step", 0.5),
        "datapoint / joint": _below(f"{_CAPTURED_STEP}: a decision for each datapoint / a joint one", 1.0),
        "side by side": _above(f"{_BESIDE} than one after the other, joint decisions", None),
        "side by side, datapoint": _above("the same with datapoint decisions", 2),
        "side by side, VAE": _above("the same of VAEs", None),
        "epoch": _below("epoch of 60,000 images, T = 2, MH", 25, " ms"),
        "64 x 8 / published": _above(
            "`langevin_sample`, captured, 64 x 8, no MH: faster than torchebm's published 2,163 steps/s", 20
        ),
        "64 x 8, eager / published": _above("the same without capture", None),
        "64 x 8 / torchebm": _above(
            "`langevin_sample`, captured, 64 x 8, no MH: faster than torchebm beside it", 20
        ),
        "1024 x 128 / published": _above(
            "`langevin_sample`, captured, 1024 x 128, no MH: faster than torchebm's published 2,429 steps/s",
            20,
        ),
        "1024 x 128, eager / published": _above("the same without capture", None),
        "1024 x 128 / torchebm": _above(
            "`langevin_sample`, captured, 1024 x 128, no MH: faster than torchebm beside it", 20
        ),
        "64 x 8, us": _below("`langevin_sample`, 64 x 8, no MH, by its fastest route: a step", 10, " us"),
        "1024 x 128, us": _below(
            "`langevin_sample`, 1024 x 128, no MH, by its fastest route: a step", 13, " us"
        ),
        "AIS, us": _below("AIS: a move of 128 images x 16 chains", 100, " us"),
        "AIS": _above("AIS: image-chain-steps per second", None, " million"),
        "AIS / products": _below("AIS: its time / its decoder's products alone, in a graph", None),
        "tables 1-3": _below(
            "tables 1-3 of the report, T <= 10, 100 epochs, one seed: wall time", None, " s"
        ),
    },
}


def checked(measured: dict[str, float], targets: dict[str, Target]) -> dict[str, float]:
    """These very numbers, if each belongs to a target."""
    if unknown := measured.keys() - targets.keys():
        raise ValueError(f"no target is called {', '.join(sorted(unknown))}")
    return measured
