"""The arguments of the Langevin ops in one table, and the check against it.

C chains of D elements, one chain a row
S step sizes: 1 (shared by all chains) or C
K columns of `adaptation`; their number selects the rule that adapts: see columns.py
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast.ops.columns import DUAL_AVERAGING, ROBBINS_MONRO


class Argument(NamedTuple):
    shape: str  # one letter or digit for each axis
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
    "counters": Argument("C2", torch.int64),  # rejections, non-finite proposals
    "step_size": Argument("S", torch.float64),  # eta
    "log_step_size": Argument("S", torch.float64),
    "adaptation": Argument("SK", torch.float64),
    "rng": Argument("3", torch.int64),  # seed, step, ticket
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
    n_chains = phi.shape[0]
    sizes = {
        "C": (n_chains,),
        "D": (phi.shape[1],),
        "S": (1 if step_sizes.shape == (1,) else n_chains,),
        "K": (ROBBINS_MONRO, DUAL_AVERAGING),
        "2": (2,),
        "3": (3,),
    }
    for name, t in arguments.items():
        if t is None:
            continue
        shape, dtype = ARGUMENTS[name]
        dtype = dtype or phi.dtype
        fits = t.dim() == len(shape) and all(n in sizes[axis] for n, axis in zip(t.shape, shape, strict=True))
        if not fits or t.dtype != dtype or t.device != phi.device:
            expected = ", ".join(" or ".join(map(str, sizes[axis])) for axis in shape)
            wanted = f"{str(dtype).removeprefix('torch.')} [{expected}] on {phi.device}"
            raise ValueError(f"{op}: {name} is {describe(t)}; expected {wanted}")
