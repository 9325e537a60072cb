"""The arguments of the Langevin ops in one table, and the check against it.

C chains of D elements, one chain a row
S step sizes: 1 (shared by all chains) or C
K columns of `adaptation`; their number selects the rule that adapts: see columns.py
N columns of `counters`, R columns of `rng`: see there too
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast.ops.columns import COUNTERS, DUAL_AVERAGING, RNG, ROBBINS_MONRO


class Argument(NamedTuple):
    axes: str  # one letter for each
    dtype: torch.dtype | None  # None: the dtype of phi, float32 or float64


ARGUMENTS = {
    "phi": Argument("CD", None),
    "grad": Argument("CD", None),
    "proposal": Argument("CD", None),
    "proposal_grad": Argument("CD", None),
    "noise": Argument("CD", None),
    "potential": Argument("C", torch.float64),  # nats
    "proposal_potential": Argument("C", torch.float64),
    "log_alpha": Argument("C", torch.float64),
    "uniform": Argument("C", torch.float64),  # in (0, 1]
    "is_accepted": Argument("C", torch.bool),
    "counters": Argument("CN", torch.int64),  # rejections, non-finite proposals
    "step_size": Argument("S", torch.float64),  # eta
    "log_step_size": Argument("S", torch.float64),
    "adaptation": Argument("SK", torch.float64),
    "rng": Argument("R", torch.int64),  # seed, step, ticket
}


def describe(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)} on {t.device}"


def expect(op: str, phi: Tensor, step_sizes: Tensor, **arguments: Tensor | None) -> None:
    """Check an op's arguments, by their names in the table, against phi [C, D] and the step sizes [S].

    Raises:
        ValueError: an argument does not fit; the message names the first one and its expected form.
    """
    if phi.dim() != 2 or phi.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: phi is {describe(phi)}; expected float32 or float64 [C, D]")
    n_chains, device = phi.shape[0], phi.device
    n_step_sizes = 1 if step_sizes.shape == (1,) else n_chains
    # Most arguments fit at once: a comparison of whole shapes takes less time than one axis by axis.
    exact = {"CD": phi.shape, "C": (n_chains,), "S": (n_step_sizes,), "R": (RNG,)}
    for name, t in arguments.items():
        if t is None:
            continue
        axes, dtype = ARGUMENTS[name]
        dtype = dtype or phi.dtype
        if t.dtype == dtype and t.device == device and t.shape == exact.get(axes):
            continue
        sizes = {
            "C": (n_chains,),
            "D": (phi.shape[1],),
            "S": (n_step_sizes,),
            "K": (ROBBINS_MONRO, DUAL_AVERAGING),
            "N": (COUNTERS,),
            "R": (RNG,),
        }
        fits = t.dim() == len(axes) and all(n in sizes[axis] for n, axis in zip(t.shape, axes, strict=True))
        if not fits or t.dtype != dtype or t.device != device:
            expected = ", ".join(" or ".join(map(str, sizes[axis])) for axis in axes)
            wanted = f"{str(dtype).removeprefix('torch.')} [{expected}] on {device}"
            raise ValueError(f"{op}: {name} is {describe(t)}; expected {wanted}")
