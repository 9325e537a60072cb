"""`ald_step`: it samples its target, it is differentiable, and it says clearly what it cannot do."""

import math

import pytest
import torch
from budget import z_limit
from problems import Banana, Gaussian, ZScores
from torch.utils._python_dispatch import TorchDispatchMode

import lae_fast
from lae_fast import ops
from lae_fast.sampling import TARGET_ACCEPTANCE, Chains, ald, evaluate_potential, robbins_monro


def run_chains(target, start, step_size, n_steps, mh, seed):
    """The last states of many independent chains: an effective sample size of exactly one per chain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        state = lae_fast.ald_init(target, start, step_size, n_chains=len(start), generator=generator)
        for _ in range(n_steps):
            state, info = lae_fast.ald_step(target, state, mh=mh)
    return state.phi, info


N_CHAINS = 20_000


def test_gaussian_moments_with_mh_and_the_bias_without():
    target, eta = Gaussian(), 0.1  # largest curvature 9.2: plain Langevin inflates that axis by 1.9
    start = torch.full((N_CHAINS, 2), 3.0, dtype=torch.float64)
    phi, info = run_chains(target, start, eta, 400, True, seed=101)
    assert 0.3 < info.acceptance_rate.mean() < 0.95
    z = ZScores.of(target.statistics(phi), target.moments).values
    assert (z.abs() < z_limit("gaussian_moments")).all(), z

    phi, _ = run_chains(target, start, eta, 400, False, seed=102)
    z = ZScores.of(target.statistics(phi), target.moments).values
    assert z[4] > 2 * z_limit("gaussian_moments")  # visibly biased ...
    biased = target.unadjusted_covariance(eta)[1, 1].item()  # ... by exactly what theory says
    z = ZScores.of(target.statistics(phi)[:, 4:], (biased,)).values
    assert (z.abs() < z_limit("gaussian_bias_without_mh")).all(), z


def test_banana_moments_with_mh_and_the_bias_without():
    target, eta = Banana(), 0.25
    start = torch.full((N_CHAINS, 2), 1.0, dtype=torch.float32)
    phi, info = run_chains(target, start, eta, 400, True, seed=103)
    assert 0.3 < info.acceptance_rate.mean() < 0.95
    z = ZScores.of(target.statistics(phi), target.moments).values[[0, 1, 2, 4]]
    assert (z.abs() < z_limit("banana_moments")).all(), z
    # A heavier tail keeps plain Langevin from settling; a smaller step is stable, and still biased.
    phi, _ = run_chains(target, start, 0.1, 400, False, seed=104)
    z = ZScores.of(target.statistics(phi)[:, 4:], target.moments[4:]).values
    assert (z.abs() > z_limit("banana_bias_without_mh")).all(), z


def test_one_step_from_exact_draws_leaves_the_target_in_place():
    target, n = Banana(), 10**6
    start = target.draw(n, torch.Generator().manual_seed(105))
    end, info = run_chains(target, start, 0.4, 1, True, seed=106)
    assert 0.2 < info.acceptance_rate.mean() < 0.9
    z = ZScores.of(target.statistics(end), target.moments).values
    assert (z.abs() < z_limit("stationary_moments")).all(), z
    # Detailed balance: E[f(x) g(x')] = E[g(x) f(x')].
    (x, y), (u, v) = start.unbind(1), end.unbind(1)
    f_and_g = [((y, v), (x**2, u**2)), ((x**2, u**2), (y**2, v**2)), ((y, v), (y**2, v**2))]
    flows = torch.stack([f[0] * g[1] - g[0] * f[1] for f, g in f_and_g], 1)
    z = ZScores.of(flows, (0.0, 0.0, 0.0)).values
    assert (z.abs() < z_limit("detailed_balance")).all(), z


def test_a_wrong_reverse_proposal_would_be_noticed():
    """The power of the test above: centring the reverse proposal on phi (a published bug) breaks balance."""
    target, n, eta = Banana(), 10**6, torch.tensor([0.4], dtype=torch.float64)
    x = target.draw(n, torch.Generator().manual_seed(107)).requires_grad_()
    energy = target(x)
    (grad,) = torch.autograd.grad(energy.sum(), x)
    proposal, rng = ops.propose(x.detach(), grad, eta, torch.tensor([108, 0, 0]))
    x = x.detach()
    step = proposal - x + eta * grad
    wrong = energy - target(proposal) - ((step**2).sum(1) - (step**2).sum(1)) / (4 * eta)
    u = ops.noise(rng, n, 1, torch.float64, ops.ACCEPT)[:, 0]
    end = torch.where((u.log() <= wrong)[:, None], proposal, x)
    z = ZScores.of(target.statistics(end), target.moments).values
    assert (z.abs() > 3 * z_limit("stationary_moments")).any(), z


def quadratic(phi):
    return 0.5 * (phi**2).flatten()


def test_limits_of_the_step_size():
    phi = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    state, info = lae_fast.ald_step(quadratic, phi, 0.0)
    assert torch.equal(state.phi, phi)
    assert info.is_accepted.item()
    assert info.log_alpha.item() == 0
    state, info = lae_fast.ald_step(quadratic, phi, 1e-9)  # accept all
    assert info.is_accepted.item()
    assert info.acceptance_rate > 0.9999
    assert not torch.equal(state.phi, phi)
    state, info = lae_fast.ald_step(quadratic, phi, 100.0)  # reject all
    assert torch.equal(state.phi, phi)
    assert info.acceptance_rate < 1e-6
    assert torch.equal(state.potential, quadratic(phi).double().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_follow_the_fused_transition(dtype, device):
    """T calls of `ald_step` and T fused transitions are the same chain, bit for bit."""
    target, c = Banana(), 40
    phi = Banana().draw(c, torch.Generator().manual_seed(2)).to(device, dtype)
    log_eta = torch.tensor([0.3], dtype=torch.float64, device=device).log()
    eta = log_eta.exp()  # not quite 0.3 on every device
    state = lae_fast.ald_init(target, phi, eta, n_chains=c)
    fused = dict(phi=phi.clone(), potential=state.potential.detach().clone(), grad=state.grad.clone())
    fused["proposal"], fused["rng"] = ops.propose(phi, state.grad, eta, state.rng)
    counters = torch.zeros(c, 2, dtype=torch.int64, device=device)
    out = dict(
        is_accepted=torch.zeros(c, dtype=torch.bool, device=device),
        log_alpha=torch.zeros_like(fused["potential"]),
    )
    for _ in range(20):
        state, info = lae_fast.ald_step(target, state)
        leaf = fused["proposal"].clone().requires_grad_()
        energy = target(leaf).double()
        (grad,) = torch.autograd.grad(energy.sum(), leaf)
        ops.transition(
            *fused.values(),
            log_eta,
            counters,
            *out.values(),
            proposal_potential=energy.detach(),
            proposal_grad=grad,
            adaptation=torch.zeros(1, 2, dtype=torch.float64, device=device),
        )
        assert torch.equal(state.phi, fused["phi"])
        assert torch.equal(state.potential.detach(), fused["potential"])
        assert torch.equal(info.is_accepted, out["is_accepted"])
    assert 0 < counters[:, 0].sum() < 20 * c


@pytest.mark.parametrize("n_chains", [None, 3])
def test_t_unadjusted_steps_take_t_evaluations(n_chains):
    """The last one need not be evaluated: the same states as with it, and a new minibatch goes on from there."""
    calls = []

    def potential(phi):
        calls.append(len(calls))
        return (0.5 * phi.square()).flatten(1).sum(1) if n_chains else 0.5 * phi.square().sum()

    start, found = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), []
    for evaluate in (True, False):
        calls.clear()
        generator = torch.Generator().manual_seed(1)
        state = lae_fast.ald_init(potential, start, 0.1, mh=False, n_chains=n_chains, generator=generator)
        state, _ = lae_fast.ald_step(potential, state, mh=False)
        state, info = lae_fast.ald_step(potential, state, mh=False, evaluate=evaluate)
        assert len(calls) == 2 + evaluate
        assert info.is_accepted.all()
        assert (info.log_alpha == 0).all()
        assert info.log_alpha.shape == state.potential.shape == (() if n_chains is None else (n_chains,))
        found.append((state, info))
    (with_it, _), (without, info) = found
    assert torch.equal(with_it.phi, without.phi)
    assert torch.equal(with_it.rng, without.rng)
    assert without.potential.isnan().all()
    assert without.grad is None
    with pytest.raises(
        ValueError, match=r"V was not evaluated at the state; expected ald_init\(potential, state\) first"
    ):
        lae_fast.ald_step(potential, without, mh=False)
    again = lae_fast.ald_init(potential, without, mh=False)
    assert torch.equal(again.grad, with_it.grad)
    with pytest.raises(ValueError, match="evaluate is False with mh=True; expected mh=False"):
        lae_fast.ald_step(potential, again, evaluate=False)
    wild = again._replace(grad=torch.full_like(again.grad, math.inf))
    stays, info = lae_fast.ald_step(potential, wild, mh=False, evaluate=False)
    assert torch.equal(stays.phi, wild.phi)
    assert info.is_nonfinite.all()
    assert (info.log_alpha == -math.inf).all()


def test_a_stale_state_gives_a_wrong_ratio():
    scale = torch.tensor(1.0)

    def potential(phi):
        return 0.5 * scale * (phi**2).sum()

    phi = torch.ones(4, dtype=torch.float64)
    state = lae_fast.ald_init(potential, phi, 0.1)
    scale.fill_(3.0)  # an optimizer step, or a new minibatch
    noise, uniform = torch.zeros_like(phi), torch.tensor(0.5, dtype=torch.float64)
    _, stale = lae_fast.ald_step(potential, state, noise=noise, uniform=uniform)
    fresh = lae_fast.ald_init(potential, state)
    assert fresh.rng is state.rng
    assert torch.equal(fresh.step_size, state.step_size)
    _, right = lae_fast.ald_step(potential, fresh, noise=noise, uniform=uniform)

    def log_q(to, start):
        return -((to - start + 0.1 * 3 * start) ** 2).sum() / 0.4

    proposal = phi - 0.1 * 3 * phi
    expected = potential(phi) - potential(proposal) + log_q(phi, proposal) - log_q(proposal, phi)
    assert right.log_alpha.item() == pytest.approx(expected.item(), abs=1e-12)
    assert abs(stale.log_alpha.item() - expected.item()) > 1


def test_the_time_average_is_differentiable():
    """d/dtheta of the mean of V over t = 1..T, rejections counting the same state again."""
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()

    def potential(phi, theta=theta):
        return 0.5 * (phi**2 + theta * phi.sin())

    state = lae_fast.ald_init(potential, torch.ones(6, dtype=torch.float64), 0.1, generator=generator)
    uniforms = torch.tensor(
        [1e-9, math.exp(50), 1e-9], dtype=torch.float64
    )  # no alpha reaches e^50: a rejection
    average, visited, outcomes = 0.0, [], []
    for u in uniforms:
        state, info = lae_fast.ald_step(potential, state, uniform=u)
        average = average + state.potential / len(uniforms)
        visited.append(state.phi.clone())
        outcomes.append(info.is_accepted.item())
        assert not state.phi.requires_grad
    assert outcomes == [True, False, True]
    (gradient,) = torch.autograd.grad(average, theta)
    expected = torch.stack([0.5 * phi.sin() for phi in visited]).mean(0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_every_state_s_graph_may_be_freed_by_a_backward_pass():
    """Also that of a state that stays after a rejection: gradients add up, the same state again."""
    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    state = lae_fast.ald_init(lambda phi: 0.5 * theta * phi**2, torch.ones(6, dtype=torch.float64), 0.1)
    visited = []
    for u in (1e-9, math.exp(50), math.exp(50), 1e-9):  # no alpha reaches e^50: rejections
        uniform = torch.tensor(u, dtype=torch.float64)
        state, _ = lae_fast.ald_step(lambda phi: 0.5 * theta * phi**2, state, uniform=uniform)
        state.potential.backward()
        visited.append(0.5 * state.phi.square().sum())
    assert visited[0] == visited[1] == visited[2] != visited[3]
    torch.testing.assert_close(theta.grad, sum(visited))


def test_a_gradient_may_be_sparse():
    chosen = torch.tensor([0, 2, 2])

    def potential(phi, sparse=True):
        return 0.5 * torch.nn.functional.embedding(chosen, phi, sparse=sparse).square().sum()

    start = torch.arange(8.0).view(4, 2)
    state = lae_fast.ald_init(potential, start, 0.1)
    torch.testing.assert_close(state.grad, start * torch.tensor([[1.0], [0.0], [2.0], [0.0]]))
    lae_fast.ald_step(potential, state)


@pytest.mark.parametrize("n_chains", [None, 3])
def test_a_state_s_graph_does_not_grow_where_nobody_looks_at_decisions(n_chains, monkeypatch):
    """As on a GPU: the gradients are those of a CPU, and the graph is that of one evaluation, also after rejections."""
    theta = torch.ones(4, dtype=torch.float64, requires_grad=True)

    def potential(phi):
        return (theta * phi**2).sum(-1)

    def nodes(tensor):
        found, todo = set(), [tensor.grad_fn]
        while todo:
            if (node := todo.pop()) is not None and node not in found:
                found.add(node)
                todo += [n for n, _ in node.next_functions]
        return len(found)

    results = []
    for looks in (True, False):
        monkeypatch.setattr(ald, "_is_cheap_to_look_at", lambda _, looks=looks: looks)
        generator = torch.Generator().manual_seed(4)
        start = torch.ones(n_chains or 1, 4, dtype=torch.float64)
        state = lae_fast.ald_init(
            potential, start if n_chains else start[0], 0.4, n_chains=n_chains, generator=generator
        )
        counts, accepted = [], 0.0
        for _ in range(12):
            state, info = lae_fast.ald_step(potential, state)
            counts.append(nodes(state.potential))
            accepted += info.is_accepted.double().mean().item() / 12
        assert 0.1 < accepted < 0.95
        assert max(counts) == min(counts)
        (gradient,) = torch.autograd.grad(state.potential.sum(), theta)
        results.append(gradient)
    assert torch.equal(*results)


def test_states_made_in_inference_mode_go_on_outside():
    with torch.inference_mode():
        state = lae_fast.ald_init(quadratic, torch.ones(7), 0.1)
        state, _ = lae_fast.ald_step(quadratic, state)
    again, _ = lae_fast.ald_step(quadratic, lae_fast.ald_init(quadratic, state))
    assert again.phi.isfinite().all()


class NoHostSync(TorchDispatchMode):
    """Fails on every operator that makes the host wait for a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"), name
        return func(*args, **(kwargs or {}))


