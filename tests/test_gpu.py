"""What only a GPU can show, beside the tests that run on every device: streams, graphs, several devices, large arrays.

Everything that sums nothing is the same on all devices to the last bit; what sums agrees to rounding. Float64 makes a
whole training step, evaluation or attack agree to many digits: no decision can fall differently.
"""

import contextlib
import copy
import ctypes
import gc
import json
import subprocess
import sys
from functools import partial

import pytest
import test_likelihood
import test_ops
import torch
from test_attacks import linear
from test_dense import images, model
from test_lae import make
from test_layer import gradient_problem
from test_noise import normals_of, philox_by_hand
from test_ops import DTYPES, problem, run
from test_step import CASES, build, capturable

from lae_fast import (
    LAE,
    VAE,
    Bernoulli,
    Hoffman,
    ald_init,
    ald_sample,
    ald_step,
    annealed_log_likelihood,
    attacks,
    data,
    evaluate,
    fit_posterior_scale,
    fit_schedule,
    importance_bound,
    langevin_sample,
    models,
    ops,
)
from lae_fast.evaluation.ais import _Annealing, _Draws
from lae_fast.graphs import WARMUP, Replayed, no_garbage
from lae_fast.models import layers_in_parts, nets, whole_layers
from lae_fast.models.decoder_pass import decoder_pass
from lae_fast.ops import layer, library
from lae_fast.ops.energies import add_prior_unchecked_
from lae_fast.sampling import Chains, dual_averaging, robbins_monro
from lae_fast.training.config import Config
from lae_fast.training.optimizer import Adam
from lae_fast.training.step import TrainingStep, adam

DEVICE = "cuda"
pytestmark = pytest.mark.gpu
compiled = pytest.mark.skipif(
    not all(library.backends[device].is_compiled for device in ("cpu", "cuda")),
    reason="a promise of the compiled kernels",
)
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


@contextlib.contextmanager
def no_waiting():
    """An error for whatever makes the host wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(function, keep_graph=False):
    """A graph of what `function` launches, after one call of it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph(keep_graph)
    with no_garbage(), torch.cuda.graph(graph):
        function()
    return graph


def n_launches(graph):
    """How many nodes a graph has that was kept."""
    handle, n = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    assert ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(handle, None, ctypes.byref(n)) == 0
    return n.value


def test_waiting_is_noticed():
    t = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting():
        t.sum().item()
    assert t.sum().item() == 3


# ---- ops: shapes that the tests for every device leave out -------------------------------------


@pytest.mark.parametrize("mh", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n_chains", "n"),
    [
        (1, 2**20),
        (1, 8193),
        (7, 16384),
        (100, 9001),
        (300, 8196),
        (5000, 8),
        (1000, 64),
        (500, 512),
        (500, 516),
        (1, 2048),
        (3, 1001),
        (100, 600),
        (100, 2052),
    ],
)
def test_every_way_to_share_a_chain_follows_the_float64_reference(n_chains, n, dtype, mh):
    """Lanes of a warp, a block or the whole grid, with wide loads and without."""
    test_ops.test_transition_follows_the_float64_reference(n_chains, n, dtype, mh, DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "scale"), test_likelihood.CASES)
def test_energies_of_aligned_rows_are_within_their_bounds(kind, scale, dtype):
    output, x, kind, log_scale = test_likelihood.arguments_of(kind, scale, dtype, DEVICE)
    test_likelihood.assert_within_bounds(
        output[:, :332].contiguous(), x[:, :332].contiguous(), kind, log_scale
    )


