"""How exact matrix products are, where that is a choice.

    float32   as they are
    tf32      float32 rounded to 10 bits of mantissa, on GPUs that have it
    bf16      rounded to bfloat16, 7 bits

Energies are summed, and chains moved, in float32 and float64 always. A Metropolis-Hastings decision takes the *difference*
of two potentials of some 5e4 nats: what rounding does to it decides whether the chain still has its target.
`ROOT_MEAN_SQUARE` holds that error of log alpha as measured (bench/bench_precision.py); above `LIMIT` a precision may not
evaluate the proposals of a chain that decides. It may still serve the encoder and the weight gradients.
"""

from __future__ import annotations

import contextlib

import torch

# Nats, against float64: 100 proposals of an LAE (nz 8, nh 256, batch 512, adapted step size) after 2,000 minibatches of
# MNIST; after 400 it was 4e-3, 0.6 and 6. TF32 was emulated: factors rounded to 10 bits.
ROOT_MEAN_SQUARE = {"float32": 2e-3, "tf32": 0.12, "bf16": 1.4}
LIMIT = 0.1
PRECISIONS = tuple(ROOT_MEAN_SQUARE)


def check_precision(name: str, precision: str) -> None:
    """Raise a ValueError unless `precision` is one of the above."""
    if precision not in PRECISIONS:
        raise ValueError(f"{name} is {precision!r}; expected one of {', '.join(PRECISIONS)}")


def chain_precision(precision: str, asked: str | None, mh: bool) -> str:
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


@contextlib.contextmanager
def _tf32():  # noqa: ANN202 - a context manager
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def products_in(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context in which matrix products have this precision."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return _tf32() if precision == "tf32" else contextlib.nullcontext()
