"""The benchmarks' rivals compute what they say, and the table says what was measured."""

import inspect
import json
import math
import sys

import floor
import loading
import pytest
import table
import torch
from compiling import compiled
from finding import Benchmark, Finding
from memory import peak_bytes
from registry import BENCHMARKS, chosen
from render import render
from rivals import ops as eager
from rivals.jitted import blackjax_langevin
from rivals.models import OfficialLAE, PlainVAE
from rivals.samplers import (
    energy_and_gradient,
    langevin_proposal,
    log_proposal_density,
    mala,
    posteriors_sgld,
    torchebm_langevin,
    unadjusted_langevin,
)
from subjects.contestants import (
    OFFICIAL,
    OFFICIAL_LOGISTIC,
    OURS,
    OURS_BF16,
    OURS_EACH,
    OURS_LOGISTIC,
    eager_step,
    models,
)
from subjects.energy import KINDS, images
from subjects.epoch import REPORT, epoch_targets
from subjects.samplers import FLOOR, ald_rivals, gaussian, langevin_rivals
from subjects.step import FASTEST_FLOOR, MM_FLOOR, growth_targets, peak_megabytes, step_calls, step_targets
from subjects.transition import chain_state, our_transition
from targets import TARGETS, checked
from timing import round_robin, summary
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode

from lae_fast import DiscretizedLogistic, ops, provenance
from lae_fast.experiments.report_rule import ReportLAE, plain
from lae_fast.models import nets

N, NH, NZ = 8, 32, 3


def small_models(n_steps=2, mh=True):
    """The contestants, small, and images [8, 784] of 256 levels for them."""
    x = torch.randint(256, (N, 784), generator=torch.Generator().manual_seed(1)) / 255
    return models(N, NH, NZ, n_steps, mh), x


class Watch(TorchDispatchMode):
    """The names of all ops that run within, and the multiplications of their matrix products."""

    def __init__(self):
        super().__init__()
        self.names, self.n_multiplications = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            a, b = args[-2:]  # [n, k], [k, m]
            self.n_multiplications += a.numel() * b.shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mh", [True, False])
def test_the_report_energy_is_ours_without_the_prior(mh):
    found, x = small_models(mh=mh)
    ours, report = found[OURS], found["report"]
    h = ours.encoder(x)
    mine = ours.likelihood.energy(ours.decoder(h @ ours.phi.T), x).sum()
    torch.testing.assert_close(report.energy(x, h, report.phi).double(), mine, rtol=1e-6, atol=0)


def test_the_report_gradient_is_that_of_the_last_state_alone():
    found, x = small_models(n_steps=3, mh=False)
    report = found["report"]
    loss = report.loss(x)
    loss.backward()
    expected = report.energy(x, report.encoder(x), report.phi) / len(x)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (grad,) = torch.autograd.grad(expected, report.decoder[0].weight)
    torch.testing.assert_close(report.decoder[0].weight.grad, grad)


@pytest.mark.parametrize("scale", [0.05, 1.2])
def test_the_official_energies_are_ours(scale):
    found, x = small_models()
    ours, official, logistic = found[OURS], found[OFFICIAL], found[OFFICIAL_LOGISTIC]
    z = ours.encoder(x) @ ours.phi.T
    theirs = official.energy(x, official.encoder(x) @ official.phi.T, scale=None)
    constant = 0.5 * NZ * math.log(2 * math.pi)
    torch.testing.assert_close(theirs.double() + constant, ours.potential(x, z), rtol=1e-6, atol=0)
    # theirs has images, means and scale in [-1, 1], twice as wide as ours
    x = x.double()
    output, logistic.decoder = 0.1 * torch.randn_like(x) + 2 * x - 1, torch.nn.Identity()
    theirs = logistic.energy(2 * x - 1, output, torch.tensor(scale)) - output.square().sum(1) / 2
    expected = DiscretizedLogistic(scale / 2).double().energy((output + 1) / 2, x)
    torch.testing.assert_close(theirs, expected, rtol=1e-6, atol=0)  # the scale is a float32


