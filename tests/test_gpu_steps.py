"""What only a GPU can show of whole steps, of training and of the samplers: none waits for the device, each can be captured.

Float64 makes a whole training step agree to many digits: no decision can fall differently.
"""

import contextlib
import copy
import gc
import subprocess
import sys
from functools import partial

import pytest
import torch
from gpu import (
    DEVICE,
    capture,
    compiled,
    n_launches,
    no_waiting,
    on_both_devices,
    report_s_model,
    same_draws,
    whole,
)
from test_dense import images
from test_ops import DTYPES
from test_step import CASES, build, capturable

from lae_fast import (
    ald_init,
    ald_sample,
    ald_step,
    langevin_sample,
    models,
)
from lae_fast.graphs import WARMUP, Replayed
from lae_fast.models import layers_in_parts, nets, whole_layers
from lae_fast.models.decoder_pass import decoder_pass
from lae_fast.training.optimizer import Adam
from lae_fast.training.step import TrainingStep, adam

pytestmark = pytest.mark.gpu


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
    for is_captured in (False, True):
        run = dict(n_draws=20, n_warmup=30, thin=2, progress=False, capture=is_captured, **options)
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