def test_energies_of_more_rows_than_blocks():
    output = torch.randn(2**20 + 5, 12, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x = torch.rand(1, 12, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    test_likelihood.assert_within_bounds(output, x, ops.BERNOULLI, None)


def shifted(tensors):
    """The same values, contiguous, where no load of 16 bytes may begin."""
    result = {}
    for name, t in tensors.items():
        result[name] = t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)
        assert t.element_size() == 1 or result[name].data_ptr() % 16
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_chains", "n"), [(3, 20000), (5, 2048), (300, 64), (40, 8)])
def test_rows_may_begin_anywhere(n_chains, n, dtype):
    state, inputs = problem(n_chains, n, dtype, DEVICE)
    expected, got = run(state, inputs), shifted(state)
    ops.transition(*got.values(), **shifted(inputs))
    assert all(torch.equal(got[k], expected[k]) for k in expected)
    eta = state["log_step_size"].exp()
    halves = dict(phi=state["phi"], grad=state["grad"], step_size=eta, rng=state["rng"])
    proposals = [ops.propose(**t)[0] for t in (halves, shifted(halves))]
    assert torch.equal(*proposals)


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_may_begin_anywhere(dtype):
    output, x, kind, _ = test_likelihood.arguments_of(ops.BERNOULLI, None, dtype, DEVICE)
    aligned = dict(output=output[:64, :332].contiguous(), x=x[:, :332].contiguous())
    energy, derivative, _ = ops.energy(**aligned, kind=kind)
    other, same, _ = ops.energy(**shifted(aligned), kind=kind)
    assert torch.equal(derivative, same)
    torch.testing.assert_close(energy, other, rtol=1e-14, atol=0)  # summed in another order


@pytest.mark.parametrize("accepted", [True, False])
def test_keep_takes_more_tensors_than_a_launch(accepted):
    sizes = [1 + i * 37 % 4001 for i in range(101)]
    latest = {i: torch.full((n,), float("nan"), device=DEVICE) for i, n in enumerate(sizes)}
    previous = {i: torch.arange(n, device=DEVICE, dtype=torch.float32) for i, n in enumerate(sizes)}
    latest |= shifted({i: latest[i] for i in range(0, 101, 3)})
    previous |= shifted({i: previous[i] for i in range(0, 101, 5)})
    expected = [t.clone() for t in (latest if accepted else previous).values()]
    ops.keep(list(latest.values()), list(previous.values()), torch.tensor([accepted], device=DEVICE))
    for got, wanted in zip(latest.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@compiled
@pytest.mark.parametrize("kind", [ops.INTEGERS, ops.UNIFORMS, ops.NORMALS, ops.ACCEPT])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_chains", "n"), [(3, 1003), (1, 2**23 + 5), (20000, 9)])
def test_noise_is_the_cpu_s_to_the_last_bit(n_chains, n, dtype, kind):
    rng = torch.tensor([-5, 2**32 + 7, 0])
    expected, got = (ops.noise(r, n_chains, n, dtype, kind) for r in (rng, rng.to(DEVICE)))
    assert torch.equal(got.cpu(), expected)


# ---- launches, streams, graphs -----------------------------------------------------------------


@compiled
def test_launches():
    """One each, as the ops promise; two where a shared step size waits for all decisions."""
    counts = {}

    def count(name, function):
        counts[name] = n_launches(capture(function, keep_graph=True))

    for name, shape, n_step_sizes in (
        ("rows", (9, 300), 9),
        ("few", (1, 2048), 1),
        ("grid", (1, 2**20), 1),
        ("shared", (9, 300), 1),
    ):
        state, inputs = problem(*shape, torch.float32, DEVICE, n_step_sizes=n_step_sizes)
        totals = dict(
            acceptance=state["log_alpha"].clone(), known_finite=torch.zeros_like(state["is_accepted"])
        )
        count(name, lambda s=state, i=inputs | totals: ops.transition(*s.values(), **i))
    phi, grad, rng = state["phi"], state["grad"], state["rng"]
    eta = state["log_step_size"].exp()
    potentials = state["potential"], inputs["proposal_potential"]
    count("propose", lambda: ops.propose(phi, grad, eta, rng))
    count("decide", lambda: ops.decide(phi, phi, *potentials, grad, grad, eta, rng))
    count("noise", lambda: ops.noise(rng, 5, 1000, torch.float32))
    count("energy", lambda: ops.energy(phi, phi, ops.BERNOULLI))
    count("add_prior_", lambda: add_prior_unchecked_(state["potential"], grad, phi))
    count("keep", lambda: ops.keep([phi] * 40, [grad] * 40, state["is_accepted"][:1]))
    weight = torch.ones(phi.shape[1], device=DEVICE)
    normalized = torch.empty_like(phi)
    count("norm_relu", lambda: ops.norm_relu(normalized, weight, weight, 1e-5))
    rstd = normalized[:, 0].clone()
    count("norm_relu_backward", lambda: ops.norm_relu_backward(grad, phi, normalized, rstd, weight))
    count("norm_relu_sums", lambda: ops.norm_relu_sums(grad, phi, normalized, phi))
    if torch.cuda.get_device_capability() == (9, 0):
        square, moments = torch.randn(300, 300, device=DEVICE), layer.moments_of(phi)
        norm = (phi, moments, weight)
        count("layer_forward", lambda: ops.layer_forward(phi, square, weight, moments, weight, weight, 1e-5))
        count(
            "layer_backward",
            lambda: ops.layer_backward(grad, square, *norm, moments, 1e-5, *norm, weight, 1e-5),
        )
        lists = gradient_problem(9, (300, 64, 8, 12), DEVICE)
        count("layer_gradients", lambda: ops.layer_gradients_unchecked(*lists))
    assert counts.pop("shared") == 2
    assert counts.pop("norm_relu_sums") == 2  # sums of a few rows, and the sums of these
    assert set(counts.values()) == {1}, counts


def standard_normal(rows):
    """The potential of N(0, I), written out: V [C] and its gradient."""
    return 0.5 * rows.double().square().sum(1), rows.clone()


def chains(n_chains, n, n_step_sizes, adaptation, dtype=torch.float32, device=None):
    device = device or DEVICE
    start = torch.randn(n_chains, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_eta = torch.full((n_step_sizes,), 1.4 * n ** (-1 / 3), dtype=torch.float64, device=device).log()
    rows = {
        "fixed": None,
        "Robbins-Monro": robbins_monro(n_step_sizes, 0.05, 0.574, device),
        "dual": dual_averaging(log_eta, 0.574),
    }
    rng = torch.tensor([7, 0, 0], device=device)
    return Chains(standard_normal, start.to(device, dtype), log_eta, rng, adaptation=rows[adaptation])


def remembered(c):
    tensors = (c.phi, c.proposal, c.potential, c.log_alpha, c.log_step_size, c.counters, c.rng, c.acceptance)
    return [t.clone() for t in (*tensors, *([] if c.adaptation is None else [c.adaptation]))]


@pytest.mark.parametrize("adaptation", ["fixed", "Robbins-Monro", "dual"])
@pytest.mark.parametrize(
    ("n_chains", "n", "n_step_sizes"),
    [(16, 7, 16), (300, 40, 300), (5, 2048, 5), (3, 20000, 3), (1, 100_003, 1), (16, 40, 1), (3, 20000, 1)],
)
def test_replays_draw_new_noise_and_are_the_eager_chain(n_chains, n, n_step_sizes, adaptation):
    eager = chains(n_chains, n, n_step_sizes, adaptation)
    captured = chains(n_chains, n, n_step_sizes, adaptation)
    graph = capture(captured.step)
    eager.step()
    proposals = [captured.proposal.clone()]
    for _ in range(25):
        eager.step()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(remembered(eager), remembered(captured), strict=True))
        assert not torch.equal(captured.proposal, proposals[-1])
        proposals.append(captured.proposal.clone())
    assert captured.rng.tolist() == [7, 27, 0]  # the first proposal, the step before the graph, 25 replays
    assert 0 < captured.counters[:, 0].sum() < 26 * n_chains


def test_ops_run_on_the_current_stream():
    """Work that comes late on another stream: an op that ran elsewhere would not wait for it."""
    state, inputs = problem(3, 9000, torch.float32, DEVICE)
    eta, flag = state["log_step_size"].exp(), torch.tensor([False], device=DEVICE)
    tensors = dict(state=state, inputs=inputs, halves=dict(eta=eta, flag=flag))

    def work(state, inputs, halves):
        phi, proposal, grad, rng, eta = (
            state["phi"],
            state["proposal"],
            state["grad"],
            state["rng"],
            halves["eta"],
        )
        return [
            *ops.propose(phi, grad, eta, rng),
            *ops.decide(
                phi,
                proposal,
                state["potential"],
                inputs["proposal_potential"],
                grad,
                inputs["proposal_grad"],
                eta,
                rng,
            ),
            ops.noise(rng, 3, 9000, torch.float32),
            *ops.energy(phi, grad, ops.BERNOULLI),
            *run(state, inputs).values(),
            ops.keep([grad], [proposal], halves["flag"]) or grad,
        ]

    def like(make):
        return {k: {name: make(t) for name, t in part.items()} for k, part in tensors.items()}

    expected = work(**like(torch.clone))
    late = like(torch.zeros_like)
    work(**like(torch.clone))  # whatever is set up at a first call is
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # clock cycles
        for k, part in tensors.items():
            for name, t in part.items():
                late[k][name].copy_(t)
        got = work(**late)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_two_streams_do_not_meet():
    """Two launches that each want the whole grid, again and again, and what one stream computes after the other."""
    pairs = [
        [chains(1, 2**20 + 4 * i, 1, "Robbins-Monro") for i in range(2)],
        [chains(1, 2**20 + 4 * i, 1, "Robbins-Monro") for i in range(2)],
    ]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(30):
        for c, stream in zip(pairs[0], streams, strict=True):
            with torch.cuda.stream(stream):
                c.step()
    torch.cuda.synchronize()
    for c in pairs[1]:
        for _ in range(30):
            c.step()
    for together, alone in zip(*pairs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(remembered(together), remembered(alone), strict=True))


# ---- whole steps -------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_takes_pytorch_s_steps(dtype):
    """Formula and roundings are PyTorch's: only powers of beta, by another compilation of the same function, may differ."""
    shapes = [(784, 256), (256,), (1,), (3, 341)] * 17  # 68: more than a launch takes
    results = []
    for kind in (Adam, partial(torch.optim.Adam, fused=True, capturable=True)):
        g = torch.Generator(DEVICE).manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, generator=g, device=DEVICE, dtype=dtype)) for s in shapes]
        optimizer = kind(params, torch.tensor(1e-3, device=DEVICE), (0.5, 0.999))
        for _ in range(20):
            for p in params:
                p.grad = torch.randn(p.shape, generator=g, device=DEVICE, dtype=dtype)
            optimizer.step()
        results.append([t for p in params for t in (p.detach(), *optimizer.state[p].values())])
    for got, expected in zip(*results, strict=True):
        rounding = 2.0**-23 if dtype == torch.float32 else 2.0**-52
        torch.testing.assert_close(got, expected, rtol=8 * rounding, atol=8 * rounding)


