"""The counter-based noise: integers and uniforms exact, normals to rounding, streams independent."""

import itertools
import math

import pytest
import torch
from budget import alpha, z_limit
from scipy import stats

from lae_fast import ops
from lae_fast.ops import philox

pytestmark = pytest.mark.usefixtures("threads")

N = 1 << 20


def rng(seed=0, step=0, device="cpu"):
    return torch.tensor([seed, step, 0], device=device)


def philox_by_hand(counter, key):
    """Philox4x32-10 on Python integers, straight from the definition of Salmon et al. (2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_known_answers():
    # The published test vectors of the Random123 library.
    assert philox_by_hand([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = [0xFFFFFFFF] * 4
    assert philox_by_hand(ones, ones[:2]) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 12345, 2**63 - 1, -5])
@pytest.mark.parametrize("step", [0, 7, 2**32 + 3])
def test_integers_follow_the_counter(seed, step, device):
    words = ops.noise(rng(seed, step, device), 3, 11, torch.float32, ops.INTEGERS).cpu()
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    for chain, block in itertools.product(range(3), range(3)):
        expected = philox_by_hand([block, chain, step & 0xFFFFFFFF, (step >> 32) << 8], key)
        got = words[chain, 4 * block : 4 * block + 4].tolist()
        assert got == expected[: len(got)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_equals_reference_bit_for_bit(dtype, device):
    r = rng(3, 9, device)
    words = philox.philox(r, 5, 251, 0).flatten(1)[:, :1003]
    assert torch.equal(ops.noise(r, 5, 1003, dtype, ops.INTEGERS), words)
    assert torch.equal(
        ops.noise(r, 5, 1003, dtype, ops.UNIFORMS), philox.uniforms(r, 5, 1003, dtype).to(dtype)
    )
    assert torch.equal(ops.noise(r, 5, 1, dtype, ops.ACCEPT)[:, 0], philox.accept_uniforms(r, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4, 8, 12, 128])
def test_short_chains_draw_what_long_ones_begin_with(n, dtype, device):
    """Drawn together or one by one: noise depends on (seed, step, chain, element) alone."""
    r = rng(5, 2, device)
    assert torch.equal(ops.noise(r, 300, n, dtype), ops.noise(r, 300, 999, dtype)[:, :n])


def normals_of(u):
    """The float64 Box-Muller formula on the uniforms in use."""
    radius = (-2 * u[:, 0::2].double().log()).sqrt()
    angle = 2 * math.pi * u[:, 1::2].double()
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.float64, 3e-14)])
def test_normals_follow_the_formula(dtype, bound, device):
    r = rng(1, 4, device)
    exact = normals_of(ops.noise(r, 1, N, dtype, ops.UNIFORMS))
    assert (ops.noise(r, 1, N, dtype) - exact).abs().max() <= bound
    assert (philox.normals(r, 1, N, dtype) - exact).abs().max() <= bound


def test_normals_follow_the_formula_at_the_extremes():
    # This stream holds both the smallest and the largest first uniform: the longest radius and zero.
    r, n = rng(11), 1 << 26
    u = ops.noise(r, 1, n, torch.float32, ops.UNIFORMS)
    pairs = u.view(-1, 2)
    rare = (pairs[:, 0] < 64 * 2.0**-24) | (pairs[:, 0] > 1 - 64 * 2.0**-24) | (pairs[:, 1] == 0)
    assert pairs[:, 0].min() == 2.0**-24
    assert pairs[:, 0].max() == 1.0
    drawn = ops.noise(r, 1, n, torch.float32).view(-1, 2)[rare]
    assert (drawn.view(1, -1) - normals_of(pairs[rare].view(1, -1))).abs().max() <= 3e-6


def test_float64_noise_follows_float32_noise():
    single, double = (ops.noise(rng(2), 1, N, t) for t in (torch.float32, torch.float64))
    assert (single - double).abs().median() < 1e-6


def test_noise_distribution(device):
    for dtype, steps in ((torch.float32, (0, 1)), (torch.float64, (2, 3))):
        for step in steps:
            r = rng(20260101, step, device)
            x = ops.noise(r, 1, N, dtype)[0].double().cpu().numpy()
            assert stats.kstest(x, "norm").pvalue > alpha("noise_is_normal")
            u = ops.noise(r, 1, N, dtype, ops.UNIFORMS)[0].double().cpu().numpy()
            assert stats.kstest(u, "uniform").pvalue > alpha("noise_is_uniform")
    u = ops.noise(rng(5, 0, device), N, 1, torch.float32, ops.ACCEPT)[:, 0].cpu().numpy()
    assert stats.kstest(u, "uniform").pvalue > alpha("accept_uniform")


def test_noise_streams_are_independent(device):
    x = ops.noise(rng(7, 0, device), 2, N, torch.float32).double()
    pairs = {
        "neighbours": (x[0, :-1], x[0, 1:]),
        "halves of a pair": (x[0, 0::2], x[0, 1::2]),
        "chains": (x[0], x[1]),
        "steps": (x[0], ops.noise(rng(7, 1, device), 1, N, torch.float32).double()[0]),
        "seeds": (x[0], ops.noise(rng(8, 0, device), 1, N, torch.float32).double()[0]),
    }
    for a, b in pairs.values():
        for f in (lambda t: t, lambda t: t**2 - 1):  # linear and in magnitude
            correlation = (f(a) * f(b)).mean() / (f(a).std() * f(b).std())
            assert abs(correlation.item()) * math.sqrt(len(a)) < z_limit("noise_is_uncorrelated")


def test_the_seed_comes_from_torch():
    torch.manual_seed(3)
    first, second = ops.make_rng("cpu"), ops.make_rng("cpu")
    torch.manual_seed(3)
    assert torch.equal(ops.make_rng("cpu"), first)
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(ops.make_rng("cpu", generator), ops.make_rng("cpu", torch.Generator().manual_seed(4)))