def test_no_host_synchronisation():
    state = lae_fast.ald_init(quadratic, torch.ones(7), 0.1)
    with torch.no_grad(), NoHostSync():
        for mh in (True, False):
            state, _ = lae_fast.ald_step(quadratic, state, mh=mh)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostSync():
        state.potential.item()


def test_energies_are_summed_in_float64():
    n = 100_000
    values = torch.rand(n, generator=torch.Generator().manual_seed(4))

    def per_example(phi):
        return values + 1000 + 0 * phi

    state = lae_fast.ald_init(per_example, torch.zeros(()))
    exact = (values + 1000).double().sum()
    assert state.potential.item() == exact.item()


def test_non_finite_energies_reject():
    def potential(phi):
        return torch.where((phi - 1).abs() < 1e-3, 0.5 * phi**2, math.nan).sum()

    state, info = lae_fast.ald_step(potential, torch.ones(3), 1.0)
    assert torch.equal(state.phi, torch.ones(3))
    assert info.is_nonfinite.item()
    assert not info.is_accepted.item()
    assert info.acceptance_rate.item() == 0
    assert state.potential.isfinite()


def test_seeds_and_generators():
    phi = torch.ones(5)

    def step(**options):
        return lae_fast.ald_step(quadratic, phi, 0.01, **options)[0].phi

    torch.manual_seed(5)
    first, second = step(), step()
    torch.manual_seed(5)
    assert torch.equal(step(), first)
    assert not torch.equal(first, second)
    generators = [torch.Generator().manual_seed(6) for _ in range(2)]
    assert torch.equal(step(generator=generators[0]), step(generator=generators[1]))
    zero = lae_fast.ald_step(quadratic, phi, 0.01, noise=torch.zeros(5))[0].phi
    torch.testing.assert_close(zero, phi - 0.01 * phi)


