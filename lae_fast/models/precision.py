"""The precision of matrix products, where it is a choice.

    float32   not rounded further
    tf32      float32 rounded to 10 bits of mantissa, on GPUs that have it
    bf16      rounded to bfloat16, 7 bits

Energies are always summed, and chains always moved, in float32 and float64. A Metropolis-Hastings decision takes the
*difference* of two potentials of about 5e4 nats: the rounding error of this difference decides whether the chain keeps
its target. `ROOT_MEAN_SQUARE` holds the measured error of log alpha (bench/subjects/precision.py). A precision whose error
is above `LIMIT` may not evaluate the energies of a chain with Metropolis-Hastings. It may still serve the encoder, the
weight gradients, and even the gradients that proposals follow: the ratio is exact for any drift that a proposal took.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from lae_fast import checks
from lae_fast.isolation import exact, put_back

Precision = Literal["float32", "tf32", "bf16"]
# Nats, against float64: 100 proposals of an LAE (nz 8, nh 256, batch 512, adapted step size) after 2,000 minibatches of
# MNIST. TF32 was emulated by rounding factors to 10 bits: 0.09 to 0.6, depending on the run. bfloat16 gradients under
# float32 energies move log alpha by 0.01.
ROOT_MEAN_SQUARE: dict[Precision, float] = {"float32": 1e-4, "tf32": 0.19, "bf16": 1.4}
LIMIT = 0.1
PRECISIONS = tuple(ROOT_MEAN_SQUARE)


def chosen_chain_precision(precision: Precision, asked: Precision | None, mh: bool) -> Precision:
    """The precision of a chain's energies: `asked`, or by default `precision`, as far as the decisions allow.

    Raises:
        ValueError: asked is unknown, or too coarse for Metropolis-Hastings decisions.
    """
    if asked is None:
        return precision if not mh or ROOT_MEAN_SQUARE[precision] <= LIMIT else "float32"
    checks.choice("chain_precision", asked, PRECISIONS)
    if mh and ROOT_MEAN_SQUARE[asked] > LIMIT:
        raise ValueError(
            f"chain_precision is {asked!r} with mh: log alpha would be off by {ROOT_MEAN_SQUARE[asked]} nats (root "
            f"mean square; limit {LIMIT}), and the chain would miss its target; expected float32, or mh=False"
        )
    return asked


def chain_context(mh: bool, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context in which a chain runs: never under the program's autocast and, where it decides, without products that
    PyTorch's own settings round."""
    if mh and not torch.compiler.is_compiling():
        return exact()
    _check_float32(mh)  # a compiled loss cannot change the settings
    return torch.autocast(device.type, enabled=False)


def _check_float32(mh: bool) -> None:
    """Raise a ValueError if PyTorch's own settings round float32 products while `mh` needs exact energies."""
    try:
        setting = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch.backends' newer settings contradict this one
        setting = "not the highest, by torch.backends"
    if mh and setting != "highest":
        raise ValueError(
            f"torch's float32 matmul precision is {setting}, with mh, in a compiled loss: decisions would be those of rounded "
            "energies; expected 'highest', or mh=False"
        )


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, "tf32"
    try:
        yield
    finally:
        put_back(settings, torch.backends, before)


def products_in(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context in which matrix products have this precision."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return _tf32() if precision == "tf32" else contextlib.nullcontext()
