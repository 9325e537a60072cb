"""The random stream behind a chain: Philox4x32-10 (Salmon et al., 2011), and normals by Box-Muller.

Noise is a pure function of (seed, step, chain, element): the seed is the key, (element / 4, chain, step, purpose) the
counter. Decisions at step s use the uniforms of step s, proposals the normals of step s, and a proposal advances the
step. Integers and uniforms agree bit for bit on all devices, normals to rounding; csrc/philox.h is the compiled twin.

`rng` int64 [3] holds seed, step and ticket (scratch, 0 between launches).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.ops.columns import RNG, SEED, STEP
from lae_fast.ops.library import define
from lae_fast.ops.torch_private import is_batched, is_transformed

INTEGERS, UNIFORMS, NORMALS, ACCEPT = range(4)  # kinds of `noise`

# The counter has 32 bits for the chain, and 32 for the block of four elements: beyond, the stream would repeat.
MOST_CHAINS, MOST_ELEMENTS = 2**32, 2**34

_PURPOSE_NORMALS, _PURPOSE_UNIFORM, _PURPOSE_NORMALS_LOW = range(3)
_LOW32 = 0xFFFFFFFF


def _mul_hi_lo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of a * b for 32-bit words held in int64, without 64-bit overflow."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(rng: Tensor, n_chains: int, n_blocks: int, purpose: int) -> Tensor:
    """The four words of every block at this rng [3]: int64 [C, B, 4]."""
    device = rng.device
    seed, step = rng[SEED], rng[STEP]
    k0, k1 = seed & _LOW32, (seed >> 32) & _LOW32
    shape = (n_chains, n_blocks)
    c0 = torch.arange(n_blocks, device=device).expand(shape)
    c1 = torch.arange(n_chains, device=device)[:, None].expand(shape)
    c2 = (step & _LOW32).expand(shape)
    c3 = (((step >> 32) << 8) & _LOW32 | purpose).expand(shape)
    for _ in range(10):
        h0, l0 = _mul_hi_lo(0xD2511F53, c0)
        h1, l1 = _mul_hi_lo(0xCD9E8D57, c2)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _fraction53(high: Tensor, low: Tensor) -> Tensor:
    return ((high >> 5) * 2**26 + (low >> 6)).double()


def uniforms(rng: Tensor, n_chains: int, n_elements: int, dtype: torch.dtype) -> Tensor:
    """The uniforms behind the normals at this rng [3], float64 [C, n]: even elements in (0, 1], odd ones in [0, 1)."""
    n_blocks = -(-n_elements // 4)
    words = philox(rng, n_chains, n_blocks, _PURPOSE_NORMALS).flatten(1)
    if dtype == torch.float32:
        fraction, scale = (words >> 8).double(), 2.0**-24
    else:
        low = philox(rng, n_chains, n_blocks, _PURPOSE_NORMALS_LOW).flatten(1)
        fraction, scale = _fraction53(words, low), 2.0**-53
    fraction[:, 0::2] += 1
    return (fraction * scale)[:, :n_elements]


def normals(rng: Tensor, n_chains: int, n_elements: int, dtype: torch.dtype) -> Tensor:
    """Standard normals at this rng [3], [C, n]: Box-Muller on pairs of uniforms, in float64, rounded once."""
    n_padded = 4 * -(-n_elements // 4)
    u = uniforms(rng, n_chains, n_padded, dtype)
    radius = (-2 * u[:, 0::2].log()).sqrt()
    angle = 2 * math.pi * u[:, 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.flatten(1)[:, :n_elements].to(dtype)


def accept_uniforms(rng: Tensor, n_chains: int) -> Tensor:
    """The Metropolis-Hastings uniform of every chain at this rng [3], float64 [C] in (0, 1]."""
    words = philox(rng, n_chains, 1, _PURPOSE_UNIFORM)[:, 0]
    return (_fraction53(words[:, 0], words[:, 1]) + 1) * 2.0**-53


@define("noise(Tensor(a!) out, Tensor rng, int kind) -> ()", fake=lambda out, rng, kind: None)
def noise_reference(out: Tensor, rng: Tensor, kind: int) -> None:
    n_chains, n_elements = out.shape
    if kind == INTEGERS:
        out.copy_(philox(rng, n_chains, -(-n_elements // 4), _PURPOSE_NORMALS).flatten(1)[:, :n_elements])
    elif kind == UNIFORMS:
        out.copy_(uniforms(rng, n_chains, n_elements, out.dtype))
    elif kind == NORMALS:
        out.copy_(normals(rng, n_chains, n_elements, out.dtype))
    else:
        out.copy_(accept_uniforms(rng, n_chains)[:, None])


def noise(rng: Tensor, n_chains: int, n_elements: int, dtype: torch.dtype, kind: int = NORMALS) -> Tensor:
    """The noise [C, n] that a proposal at this rng [3] uses.

    Args:
        kind: NORMALS: standard normals. UNIFORMS: the uniforms behind the normals. INTEGERS: the 32-bit words behind
            the uniforms, int64. ACCEPT: the uniforms of the decisions, float64 [C, 1].

    Raises:
        TypeError, ValueError: rng is not one, a size is out of range, the kind is unknown, or the dtype is neither float32
            nor float64.

    Example:
        >>> rng = torch.tensor([7, 0, 0])  # seed, step, ticket
        >>> noise = lae_fast.ops.noise(rng, 64, 1000, torch.float32)
        >>> torch.equal(noise[:8, :10], lae_fast.ops.noise(rng, 8, 10, torch.float32))  # whatever is drawn beside it
        True
    """
    checks.tensor("noise: rng", rng, str(RNG), dtypes=(torch.int64,))
    if not torch.compiler.is_compiling() and is_transformed() and is_batched(rng):
        raise ValueError("noise: rng is under torch.func.vmap; expected none, this op works in place")
    n_chains = checks.count("noise: n_chains", n_chains, 0, MOST_CHAINS)
    n_elements = checks.count("noise: n_elements", n_elements, 0, MOST_ELEMENTS)
    if checks.count("noise: kind", kind, 0) > ACCEPT:
        raise ValueError(f"noise: kind is {kind}; expected NORMALS, UNIFORMS, INTEGERS or ACCEPT")
    if not isinstance(dtype, torch.dtype) or dtype not in checks.FLOATS:
        raise ValueError(f"noise: dtype is {checks.describe(dtype)}; expected torch.float32 or torch.float64")
    dtype = {INTEGERS: torch.int64, ACCEPT: torch.float64}.get(kind, dtype)
    out = torch.empty(n_chains, 1 if kind == ACCEPT else n_elements, dtype=dtype, device=rng.device)
    torch.ops.lae_fast.noise(out, rng.contiguous(), kind)
    return out


def make_rng(device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
    """A fresh rng [3], its seed drawn from `generator` (default: the generator that `torch.manual_seed` sets).

    The draw happens on `device`, without a host synchronisation.

    Raises:
        TypeError, ValueError: device is not one, or the generator lives on another device.

    Example:
        >>> rng = lae_fast.ops.make_rng("cpu", torch.Generator().manual_seed(0))
        >>> rng.shape, rng[1:].tolist()  # seed, step, ticket
        (torch.Size([3]), [0, 0])
    """
    device = checks.device("device", device)
    generator = checks.generator("generator", generator, device)
    seed = torch.randint(2**63 - 1, (1,), device=device, generator=generator)
    return torch.cat((seed, seed.new_zeros(RNG - 1)))  # step 0, ticket 0