@compiled
def test_adam_is_captured_in_two_launches_and_follows_its_learning_rate():
    p = torch.nn.Parameter(torch.ones(1000, device=DEVICE))
    lr = torch.tensor(1e-3, device=DEVICE)
    optimizer, p.grad = Adam([p], lr), torch.ones_like(p)
    optimizer.step()
    graph = capture(optimizer.step, keep_graph=True)
    assert n_launches(graph) == 2
    graph.instantiate()
    for rate in (1e-3, 0.0, 1e-2):
        lr.fill_(rate)
        before = p.detach().clone()
        graph.replay()
        torch.testing.assert_close(p.detach(), before - rate, rtol=1e-5, atol=1e-7)  # all gradients are alike
    assert optimizer.state[p]["step"] == 5  # PyTorch's own, the one before the capture, three replays


def test_adam_loads_what_a_cpu_has_saved_and_the_other_way_round():
    m = build("vae")
    on_cpu, on_gpu = adam(m, 1e-3), adam(copy.deepcopy(m).to(DEVICE), 1e-3)
    for a, b in ((on_cpu, on_gpu), (on_gpu, on_cpu)):
        for p in a.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        a.step()
        own = {k: v for k, v in b.param_groups[0].items() if k != "params"}
        b.load_state_dict(a.state_dict())
        b.param_groups[0].update(own)  # as a resumed run does
        for p in b.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        b.step()
        assert all(s["step"] == 2 + 2 * (b is on_cpu) for s in b.state.values())


TF32 = [(kind, {"precision": "tf32"}) for kind in ("lae", "vae", "hoffman")]


def warmed_up(m, x, **options):
    step = TrainingStep(m, adam(m, 1e-3), **options)
    for _ in range(WARMUP + 2):
        assert step(x).isfinite()
    return step


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize(("kind", "options"), CASES + TF32)
def test_no_step_waits_and_none_leaves_memory_behind(kind, options, capture):
    m, x = build(kind, **options).to(DEVICE), images().to(DEVICE)
    step = warmed_up(m, x, capture=capture)
    assert step.is_captured == capture
    before = torch.cuda.memory_allocated()
    with no_waiting():
        for _ in range(3):
            loss = step(x)
    assert loss.isfinite()
    del loss
    assert torch.cuda.memory_allocated() <= before + 2**12  # a loss, and what a first wait left


