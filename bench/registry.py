"""All benchmarks there are, in the order in which they are measured: on a GPU what takes longest comes last.

A new one is a function in subjects/ that takes a `Setting` and returns a `Finding`, and a line here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finding import Benchmark

Sizes = dict[str, dict[str, Any]]  # by name, what a function takes beside the setting


def _each(device: str, group: str, path: str, sizes: Sizes) -> Iterator[Benchmark]:
    for name, arguments in sizes.items():
        yield Benchmark(device, group, name, path, arguments)


def _with_and_without_mh(sizes: Sizes) -> Sizes:
    return {
        name + word: arguments | {"mh": mh}
        for name, arguments in sizes.items()
        for word, mh in (("", True), ("_no_mh", False))
    }


SHAPES = [(1, 2**11), (1, 2**20), (1, 2**24), (64, 256), (100_000, 8)]  # [C, D], of states
IMAGES = [("bernoulli", 4), ("bernoulli", 512), ("bernoulli", 21_400), ("gaussian", 512), ("logistic", 512)]

AUGMENTS = {f"augment_{n}": dict(n=n) for n in (2, 5)}
TRANSITIONS = {f"transition_{c}x{d}": dict(c=c, d=d) for c, d in SHAPES}
NOISES = {f"noise_{c}x{d}": dict(c=c, d=d) for c, d in SHAPES}
ENERGIES = {f"energy_{kind}_{n}": dict(kind=kind, n=n) for kind, n in IMAGES}
PARTS = {f"parts_T{n_steps}": dict(n_steps=n_steps) for n_steps in (2, 10)}
STEPS = {
    "step_T2": {},
    "step_T2_no_mh": dict(mh=False),
    "step_T10": dict(n_steps=10),
    "step_T50": dict(n_steps=50),
    "step_nh1024": dict(n=100, nh=1024),
}
ONE_CHAIN = {  # by phi's shape
    "ald_1x16": dict(nz=1, n=16, d=16, step_size=0.6, n_steps=100),
    "ald_8x256": dict(nz=8, n=256, d=256, step_size=0.1, n_steps=100),
    "ald_8x4096": dict(nz=8, n=16, d=4096, step_size=0.2, n_steps=50),
}
MANY_CHAINS = {
    "chains_64x8": dict(c=64, d=8, step_size=0.6),
    "chains_1024x128": dict(c=1024, d=128, step_size=0.25),
}
LONG_CHAINS = {
    "jitted_64x8": MANY_CHAINS["chains_64x8"] | dict(n_steps=50_000),
    "jitted_1024x128": MANY_CHAINS["chains_1024x128"] | dict(n_steps=1000),
}

# device, heading over the tables, module and function in subjects/, and by name what it takes
BENCHMARKS = [
    *_each("cpu", "attacks", "attacks.attack", {"pgd": {}}),
    *_each("cpu", "augmentation", "augmentation.augmented_step", AUGMENTS),
    *_each("cpu", "epoch", "epoch.epoch_slice", {"epoch": {}}),
    *_each("cpu", "ops: transition", "transition.transition", TRANSITIONS),
    *_each("cpu", "ops: noise", "noise.noise", NOISES),
    *_each("cpu", "ops: energy and derivative", "energy.energy", ENERGIES),
    *_each("cpu", "precision", "precision.rounding", {"precision": {}}),
    *_each("cpu", "training step: its parts", "parts.parts", PARTS),
    *_each("cpu", "one chain of ALD", "samplers.one_chain", _with_and_without_mh(ONE_CHAIN)),
    *_each("cpu", "C chains", "samplers.many_chains", _with_and_without_mh(MANY_CHAINS)),
    *_each("cpu", "C chains, compiled", "jitted_samplers.jitted_chains", _with_and_without_mh(LONG_CHAINS)),
    *_each("cpu", "training step", "step.training_step", STEPS),
    *_each("cuda", "ops: transition", "transition.long_transition", {"transition_long": {}}),
    *_each("cuda", "ops: transition", "transition.short_transition", {"transition_short": {}}),
    *_each("cuda", "ops: energy and derivative", "energy.cold_energy", {"energy": {}}),
    *_each("cuda", "ops: layers", "layers.layers", {"layers": {}}),
    *_each("cuda", "training step", "captured_step.captured_step", {"step": {}}),
    *_each("cuda", "training steps of several models", "side_by_side.side_by_side", {"side_by_side": {}}),
    *_each("cuda", "epoch", "epoch.whole_epoch", {"epoch": {}}),
    *_each("cuda", "C chains", "captured_samplers.captured_chains", MANY_CHAINS),
    *_each("cuda", "annealed importance sampling", "annealing.annealing", {"ais": {}}),
    *_each("cuda", "training step, left to the compiler", "compiler.against_compiler", {"compiler": {}}),
]


def chosen(device: str, words: list[str] | None = None) -> list[Benchmark]:
    """Those of a device; with `words` those of them whose name is one of the words, or begins with one that is no name."""
    those = [b for b in BENCHMARKS if b.device == device]
    names = [b.name for b in those]
    if words is None:
        return those
    wanted = set()
    for word in words:
        found = {word} if word in names else {name for name in names if name.startswith(word)}
        if not found:
            raise ValueError(f"no finding begins with {word}; for this device there are {', '.join(names)}")
        wanted |= found
    return [b for b in those if b.name in wanted]