def test_the_official_scale_and_its_prior():
    found, x = small_models(mh=False)
    official = found[OFFICIAL_LOGISTIC]
    with torch.no_grad():
        official.logit_tau.fill_(0.7)
    tau, energies = math.log1p(math.exp(0.7)), []
    energy = official.energy
    official.energy = lambda x, z, scale: energies.append((scale, energy(x, z, scale))) or energies[-1][1]
    loss = official.loss(x)
    assert all(scale.item() == pytest.approx(tau**-0.5) for scale, _ in energies)
    average = (energies[1][1] + energies[2][1]).mean() / 2
    prior = (0.7 + 2 * math.log1p(math.exp(-0.7))) / 60_000
    assert (loss - average).item() == pytest.approx(prior, abs=2e-7 * average.item())


@pytest.mark.parametrize("mh", [True, False])
def test_the_official_chain_walks_as_ops_do_and_averages_the_last_states(mh):
    """One step more than T; step size and noise by the mean over the batch, which is ours with eta / n."""
    n_steps, eta = 12, 2e-2
    found, x = small_models(n_steps, mh)
    official, x = found[OFFICIAL].double(), x.double()
    official.step_size = eta
    step_size, rng = torch.tensor([eta / N], dtype=torch.float64), ops.make_rng("cpu")
    h, phi = official.encoder(x), official.phi.clone()

    def potential(rows):  # [1, nz d] -> [1]
        return official.energy(x, h @ rows.view_as(phi).T, None).sum().reshape(1)

    def flat(t):
        return t.detach().reshape(1, -1)

    torch.manual_seed(3)
    rows, states, accepted = flat(phi), [], []
    for _ in range(n_steps + 1):
        states.append(rows)
        energy, grad = energy_and_gradient(potential, rows)
        proposal, _ = ops.propose(rows, grad, step_size, rng, noise=torch.randn_like(phi).view(1, -1))
        proposed, proposed_grad = energy_and_gradient(potential, proposal)
        uniform = torch.rand((), dtype=torch.float64).reshape(1) if mh else None
        is_accepted, _, _ = ops.decide(
            rows, proposal, energy, proposed, grad, proposed_grad, step_size, rng, mh, uniform
        )
        accepted.append(is_accepted.item())
        rows = torch.where(is_accepted[:, None], proposal, rows)
    assert not mh or 0.2 < sum(accepted) / len(accepted) < 0.9
    expected = sum(potential(state) for state in states[1:]).sum() / (n_steps * N)

    torch.manual_seed(3)
    loss = official.loss(x)
    torch.testing.assert_close(flat(official.phi), rows, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(loss, expected)
    parameters = [official.encoder[0].weight, official.decoder[0].weight]
    for ours, theirs in zip(
        torch.autograd.grad(expected, parameters, retain_graph=True),
        torch.autograd.grad(loss, parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mh", [True, False])
def test_how_often_the_published_codes_evaluate_and_wait_for_the_host(mh):
    n_steps = 3
    found, x = small_models(n_steps, mh)
    expected = {  # evaluations, waits
        "report": ((2 * n_steps if mh else n_steps) + 1, n_steps if mh else 0),
        OFFICIAL: ((2 if mh else 1) * (n_steps + 1), n_steps + 1 if mh else 0),
        OFFICIAL_LOGISTIC: ((2 if mh else 1) * (n_steps + 1), n_steps + 1 if mh else 0),
    }
    Distribution.set_default_validate_args(False)  # its checks wait as well, and are no part of the algorithm
    try:
        for name, (n_evaluations, n_waits) in expected.items():
            model, evaluations = found[name], []
            model.decoder.register_forward_hook(lambda *_, seen=evaluations: seen.append(1))
            with Watch() as watch:
                model.loss(x).backward()
            assert len(evaluations) == n_evaluations, name
            assert sum("_local_scalar_dense" in op for op in watch.names) == n_waits, name
    finally:
        Distribution.set_default_validate_args(True)


def test_rivals_run_on_nothing_of_ours():
    found, x = small_models()
    for model in found.values():
        step, is_rival = eager_step(model), isinstance(model, (ReportLAE, OfficialLAE, PlainVAE))
        with Watch() as watch:
            step(x)
        assert any("lae_fast" in op or "mkldnn" in op for op in watch.names) != is_rival


def test_the_plain_vae_is_ours():
    found, x = small_models()
    losses = []
    for model in (found["VAE"], found["plain VAE"]):
        torch.manual_seed(5)
        losses.append(model.loss(x))
        losses[-1].backward()
    torch.testing.assert_close(losses[1].double(), losses[0].double(), rtol=1e-6, atol=0)
    for name, parameter in found["plain VAE"].named_parameters():
        torch.testing.assert_close(
            parameter.grad, found["VAE"].get_parameter(name).grad, rtol=1e-4, atol=1e-5
        )


def test_step_and_rivals_start_from_the_same_weights():
    found, _ = small_models()
    for name, model in found.items():
        torch.testing.assert_close(model.decoder[0].weight, found[OURS].decoder[0].weight, msg=name)
        if name in (OFFICIAL, OFFICIAL_LOGISTIC, "report"):
            assert torch.equal(model.phi, found[OURS].phi), name


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_floor_does_the_products_that_it_says(n_steps):
    """As autograd counts them: T + 1 evaluations with their gradient in z, T weight gradients, and the encoder."""
    encoder, decoder = (plain(body) for body in nets.mlp(784, NZ, NH))

    def count(run):
        with Watch() as watch:
            run()
        return watch.n_multiplications

    z = torch.randn(N, NZ, requires_grad=True)
    evaluation = count(lambda: torch.autograd.grad(decoder(z).sum(), z))
    with_weights = count(lambda: torch.autograd.grad(decoder(z).sum(), [z, *decoder.parameters()]))
    around = count(lambda: encoder(torch.rand(N, 784)).sum().backward())
    expected = (n_steps + 1) * evaluation + n_steps * (with_weights - evaluation) + around
    run = floor.floor(encoder, decoder, N, n_steps, floor.ROUTES["torch.mm"])
    assert count(run) == expected
    with Watch() as watch:
        run()
    assert {op.split(".")[1] for op in watch.names} == {"mm", "permute"}


def test_both_floors_do_the_same_products():
    encoder, decoder = nets.mlp(784, NZ, NH)

    def recorded(name):
        """That route, each product kept."""
        products = []
        route = floor.Route(*(lambda *args, f=f: products.append(f(*args)) for f in floor.ROUTES[name]))
        torch.manual_seed(0)
        floor.floor(encoder, decoder, 512, 1, route)()
        return products

    slow, fast = recorded("torch.mm"), recorded("fastest route")
    assert len(slow) == 3 + 2 * 8 + 4 + 2 + 3
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("c", "d"), [(1, 300), (50, 8)])
def test_the_eager_transition_is_ours_on_the_same_noise(c, d, dtype, tolerance):
    state = chain_state(c, d, dtype)
    state["grad"], state["proposal_grad"] = 3 * state["proposal"], 3.3 * state["proposal"]
    state["proposal_potential"] += torch.linspace(-1, 3, c) if c > 1 else 0.5
    state["log_step_size"] += torch.linspace(4, 5, c)  # apart for each chain
    uniform, noise = torch.rand(c, dtype=torch.float64), torch.randn(c, d, dtype=dtype)
    same_type = {name: value.to(dtype) for name, value in state.items()}
    *theirs, log_alpha = eager.transition(**same_type, uniform=uniform.to(dtype), noise=noise)
    run, ours = our_transition(state, uniform, noise)
    run()
    names = ("phi", "potential", "grad", "proposal", "log_step_size")
    expected = [ours[name].to(dtype) for name in (*names, "log_alpha")]
    torch.testing.assert_close([*theirs, log_alpha], expected, rtol=tolerance, atol=tolerance)
    is_accepted = uniform.log() <= ours["log_alpha"]
    assert c == 1 or is_accepted.any() != is_accepted.all()


def test_benched_transitions_accept():
    for c, d in ((1, 2**8), (64, 32)):
        run, state = our_transition(chain_state(c, d))
        for _ in range(25_000):  # as many as a GPU's benchmark replays
            run()
        assert state["counters"].sum() < 0.01 * 25_000 * c
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "logistic"])
def test_the_eager_energies_are_ours(kind):
    output, x, log_scale = (t.double() for t in images(16))
    output *= 0.5  # nearer than where its difference of sigmoids is cut off
    value, derivative, slope = eager.energy_and_derivatives(eager.ENERGIES[kind], output, x, log_scale)
    ours = ops.energy(output, x, KINDS[kind], None if kind == "bernoulli" else log_scale)
    torch.testing.assert_close(value, ours[0].sum(), rtol=1e-9, atol=0)
    torch.testing.assert_close(derivative, ours[1], rtol=1e-7, atol=1e-9)
    assert (slope is None) == (kind == "bernoulli")
    if slope is not None:
        torch.testing.assert_close(slope, ours[2].sum(), rtol=1e-7, atol=0)