@pytest.mark.parametrize("likelihood", ["gaussian", "logistic"])
@pytest.mark.parametrize("kind", ["lae", "vae", "hoffman"])
def test_convolutions_are_captured_too(kind, likelihood):
    torch.manual_seed(0)
    architecture = models.Architecture(kind, "conv", likelihood, nx=64, nz=4, nh=32, depth=2)
    options = {} if kind == "vae" else {"step_size": 1e-5}
    m = models.build(architecture, **options).to(DEVICE)
    x = (torch.randint(0, 256, (100, 64), generator=torch.Generator().manual_seed(2)) / 255).to(DEVICE)
    step = warmed_up(m, x)
    losses = []
    with no_waiting():
        for _ in range(30):
            losses.append(step(x).clone())
    assert losses[-1] < losses[0]


def same_draws(monkeypatch):
    """From now on torch's random functions draw on the CPU, wherever their result goes."""

    def replace(name):
        function = getattr(torch, name)

        def draw(*arguments, generator=None, device="cpu", **options):
            return function(*arguments, **options).to(device)

        monkeypatch.setattr(torch, name, draw)

    for name in ("randn", "rand", "randint"):
        replace(name)
    monkeypatch.setattr(torch, "randn_like", lambda t: torch.randn(t.shape, dtype=t.dtype, device=t.device))


def on_both_devices(function):
    """The tensors and numbers that `function(device)` returns, on the CPU and on the GPU."""
    results = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(5)
        results.append([t.cpu() if isinstance(t, torch.Tensor) else t for t in function(device)])
    return results


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lae", {}),
        ("lae", {"decoder_window": "before", "feature_window": "before", "whiten": True}),
        ("lae", {"decisions": "datapoint"}),
        ("lae", {"mh": False, "likelihood": "gaussian"}),
        ("lae", {"likelihood": "logistic", "step_size": None}),
        ("vae", {}),
        ("hoffman", {}),
    ],
)
def test_a_gpu_trains_as_a_cpu_does(kind, options, monkeypatch):
    """Five steps in float64: the same losses, decisions and weights."""
    same_draws(monkeypatch)

    def five_steps(device):
        m = build(kind, **options).double().to(device)
        step = TrainingStep(m, torch.optim.Adam(m.parameters(), lr=1e-3, fused=True), capture=False)
        losses = torch.stack([step(images(dtype=torch.float64, seed=i).to(device)) for i in range(5)])
        exact = [] if kind == "vae" else [m.rng, m.counters]
        return *exact, losses, *m.state_dict().values()

    for expected, got in zip(*on_both_devices(five_steps), strict=True):
        tolerance = 1e-8 if got.is_floating_point() else 0.0
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mh": False},
        {"decoder_window": "before", "feature_window": "before", "whiten": True},
        {"decisions": "datapoint"},
    ],
)
def test_replays_are_the_eager_steps_in_float64(options):
    results = []
    for is_captured in (False, True):
        m = build("lae", **options).double().to(DEVICE)
        step = TrainingStep(m, capturable(m), capture=is_captured)
        losses = [step(images(dtype=torch.float64, seed=i).to(DEVICE)).clone() for i in range(WARMUP + 6)]
        results.append((m.rng, m.counters, torch.stack(losses), *m.state_dict().values()))
    for eager, replayed in zip(*results, strict=True):
        tolerance = 1e-8 if eager.is_floating_point() else 0.0
        torch.testing.assert_close(replayed, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("is_captured", [False, True])
def test_steps_in_two_streams_do_not_meet(is_captured):
    """Each has its products beside the chain in a stream of its own: as one after the other."""
    batches = [images(dtype=torch.float64, seed=i).to(DEVICE) for i in range(WARMUP + 30)]

    def new_step(i):
        m = build("lae", decisions="datapoint", memory=10 + i).double().to(DEVICE)
        return m, TrainingStep(m, capturable(m), capture=is_captured)

    alone = [new_step(i) for i in range(2)]
    for _, step in alone:
        for x in batches:
            step(x)
    together, streams = [new_step(i) for i in range(2)], [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for x in batches:
        for (_, step), stream in zip(together, streams, strict=True):
            with torch.cuda.stream(stream):
                step(x)
    torch.cuda.synchronize()
    for (a, _), (b, _) in zip(together, alone, strict=True):
        for got, wanted in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-8 if got.is_floating_point() else 0, atol=1e-8)


@torch.no_grad()  # as within a step
def test_tf32_rounds_gradients_and_no_decision(monkeypatch):
    monkeypatch.setenv(whole_layers.VARIABLE, "parts")  # whole layers have no TF32
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("no TF32 on this GPU")
    before, z = torch.backends.cuda.matmul.fp32_precision, images()[:, :4].to(DEVICE)
    evaluations = []
    for options in ({}, {"precision": "tf32"}, {"precision": "tf32", "mh": False}):
        decoder = decoder_pass(build("lae", **options).to(DEVICE), images().to(DEVICE))
        potential, z_grad = decoder.evaluate(z)
        decoder.start()
        evaluations.append((potential, z_grad.clone(), decoder.weight_gradients()[0]))
        assert torch.backends.cuda.matmul.fp32_precision == before
        assert torch.get_float32_matmul_precision() == "highest"
    exact, same, rounded = evaluations
    assert torch.equal(exact[0], same[0])
    for i in (1, 2):
        assert 1e-6 < (exact[i] - same[i]).norm() / exact[i].norm() < 3e-3
    assert 1e-8 < (exact[0] - rounded[0]).abs() / exact[0] < 1e-3


whole = pytest.mark.skipif(
    not torch.cuda.is_available() or whole_layers.unfit(torch.device(DEVICE)) is not None,
    reason="no whole layers on this GPU",
)


def report_s_model():
    """The report's sizes, images [512, 784], and two states of their codes."""
    torch.manual_seed(0)
    m = LAE(*nets.mlp(784, 8, nh=256), Bernoulli(), nx=784, nz=8, d=256).to(DEVICE)
    x = torch.rand(512, 784).to(DEVICE)
    z = torch.randn(512, 8).to(DEVICE)
    return m, x, (z, z + 0.1 * torch.randn(512, 8).to(DEVICE))


@whole
@torch.no_grad()  # as within a step
def test_whole_layers_decide_as_float64_does(monkeypatch):
    """The difference of two potentials, in nats: the limit of all datapoints' together is that of a joint decision."""
    monkeypatch.setenv(whole_layers.VARIABLE, "whole")
    m, x, states = report_s_model()
    exact = decoder_pass(copy.deepcopy(m).double(), x.double(), by_row=True)
    decoder = decoder_pass(m, x, by_row=True)
    assert decoder.network is whole_layers
    found = []
    for p, dtype in ((exact, torch.float64), (decoder, torch.float32)):
        (v, g), (new_v, new_g) = ([t.clone() for t in p.evaluate(z.to(dtype))] for z in states)
        p.start()
        found.append((new_v - v, torch.cat((g, new_g)).double(), [w.double() for w in p.weight_gradients()]))
    (wanted, wanted_grad, wanted_weights), (got, grad, weights) = found
    error = (got - wanted).square().sum().sqrt().item()
    assert error < 1e-3, error
    # Rounding may decide whether a ReLU cuts off: of a few rows.
    errors = (grad - wanted_grad).norm(dim=1) / wanted_grad.norm(dim=1)
    assert errors.median() < 2e-5
    for a, b in zip(weights, wanted_weights, strict=True):
        assert (a - b).norm() < 1e-2 * b.norm()


@whole
@torch.no_grad()
@pytest.mark.parametrize("is_decoder", [False, True])
def test_whole_layers_train_the_report_s_networks_as_float64_does(is_decoder):
    """Every gradient, against float64; and the launches."""
    torch.manual_seed(0)
    net = nets.mlp(784, 8, nh=256)[is_decoder].to(DEVICE)
    x, grad = (
        torch.rand(512, size, device=DEVICE) - 0.3 for size in ((8, 784) if is_decoder else (784, 256))
    )
    found = []
    for network, dtype in ((layers_in_parts, torch.float64), (whole_layers, torch.float32)):
        layers = copy.deepcopy(net).to(dtype).layers()

        def training(network=network, layers=layers, dtype=dtype):
            out, trace = network.forward(layers, x.to(dtype))
            x_grad, gradients = network.backward(layers, trace, grad.to(dtype), to_input=is_decoder)
            results = [out, *([x_grad] if is_decoder else [])]
            return [*results, *network.parameter_gradients(layers, trace, gradients)]

        found.append([t.double() for t in training()])
    for wanted, got in zip(*found, strict=True):
        # Rounding may decide whether a ReLU cuts off: of a few of 131,072 numbers.
        assert (got - wanted).norm() < 1e-2 * wanted.norm()
    # A decoder's 4 layers forward, backward, gradients. An encoder's 3 and 2, its last norm forward, backward and sums, and
    # the means of its first gradient.
    n_of_all, n_of_gradients = (4 + 4 + 1, 1) if is_decoder else (3 + 1 + 1 + 2 + 2 + 1 + 2, 1 + 2)
    assert n_launches(capture(training, keep_graph=True)) == n_of_all
    _, trace = whole_layers.forward(layers, x)
    _, gradients = whole_layers.backward(layers, trace, grad, to_input=is_decoder)
    graph = capture(lambda: whole_layers.parameter_gradients(layers, trace, gradients), keep_graph=True)
    assert n_launches(graph) == n_of_gradients


@whole
def test_encoders_take_whole_layers(monkeypatch):
    monkeypatch.setenv(whole_layers.VARIABLE, "whole")
    m, x, _ = report_s_model()
    called = []
    forward = whole_layers.forward
    monkeypatch.setattr(whole_layers, "forward", lambda *a: called.append(len(a[0])) or forward(*a))
    m.loss(x).backward()
    assert called == [3] + [4] * (m.n_steps + 1)  # the encoder; the decoder at each state
    with torch.autocast(DEVICE, torch.bfloat16):
        m.features(x)
    assert len(called) == m.n_steps + 2


@whole
def test_steps_of_whole_layers_are_captured_and_learn_as_those_in_parts(monkeypatch):
    losses = []
    for choice in whole_layers.CHOICES:
        monkeypatch.setenv(whole_layers.VARIABLE, choice)
        m, x, _ = report_s_model()
        step = TrainingStep(m, adam(m, m.lr))
        found = [step(x).clone() for _ in range(WARMUP + 1)]
        assert step.is_captured
        with no_waiting():
            found += [step(x).clone() for _ in range(20)]
        losses.append(torch.stack(found))
    assert losses[0][-1] < 0.99 * losses[0][0]
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)  # a decision may fall differently


