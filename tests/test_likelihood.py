"""Energies against float64 and torch.distributions, at the extremes too, for every kernel that serves."""

import hashlib
import math
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

import lae_fast
from lae_fast import ops
from lae_fast.models.decoder_pass import decoder_pass
from lae_fast.models.likelihood import Bernoulli, DiscretizedLogistic, Gaussian
from lae_fast.ops import energies, library

pytestmark = pytest.mark.usefixtures("threads")

G = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (5, 40), generator=G) / 255
OUTPUT = torch.randn(5, 40, generator=G)
SCALES = {ops.BERNOULLI: [None], ops.GAUSSIAN: [1e-3, 0.1, 1.0], ops.LOGISTIC: [1e-3, 0.03, 1.0]}
CASES = [(kind, scale) for kind, scales in SCALES.items() for scale in scales]


def problem(kind, scale, dtype, device="cpu"):
    """Outputs [3 * 64, 333] that meet all sorts of pixels: grey, the extremes 0 and 1, certain and wrong."""
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (64, 333), generator=g) / 255
    x[:, :100], x[:, 100:180] = 0.0, 1.0
    if kind == ops.BERNOULLI:
        output = torch.randn(192, 333, generator=g) * torch.logspace(-3, 1.5, 333)
        output[:, ::17] = torch.linspace(-100, 100, 192)[:, None]
    else:
        output = x.repeat(3, 1) + torch.randn(192, 333, generator=g) * torch.logspace(-5, 0.3, 192)[:, None]
    log_scale = None if scale is None else torch.tensor(math.log(scale), dtype=dtype, device=device)
    return output.to(device, dtype), x.to(device, dtype), log_scale


def arguments_of(kind, scale, dtype, device="cpu"):
    output, x, log_scale = problem(kind, scale, dtype, device)
    return output, x, kind, log_scale


