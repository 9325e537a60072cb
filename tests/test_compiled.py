"""Compiled potentials and gradients of one's own: the same draws, faster; and what cannot be compiled runs as it is."""

import ctypes
import io
import math
import sys

import numpy as np
import pytest
import torch
from budget import z_limit
from problems import ZScores, expected_moments, second_moments

import lae_fast
from lae_fast import ops, sampling
from lae_fast.experiments.toys import PROBLEMS, conjugate_posterior, random_features
from lae_fast.ops.walk import walk_reference
from lae_fast.sampling import compiled as compilation
from lae_fast.sampling.chains import Chains
from lae_fast.sampling.compiled import compiled
from lae_fast.sampling.plan import LONG, Plan

both_samplers = pytest.mark.parametrize("sampler", ["ald", "langevin"])
needs_kernels = pytest.mark.skipif(not ops.is_compiled("cpu"), reason="walks take the CPU's kernels")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normals(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def energy_of(x):
    """Of a normal around x [n, nz], with a term that is no polynomial: [C, n, nz] -> [C, n]."""

    def energy(z):
        return 0.5 * (x - z).square().sum(-1) + z.sin().sum(-1)

    return energy


def gradient_of(x):
    def value_and_grad(z):
        return energy_of(x)(z), z - x + z.cos()

    return value_and_grad


def draw(sampler, dtype=torch.float32, seed=1, energy=None, **options):
    """A short run of 8 chains of 3 datapoints in 2 dimensions."""
    energy = energy_of(normals(seed, 3, 2, dtype=dtype)) if energy is None else energy
    options = dict(n_draws=20, n_warmup=60, thin=3, progress=False, generator=seeded(2)) | options
    if (
        options.get("mh") is False or dtype == torch.float32
    ):  # adaptation overshoots at first, and roundings grow
        options = dict(step_size=0.1) | options
    if sampler == "ald":
        features = normals(3, 3, 5, dtype=dtype)
        return lae_fast.ald_sample(energy, features, nz=2, n_chains=8, **options)
    return lae_fast.langevin_sample(energy, normals(4, 8, 3, 2, dtype=dtype), **options)


def assert_same(found, expected):
    tolerance = (
        dict(rtol=1e-4, atol=1e-4) if expected.z.dtype == torch.float32 else dict(rtol=1e-9, atol=1e-9)
    )
    for name in ("z", "potential", "acceptance_rate", "step_size"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **tolerance)
    assert (found.kind, found.n_nonfinite) == (expected.kind, expected.n_nonfinite)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["langevin", "ald"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_draws_are_the_same(sampler, dtype, monkeypatch):
    walks = []
    walk = Chains.walk
    monkeypatch.setattr(Chains, "walk", lambda *args: walks.append(args) or walk(*args))
    for mh in (True, False):
        options = dict(dtype=dtype, mh=mh)
        expected = draw(sampler, compile=False, **options)
        assert not walks
        assert_same(draw(sampler, compile=True, **options), expected)
        assert len(walks) == (4 if ops.is_compiled("cpu") else 0)  # 60 + 60 steps, 50 at once
        walks.clear()
    for name in (
        "compiled_library",
        "compiled_call",
    ):  # other data, a draw longer than a walk: nothing is compiled again
        monkeypatch.setattr(compilation, name, None)
    options = dict(dtype=dtype, seed=5, n_draws=1, thin=90, share_step_size=True)
    assert_same(draw(sampler, compile=True, **options), draw(sampler, compile=False, **options))
    if dtype == torch.float32:
        monkeypatch.undo()
        options = dict(chains=range(6, 8))  # whose noise a walk does not know
        assert_same(draw(sampler, compile=True, **options), draw(sampler, compile=False, **options))


def test_only_long_runs_are_compiled_unasked(monkeypatch):
    assert not Plan(n_draws=100).compiles
    assert Plan(n_draws=LONG, n_warmup=0, step_size=0.1).compiles
    assert not Plan(n_draws=LONG, compile=False).compiles
    assert Plan(n_draws=1, compile=True).compiles


def branches(z):
    return z.square().sum(-1) * (2.0 if z.sum().item() > math.inf else 0.5)


def noisy(z):
    return 0.5 * z.square().sum(-1) + 0 * torch.rand(z.shape[:-1])


def test_what_does_not_compile_runs_as_it_is_and_says_so_once(monkeypatch):
    calls = []

    def drifting(z):
        calls.append(z)
        return 0.5 * z.square().sum(-1) * (1 + 1e-2 * len(calls))

    for energy, reason in (
        (branches, "asks for values"),
        (noisy, "random numbers"),
        (drifting, "not a function"),
    ):
        options = dict(energy=energy, mh=False)
        with pytest.warns(UserWarning, match=f"the energy runs uncompiled: .*({reason})") as caught:
            found = draw("langevin", compile=True, **options)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        if energy is not drifting:
            assert torch.equal(found.z, draw("langevin", **options).z)
    monkeypatch.setattr("lae_fast.sampling.plan.LONG", 100)
    draw("langevin", energy=branches)  # nobody asked: no warning


def numpy_value_and_grad(z):
    values = z.numpy()
    return torch.from_numpy(0.5 * (values * values).sum(-1)), torch.from_numpy(values.copy())


def pointer_value_and_grad(z):
    values = (ctypes.c_float * z.numel()).from_address(z.data_ptr())  # which nobody sees
    values = torch.tensor(values[:]).view(z.shape)
    return 0.5 * values.square().sum(-1), values.clone()


class NumpyEnergy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        value, ctx.grad = numpy_value_and_grad(z.detach())
        return value

    @staticmethod
    def backward(ctx, weight):
        return weight[..., None] * ctx.grad


def branches_in_python(z):
    return z.square().sum(-1) * (2.0 if z.tolist()[0][0][0] > 10 else 0.5)


@pytest.mark.parametrize(
    "options",
    [
        dict(energy=lambda z: 0.5 * z.square().sum(-1), value_and_grad=numpy_value_and_grad),
        dict(energy=lambda z: 0.5 * z.square().sum(-1), value_and_grad=pointer_value_and_grad),
        dict(energy=NumpyEnergy.apply),
        dict(energy=branches_in_python),
        dict(energy=lambda z: z.square().sum(-1) * (2.0 if z.detach().numpy().mean() > 10 else 0.5)),
        dict(energy=lambda z: z.square().sum(-1) * (2.0 if np.from_dlpack(z.detach()).mean() > 10 else 0.5)),
    ],
    ids=["value_and_grad", "pointer", "function", "tolist", "numpy", "dlpack"],
)
def test_values_that_leave_pytorch_are_no_constants_of_compiled_code(options, monkeypatch):
    monkeypatch.setattr(compilation, "_code", lambda graph, inputs: (graph, None))
    with pytest.warns(UserWarning, match="the energy runs uncompiled"):
        found = draw("langevin", compile=True, **options)
    assert torch.equal(found.z, draw("langevin", **options).z)
    monkeypatch.setattr("lae_fast.sampling.plan.LONG", 100)
    assert torch.equal(found.z, draw("langevin", **options).z)  # nobody asked: no warning, the same draws


def test_tracing_leaves_no_trace_in_what_an_energy_keeps(monkeypatch):
    monkeypatch.setattr(compilation, "_code", lambda graph, inputs: (graph, None))
    kept, mean = [], torch.zeros(())

    def energy(z):
        nonlocal mean
        u = 0.5 * z.square().sum(-1)
        kept.append(u.detach().mean())
        mean = 0.9 * mean + 0.1 * u.detach().mean()
        return u

    draw("langevin", energy=energy, compile=True)
    assert {type(t) for t in (mean, *kept)} == {torch.Tensor}
    assert np.isfinite(torch.stack([mean, *kept]).numpy()).all()


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Gaussian", "DiscretizedLogistic"])
def test_a_model_s_potential_is_traced(likelihood, monkeypatch):
    """Its check of images asks for values while it is traced."""
    codes = []
    monkeypatch.setattr(compilation, "_code", lambda graph, inputs: (codes.append(graph) or graph, None))
    encoder, decoder = torch.nn.Linear(6, 5), torch.nn.Sequential(torch.nn.Linear(2, 6))
    model = lae_fast.LAE(
        encoder=encoder, decoder=decoder, likelihood=getattr(lae_fast, likelihood)(), nx=6, nz=2, d=5
    ).eval()
    x = normals(7, 3, 6).sigmoid()
    draw("langevin", energy=lambda z: model.potential(x, z), compile=True)
    assert codes


def test_a_large_model_s_potential_holds_no_op_that_the_compiler_refuses(monkeypatch):
    """Eager, its products are large enough to be oneDNN's."""
    graphs = []
    monkeypatch.setattr(compilation, "_code", lambda graph, inputs: (graphs.append(graph) or graph, None))
    model = lae_fast.models.build(lae_fast.models.Architecture(shape=(1, 8, 8), nz=2, nh=256)).eval()
    x = normals(7, 3, 1, 8, 8).sigmoid()
    draw("langevin", energy=lambda z: model.potential(x, z), compile=True)
    names = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert any("addmm" in name for name in names), names
    assert not any("mkldnn" in name for name in names), names


def test_energies_that_the_graph_does_not_see_are_refused_wherever_they_are_compared():
    rows = normals(4, 24, 2)
    with pytest.raises(ValueError, match="its energies are constants to PyTorch"):
        compiled(pointer_value_and_grad, rows, rows)


def test_compiled_code_is_compared_at_a_second_place(monkeypatch):
    """Code that is right where the chains start, and only there."""

    def constant(graph, inputs):
        found = graph(*inputs)
        return lambda *given: found

    monkeypatch.setattr(compilation, "_code", lambda graph, inputs: (constant(graph, inputs), None))
    monkeypatch.setattr(compilation, "_kept", {})
    with pytest.warns(UserWarning, match="compiled, it gives other energies or gradients"):
        draw("langevin", energy=lambda z: z.square().sum(-1) + 2, compile=True)


def test_an_energy_that_is_infinite_at_the_second_place_compiles(monkeypatch):
    codes = []
    monkeypatch.setattr(compilation, "_code", lambda graph, inputs: (codes.append(graph) or graph, None))
    monkeypatch.setattr(compilation, "_kept", {})
    start = normals(4, 8, 3, 2).clamp(-1, 1)

    def bounded(z):  # inf beyond the bound
        return torch.where(z.abs().amax(-1) <= 1, 0.5 * z.square().sum(-1), torch.inf)

    options = dict(step_size=0.5, n_draws=20, n_warmup=0, progress=False)
    lae_fast.langevin_sample(bounded, start, compile=True, generator=seeded(2), **options)
    assert codes


def test_a_compiler_that_computes_something_else_is_not_believed(monkeypatch):
    def wrong(graph, inputs):
        return lambda *given: tuple(1.01 * t for t in graph(*given))

    monkeypatch.setattr(compilation, "_code", lambda graph, inputs: (wrong(graph, inputs), None))
    monkeypatch.setattr(compilation, "_kept", {})
    with pytest.warns(UserWarning, match="compiled, it gives other energies or gradients"):
        draw("langevin", energy=lambda z: z.square().sum(-1) + 1, compile=True)


@needs_kernels
@pytest.mark.slow
def test_walk_follows_its_reference():
    x = normals(1, 3, 2)

    def evaluate(rows):
        return sampling.evaluate_potential(lambda r: energy_of(x)(r.view(8, 3, 2)).reshape(24), rows, 24)

    start, eta = normals(4, 24, 2), torch.full((24,), -1.0, dtype=torch.float64)
    with torch.no_grad():
        found = compiled(evaluate, start, start + 1)
    for mh in (True, False):
        runs = []
        for walk in (torch.ops.lae_fast.walk, walk_reference):
            chains = Chains(
                evaluate,
                start,
                eta,
                ops.make_rng("cpu", seeded(6)),
                mh=mh,
                adaptation=sampling.dual_averaging(eta, 0.574) if mh else None,
            )
            names = "phi potential grad proposal rng log_step_size counters is_accepted log_alpha adaptation"
            state = [getattr(chains, name) for name in names.split()]
            acceptance, kept = torch.ones(24, dtype=torch.float64), start.new_empty(3, 24, 2)
            energies, rates = (torch.empty(3, 24, dtype=torch.float64) for _ in range(2))
            walk(found.library, found.constants, *state, acceptance, kept, energies, rates, 8, 3, 2, mh)
            runs.append([*state, acceptance, kept, energies, rates])
        assert not torch.equal(kept[0], kept[1])
        torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_a_walk_refuses_what_it_cannot_take():
    one = torch.zeros(2, dtype=torch.float64)
    phi, rng, flags = torch.zeros(2, 3), ops.make_rng("cpu"), torch.zeros(2, dtype=torch.bool)
    state = (phi, one, phi, phi, rng, one[:1], torch.zeros(2, 2, dtype=torch.int64), flags, one, None, one)
    out = (phi.new_empty(1, 2, 3), one[None], one[None])
    with pytest.raises(RuntimeError, match=r"walk: .*absent\.so does not load"):
        torch.ops.lae_fast.walk("absent.so", [], *state, *out, 1, 1, 0, True)


@needs_kernels
@pytest.mark.slow  # it compiles
def test_an_interrupted_walk_keeps_what_was_drawn(monkeypatch):
    walk, calls = Chains.walk, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return walk(*args)

    monkeypatch.setattr(Chains, "walk", interrupted)
    with pytest.raises(lae_fast.SamplingInterrupted) as stopped:
        draw("langevin", compile=True, n_draws=100, thin=1)
    assert_same(stopped.value.samples, draw("langevin", n_draws=50, thin=1))


@pytest.mark.slow  # it compiles
def test_the_bar_tells_how_long_compiling_took(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    draw("langevin", compile=True, progress=True)
    assert "compiling the energy" in terminal.getvalue()
    assert "120/120" in terminal.getvalue()
    assert ", compiled in " in terminal.getvalue()


# Gradients of one's own.


@both_samplers
def test_a_gradient_of_one_s_own_draws_the_same(sampler):
    x = normals(1, 3, 2, dtype=torch.float64)
    options = dict(dtype=torch.float64, energy=energy_of(x))
    assert_same(draw(sampler, value_and_grad=gradient_of(x), **options), draw(sampler, **options))


def test_a_gradient_of_one_s_own_takes_minibatches():
    x = normals(1, 3, 2, dtype=torch.float64)
    options = dict(
        dtype=torch.float64, mh=False, batch_size=2, energy=lambda z, index: energy_of(x[index])(z)
    )
    own = draw("ald", value_and_grad=lambda z, index: gradient_of(x[index])(z), **options)
    assert_same(own, draw("ald", **options))
    with pytest.raises(ValueError, match="compile is True beside a batch_size"):
        draw("ald", compile=True, **options)


@both_samplers
def test_a_wrong_gradient_of_one_s_own_is_named(sampler):
    x = normals(1, 3, 2)
    energy = energy_of(x)
    with pytest.raises(ValueError, match="value_and_grad differs from energy and its gradient"):
        draw(sampler, energy=energy, value_and_grad=lambda z: (energy(z), 1.01 * (z - x + z.cos())))
    with pytest.raises(ValueError, match=r"value_and_grad returned .*expected floating point"):
        draw(sampler, energy=energy, value_and_grad=lambda z: (energy(z).sum(), z))
    with pytest.raises(ValueError, match=r"the gradient of value_and_grad is .*expected float32"):
        draw(sampler, energy=energy, value_and_grad=lambda z: (energy(z), z[0]))
    with pytest.raises(TypeError, match=r"value_and_grad returned .*expected U"):
        draw(sampler, energy=energy, value_and_grad=energy)
    with pytest.raises(TypeError, match="value_and_grad is 3"):
        draw(sampler, value_and_grad=3)


def test_a_value_that_is_right_to_the_rounding_of_large_sums_is_taken():
    """784 pixels of a normal distribution: the squares are nearly the constant, and V is a small difference of large sums."""
    torch.manual_seed(0)
    start, weight, s = torch.randn(64, 2), torch.randn(2, 784) / 3, 0.1
    x = start @ weight + 2.15 * s * torch.randn(64, 784)

    def energy(z):
        return (0.5 * ((x - z @ weight) / s).square() + math.log(s)).sum(-1)

    def value_and_grad(z):
        r = x - z @ weight
        return r.square().sum(-1) * (0.5 / s**2) + 784 * math.log(s), -(r @ weight.T) / s**2

    options = dict(n_draws=1, n_warmup=0, step_size=1e-5, progress=False)
    lae_fast.langevin_sample(energy, start[None], value_and_grad=value_and_grad, **options)


@both_samplers
def test_a_forgotten_part_of_the_value_is_seen_beside_a_large_constant(sampler):
    """The prior's value is forgotten, its gradient not: decisions would make the draws narrower."""
    x = normals(1, 3, 2)

    def likelihood(z):
        return 10_000 + energy_of(x)(z)

    def value_and_grad(z):
        return likelihood(z), gradient_of(x)(z)[1] + z

    with pytest.raises(ValueError, match="value_and_grad differs from energy and its gradient"):
        draw(
            sampler,
            energy=lambda z: likelihood(z) + 0.5 * z.square().sum(-1),
            value_and_grad=value_and_grad,
        )


# What takes longer.


@pytest.mark.slow
def test_a_gradient_of_one_s_own_compiles():
    x = normals(1, 3, 2, dtype=torch.float64)
    options = dict(dtype=torch.float64, energy=energy_of(x), value_and_grad=gradient_of(x))
    assert_same(draw("langevin", compile=True, **options), draw("langevin", **options))


@pytest.mark.slow
def test_a_model_s_potential_with_kernels_of_its_own_compiles_as_a_function():
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(6, 5), torch.nn.Sequential(torch.nn.Linear(2, 6))
    model = lae_fast.LAE(
        encoder=encoder, decoder=decoder, likelihood=lae_fast.Bernoulli(), nx=6, nz=2, d=5
    ).eval()
    x = normals(7, 3, 6).sigmoid()

    def energy(z):
        return model.potential(x, z)

    assert_same(draw("langevin", energy=energy, compile=True), draw("langevin", energy=energy))


@pytest.mark.slow
@both_samplers
def test_compiled_chains_draw_from_the_posterior(sampler):
    target = PROBLEMS["Gaussian"]
    mean, covariance = conjugate_posterior(target)
    options = dict(n_draws=10, n_warmup=300, thin=20, progress=False, compile=True, generator=seeded(8))
    if sampler == "ald":
        samples = lae_fast.ald_sample(
            target.energy, random_features(target.x, 16), nz=2, n_chains=2000, **options
        )
    else:
        samples = lae_fast.langevin_sample(
            target.energy, normals(9, 2000, 3, 2, dtype=torch.float64), **options
        )
    rows = second_moments(samples.z, mean).mean(1)
    z = ZScores.of(rows, expected_moments(mean, covariance.expand(3, 2, 2))).values
    assert (z.abs() < z_limit("compiled_posteriors")).all(), z