def test_a_compiler_that_fails_is_reported():
    def run(function):
        raise RuntimeError("no compiler here\nand more")

    assert compiled(torch.sin, run) == (None, "torch.compile failed: RuntimeError: no compiler here")


def test_peak_memory_of_known_allocations():
    kept = []

    def call():
        kept[:] = [torch.empty(2**18, dtype=torch.uint8)]  # the first call's stays, and is replaced
        a = torch.empty(2**20, dtype=torch.uint8)
        del a
        b, c = (torch.empty(2**19 + 2**18, dtype=torch.uint8) for _ in range(2))
        del b, c

    assert 3 * 2**19 <= peak_bytes(call) <= 3 * 2**19 + 20_000


def test_both_ways_of_loading_give_every_image_once_an_epoch():
    images = loading.synthetic_images(64)
    for batches in (loading.loader_batches(images, 16), loading.resident_batches(images, 16)):
        for _ in range(2):
            epoch = torch.cat([next(batches) for _ in range(4)])
            assert epoch.shape == (64, 784)
            assert epoch.dtype == torch.float32
            assert not torch.equal(epoch, images / 255)  # shuffled
            assert torch.equal(torch.unique(epoch, dim=0), torch.unique(images, dim=0) / 255)


def test_to_tensor_without_torchvision(monkeypatch):
    image = loading.Image.fromarray(loading.synthetic_images(1)[0].view(28, 28).numpy())
    theirs = loading.to_tensor()(image)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    ours = loading.to_tensor()(image)
    assert ours.shape == (1, 28, 28)
    assert torch.equal(ours, theirs)