def mixed():
    """A state and an info that do not belong together."""
    steps = [
        lae_fast.ald_step(lambda p: p.square().sum(1), torch.ones(n, 2), 0.1, n_chains=n) for n in (3, 2)
    ]
    return steps[0][0], steps[1][1]


def test_shapes():
    def per_chain(phi):
        return (phi**2).flatten(1)  # [C, n]

    phi = torch.ones(4, 2, 3)
    state, info = lae_fast.ald_step(per_chain, phi, torch.full((4,), 0.1), n_chains=4)
    assert state.phi.shape == state.grad.shape == (4, 2, 3)
    assert state.potential.shape == info.is_accepted.shape == info.log_alpha.shape == (4,)
    state, info = lae_fast.ald_step(quadratic, phi, 0.1)
    assert state.phi.shape == (4, 2, 3)
    assert state.potential.shape == info.acceptance_rate.shape == ()
    with torch.no_grad():
        assert not lae_fast.ald_step(quadratic, phi, 0.1)[0].potential.requires_grad


def test_evaluations_of_chains_may_use_their_memory_again():
    """With V of the state and of the proposal in one tensor nearly every proposal would be accepted."""
    value, grad = torch.empty(300, dtype=torch.float64), torch.empty(300, 3)

    def reusing(phi):
        return torch.sum(2 * phi.double().square(), 1, out=value), torch.mul(phi, 4, out=grad)

    def fresh(phi):
        return 2 * phi.double().square().sum(1), 4 * phi

    log_eta = torch.full((1,), math.log(0.3), dtype=torch.float64)
    rng = ops.make_rng("cpu", torch.Generator().manual_seed(1))
    chains = [Chains(f, torch.ones(300, 3), log_eta, rng) for f in (reusing, fresh)]
    for c in chains * 3:
        c.step()
    assert torch.equal(chains[0].phi, chains[1].phi)
    assert 0.1 < chains[0].is_accepted.double().mean() < 0.9


