"""What only a GPU can show of the ops, beside the tests that run on every device: streams, graphs, several devices.

Everything that sums nothing is the same on all devices to the last bit; what sums agrees to rounding.
"""

import pytest
import test_likelihood
import test_ops
import torch
from gpu import DEVICE, capture, compiled, n_launches, no_waiting, two_devices
from test_dense import images, model
from test_layer import gradient_problem
from test_ops import DTYPES, problem, run

from lae_fast import (
    ops,
)
from lae_fast.graphs import WARMUP
from lae_fast.ops import layer
from lae_fast.ops.energies import add_prior_unchecked_
from lae_fast.sampling import Chains, dual_averaging, robbins_monro
from lae_fast.training.step import TrainingStep, adam

pytestmark = pytest.mark.gpu


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
        (2, 20000),
        (3, 2**18),
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
    latest = [phi.clone() for _ in range(40)]
    count("keep", lambda: ops.keep(latest, [grad] * 40, state["is_accepted"][:1]))
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