def test_a_step_of_ald_never_waits():
    scale = torch.linspace(0.5, 2, 30, device=DEVICE, requires_grad=True)

    def potential(phi):
        return 0.5 * (scale * phi.square())

    generator = torch.Generator(DEVICE).manual_seed(0)
    start = torch.randn(30, device=DEVICE, generator=generator)
    for is_first in (True, False):
        with contextlib.nullcontext() if is_first else no_waiting():
            state, average = ald_init(potential, start, 0.1, generator=generator), 0.0
            for _ in range(20):
                state, info = ald_step(potential, state)
                average = average + state.potential / 20
            (gradient,) = torch.autograd.grad(average, scale)
    assert gradient.isfinite().all()
    assert state.phi.isfinite().all()
    assert not torch.equal(state.phi, start)
    assert 0 < info.acceptance_rate <= 1


def gaussian(z):
    return 0.5 * z.square().sum(2)


@pytest.mark.parametrize("options", [{}, {"step_size": 0.4}, {"step_size": 0.4, "mh": False}])
@pytest.mark.parametrize("sampler", ["ald", "ald, minibatches", "langevin"])
def test_captured_sampling_is_the_eager_one(sampler, options):
    """Every number the same: warm-up with its adaptation, what it leaves, and draws of two steps each."""
    if sampler == "ald, minibatches" and options.get("mh", True):
        options = {"step_size": 0.01, "mh": False}
    torch.manual_seed(0)
    features, start = torch.randn(5, 8, device=DEVICE), torch.randn(3, 5, 2, device=DEVICE)
    found = []
    for capture in (False, True):
        run = dict(n_draws=20, n_warmup=30, thin=2, progress=False, capture=capture, **options)
        run["generator"] = torch.Generator(DEVICE).manual_seed(1)
        if sampler == "langevin":
            found.append(langevin_sample(gaussian, start, **run))
        elif sampler == "ald":
            found.append(ald_sample(gaussian, features, nz=2, n_chains=3, **run))
        else:
            run |= dict(batch_size=2)
            found.append(ald_sample(lambda z, index: gaussian(z), features, nz=2, n_chains=3, **run))
    eager, captured = found
    for name in ("z", "potential", "acceptance_rate", "step_size"):
        a, b = getattr(eager, name), getattr(captured, name)
        if sampler == "ald, minibatches":  # a captured generator draws other minibatches
            assert a.shape == b.shape
            assert b.isfinite().all()
        else:
            assert torch.equal(a, b), name
    assert len(captured.z.flatten(2).unique(dim=1)[0]) == 20