def test_rivals_take_turns():
    order = []
    seconds = round_robin(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=20, warmup=1, loops=2
    )
    assert order == ["a", "a", "b", "b"] * 21
    assert {name: len(times) for name, times in seconds.items()} == {"a": 20, "b": 20}


def test_summary_by_hand():
    rows = summary({"a": [0.002, 0.004, 0.006], "b": [0.001, 0.004, 0.003]}, against="b")
    assert rows["a"] == pytest.approx(
        {"ms": 4, "low": 2, "high": 6, "ratio": 2, "ratio_low": 1, "ratio_high": 2}  # not 4 / 3, of medians
    )
    assert rows["b"]["ratio"] == rows["b"]["ratio_low"] == rows["b"]["ratio_high"] == 1


def rows_of(**ms):
    return {name: {"ms": value} for name, value in ms.items()}


def test_targets_by_hand():
    ms = {OURS: 20, OURS_BF16: 9, OURS_LOGISTIC: 25, "plain VAE": 10, "report": 50, OFFICIAL: 70}
    rows = rows_of(**ms, **{OFFICIAL_LOGISTIC: 125, FASTEST_FLOOR: 16, MM_FLOOR: 32, OURS_EACH: 19})
    assert step_targets(rows) == {
        "step / floor": 1.25,
        "step / torch.mm floor": 0.625,
        "report / step": 2.5,
        "official / step": 3.5,
        "official / step, logistic": 5,
        "bf16 step / VAE": 0.9,
        "datapoint / joint": 0.95,
    }
    short = {f"{OURS}, T = 2": 5, f"{FASTEST_FLOOR}, T = 2": 4, f"{MM_FLOOR}, T = 2": 2}
    assert growth_targets(rows | rows_of(**short)) == {"growth / floor": 1.25, "growth / torch.mm floor": 0.5}
    rows = rows_of(**{OURS: 2, OURS_BF16: 1, REPORT: 6})
    assert epoch_targets(rows) == {"epoch": 3, "epoch, bf16": 6}


