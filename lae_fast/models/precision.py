"""How exact matrix products are, where that is a choice.

    float32   as they are
    tf32      float32 rounded to 10 bits of mantissa, on GPUs that have it
    bf16      rounded to bfloat16, 7 bits

Energies are summed, and chains moved, in float32 and float64 always. A Metropolis-Hastings decision takes the *difference*
of two potentials of some 5e4 nats: what rounding does to it decides whether the chain still has its target.
`ROOT_MEAN_SQUARE` holds that error of log alpha as measured (bench/bench_precision.py); above `LIMIT` a precision may not
evaluate the energies of a chain that decides. It may still serve the encoder, the weight gradients, and even the
gradients that proposals follow: a proposal's ratio is exact for whatever drift it took.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

# Nats, against float64: 100 proposals of an LAE (nz 8, nh 256, batch 512, adapted step size) after 2,000 minibatches of
# MNIST. TF32 was emulated, factors rounded to 10 bits: 0.09 to 0.6 from run to run. bfloat16 gradients under float32
# energies move log alpha by 0.01.
ROOT_MEAN_SQUARE = {"float32": 1e-4, "tf32": 0.19, "bf16": 1.4}
LIMIT = 0.1
PRECISIONS = tuple(ROOT_MEAN_SQUARE)


def check_precision(name: str, precision: str) -> None:
    """Raise a ValueError unless `precision` is one of the above."""
    if precision not in PRECISIONS:
        raise ValueError(f"{name} is {precision!r}; expected one of {', '.join(PRECISIONS)}")


def chosen_chain_precision(precision: str, asked: str | None, mh: bool) -> str:
    """What evaluates a chain's proposals: `asked`, or by default `precision` as far as decisions allow.

    Raises:
        ValueError: asked is unknown, or too coarse for Metropolis-Hastings decisions.
    """
    if asked is None:
        return precision if not mh or ROOT_MEAN_SQUARE[precision] <= LIMIT else "float32"
    check_precision("chain_precision", asked)
    if mh and ROOT_MEAN_SQUARE[asked] > LIMIT:
        raise ValueError(
            f"chain_precision is {asked!r} with mh: log alpha would be off by {ROOT_MEAN_SQUARE[asked]} nats (root "
            f"mean square; limit {LIMIT}), and the chain would miss its target; expected float32, or mh=False"
        )
    return asked


def check_float32(mh: bool) -> None:
    """Raise a ValueError if PyTorch itself rounds float32 products behind the back of Metropolis-Hastings decisions."""
    try:
        setting = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch.backends' newer settings say otherwise
        setting = "not the highest, by torch.backends"
    if mh and setting != "highest":
        raise ValueError(
            f"torch's float32 matmul precision is {setting}, with mh: decisions would be those of rounded energies; "
            "expected 'highest' (what may be rounded is by precision='tf32' or 'bf16'), or mh=False"
        )


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, "tf32"
    try:
        yield
    finally:
        settings.fp32_precision = before


def products_in(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context in which matrix products have this precision."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return _tf32() if precision == "tf32" else contextlib.nullcontext()