def test_an_energy_that_cannot_be_captured_says_so():
    """In a process of its own: what a failed capture leaves behind is not for other tests."""
    code = (
        "import torch, lae_fast\n"
        "z = torch.zeros(2, 3, 2, device='cuda')\n"
        "energy = lambda z: z.square().sum(2) * (1.0 if z.sum().item() < 1e9 else 2.0)\n"
        "try: lae_fast.langevin_sample(energy, z, n_draws=9, n_warmup=0, step_size=0.1, progress=False, capture=True)\n"
        "except RuntimeError as error: print(error)\n"
        "print('draws', torch.randn(3, device='cuda').isfinite().all().item())\n"
        "large = torch.empty(2**28, dtype=torch.uint8, device='cuda')\n"
        "del large\n"
        "before = torch.cuda.memory_reserved()\n"
        "torch.cuda.empty_cache()\n"
        "print('frees', torch.cuda.memory_reserved() <= before - 2**28)\n"
        "z = lae_fast.langevin_sample(lambda z: z.square().sum(2), z, n_draws=9, n_warmup=0, step_size=0.1, progress=False, capture=True).z\n"
        "print('captures', z.isfinite().all().item())\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "the step could not be captured in a CUDA graph" in finished.stdout, finished.stderr
    assert "capture=False" in finished.stdout
    assert "previous error" not in finished.stdout  # the first error is the reason
    for word in ("draws", "frees", "captures"):
        assert f"{word} True" in finished.stdout, (finished.stdout, finished.stderr)


def test_garbage_does_not_end_a_capture():
    """An older graph that only the garbage collector finds, and a collector that is about to run."""

    def replayed(call):
        found = Replayed(call, torch.device(DEVICE))
        for _ in range(WARMUP + 2):
            found()
        return found

    x = torch.zeros(4, device=DEVICE)
    older = replayed(lambda: x.add_(1))
    older.itself = older
    threshold = gc.get_threshold()

    def allocate():
        for _ in range(100):
            [[] for _ in range(100)]  # objects, for the collector to count
        return x.add_(1)

    del older
    gc.set_threshold(1)
    try:
        found = replayed(allocate)
    finally:
        gc.set_threshold(*threshold)
    assert found.graph is not None


# ---- around training ---------------------------------------------------------------------------


def main_job():
    """`lae_fast.train`, which takes a package for its command line that a GPU's machine may lack, and quick options."""
    train = pytest.importorskip("lae_fast.train")
    from test_train import QUICK

    return train, QUICK


@pytest.mark.parametrize("kind", ["lae", "vae", "hoffman"])
@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_the_training_loop_never_waits_between_its_looks(kind, binarize, tmp_path):
    train, _ = main_job()
    config = Config(model=kind, nh=16, depth=1, batch_size=100, log_every=10**6, binarize=binarize)
    digits = data.load("digits", binarization=binarize)
    trainer = train.Trainer(config, digits, tmp_path, torch.device(DEVICE))
    batches = trainer.batches()
    for _ in range(WARMUP + 2):
        trainer._step(next(batches))
    with no_waiting():
        for index in batches:
            trainer._step(index)
    assert trainer.progress.step == trainer.n_batches > WARMUP + 4
    assert trainer.window.isfinite().all()


@pytest.mark.parametrize("kind", ["lae", "vae", "hoffman"])
def test_the_main_job_runs_stops_and_goes_on(kind, tmp_path, capsys):
    train, quick = main_job()
    options = [*quick, "--model", kind, "--device", DEVICE, "--cooldown", "0"]
    assert train.main([*options, "--epochs", "3", "--output-dir", str(tmp_path / "whole")]) == 0
    if library.backends["cuda"].is_compiled:
        assert f"kernels   {DEVICE}: compiled kernels" in capsys.readouterr().out
    assert train.main([*options, "--epochs", "1", "--output-dir", str(tmp_path / "parts")]) == 0
    assert train.main(["--resume", str(tmp_path / "parts"), "--epochs", "3"]) == 0
    whole, parts = (
        json.loads((tmp_path / name / "results.json").read_text())["test_negative_elbo"]
        for name in ("whole", "parts")
    )
    # After a pause steps run outside the graph once more, where torch's own noise is another.
    assert parts == pytest.approx(whole, rel=0.05)


@pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")  # so short a schedule
@pytest.mark.parametrize("cls", [LAE, VAE, Hoffman])
def test_a_gpu_evaluates_as_a_cpu_does(cls, monkeypatch):
    """Evaluation, importance sampling and annealing in float64, on the same draws."""
    same_draws(monkeypatch)
    x = (torch.rand(9, 16, generator=torch.Generator().manual_seed(3)) > 0.5).double()

    def scores(device):
        m, batch = make(cls).double().to(device), x.to(device)
        fit_posterior_scale(m, batch)
        schedule = fit_schedule(m, batch, n_temperatures=20, n_chains=3, n_pilot=10)
        estimate = annealed_log_likelihood(m, batch, schedule, n_chains=3, seed=1, progress=False)
        bound = importance_bound(m, batch, n_draws=50, rows=100)
        scale = [m.posterior(batch)[1]]
        return *scale, *evaluate(m, batch, n_draws=2), bound, schedule.beta, schedule.step_size, *estimate

    for expected, got in zip(*on_both_devices(scores), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")  # so short a schedule
def test_one_graph_anneals_all_batches_of_a_size(monkeypatch):
    """27 images in batches of 10: two graphs, and the numbers of the moves without any."""
    monkeypatch.setattr("lae_fast.evaluation.ais.ROWS", 40)
    n_graphs, captured = 0, Replayed._captured

    def counted(self):
        nonlocal n_graphs
        n_graphs += 1
        return captured(self)

    monkeypatch.setattr(Replayed, "_captured", counted)
    x = (torch.rand(27, 16, generator=torch.Generator().manual_seed(3)) > 0.5).double().to(DEVICE)
    m = make(LAE).double().to(DEVICE)
    schedule = fit_schedule(m, x, n_temperatures=20, n_pilot=10, capture=False)
    replayed, eager = (
        annealed_log_likelihood(m, x, schedule, n_chains=4, seed=1, progress=False, capture=capture)
        for capture in (True, False)
    )
    assert n_graphs == 2
    for a, b in zip(replayed, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@whole
@pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")  # so short a schedule
@pytest.mark.parametrize("base", ["prior", "encoder"])
def test_annealing_by_whole_layers_is_captured(monkeypatch, base):
    """Three batches of 10, 10 and 7 images: the numbers of the same moves outside a graph. Where they start, those of autograd."""
    monkeypatch.setattr("lae_fast.evaluation.ais.ROWS", 40)
    m, x, _ = report_s_model()
    x, starts = x[:27].round(), []
    for choice in whole_layers.CHOICES:
        monkeypatch.setenv(whole_layers.VARIABLE, choice)
        with torch.no_grad():
            draws = _Draws.of(x[:10], m.nz, 4, torch.Generator(DEVICE).manual_seed(0))
            starts.append(_Annealing(m, x[:10], base, draws))
    whole_start, other = starts
    assert (whole_start.decoder is None, other.decoder is None) == (False, True)
    torch.testing.assert_close(whole_start.log_ratio, other.log_ratio, rtol=1e-5, atol=1e-2)
    assert (whole_start.slope - other.slope).norm() < 1e-3 * other.slope.norm()
    monkeypatch.setenv(whole_layers.VARIABLE, "whole")
    schedule = fit_schedule(m, x, base=base, n_temperatures=60, n_pilot=20, capture=False)
    replayed, eager = (
        annealed_log_likelihood(m, x, schedule, n_chains=4, seed=1, progress=False, capture=capture)
        for capture in (True, False)
    )
    for a, b in zip(replayed, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_gpu_attacks_as_a_cpu_does(monkeypatch):
    same_draws(monkeypatch)
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = torch.arange(40) % 3
    eps = [0.0, 0.05, 0.3]

    def adversaries(device):
        classifier, batch, classes = linear(3)[0].to(device), x.to(device), labels.to(device)
        return (
            attacks.fgsm(classifier, batch, classes, eps=eps),
            attacks.pgd(classifier, batch, classes, eps=eps, n_steps=7, n_restarts=2),
            attacks.pgd(classifier, batch, classes, eps=0.5, n_steps=7, norm="l2"),
            attacks.apgd(classifier, batch, classes, eps=eps, n_steps=7, loss="dlr", n_restarts=2),
            *attacks.robustness(classifier, batch, classes, eps=eps, batch_size=17, n_steps=3),
        )

    for expected, got in zip(*on_both_devices(adversaries), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


# ---- another device ----------------------------------------------------------------------------


@two_devices
def test_ops_on_another_device_than_the_current_one():
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    for shape in ((9, 300), (1, 2**20)):
        for n_step_sizes in {1, shape[0]}:
            results = [
                run(*problem(*shape, torch.float32, d, n_step_sizes=n_step_sizes)) for d in (first, second)
            ]
            assert all(t.device == second for t in results[1].values())
            assert all(
                torch.equal(a.cpu(), b.cpu()) for a, b in zip(*(r.values() for r in results), strict=True)
            )
    states = [problem(5, 300, torch.float32, d)[0] for d in (first, second)]
    for name, function in {
        "propose": lambda s: ops.propose(s["phi"], s["grad"], s["log_step_size"].exp(), s["rng"])[0],
        "noise": lambda s: ops.noise(s["rng"], 5, 300, torch.float32),
        "energy": lambda s: ops.energy(s["phi"], s["grad"], ops.BERNOULLI)[0],
    }.items():
        assert torch.equal(*(function(s).cpu() for s in states)), name
    assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match=r"grad is float32 .* on cuda:0; expected .* on cuda:1"):
        ops.propose(states[1]["phi"], states[0]["grad"], states[1]["log_step_size"].exp(), states[1]["rng"])


@two_devices
@pytest.mark.parametrize("capture", [True, False])
def test_training_on_another_device_than_the_current_one(capture):
    results = []
    for device in ("cuda:0", "cuda:1"):
        m = model(True, dtype=torch.float64).to(device)
        step = TrainingStep(m, adam(m, 1e-3), capture=capture)
        losses = [step(images(dtype=torch.float64, seed=i).to(device)).clone() for i in range(WARMUP + 4)]
        results.append([t.cpu() for t in (torch.stack(losses), m.phi, m.counters.double(), m.rng.double())])
    assert torch.cuda.current_device() == 0
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


# ---- more than 2^31 elements -------------------------------------------------------------------

MANY, CHUNK = 2**31, 2**26
large = pytest.mark.xdist_group("large")  # one after the other: each takes most of a GPU's memory


def needs(gigabytes):
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"takes {gigabytes} GiB of GPU memory; {free:.0f} are free")


def ramp(first, last, k):
    """Elements first to last of the k-th of several float32 arrays that are made anew more cheaply than kept: in [-1, 1]."""
    i = torch.arange(first, last, device=DEVICE)
    return ((i * (2 * k + 3)) % 10_007).float() / 5003 - 1


def ramps(shape, k):
    out = torch.empty(shape, device=DEVICE)
    for first, last in chunks_of(out.numel()):
        out.view(-1)[first:last] = ramp(first, last, k)
    return out


def chunks_of(n):
    return [(first, min(first + CHUNK, n)) for first in range(0, n, CHUNK)]


@large
@pytest.mark.parametrize("is_one_chain", [True, False])
def test_a_transition_of_more_than_2_to_the_31_elements(is_one_chain):
    """Chunk by chunk, against float64. All chains accept: what was proposed is known without a second copy."""
    needs(50)
    n_chains, n = shape = (1, MANY + 5) if is_one_chain else (MANY // 2**11 + 1, 2**11)
    total = n_chains * n
    rng = torch.tensor([42, 5, 0], device=DEVICE)
    eps = ops.noise(rng, n_chains, n, torch.float32).view(-1)
    for at in (0, total // 2 // 4 * 4, (n_chains - 1) * n + (n - 1) // 4 * 4):
        words = torch.tensor([philox_by_hand([at % n // 4, at // n, 5, 0], [42, 0])])
        uniforms = torch.stack(
            ((words[0, 0::2] // 256 + 1) * 2.0**-24, (words[0, 1::2] // 256) * 2.0**-24), -1
        ).view(1, -1)
        four = normals_of(uniforms)[0]
        got = eps[at : at + 4].double().cpu()
        assert (got - four[: len(got)]).abs().max() <= 3e-6

    phi, grad, proposal, proposal_grad = (ramps(shape, k) for k in range(4))
    eta, f64 = 0.01, torch.float64
    ratio, scale = torch.zeros(2, n_chains, dtype=f64, device=DEVICE)
    for first, last in chunks_of(total):
        x, g, y, h = (ramp(first, last, k).double() for k in range(4))
        rows = slice(first // n, -(-last // n))
        split = (rows.stop - rows.start, -1)
        ratio[rows] += ((g + h) * (2 * (y - x) + eta * (g - h))).view(split).sum(1)
        scale[rows] += ((g + h).abs() * (2 * (y - x).abs() + (g - h).abs())).view(split).sum(1)
        del x, g, y, h
    potential = torch.zeros(n_chains, dtype=f64, device=DEVICE)
    log_alpha, counters = (
        torch.zeros_like(potential),
        torch.zeros(n_chains, 2, dtype=torch.int64, device=DEVICE),
    )
    is_accepted = torch.zeros(n_chains, dtype=torch.bool, device=DEVICE)
    log_eta = torch.full((1,), eta, dtype=f64, device=DEVICE).log()
    ops.transition(
        phi,
        potential,
        grad,
        proposal,
        rng,
        log_eta,
        counters,
        is_accepted,
        log_alpha,
        adaptation=None,
        proposal_potential=0.25 * ratio - 1,
        proposal_grad=proposal_grad,
    )
    assert is_accepted.all()
    assert ((log_alpha - 1).abs() <= 1e-13 * scale).all()
    assert rng.tolist() == [42, 6, 0]
    for first, last in chunks_of(total):
        y, h, e = ramp(first, last, 2), ramp(first, last, 3), eps[first:last].double()
        assert torch.equal(phi.view(-1)[first:last], y)
        assert torch.equal(grad.view(-1)[first:last], h)
        y, h = y.double(), h.double()
        expected = y - eta * h + (2 * eta) ** 0.5 * e
        bound = 4 * 2.0**-23 * (y.abs() + eta * h.abs() + (2 * eta) ** 0.5 * e.abs())
        assert ((proposal.view(-1)[first:last].double() - expected).abs() <= bound).all()
        del y, h, e, expected, bound


@large
def test_energies_of_more_than_2_to_the_31_pixels():
    needs(12)
    n_rows = 100 * -(-MANY // (100 * 784))
    output, x = ramps((n_rows, 784), 0), ramp(0, 100 * 784, 1).abs().view(100, 784)
    parts = [slice(at, at + 100) for at in (0, n_rows // 200 * 100, n_rows - 100)]
    expected = [ops.energy(output[part].clone(), x, ops.BERNOULLI) for part in parts]
    energy, _ = ops.energy_(output, x, ops.BERNOULLI, None)
    for part, (energies, derivative, _) in zip(parts, expected, strict=True):
        torch.testing.assert_close(energy[part], energies, rtol=1e-13, atol=0)  # summed in another order
        assert torch.equal(output[part], derivative)


@large
@pytest.mark.parametrize("accepted", [True, False])
def test_keep_of_more_than_2_to_the_31_elements(accepted):
    needs(22)
    latest, previous = (ramps((MANY + 5,), k) for k in range(2))
    ops.keep([latest], [previous], torch.tensor([accepted], device=DEVICE))
    for first, last in chunks_of(MANY + 5):
        assert torch.equal(latest[first:last], ramp(first, last, 0 if accepted else 1))