def test_targets_below_and_above():
    below, above = TARGETS["cpu"]["step / floor"], TARGETS["cpu"]["report / step"]
    assert (below.limit, above.limit) == (1.2, 2)
    assert below.is_met(1.2)
    assert not below.is_met(1.21)
    assert above.is_met(2)
    assert not above.is_met(1.99)
    with pytest.raises(ValueError, match="no target is called speed"):
        checked({"speed": 1}, TARGETS["cpu"])


def test_steps_are_timed_by_their_names():
    found, _ = small_models()
    assert step_calls(found, N).keys() == {*found, FASTEST_FLOOR, MM_FLOOR}


def test_peak_memory_counts_gradients_whether_they_stay_or_not():
    found, x = small_models()
    report = found["report"]
    optimizer, step = torch.optim.Adam(report.parameters(), fused=True), eager_step(report)

    def keeps_them():
        optimizer.zero_grad(set_to_none=False)
        report.loss(x).backward()
        optimizer.step()

    gradients = sum(p.nbytes for p in report.parameters()) / 1e6
    peaks = [peak_megabytes(run, report) for run in (lambda: step(x), keeps_them)]
    assert all(gradients < peak < 2.1 * gradients for peak in peaks)  # batch and activations are small here


def test_the_table_says_what_was_measured():
    row = {"ms": 12.345, "low": 11, "high": 1234.5, "ratio": 1, "ratio_low": 0.9, "ratio_high": 1.1}
    rows = {"LAE": row | {"peak MB": 17.87}, "report": row | {"ratio": 2.5}}
    timed = {"title": "a step", "rows": rows, "against": "LAE", "notes": ["mind this"]}
    counted = {"title": "errors", "rows": {"bf16": {"nats": 1.43, "recorded": 1.4}, "limit": {"nats": 0.1}}}
    report = {
        "where": {
            "device": "cpu",
            "name": "cpu",
            "machine": "A processor, 2 cores, 2 threads, AVX512, Linux",
            "kernels": "compiled kernels",
            "versions": "Python 3.11.7, torch 2.15.0, lae_fast 0.1.0",
            "commit": "0123456 with changes",
            "date": "2026-11-25",
        },
        "ceilings": {},
        "findings": {
            "step": timed | {"group": "training step", "measured": {"step / floor": 1.234, "energy": 9}},
            "rounding": counted | {"group": "precision", "against": None, "measured": {}, "notes": []},
            "longer": timed | {"group": "training step", "title": "a longer step", "measured": {}},
        },
        "failures": {},
        "by_hand": {},
    }
    text = render(report)
    assert "Machine: A processor, 2 cores, 2 threads, AVX512, Linux. Kernels: compiled kernels." in text
    assert "Python 3.11.7, torch 2.15.0, lae_fast 0.1.0." in text
    assert "Commit 0123456 with changes, 2026-11-25. Command: `python bench/table.py`." in text
    lines = text.splitlines()
    assert lines[0] == "# Benchmarks on a CPU"
    cpu = TARGETS["cpu"]
    of = {t: next(line for line in lines if cpu[t].what in line) for t in cpu}
    assert of["step / floor"].endswith("| ≤ 1.20 | 1.23 | **missed** |")
    assert of["energy"].endswith("| ≥ 8.0x | 9.00x | met |")
    assert of["epoch"].endswith("| ≥ 2.4x | not measured |  |")
    order = [
        "## Targets",
        "## training step",
        "**a step**",
        "**a longer step**",
        "## precision",
        "**errors**",
    ]
    assert [line for line in lines if line.startswith(("##", "**"))] == order
    assert "|  | ms (quartiles) | ratio to LAE (quartiles) | peak MB |" in lines
    assert "| LAE | 12.3 (11.0 - 1,234) | 1.00 (0.900 - 1.10) | 17.9 |" in lines
    assert "| report | 12.3 (11.0 - 1,234) | 2.50 (0.900 - 1.10) |  |" in lines
    assert "mind this" in lines
    assert (
        "\n**errors**\n\n|  | nats | recorded |\n|---|---:|---:|\n| bf16 | 1.43 | 1.40 |\n| limit | 0.100 |  |\n"
        in text
    )