def test_a_gradient_may_use_its_memory_again():
    slope = torch.empty(300, 3)

    class Reusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, phi):
            ctx.save_for_backward(phi)
            return 2 * phi.square().sum(1)

        @staticmethod
        def backward(ctx, upstream):
            return torch.mul(*ctx.saved_tensors, 4, out=slope)

    ratios = []
    for potential in (Reusing.apply, lambda phi: 2 * phi.square().sum(1)):
        generator = torch.Generator().manual_seed(1)
        state = lae_fast.ald_init(potential, torch.ones(300, 3), 0.3, n_chains=300, generator=generator)
        ratios.append(lae_fast.ald_step(potential, state)[1].log_alpha)
    torch.testing.assert_close(*ratios)


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_step_size_of_a_loop_adapts_as_that_of_the_models(is_shared):
    """ald_step and adapt_step_size, against the fused transition that adapts by itself, on the same noise."""
    target, n = Gaussian(), 5
    first = torch.full((1 if is_shared else n,), 0.3, dtype=torch.float64)
    state = lae_fast.ald_init(target, target.draw(n, torch.Generator().manual_seed(1)), first, n_chains=n)
    chains = Chains(
        lambda phi: evaluate_potential(target, phi, n),
        state.phi,
        first.log(),
        state.rng,
        adaptation=robbins_monro(len(first), 0.2, TARGET_ACCEPTANCE, first.device),
    )
    seen = [first]
    for _ in range(20):
        state, info = lae_fast.ald_step(target, state)
        state = lae_fast.adapt_step_size(state, info, rate=0.2)
        chains.step()
        seen.append(state.step_size)
        torch.testing.assert_close(state.step_size.log(), chains.log_step_size, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.phi, chains.phi, rtol=1e-9, atol=1e-9)
    assert len(torch.stack(seen).unique()) > 20


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_a_state_keeps_its_step_size_whatever_becomes_of_the_tensor(shape):
    def potential(phi):
        return 0.5 * phi.square().sum(1)

    eta = torch.full(shape, 0.1, dtype=torch.float64)
    first = lae_fast.ald_init(potential, torch.ones(3, 2), eta, n_chains=3)
    second, _ = lae_fast.ald_step(potential, first, eta)
    eta *= 0.9
    for state in (first, second):
        assert (state.step_size == 0.1).all()


