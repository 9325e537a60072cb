"""The fused ops against the float64 reference, and what holds exactly: replay, threads, SIMD, halves."""

import hashlib
import math

import fuzz_calls
import pytest
import torch

from lae_fast import checks, ops
from lae_fast.ops import columns, energies, langevin, library

pytestmark = pytest.mark.usefixtures("threads")

SIZES = [
    (1, 1),
    (1, 7),
    (1, 255),
    (1, 2048),
    (1, 10**6 + 3),
    (3, 2048),
    (1000, 8),
    (1000, 33),
    (1000, 2048),
    (5, 600),
    (0, 4),
    (3, 0),
]
DTYPES = [torch.float32, torch.float64]


def problem(n_chains, n, dtype, device="cpu", seed=0, n_step_sizes=None):
    """Arguments of `ops.transition` near a Gaussian target, step sizes around 0.1."""
    g = torch.Generator().manual_seed(seed)
    n_step_sizes = n_chains if n_step_sizes is None else n_step_sizes

    def normal(*shape, dtype=dtype):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)

    phi, proposal = normal(n_chains, n), normal(n_chains, n)
    f64 = torch.float64
    state = dict(
        phi=phi,
        potential=normal(n_chains, dtype=f64),
        grad=phi + 0.1 * normal(n_chains, n),
        proposal=phi + 0.3 * proposal,
        rng=torch.tensor([seed + 42, 5, 0], device=device),
        log_step_size=-2 + 0.1 * normal(n_step_sizes, dtype=f64),
        counters=torch.zeros(n_chains, 2, dtype=torch.int64, device=device),
        is_accepted=torch.zeros(n_chains, dtype=torch.bool, device=device),
        log_alpha=torch.zeros(n_chains, dtype=f64, device=device),
    )
    inputs = dict(
        adaptation=torch.tensor([[0.574, 0.05]], dtype=f64, device=device).repeat(n_step_sizes, 1),
        proposal_potential=state["potential"] + 0.5 * normal(n_chains, dtype=f64),
        proposal_grad=state["proposal"] + 0.1 * normal(n_chains, n),
    )
    return state, inputs


def exp(x):
    """The kernels' own: on a CPU the C library's, from which torch's vectorized exp may differ in the last bit."""
    if x.is_cuda or not library.backends["cpu"].is_compiled:
        return x.exp()
    return x.clone().apply_(math.exp)


def copy(tensors):
    return {k: v.clone() for k, v in tensors.items()}


def run(state, inputs, **options):
    out = copy(state)
    ops.transition(*out.values(), **inputs, **options)
    return out


def run_reference(state, inputs, mh=True, noise=None, uniform=None):
    out = copy(state)
    langevin.transition_reference(*out.values(), *inputs.values(), mh, noise, uniform)
    return out