def test_benchmarks_have_names_of_their_own_and_functions_that_take_their_sizes():
    names = {(b.device, b.name) for b in BENCHMARKS}
    assert len(names) == len(BENCHMARKS)
    for b in BENCHMARKS:
        inspect.signature(b.function()).bind(None, **b.sizes)


def test_findings_are_chosen_by_name_or_how_it_begins():
    def names(*words, device="cpu"):
        return [b.name for b in chosen(device, list(words))]

    assert names("noise_64x256", "pgd") == ["pgd", "noise_64x256"]
    assert names("parts") == ["parts_T2", "parts_T10"]
    assert names("step_T2") == ["step_T2"]  # and not step_T2_no_mh: it is a name
    assert chosen("cuda") == [b for b in BENCHMARKS if b.device == "cuda"]
    with pytest.raises(ValueError, match="no finding begins with tea; for this device there are"):
        names("tea", device="cuda")


def test_a_command_on_a_cpu_measures_keeps_and_writes(tmp_path, monkeypatch):
    found = Finding("quick", {"a": {"us": 3.0}}, None, {"epoch": 2.0}, ("so it is",))
    monkeypatch.setattr(Benchmark, "function", lambda b: lambda setting: found)
    kept, output = tmp_path / "kept.json", tmp_path / "out" / "table.md"
    output.parent.mkdir()
    output.write_text(f"# Old\n\n{table.LOG}\n\n- first: 3 us\n")
    files = ["--json", str(kept), "--output", str(output)]
    assert table.main(["--device", "cpu", "--only", "pgd", *files]) == 0
    text, report = output.read_text(), json.loads(kept.read_text())
    assert "## attacks\n\n**quick**\n\n|  | us |\n|---|---:|\n| a | 3.00 |\n\nso it is\n" in text
    assert "| ≥ 2.4x | 2.00x | **missed** |" in text
    assert "## Ceilings" not in text
    assert text.endswith(f"\n\n{table.LOG}\n\n- first: 3 us\n")
    assert report["findings"]["pgd"] == found.as_dict() | {"group": "attacks"}
    assert report["where"]["machine"].startswith(provenance.machine("cpu"))
    assert report["where"]["versions"] == provenance.versions()