def textbook(output, x, kind, log_scale):
    """Energies per pixel, their derivatives by output and by log_scale, by autograd in float64."""
    output = output.double().detach().requires_grad_()
    x = x.double().repeat(len(output) // len(x), 1)
    log_scale = torch.zeros((), dtype=torch.float64) if log_scale is None else log_scale.double()
    scales = log_scale.expand(output.shape).clone().requires_grad_()
    if kind == ops.BERNOULLI:
        log_sigmoid = torch.nn.functional.logsigmoid  # its softplus is cut off at 20
        pixels = -x * log_sigmoid(output) - (1 - x) * log_sigmoid(-output)
    elif kind == ops.GAUSSIAN:
        pixels = -Normal(output, scales.exp()).log_prob(x)
    else:
        pixels = energies.logistic_pixels(output, x, scales)[0]  # held against its definition below
    by_output, by_scale = torch.autograd.grad(pixels.sum(), [output, scales], allow_unused=True)
    return pixels.detach(), by_output, None if kind == ops.BERNOULLI else by_scale


def assert_within_bounds(output, x, kind, log_scale):
    single = output.dtype == torch.float32
    pixels, by_output, by_scale = textbook(output, x, kind, log_scale)
    energy, derivative, slope = torch.ops.lae_fast.energy(output, x, kind, log_scale)
    assert energy.dtype == torch.float64
    bound = 1e-6 if single else 1e-12
    assert ((energy - pixels.sum(1)).abs() <= bound * pixels.abs().sum(1) + bound).all()
    tolerance = (2.0**-22 if single else 1e-12) * by_output.abs().clamp(min=1)
    assert ((derivative - by_output).abs() <= tolerance).all()
    if by_scale is not None:
        assert ((slope - by_scale.sum(1)).abs() <= 2 * bound * (by_scale.abs().sum(1) + 1)).all()


@pytest.mark.parametrize(("kind", "scale"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_and_derivatives_within_their_bounds(kind, scale, dtype, device):
    assert_within_bounds(*arguments_of(kind, scale, dtype, device))


# by implementation: out of place, in place
ENERGIES = {
    "op": (torch.ops.lae_fast.energy, torch.ops.lae_fast.energy_),
    "reference": (energies.energy_reference, energies.energy_reference_),
}


@pytest.mark.parametrize("implementation", ["op", "reference"])
@pytest.mark.parametrize(("kind", "scale"), CASES)
def test_in_place_is_the_same(kind, scale, implementation, device):
    output, *rest = arguments_of(kind, scale, torch.float32, device)
    energy_of, in_place_of = ENERGIES[implementation]
    energy, derivative, slope = energy_of(output, *rest)
    in_place = in_place_of(output, *rest)
    for got, wanted in zip((*in_place, output), (energy, slope, derivative), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("kind", "scale"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reference_is_within_the_same_bounds(kind, scale, dtype, monkeypatch):
    monkeypatch.setattr(torch.ops.lae_fast, "energy", energies.energy_reference, raising=False)
    assert_within_bounds(*arguments_of(kind, scale, dtype))


@pytest.mark.parametrize("implementation", ["op", "reference"])
def test_nearly_certain_pixels_keep_their_digits(implementation, device):
    """Most pixels of a trained model are: log(1 + e) with a tiny e, of which 1 + e would swallow most."""
    logits = torch.linspace(5, 30, 784, device=device).repeat(4, 1) * torch.tensor(
        [[1.0], [-1.0]] * 2, device=device
    )
    x = (logits > 0).float()
    energy = ENERGIES[implementation][0](logits, x, ops.BERNOULLI, None)[0]
    exact = torch.nn.functional.logsigmoid(logits.double().abs()).neg().sum(1)
    torch.testing.assert_close(energy, exact, rtol=1e-6, atol=0)


def fingerprint():
    digest = hashlib.sha256()
    for kind, scale in CASES:
        for dtype in (torch.float32, torch.float64):
            arguments = arguments_of(kind, scale, dtype)
            assert_within_bounds(*arguments)
            for t in torch.ops.lae_fast.energy(*arguments):
                digest.update(t.numpy().tobytes())
    logits = torch.linspace(-95, 95, 1 << 18).view(
        -1, 1
    )  # one by one: the energy of every pixel counts, to the last bit
    for x in (0.0, 0.3, 1.0):
        for t in torch.ops.lae_fast.energy(logits, torch.full_like(logits, x), ops.BERNOULLI, None):
            digest.update(t.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.skipif(
    library.simd_level() not in ("avx2", "avx512"), reason="needs compiled kernels for x86-64"
)
@pytest.mark.slow
def test_every_simd_level_keeps_the_bounds_and_computes_the_same_bits(fingerprints):
    assert {found["test_likelihood"] for found in fingerprints.values()} == {fingerprint()}


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("g++") is None, reason="needs an x86-64 and g++"
)
@pytest.mark.slow
def test_the_emulated_fma_and_the_gpu_s_division_are_right_for_every_logit(tmp_path):
    source, program = Path(__file__).parent / "every_logit.cpp", tmp_path / "every_logit"
    flags = "-std=c++20 -O3 -march=x86-64-v3 -ffp-contract=off -fno-math-errno -fno-trapping-math"
    subprocess.run(["g++", *flags.split(), str(source), "-o", str(program)], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.stdout == "0 of 1118830592 logits wrong\n0 of 1887436809 quotients wrong\n"


@pytest.mark.parametrize("implementation", ["op", "reference"])
def test_a_certain_pixel_s_derivative_keeps_its_digits(implementation, device):
    """For a logit of 20 and a white pixel it is -2e-9, of which sigmoid(l) - x, as written, would leave nothing."""
    for dtype, bound in ((torch.float32, 2.0**-21), (torch.float64, 1e-15)):
        sizes = torch.linspace(0, 80, 784, dtype=dtype, device=device)
        logits = torch.stack((sizes, -sizes))
        x = (logits > 0).to(dtype)
        derivative = ENERGIES[implementation][0](logits, x, ops.BERNOULLI, None)[1]
        exact = torch.sigmoid(-logits.double().abs()) * (1 - 2 * x.double())
        torch.testing.assert_close(derivative.double(), exact, rtol=bound, atol=0)


def test_threads_do_not_change_a_bit():
    arguments, threads = arguments_of(ops.LOGISTIC, 0.03, torch.float32), torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(torch.ops.lae_fast.energy(*arguments))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize(("kind", "scale"), CASES)
def test_gradcheck(kind, scale):
    output, x, log_scale = problem(kind, None if scale is None else max(scale, 0.03), torch.float64)
    output, x = output[:6, ::37].contiguous(), x[:3, ::37].contiguous()
    if kind == ops.BERNOULLI:
        output = output.clamp(-5, 5)
    inputs = (
        output.view(2, 3, -1).requires_grad_(),
        *([log_scale.requires_grad_()] if log_scale is not None else []),
    )
    assert torch.autograd.gradcheck(lambda o, *s: ops.energy(o, x, kind, *s)[0], inputs)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, of its fake tensors
@pytest.mark.parametrize(("kind", "scale"), [(ops.BERNOULLI, None), (ops.LOGISTIC, 0.1)])
def test_opcheck(kind, scale, device):
    output, x, log_scale = problem(kind, scale, torch.float32, device)
    for requires_grad in (False, True):
        output.requires_grad_(requires_grad)
        torch.library.opcheck(torch.ops.lae_fast.energy.default, (output, x, kind, log_scale))
    torch.library.opcheck(torch.ops.lae_fast.energy_.default, (output.detach(), x, kind, log_scale))
    energy = torch.zeros(len(output), dtype=torch.float64, device=device)
    torch.library.opcheck(
        torch.ops.lae_fast.add_prior_.default, (energy, output.detach(), torch.ones_like(output))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "nz"), [(0, 2), (1, 1), (13, 8), (5, 130), (3000, 2)])
def test_the_prior_is_a_normal_distribution(n, nz, dtype, device):
    g = torch.Generator().manual_seed(n + nz)
    z, z_grad = torch.randn(2, n, nz, generator=g, dtype=torch.float64).to(device, dtype)
    start = 100 * torch.randn(n, generator=g, dtype=torch.float64).to(device)
    energy, sums = start.clone(), z_grad.clone()
    energies.add_prior_unchecked_(energy, sums, z)
    expected = start - torch.distributions.Normal(0.0, 1.0).log_prob(z.double()).sum(1)
    rounding = 2.0**-23 if dtype == torch.float32 else 2.0**-50
    torch.testing.assert_close(energy, expected, rtol=1e-14, atol=rounding * nz * 4)
    assert torch.equal(sums, z_grad + z)


def test_a_second_derivative_is_refused():
    logits, scale = OUTPUT.clone().requires_grad_(), torch.tensor(-1.0, requires_grad=True)
    (first,) = torch.autograd.grad(Bernoulli().energy(logits, X).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative through lae_fast\.ops\.energy"):
        first.square().sum().backward()
    total = ops.energy(logits, X, ops.GAUSSIAN, scale)[0].sum()
    (first,) = torch.autograd.grad(total, scale, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        (first + scale).backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")  # torch's own, of its forward mode
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(), DiscretizedLogistic()])
def test_torch_func_and_forward_mode_see_no_constant(likelihood):
    """There is no such rule for the op: plain PyTorch serves, with all derivatives."""
    likelihood = likelihood.double()
    output, x = OUTPUT.double()[:2, :6], X.double()[:2, :6]
    leaf = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(likelihood.energy(leaf, x).sum(), leaf)

    def total(output):
        return likelihood.energy(output, x).sum()

    direction = torch.randn(2, 6, generator=G, dtype=torch.float64)
    value, slope = torch.func.jvp(total, (output,), (direction,))
    torch.testing.assert_close(value, total(output))
    torch.testing.assert_close(slope, (gradient * direction).sum())
    torch.testing.assert_close(torch.func.grad(total)(output), gradient)
    assert torch.func.hessian(total)(output).abs().sum() > 0
    with torch.autograd.forward_ad.dual_level():
        dual = total(torch.autograd.forward_ad.make_dual(output, direction))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope)


def test_wrong_arguments_are_named():
    scale = torch.tensor(0.0)
    for error, arguments in {
        r"output is int64 \[5, 40\]": (OUTPUT.long(), X, 0),
        r"x is float32 \[5, 39\].*expected float32 \[5, 40\]": (OUTPUT, X[:, :39], 0),
        "x is float64": (OUTPUT, X.double(), 0),
        "kind is 3": (OUTPUT, X, 3),
        "log_scale belongs": (OUTPUT, X, ops.GAUSSIAN),
        r"log_scale is float32 \[1\]": (OUTPUT, X, ops.GAUSSIAN, scale[None]),
        "x requires a gradient": (OUTPUT, X.clone().requires_grad_(), 0),
    }.items():
        with pytest.raises(ValueError, match=f"energy: {error}"):
            ops.energy(*arguments)
    with pytest.raises(ValueError, match="multiple"):
        ops.energy_(OUTPUT[:4].clone(), X, 0, None)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(), DiscretizedLogistic()])
def test_leading_dimensions_and_half_precision(likelihood):
    many = torch.stack((OUTPUT, OUTPUT + 1))
    both = likelihood.energy(many, X)
    assert torch.equal(both, torch.stack([likelihood.energy(o, X) for o in many]))
    rounded = OUTPUT.bfloat16()
    assert torch.equal(likelihood.energy(rounded, X), likelihood.energy(rounded.float(), X))
    assert likelihood.energy(OUTPUT[:0], X[:0]).shape == (0,)


def test_non_finite_outputs_give_non_finite_energies():
    for likelihood in (Bernoulli(), Gaussian(), DiscretizedLogistic()):
        for value in (math.nan, math.inf, -math.inf):
            output = OUTPUT.clone()
            output[2, 3] = value
            energy = likelihood.energy(output, X)
            assert not energy[2].isfinite()
            assert energy[[0, 1, 3, 4]].isfinite().all()


def test_bernoulli_is_the_distribution_s():
    binary = (X > 0.5).double()
    torch.testing.assert_close(
        Bernoulli().energy(OUTPUT.double(), binary),
        -TorchBernoulli(logits=OUTPUT.double()).log_prob(binary).sum(1),
    )


class Doubled:
    def pixel_energies(self, output, x):
        return 2 * super().pixel_energies(output, x)


@pytest.mark.parametrize("likelihood", [Bernoulli, Gaussian, DiscretizedLogistic])
@pytest.mark.parametrize(
    "decoder",
    [
        lae_fast.MLP(nn.Linear(2, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 9)),
        nn.Sequential(nn.Linear(2, 9)),
    ],
    ids=["MLP", "layers"],
)
def test_a_subclass_with_energies_of_its_own_is_taken_at_its_word(likelihood, decoder):
    """By `energy` itself, by all pairs, and by the chain's passes, whose gradients are known for the kernels."""

    class Own(likelihood):
        def pixel_energies(self, output, x):
            return 2 * super().pixel_energies(output, x)

    class Mixed(Doubled, likelihood):
        pass

    class Named(Own):
        kind = likelihood.kind

    x, z = (torch.rand(5, 9) * 255).round() / 255, torch.randn(5, 2)
    plain = likelihood().energy(decoder(z), x)
    for own in (Own(), Mixed()):
        torch.testing.assert_close(own.energy(decoder(z), x), 2 * plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own.all_pairs(decoder(z), x).diagonal(), 2 * plain, rtol=1e-5, atol=1e-5)
        model = lae_fast.LAE(nn.Linear(9, 3), decoder, own, nx=9, nz=2)
        potential, z_grad = decoder_pass(model, x, by_row=True).evaluate(z.clone())
        at = z.clone().requires_grad_()
        expected = model.potential(x, at)
        torch.testing.assert_close(potential, expected.detach())
        torch.testing.assert_close(z_grad, torch.autograd.grad(expected.sum(), at)[0])
    assert Named().kind == likelihood.kind


@pytest.mark.parametrize("scale", [None, 0.5])
def test_gaussian(scale):
    likelihood = Gaussian(scale).double()
    expected = -Normal(OUTPUT.double(), likelihood.log_scale.exp()).log_prob(X.double()).sum(1)
    torch.testing.assert_close(likelihood.energy(OUTPUT.double(), X.double()), expected)
    assert likelihood.log_scale.requires_grad == (scale is None)


@pytest.mark.parametrize("scale", [1e-3, 0.03, 1.0])
def test_discretized_logistic_is_a_probability(scale):
    likelihood = DiscretizedLogistic(scale).double()
    levels = (torch.arange(256, dtype=torch.float64) / 255)[:, None]  # 256 "images" of one pixel
    for mean in (-0.2, 0.0, 0.3, 0.501, 1.0, 1.4):
        energy = likelihood.energy(torch.full((256, 1), mean, dtype=torch.float64), levels)
        assert energy.isfinite().all()
        assert math.isclose((-energy).exp().sum().item(), 1, rel_tol=1e-9)


def test_a_tiny_scale_stays_finite():
    likelihood = DiscretizedLogistic(1e-9)
    assert likelihood.energy(OUTPUT, X).isfinite().all()


def test_mean_images():
    for likelihood in (Bernoulli(), DiscretizedLogistic()):
        mean = likelihood.mean(3 * OUTPUT)
        assert mean.min() >= 0
        assert mean.max() <= 1
    assert torch.equal(Gaussian().mean(OUTPUT), OUTPUT)