def of_a_parameter(phi):
    return torch.ones((), requires_grad=True) * 2


def rounded(phi):
    return quadratic(phi).bfloat16()


def test_half_precision_may_move_chains_that_decide_nothing():
    state = lae_fast.ald_init(rounded, torch.ones(3), 0.1, mh=False)
    _, info = lae_fast.ald_step(rounded, state, mh=False)
    assert info.is_accepted
    energy = dict(energy=lambda z: z.square().sum(-1).bfloat16(), z=torch.ones(1, 3, 2))
    samples = lae_fast.langevin_sample(**energy, n_draws=5, mh=False, step_size=0.1, progress=False)
    assert samples.z.isfinite().all()


def test_the_step_size_of_a_loop_finds_the_acceptance_asked_for():
    target = Gaussian()
    start = target.draw(2000, torch.Generator().manual_seed(2))
    state = lae_fast.ald_init(target, start, 1e-6, n_chains=2000, generator=torch.Generator().manual_seed(3))
    for _ in range(150):
        state, info = lae_fast.ald_step(target, state)
        state = lae_fast.adapt_step_size(state, info, rate=0.3, target=0.7)
    # The acceptance rates of 2,000 chains have a standard error below 0.01; the last step sizes move with them.
    assert abs(info.acceptance_rate.mean().item() - 0.7) < 0.05
    assert state.step_size.shape == (1,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lae_fast.ald_step(quadratic, torch.ones(3)), "step_size is None"),
        (lambda: lae_fast.ald_step(quadratic, torch.ones(3), -0.1), "step_size is -0.1"),
        (lambda: lae_fast.ald_step(quadratic, torch.ones(3), math.nan), "step_size is nan"),
        (lambda: lae_fast.ald_step(quadratic, torch.ones(3), torch.tensor([-0.1])), r"step_size is \[-0.1"),
        (lambda: lae_fast.ald_step(quadratic, torch.ones(3).long(), 0.1), "phi is int64"),
        (lambda: lae_fast.ald_step(quadratic, [1.0], 0.1), r"phi is \[1.0\] \(list\)"),
        (lambda: lae_fast.ald_step(quadratic, torch.ones(3), 0.1, n_chains=2), r"phi is \[3\] for n_chains=2"),
        (lambda: lae_fast.ald_step(lambda p: p[:2], torch.ones(3, 4), 0.1), r"shape \[2, 4\]; expected \[\] or \[n\]"),
        (lambda: lae_fast.ald_step(quadratic, torch.ones(3, 2), 0.1, n_chains=3), r"shape \[6\]; expected \[3\] or"),
        (lambda: lae_fast.ald_step(lambda p: torch.ones(()), torch.ones(3), 0.1), "does not depend on phi"),
        (lambda: lae_fast.ald_init(of_a_parameter, torch.ones(3)), "does not depend on phi"),
        (lambda: lae_fast.ald_init(lambda p: p * 1j, torch.ones(3), mh=False), r"returned complex64 \[3\].* expected floating"),
        (lambda: lae_fast.ald_step(of_a_parameter, lae_fast.ald_init(quadratic, torch.ones(3)), 0.1), "does not depend on phi"),
        (lambda: lae_fast.ald_init(rounded, torch.ones(3)), r"returned bfloat16 .*output\.float\(\), .* or take mh=False"),
        (lambda: lae_fast.ald_step(rounded, lae_fast.ald_init(quadratic, torch.ones(3)), 0.1), "returned bfloat16"),
        (lambda: lae_fast.ald_init(quadratic, torch.full((3,), math.nan)), "energy is nan where the chains start"),
        (lambda: lae_fast.ald_step(quadratic, torch.ones(3, 2), torch.ones(2), n_chains=None), "step_size is float32"),
        (lambda: lae_fast.ald_step(quadratic, torch.ones(3), 0.1, noise=torch.ones(4)), "noise is float32"),
        (lambda: lae_fast.adapt_step_size(torch.ones(3), torch.ones(3)), r"adapt_step_size got float32 \[3\]"),
        (lambda: lae_fast.adapt_step_size(*mixed()), "info is of 2 chains, the state of 3"),
        (lambda: lae_fast.adapt_step_size(*lae_fast.ald_step(quadratic, torch.ones(3), 0.1), target=1), "target is 1"),
        (lambda: lae_fast.adapt_step_size(lae_fast.ald_init(quadratic, torch.ones(3)), mixed()[1]), "step_size is None"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