def quartic(x):
    """[C, D] -> [C]: not Gaussian, so that a proposal and its reverse differ by more than their centres."""
    return (0.1 * x**4 + 0.5 * x**2 + x.sin()).sum(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_eager_proposal_and_log_alpha_are_those_of_ops(dtype, tolerance):
    torch.manual_seed(0)
    x, noise = torch.randn(2, 64, 8, dtype=dtype)
    step_size, rng = torch.tensor([0.3], dtype=torch.float64), ops.make_rng("cpu")
    energy, grad = energy_and_gradient(quartic, x)
    proposal = langevin_proposal(x, grad, 0.3, noise)
    torch.testing.assert_close(
        proposal, ops.propose(x, grad, step_size, rng, noise)[0], rtol=tolerance, atol=tolerance
    )
    proposed, proposed_grad = energy_and_gradient(quartic, proposal)
    log_alpha = energy - proposed
    log_alpha += log_proposal_density(x, proposal, proposed_grad, 0.3)
    log_alpha -= log_proposal_density(proposal, x, grad, 0.3)
    _, _, expected = ops.decide(
        x, proposal, energy.double(), proposed.double(), grad, proposed_grad, step_size, rng
    )
    scale = (energy + proposed).abs().max().item()  # what the ratio is a difference of
    torch.testing.assert_close(log_alpha.double(), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("mh", [True, False])
def test_eager_chains_walk_as_ops_do_on_the_same_noise(mh):
    step_size, rng = torch.tensor([0.3], dtype=torch.float64), ops.make_rng("cpu")
    x = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    theirs = (mala if mh else unadjusted_langevin)(quartic, x, 0.3, 10)
    torch.manual_seed(1)
    accepted = []
    for _ in range(10):
        energy, grad = energy_and_gradient(quartic, x)
        proposal, _ = ops.propose(x, grad, step_size, rng, noise=torch.randn_like(x))
        proposed, proposed_grad = energy_and_gradient(quartic, proposal)
        uniform = torch.rand(64, dtype=torch.float64) if mh else None
        is_accepted, _, _ = ops.decide(
            x, proposal, energy, proposed, grad, proposed_grad, step_size, rng, mh, uniform
        )
        x = torch.where(is_accepted[:, None], proposal, x)
        accepted.append(is_accepted)
    assert not mh or 0.1 < torch.stack(accepted).double().mean() < 0.9
    torch.testing.assert_close(theirs, x)


@pytest.mark.parametrize("package", [torchebm_langevin, posteriors_sgld])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_packages_take_the_same_steps_on_the_same_noise(package, dtype):
    x = torch.randn(64, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    start, sample = x.clone(), package(quartic, x, 0.1)
    if sample is None:
        pytest.skip("not installed")
    torch.manual_seed(1)
    theirs = sample(10)
    torch.manual_seed(1)
    torch.testing.assert_close(theirs, unadjusted_langevin(quartic, x, 0.1, 10))
    assert torch.equal(x, start)


@pytest.mark.parametrize("mh", [True, False])
def test_blackjax_drifts_by_eta_with_noise_of_variance_two_eta(mh):
    """No alarm by chance: at 8 standard deviations."""
    eta, n = 0.1, 2000 * 8
    run = blackjax_langevin(torch.full((2000, 8), 100.0), eta, mh)
    if run is None:
        pytest.skip("not installed")
    moved = torch.from_numpy(run(1).copy()).double()  # jax lends its own read-only
    assert (moved.mean() - 100 * (1 - eta)).abs() < 8 * math.sqrt(2 * eta / n)
    assert (moved.var() - 2 * eta).abs() < 8 * 2 * eta * math.sqrt(2 / n)


def rivals_on_gaussians(energy, start, mh):
    """All rows of both tables, by name: chains of the same standard Gaussians from `start` [C, D]."""
    c, d = start.shape
    for whiten in (True, False):
        phi = start.view(c, 2, d // 2)
        for name, run in ald_rivals(energy, torch.eye(d // 2), phi, 0.1, mh, whiten)[0].items():
            yield f"ALD, {whiten}: {name}", run
    for name, run in langevin_rivals(energy, start, 0.1, mh)[0].items():
        yield f"chains: {name}", run


@pytest.mark.parametrize("mh", [True, False])
def test_all_drift_by_eta_with_noise_of_variance_two_eta(mh):
    """From far out, where MH accepts every step inwards. No alarm by chance: at 8 standard deviations."""
    torch.manual_seed(0)
    eta, n = 0.1, 2000 * 8
    for name, run in rivals_on_gaussians(gaussian, torch.full((2000, 8), 100.0), mh):
        if FLOOR in name:
            continue
        moved = run(1).double()
        assert moved.numel() == n, name
        assert (moved.mean() - 100 * (1 - eta)).abs() < 8 * math.sqrt(2 * eta / n), name
        assert (moved.var() - 2 * eta).abs() < 8 * 2 * eta * math.sqrt(2 / n), name


@pytest.mark.parametrize("mh", [True, False])
def test_all_evaluate_once_a_step(mh):
    n_calls = 0

    def energy(z):
        nonlocal n_calls
        n_calls += 1
        return gaussian(z)

    for name, run in rivals_on_gaussians(energy, torch.randn(4, 6), mh):
        n_calls = 0
        run(10)
        assert n_calls in (10, 11, 12), (
            name
        )  # MH needs the start's energy too; our samplers look once whether it is a function