@pytest.mark.parametrize("mh", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_chains", "n"), SIZES)
def test_transition_follows_the_float64_reference(n_chains, n, dtype, mh, device):
    state, inputs = problem(n_chains, n, dtype, device)
    got = run(state, inputs, mh=mh)
    # The reference, in float64, on the very same noise.
    eps = ops.noise(state["rng"], n_chains, n, dtype).double()
    wide = {k: v.double() if v.dtype == torch.float32 else v for k, v in state.items()}
    wide_inputs = {k: v.double() for k, v in inputs.items()}
    expected = run_reference(wide, wide_inputs, mh=mh, noise=eps)

    for key in ("is_accepted", "counters", "rng"):
        assert torch.equal(got[key], expected[key]), key
    for key in ("phi", "grad", "potential"):  # selected, not computed
        assert torch.equal(got[key].double(), expected[key]), key
    g, h = state["grad"].double(), inputs["proposal_grad"].double()
    scale = 1 + ((g + h).abs() * (2 * (wide["proposal"] - wide["phi"]).abs() + (g - h).abs())).sum(1)
    assert ((got["log_alpha"] - expected["log_alpha"]).abs() <= 1e-13 * scale).all()
    assert ((got["log_step_size"] - expected["log_step_size"]).abs() <= 1e-12 * scale).all()
    # phi - eta g + s eps in the state's type: three roundings of terms no larger than their sum.
    eta = expected["log_step_size"].exp()[:, None]
    terms = expected["phi"].abs() + eta * expected["grad"].abs() + (2 * eta).sqrt() * eps.abs()
    bound = 4 * torch.finfo(dtype).eps * (1 + scale[:, None] * (dtype == torch.float64)) * terms
    assert ((got["proposal"].double() - expected["proposal"]).abs() <= bound).all()


@pytest.mark.parametrize("mh", [True, False])
@pytest.mark.parametrize("n_chains", [3, 1])  # the latter adapts by itself, the former jointly
def test_the_running_total_is_that_of_the_acceptances(n_chains, mh, device):
    state, inputs = problem(n_chains, 40, torch.float32, device, n_step_sizes=1)
    acceptance = torch.full((n_chains,), 10.0, dtype=torch.float64, device=device)
    plain, expected = copy(state), acceptance.clone()
    for _ in range(3):
        ops.transition(*state.values(), **inputs, mh=mh, acceptance=acceptance)
        ops.transition(*plain.values(), **copy(inputs), mh=mh)
        expected += exp(plain["log_alpha"]).clamp(max=1)
    torch.testing.assert_close(acceptance, expected, rtol=1e-15, atol=0)
    assert (acceptance > 10).all()


@pytest.mark.parametrize("implementation", ["compiled", "reference"])
def test_no_chain_moves_no_shared_step_size(implementation):
    state, inputs = problem(0, 40, torch.float32, n_step_sizes=1)
    got = (run if implementation == "compiled" else run_reference)(state, inputs)
    assert torch.equal(got["log_step_size"], state["log_step_size"])


@pytest.mark.parametrize("n", [8, 700, 20_000])
def test_what_is_known_of_proposals_changes_no_decision(n, device):
    """Without Metropolis-Hastings only finiteness decides: a proposal that is not finite is rejected in the step after."""
    state, inputs = problem(3, n, torch.float32, device)
    noise = torch.randn(3, n, generator=torch.Generator().manual_seed(1)).to(device)
    noise[1, n // 2] = math.inf
    known = torch.zeros(3, dtype=torch.bool, device=device)
    unaware = copy(state)
    for draws in (noise, None, None):
        ops.transition(*state.values(), **inputs, mh=False, noise=draws, known_finite=known)
        ops.transition(*unaware.values(), **inputs, mh=False, noise=draws)
        assert all(torch.equal(state[k], unaware[k]) for k in state)
        assert not (known & ~state["proposal"].isfinite().all(1)).any()
    assert state["counters"].tolist() == [[0, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_transition_is_its_two_halves(dtype, device):
    state, inputs = problem(7, 1000, dtype, device)
    inputs["adaptation"][:, 1] = 0
    eta = exp(state["log_step_size"])
    got = run(state, inputs)
    accepted, _, log_alpha = ops.decide(
        state["phi"],
        state["proposal"],
        state["potential"],
        inputs["proposal_potential"],
        state["grad"],
        inputs["proposal_grad"],
        eta,
        state["rng"],
    )
    proposal, rng = ops.propose(got["phi"], got["grad"], eta, state["rng"])
    assert torch.equal(accepted, got["is_accepted"])
    # On a GPU, few chains are summed in another order than by `decide`.
    torch.testing.assert_close(log_alpha, got["log_alpha"], rtol=0, atol=1e-10 if device == "cuda" else 0)
    assert torch.equal(proposal, got["proposal"])
    assert torch.equal(rng, got["rng"])


def test_log_alpha_is_the_textbook_ratio(device):
    state, inputs = problem(4, 50, torch.float64, device)
    eta = state["log_step_size"].exp()

    def log_q(to, start, grad):  # log density of the Gaussian proposal, up to its constant
        return -((to - start + eta[:, None] * grad) ** 2).sum(1) / (4 * eta)

    expected = (
        state["potential"]
        - inputs["proposal_potential"]
        + log_q(state["phi"], state["proposal"], inputs["proposal_grad"])
        - log_q(state["proposal"], state["phi"], state["grad"])
    )
    torch.testing.assert_close(run(state, inputs)["log_alpha"], expected, rtol=1e-11, atol=1e-11)


def test_predrawn_noise_and_uniform_replace_the_stream(device):
    state, inputs = problem(6, 33, torch.float32, device)
    noise = ops.noise(state["rng"], 6, 33, torch.float32)
    uniform = ops.noise(state["rng"], 6, 1, torch.float32, ops.ACCEPT)[:, 0]
    drawn, given = run(state, inputs), run(state, inputs, noise=noise, uniform=uniform)
    assert all(torch.equal(drawn[k], given[k]) for k in drawn)
    assert not torch.equal(run(state, inputs, noise=-noise)["proposal"], drawn["proposal"])
    rejected = run(state, inputs, uniform=torch.ones_like(uniform))["is_accepted"]
    assert torch.equal(rejected, drawn["log_alpha"] >= 0)


def test_exact_replay_and_a_new_step_is_new_noise(device):
    state, inputs = problem(2, 5000, torch.float32, device)
    first, again = run(state, inputs), run(state, inputs)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert first["rng"].tolist() == [42, 6, 0]
    state["rng"][1] += 1
    assert not torch.equal(run(state, inputs)["proposal"], first["proposal"])


def test_non_contiguous_arguments(device):
    state, inputs = problem(5, 24, torch.float32, device)
    expected = run(state, inputs)
    strided = {
        k: torch.empty(*v.shape[:-1], 2 * v.shape[-1], dtype=v.dtype, device=device)[..., ::2].copy_(v)
        if k != "rng"
        else v.clone()
        for k, v in state.items()
    }
    matrices = {k: v.t().contiguous().t() for k, v in inputs.items() if v.dim() == 2}
    ops.transition(*strided.values(), **(inputs | matrices))
    assert all(torch.equal(strided[k], expected[k]) for k in expected)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("mh", [True, False])
@pytest.mark.parametrize(
    ("poison", "counted_as"),
    [
        ({"proposal_potential": INF}, columns.REJECTED),
        ({"proposal_potential": INF, "proposal_grad": NAN}, columns.REJECTED),
        ({"proposal_potential": NAN}, columns.NONFINITE),
        ({"proposal_potential": -INF}, columns.NONFINITE),
        ({"proposal_grad": NAN}, columns.NONFINITE),
        ({"proposal_grad": INF}, columns.NONFINITE),
        ({"proposal": INF}, columns.NONFINITE),
    ],
)
@pytest.mark.parametrize("implementation", [run, run_reference])
def test_non_finite_proposals_never_enter_the_state(implementation, poison, counted_as, mh, device):
    state, inputs = problem(3, 9000, torch.float32, device)
    inputs["proposal_potential"] -= 1e6  # all would be accepted
    poisoned_state, poisoned_inputs = copy(state), copy(inputs)
    for name, value in poison.items():
        target = poisoned_state if name in state else poisoned_inputs
        (target[name][1] if target[name].dim() == 1 else target[name][1, 8999]).fill_(value)
    got = implementation(poisoned_state, poisoned_inputs, mh=mh)
    assert got["is_accepted"].tolist() == [True, False, True]
    assert got["log_alpha"][1] == -INF
    assert got["counters"].tolist() == [[0, 0], [1 - counted_as, counted_as], [0, 0]]
    assert all(torch.equal(got[k][1], state[k][1]) for k in ("phi", "grad", "potential"))
    assert all(t.isfinite().all() for k, t in got.items() if k != "log_alpha")


def test_adaptation(device):
    state, inputs = problem(3, 64, torch.float32, device)
    got = run(state, inputs)
    expected = state["log_step_size"] + 0.05 * (got["log_alpha"].exp().clamp(max=1) - 0.574)
    torch.testing.assert_close(got["log_step_size"], expected, rtol=1e-14, atol=1e-14)
    for fixed in (dict(mh=False), dict(adaptation=None)):
        assert torch.equal(run(state, inputs | fixed)["log_step_size"], state["log_step_size"])
    for n_columns in (2, 6):
        inputs["adaptation"] = torch.ones(3, n_columns, dtype=torch.float64, device=device)
        inputs["adaptation"][:, 1] = 0  # the rate
        frozen = inputs["adaptation"].clone()
        assert torch.equal(run(state, inputs)["log_step_size"], state["log_step_size"])
        assert torch.equal(inputs["adaptation"], frozen)


@pytest.mark.parametrize("n_step_sizes", [3, 1])
def test_dual_averaging_is_hoffman_and_gelmans(n_step_sizes, device):
    """Against the recurrences of the paper (section 3.2.1), written out in Python floats."""
    state, inputs = problem(3, 64, torch.float32, device, n_step_sizes=n_step_sizes)
    target, gamma, t0, kappa = 0.6, 0.05, 10, 0.75
    row = torch.tensor([target, 1 / gamma, 0, 0, 0, 1.0], dtype=torch.float64, device=device)
    inputs["adaptation"] = row.repeat(n_step_sizes, 1)
    mu = row[5].item()
    h, average = [0.0] * n_step_sizes, [0.0] * n_step_sizes
    for t in range(1, 6):
        state = run(state, inputs)
        acceptance = state["log_alpha"].exp().clamp(max=1)
        for s, a in enumerate(acceptance.tolist() if n_step_sizes > 1 else [acceptance.mean().item()]):
            h[s] = (1 - 1 / (t + t0)) * h[s] + (target - a) / (t + t0)
            log_eta = mu - math.sqrt(t) / gamma * h[s]
            average[s] = t**-kappa * log_eta + (1 - t**-kappa) * average[s]
            assert state["log_step_size"][s].item() == pytest.approx(log_eta, abs=1e-12)
            assert inputs["adaptation"][s, 4].item() == pytest.approx(average[s], abs=1e-12)


@pytest.mark.parametrize("n", [16, 20000])
@pytest.mark.parametrize("n_columns", [2, 6])
def test_a_shared_step_size_adapts_to_the_mean_acceptance_before_it_proposes(n, n_columns, device):
    state, inputs = problem(3, n, torch.float32, device, n_step_sizes=1)
    inputs["adaptation"] = torch.tensor([[0.3, 0.05, 4, 0.1, -2, -1]], dtype=torch.float64, device=device)
    inputs["adaptation"] = inputs["adaptation"][:, :n_columns].clone()
    before = inputs["adaptation"].clone()
    got = run(state, inputs)
    expected = copy(state), before.clone()
    langevin.transition_reference(*expected[0].values(), expected[1], *list(inputs.values())[1:], True)
    for key in ("is_accepted", "phi", "grad", "rng"):
        assert torch.equal(got[key], expected[0][key]), key
    for key in ("log_step_size", "log_alpha", "proposal"):
        torch.testing.assert_close(got[key], expected[0][key], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs["adaptation"], expected[1], rtol=1e-12, atol=1e-12)
    assert got["log_step_size"] != state["log_step_size"]
    # All chains propose with the adapted size.
    proposal, _ = ops.propose(got["phi"], got["grad"], exp(got["log_step_size"]), state["rng"])
    assert torch.equal(got["proposal"], proposal)


@pytest.mark.parametrize("n", [16, 20000])
def test_a_shared_step_size_without_adaptation_stays(n, device):
    state, inputs = problem(3, n, torch.float32, device, n_step_sizes=1)
    inputs["adaptation"] = None
    got = run(state, inputs)
    assert torch.equal(got["log_step_size"], state["log_step_size"])
    expanded = state | {"log_step_size": state["log_step_size"].expand(3).clone()}
    assert torch.equal(run(expanded, inputs)["proposal"], got["proposal"])


def test_step_size_zero_is_the_identity(device):
    state, inputs = problem(2, 40, torch.float32, device)
    state["log_step_size"].fill_(-INF)
    state["proposal"] = state["phi"].clone()
    inputs |= {"proposal_potential": state["potential"].clone(), "proposal_grad": state["grad"].clone()}
    inputs["adaptation"][:, 1] = 0
    got = run(state, inputs)
    assert torch.equal(got["phi"], state["phi"])
    assert torch.equal(got["proposal"], state["phi"])
    assert (got["log_alpha"] == 0).all()
    assert got["is_accepted"].all()


OPCHECK_TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, device):
    state, inputs = problem(3, 17, dtype, device)
    eta, namespace = state["log_step_size"].exp(), torch.ops.lae_fast
    noise, uniform = torch.randn_like(state["phi"]), torch.rand_like(eta)
    halves = (
        state["phi"],
        state["proposal"],
        state["potential"],
        inputs["proposal_potential"],
        state["grad"],
        inputs["proposal_grad"],
        eta,
        state["rng"],
        True,
    )
    for args, kwargs in (((), {}), ((noise, uniform), {}), ((None, uniform), {})):
        torch.library.opcheck(
            namespace.transition.default, (*copy(state).values(), *inputs.values(), True, *args), kwargs
        )
    totals = dict(acceptance=torch.zeros_like(eta), known_finite=torch.zeros_like(state["is_accepted"]))
    torch.library.opcheck(
        namespace.transition.default, (*copy(state).values(), *inputs.values(), True), totals
    )
    torch.library.opcheck(namespace.decide.default, halves)
    torch.library.opcheck(namespace.decide.default, (*halves, uniform))
    torch.library.opcheck(namespace.propose.default, (state["phi"], state["grad"], eta, state["rng"]))
    torch.library.opcheck(namespace.propose.default, (state["phi"], state["grad"], eta, state["rng"], noise))
    torch.library.opcheck(
        namespace.noise.default, (torch.empty(3, 5, dtype=dtype, device=device), state["rng"], 2)
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.slow
def test_compiles_without_graph_breaks(backend, device):
    state, inputs = problem(2, 100, torch.float32, device)
    eta = state["log_step_size"].exp()

    def two_steps(tensors):
        ops.transition(*tensors.values(), **inputs)
        ops.transition(*tensors.values(), **inputs)
        proposal, rng = ops.propose(tensors["phi"], tensors["grad"], eta, tensors["rng"])
        accepted, _, _ = ops.decide(
            tensors["phi"],
            proposal,
            tensors["potential"],
            tensors["potential"] + 1,
            tensors["grad"],
            tensors["grad"],
            eta,
            rng,
        )
        return proposal, accepted

    plain, compiled = copy(state), copy(state)
    expected = two_steps(plain)
    got = torch.compile(two_steps, fullgraph=True, backend=backend)(compiled)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert all(torch.equal(compiled[k], plain[k]) for k in plain)


@pytest.mark.skipif(not library.backends["cpu"].is_compiled, reason="a promise of the compiled kernels")
def test_thread_count_changes_nothing():
    n_threads = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append([run(*problem(*size, torch.float32)) for size in ((1, 100_003), (300, 40))])
    torch.set_num_threads(n_threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert all(torch.equal(a[k], b[k]) for k in a)


def fingerprint():
    digest = hashlib.sha256()
    for dtype in DTYPES:
        for size in ((1, 2048), (1, 100_003), (77, 9)):
            for tensor in run(*problem(*size, dtype)).values():
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.skipif(
    library.simd_level() not in ("avx2", "avx512"), reason="needs compiled kernels for x86-64"
)
@pytest.mark.slow
def test_every_simd_level_computes_the_same_bits(fingerprints):
    assert {found["test_ops"] for found in fingerprints.values()} == {fingerprint()}


def test_misfits_are_named():
    state, inputs = problem(3, 8, torch.float32)
    with pytest.raises(
        ValueError, match=r"grad is float64 \[3, 8\] on cpu; expected float32 \[3, 8\] on cpu"
    ):
        run(state | {"grad": state["grad"].double()}, inputs)
    with pytest.raises(ValueError, match=r"potential is float64 \[1\] on cpu; expected float64 \[3\]"):
        run(state | {"potential": state["potential"][:1]}, inputs)
    with pytest.raises(
        ValueError, match=r"phi is int64 \[3, 8\] on cpu; expected float32 or float64 \[C, D\]"
    ):
        run(state | {"phi": state["phi"].long()}, inputs)
    with pytest.raises(ValueError, match=r"adaptation is float64 \[3, 1\].*expected float64 \[3, 2 or 6\]"):
        run(state, inputs | {"adaptation": inputs["adaptation"][:, :1]})
    with pytest.raises(ValueError, match=r"step_size is float64 \[2\] on cpu; expected float64 \[3\]"):
        run(state | {"log_step_size": state["log_step_size"][:2]}, inputs)


@pytest.mark.skipif(not library.backends["cpu"].is_compiled, reason="needs compiled kernels")
def test_raw_calls_of_a_kernel_check_their_arguments():
    state, inputs = problem(3, 8, torch.float32)
    for name in ("grad", "counters", "is_accepted", "rng"):
        bad = copy(state) | {name: state[name][:1]}
        with pytest.raises(RuntimeError, match=f"transition: {name} has the wrong"):
            torch.ops.lae_fast.transition(*bad.values(), *inputs.values(), True)
    with pytest.raises(RuntimeError, match="transition: grad must be contiguous"):
        torch.ops.lae_fast.transition(
            *(copy(state) | {"grad": state["grad"].t().contiguous().t()}).values(), *inputs.values(), True
        )


OPS = {name: call for name, call in fuzz_calls.CALLS.items() if name.startswith("ops.")}
CHANGES = {
    "on another device": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "of another type": lambda t: t.to(torch.complex64),
    "of another shape": lambda t: t[None, None, None],
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.numpy(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_every_op_names_a_tensor_that_does_not_fit(name, change):
    function, arguments = OPS[name].make()
    op = name.split(",")[0].removeprefix("ops.")
    for argument, value in arguments.items():
        if (op, argument, change) in {
            ("energy", "output", "of another shape"),  # more axes are more chains
            ("in_unit_range", "x", "on another device"),
            ("noise", "rng", "on another device"),  # the noise is where the rng is
        }:
            continue
        if isinstance(value, torch.Tensor) and not (value.dim() == 0 and change == "sparse"):
            bad = CHANGES[change](value)
        elif isinstance(value, list):
            bad = [value[0], CHANGES[change](value[1])]
        else:
            continue
        with pytest.raises((TypeError, ValueError), match=rf"^{op}: .*\b{argument}\b") as caught:
            function(**arguments | {argument: bad})
        assert ".h:" not in str(caught.value)


def test_values_are_asked_of_a_tensor_that_holds_some():
    with pytest.raises(
        ValueError, match=r"in_unit_range: x is float32 \[2, 3\] on meta; expected a tensor that holds"
    ):
        ops.in_unit_range(torch.zeros(2, 3, device="meta"))
    assert ops.in_unit_range(torch.zeros(0, 3))
    assert energies.in_unit_range_reference(torch.zeros(0, 3))
    assert not ops.in_unit_range(torch.full((3, 2), 2.0).T)


@pytest.mark.parametrize("kind", [ops.BERNOULLI, ops.GAUSSIAN, ops.LOGISTIC])
@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 5), (0, 3, 5), (0, 0), (3, 0)])
def test_energies_of_nothing(shape, kind):
    scale = None if kind == ops.BERNOULLI else torch.tensor(-1.0)
    energy, derivative, slope = ops.energy(torch.zeros(shape), torch.zeros(shape[-2:]), kind, scale)
    assert energy.shape == shape[:-1]
    assert energy.isfinite().all()
    assert derivative.shape == shape
    assert slope.shape == ((0,) if scale is None else shape[:-1])


def test_a_mean_over_nothing_is_refused():
    nothing, rows = torch.zeros(3, 0), torch.zeros(3)
    for call in (
        lambda: ops.norm_relu(nothing, nothing[0], nothing[0], 1e-5),
        lambda: ops.norm_relu_backward(nothing, nothing, nothing, rows, nothing[0]),
        lambda: ops.norm_relu_sums(nothing, nothing, nothing, nothing),
    ):
        with pytest.raises(ValueError, match=r"is float32 \[3, 0\] on cpu; expected \[n, d\] with d >= 1"):
            call()
    with pytest.raises(
        ValueError, match=r"keep: is_accepted is bool \[0\] on cpu; expected \[n\] with n >= 1"
    ):
        ops.keep([], [], torch.zeros(0, dtype=torch.bool))


def test_keep_takes_what_is_not_contiguous_from():
    latest, previous, accepted = torch.zeros(2, 3), torch.ones(3, 2).T, torch.tensor([True, False])
    ops.keep((latest,), (previous,), accepted)
    assert latest.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_numbers_and_names_of_another_kind_are_named():
    rng = ops.make_rng("cpu")
    for call, message in (
        (lambda: ops.noise(rng, -1, 3, torch.float32), "noise: n_chains is -1; expected at least 0"),
        (
            lambda: ops.noise(rng, 2**32 + 1, 3, torch.float32),
            "noise: n_chains is 4294967297; expected at most",
        ),
        (lambda: ops.noise(rng, 3, 2**34 + 1, torch.float32), "noise: n_elements is .*; expected at most"),
        (lambda: ops.noise(rng, 3, 2.0, torch.float32), "noise: n_elements is 2.0"),
        (lambda: ops.noise(rng, 3, 3, "float32"), "noise: dtype is 'float32'"),
        (lambda: ops.noise(rng, 3, 3, torch.float32, 4), "noise: kind is 4; expected NORMALS"),
        (lambda: ops.noise(rng, 3, 3, torch.float32, True), "noise: kind is True"),
        (lambda: ops.make_rng("nowhere"), "device is 'nowhere'; expected a device of this machine"),
        (lambda: ops.make_rng(None), "device is None"),
        (lambda: ops.make_rng("cpu", 3), "generator is 3"),
        (lambda: ops.is_compiled(3), "device is 3"),
        (lambda: run(*problem(2, 3, torch.float32), mh="no"), "transition: mh is 'no'"),
        (
            lambda: ops.norm_relu(torch.zeros(1, 2), torch.zeros(2), torch.zeros(2), math.nan),
            "norm_relu: eps is nan",
        ),
        (lambda: checks.number("eps", 10**400), "eps is inf; expected a finite number"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    for name in ("cpu", "cuda"):  # whether the machine has one or not
        assert ops.is_compiled(name) == ops.is_compiled(torch.device(name))


@pytest.mark.parametrize("name", [name for name in OPS if name not in ("ops.make_rng", "ops.in_unit_range")])
def test_every_op_compiles_without_graph_breaks(name):
    function, arguments = OPS[name].make()
    expected = function(**arguments)
    again = OPS[name].make()[1]
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(**again)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for key, value in arguments.items():
        if isinstance(value, (torch.Tensor, list)):
            torch.testing.assert_close(again[key], value, rtol=0, atol=0)
