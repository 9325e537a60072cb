"""One training step as a whole: what it may not do, what it computes, and its capture in a CUDA graph."""

from collections import Counter

import pytest
import torch
from test_dense import images, model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lae_fast import LAE, VAE, Bernoulli, Gaussian, Hoffman, models, training
from lae_fast.graphs import WARMUP
from lae_fast.models import lae, nets
from lae_fast.models.decoder_pass import decoder_pass
from lae_fast.models.precision import LIMIT, ROOT_MEAN_SQUARE, chain_context
from lae_fast.training.step import TrainingStep

aten = torch.ops.aten
WAITING = (aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.equal, aten.masked_select)


class Watch(TorchDispatchMode):
    """Collects what every op returns, and whatever makes the host wait or know."""

    def __init__(self):
        super().__init__()
        self.allocated, self.offences = Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        devices = {t.device for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **kwargs)
        tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if waits or func.overloadpacket in WAITING:
            self.offences.append(str(func))
        if len(devices | {t.device for t in tensors}) > 1:
            self.offences.append(f"{func} between devices")
        self.allocated.update((str(func), tuple(t.shape), t.dtype) for t in tensors)
        return out


def build(kind, **options):
    torch.manual_seed(0)
    parts = (*nets.mlp(60, 4, nh=300), Bernoulli())
    if kind == "lae":
        return model(True, **options)
    return {"vae": VAE, "hoffman": Hoffman}[kind](*parts, nx=60, nz=4, d=300, **options)


def adam(m):
    return torch.optim.Adam(m.parameters(), lr=1e-3, fused=True)


CASES = [
    ("lae", {}),
    ("lae", {"mh": False}),
    ("lae", {"decoder_window": "before", "feature_window": "before", "whiten": True}),
    ("lae", {"decisions": "datapoint", "step_size": 0.3}),
    ("lae", {"decisions": "datapoint", "step_size": None, "decoder_window": "after", "spread": False}),
    ("lae", {"decisions": "datapoint", "likelihood": "logistic", "mh": False}),
    ("lae", {"likelihood": "logistic", "step_size": None}),
    ("lae", {"precision": "bf16"}),
    ("lae", {"precision": "bf16", "mh": False}),
    ("vae", {}),
    ("hoffman", {}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_step_never_asks_the_device_and_a_second_one_allocates_nothing_new(kind, options):
    m = build(kind, **options)
    step, x, allocated = TrainingStep(m, adam(m)), images(), []
    for _ in range(2):
        with Watch() as watch:
            step(x)
        assert not watch.offences
        assert sum(watch.allocated.values()) > 50  # it did watch
        allocated.append(watch.allocated)
    assert not allocated[1] - allocated[0]


def test_the_watch_sees_what_it_should():
    with Watch() as watch:
        t = torch.arange(5.0)
        if t.sum() > 3:
            t.nonzero()
        t[t > 2]
        t.to("meta")
    assert len(watch.offences) >= 4
    m = build("lae", n_steps=2)
    with Watch() as first:
        m.loss(images())
    m.n_steps = 3
    with Watch() as second:
        m.loss(images())
    assert second.allocated - first.allocated


@pytest.mark.parametrize("kind", ["lae", "vae", "hoffman"])
def test_a_step_is_loss_backward_and_optimizer(kind):
    results = []
    for by_hand in (True, False):
        m = build(kind)
        optimizer = adam(m)
        step = TrainingStep(m, optimizer)
        losses = []
        for _ in range(3):
            if by_hand:
                optimizer.zero_grad()
                loss = m.loss(images())
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            else:
                losses.append(step(images()))
                assert not losses[-1].requires_grad
        results.append([*losses, *m.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["lae", "vae", "hoffman"])
def test_bf16_trains_like_float32(kind):
    """Rounded products: gradients that differ, in the second digit at most; the chain's decisions not at all."""
    results = []
    for precision in ("float32", "bf16"):
        m = build(kind, precision=precision)
        loss = m.loss(images())
        results.append(
            (loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(m.parameters()))]))
        )
    (loss, gradient), (rounded_loss, rounded) = results
    assert abs(loss - rounded_loss) < 0.02 * loss
    assert 1e-5 < (gradient - rounded).norm() / gradient.norm() < 0.2


def test_a_precision_too_coarse_for_decisions_is_refused():
    assert ROOT_MEAN_SQUARE["bf16"] > LIMIT
    with pytest.raises(
        ValueError, match=r"chain_precision is 'bf16' with mh: log alpha would be off by .* mh=False"
    ):
        build("lae", chain_precision="bf16")
    with pytest.raises(ValueError, match="precision is 'half'; expected one of float32, tf32, bf16"):
        build("vae", precision="half")
    assert build("lae", precision="bf16").chain_precision == "float32"
    assert build("lae", precision="bf16", mh=False).chain_precision == "bf16"
    assert build("lae", precision="bf16", mh=False, chain_precision="float32").chain_precision == "float32"


def test_a_compiled_chain_keeps_autocast_out_and_refuses_rounded_products(monkeypatch):
    """It cannot change PyTorch's settings, as an eager one does."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.autocast("cpu", torch.bfloat16), chain_context(True, torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(
            ValueError, match="float32 matmul precision is medium, with mh, in a compiled loss"
        ):
            chain_context(True, torch.device("cpu"))
        chain_context(False, torch.device("cpu"))
    finally:
        torch.set_float32_matmul_precision("highest")


@torch.no_grad()  # as within a step
def test_the_chain_stays_exact_under_bf16():
    """With MH only gradients are rounded, not energies; without it the decoder is, but for its first layer."""
    z, evaluations = torch.randn(128, 4), {}
    for name, options in {
        "float32": {},
        "bf16": {"precision": "bf16"},
        "bf16, no MH": {"precision": "bf16", "mh": False},
    }.items():
        decoder = decoder_pass(build("lae", **options), images())
        potential, z_grad = decoder.evaluate(z)
        decoder.start()
        evaluations[name] = (potential, z_grad.clone(), decoder.weight_gradients()[-2])
    exact, same, rounded = evaluations.values()
    assert torch.equal(exact[0], same[0])
    for i in (1, 2):
        assert not torch.equal(exact[i], same[i])
        assert (exact[i] - same[i]).norm() < 0.01 * exact[i].norm()
    assert not torch.equal(exact[0], rounded[0])
    torch.testing.assert_close(rounded[0], exact[0], rtol=1e-2, atol=0)


class Lossy(nn.Module):
    def loss(self, x):
        return x.sum()


def test_a_model_without_parameters_is_named():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    for call in (lambda: training.adam(Lossy(), 1e-3), lambda: TrainingStep(Lossy(), optimizer)):
        with pytest.raises(ValueError, match=r"model is Lossy.*, without parameters; expected some to train"):
            call()


def test_an_optimizer_of_another_model_is_refused():
    m, other = build("vae").train(), build("vae")
    with pytest.raises(ValueError, match="the optimizer holds none of the model's trained parameters"):
        TrainingStep(m, adam(other))
    for p in m.encoder.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="the optimizer holds none of the model's trained parameters"):
        TrainingStep(m, adam(m.encoder))
    assert TrainingStep(m, adam(m.decoder))(images()).isfinite()  # part of it


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused():
    m = build("vae")
    with pytest.raises(
        ValueError, match="optimizer is a LBFGS, whose steps take a closure; expected one that"
    ):
        TrainingStep(m, torch.optim.LBFGS(m.parameters()))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(done=1.5), "done is 1.5; expected a number from 0 to 1"),
        (dict(done=float("nan")), "done is nan"),
        (dict(cooldown=-1), "cooldown is -1; expected a number from 0 to 1"),
        (dict(cooldown=20), "cooldown is 20"),
        (dict(lr=-1e-3), "lr is -0.001"),
    ],
)
def test_a_learning_rate_stays_from_lr_to_0(wrong, words):
    optimizer = training.adam(nn.Linear(2, 1), 1e-3)
    for done, rate in ((0, 1e-3), (0.8, 1e-3), (0.9, 5e-4), (1, 0)):
        training.cool_down(optimizer, 1e-3, done, 0.2)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    with pytest.raises(ValueError, match=words):
        training.cool_down(optimizer, **dict(lr=1e-3, done=0.5, cooldown=0.2) | wrong)
    assert optimizer.param_groups[0]["lr"] == 0


def test_what_cannot_be_captured_is_refused():
    m = build("vae")
    with pytest.raises(ValueError, match="capture on cpu; expected a GPU"):
        TrainingStep(m, adam(m), capture=True)


# ---- gradients without autograd ------------------------------------------------------------------


def conv(decisions, likelihood="bernoulli"):
    torch.manual_seed(0)
    architecture = models.Architecture("lae", "conv", likelihood, nx=64, nz=4, nh=32, depth=2)
    return models.build(architecture, decisions=decisions, step_size=1e-5)


def tied():
    """Encoder and decoder share a layer."""
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    encoder, decoder = (
        nn.Sequential(nn.Linear(9, 8), shared),
        nn.Sequential(nn.Linear(2, 8), shared, nn.Linear(8, 9)),
    )
    return LAE(encoder, decoder, Bernoulli(), nx=9, nz=2)


class Squared(nn.Module):
    def forward(self, x):
        return x.square()


def unknown(decisions):
    """A decoder of layers that nobody knows."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), Squared(), nn.Linear(8, 9))
    return LAE(nn.Linear(9, 8), decoder, Gaussian(), nx=9, nz=2, decisions=decisions)


def elsewhere(decoder):
    """Parameters whose elements lie in another order in memory."""
    if decoder == "layers":
        return conv("datapoint").to(memory_format=torch.channels_last)
    m = build("lae") if decoder == "dense" else unknown("joint")
    for module in m.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().T.contiguous().T)
    return m


def frozen(part):
    m = build("lae", decisions="datapoint")
    for p in getattr(m, part).parameters():
        p.requires_grad_(False)
    return m


KNOWN = {
    **{
        f"{options}": lambda options=options: build("lae", **options)
        for kind, options in CASES
        if kind == "lae"
    },
    "three states": lambda: build("lae", n_steps=3),
    "layers": lambda: conv("datapoint"),
    "layers, joint": lambda: conv("joint", "logistic"),
    "autograd": lambda: unknown("datapoint"),
    "autograd, joint": lambda: unknown("joint"),
    "tied": tied,
    "channels last": lambda: elsewhere("layers"),
    "transposed": lambda: elsewhere("dense"),
    "transposed, autograd": lambda: elsewhere("autograd"),
    "frozen encoder": lambda: frozen("encoder"),
    "frozen decoder": lambda: frozen("decoder"),
}


def layout(t):
    """Strides that matter: of more than one element."""
    return [stride for n, stride in zip(t.shape, t.stride(), strict=True) if n > 1]


def after(n_batches, m, add):
    """All that minibatches leave: losses, gradients, which add up, and the model."""
    torch.manual_seed(1)
    losses = [add(m, images(100, seed=i).repeat(1, 2)[:, : m.nx].contiguous()) for i in range(n_batches)]
    assert not any(loss.requires_grad for loss in losses)
    assert all(p.grad is None or layout(p.grad) == layout(p) for p in m.parameters())
    return losses, [p.grad for p in m.parameters()], list(m.state_dict().values())


def by_autograd(m, x):
    loss = m.loss(x)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_gradients_without_autograd_are_those_of_backward(make, monkeypatch):
    """Bit for bit, and they add up as those of `backward` do."""
    n_batches = 1 if make is tied else 2  # a sum of three has no order there
    expected = after(n_batches, make(), by_autograd)
    monkeypatch.setattr(lae.KnownGradients, "apply", None)
    got = after(n_batches, make(), lambda m, x: m.add_gradients(x))
    for a, b in zip(tree_leaves(expected), tree_leaves(got), strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        (lambda: conv("datapoint"), "layers"),
        (lambda: build("lae"), "dense"),
        (lambda: unknown("joint"), "autograd"),
    ],
)
def test_where_weights_lie_in_memory_does_not_matter(plain, other):
    states = []
    for m in (plain().double(), elsewhere(other).double()):
        step, x = TrainingStep(m, training.adam(m, 1e-2)), images(100).repeat(1, 2)[:, : m.nx].contiguous()
        torch.manual_seed(1)
        states.append([torch.stack([step(x) for _ in range(3)]), *m.state_dict().values()])
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_who_waits_for_autograd_is_served_by_it(monkeypatch):
    seen, m = [], build("lae")
    handle = m.decoder[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    m.add_gradients(images())
    assert len(seen) == 1
    assert torch.equal(seen[0], m.decoder[0].weight.grad)
    handle.remove()

    class Doubled(LAE):
        def loss(self, x):
            return 2 * super().loss(x)

    class Constant(LAE):
        def training_loss(self, x):
            return super().training_loss(x) + 5

    plain, losses = m.decoder[-1].bias.grad, {}
    for kind in (LAE, Doubled, Constant):
        m = build("lae")
        m.__class__ = kind
        losses[kind] = m.add_gradients(images()).item(), m.decoder[-1].bias.grad
    assert losses[Doubled][0] == 2 * losses[LAE][0]
    assert torch.equal(losses[Doubled][1], 2 * plain)
    assert losses[Constant][0] == losses[LAE][0] + 5
    m = build("lae")
    m.loss = lambda x, loss=m.loss: 3 * loss(x)
    assert m.add_gradients(images()).item() == 3 * losses[LAE][0]
    monkeypatch.setattr(LAE, "loss", lambda self, x, loss=LAE.loss: 4 * loss(self, x))
    assert build("lae").add_gradients(images()).item() == 4 * losses[LAE][0]


def test_images_are_checked_and_an_evaluated_model_has_gradients_too():
    m = build("lae")
    for wrong in (torch.rand(3, 61), torch.full((3, 60), 2.0), torch.rand(3, 60, requires_grad=True)):
        with pytest.raises(ValueError, match="images"):
            m.add_gradients(wrong)
    phi = m.eval().phi.clone()
    m.add_gradients(images())
    assert torch.equal(m.phi, phi)  # no chain moves
    assert m.decoder[0].weight.grad.abs().max() > 0


def test_a_step_may_take_what_its_images_are_read_from():
    """Indices of bytes: the step of the images themselves."""
    stored = (images() * 255).to(torch.uint8)
    states = []
    for read in (None, lambda index: stored[index] / 255):
        m = build("lae")
        torch.manual_seed(3)
        step = TrainingStep(m, adam(m), read=read)
        for seed in range(3):
            index = torch.randperm(len(stored), generator=torch.Generator().manual_seed(seed))[:64]
            loss = step(stored[index] / 255 if read is None else index)
        states.append([loss, *m.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    with pytest.raises(TypeError, match=r"read is 3 \(int\); expected a function"):
        TrainingStep(m, adam(m), read=3)


class Recorded:
    """A graph's stand-in on a CPU: later calls run nothing of the step's code, and halve its weights."""

    def __init__(self, call, _):
        self.call, self.graph, self.graph_weights = call, None, ()

    def __call__(self):
        if self.graph is None:
            self.graph = self.call()
        else:
            for p in self.graph_weights:
                p.data.mul_(0.5)
        return self.graph


def recorded(monkeypatch, m):
    """A step that is captured, as far as its own code can know."""
    monkeypatch.setattr(training.step, "Replayed", Recorded)
    monkeypatch.setattr(training.step, "check_capturable", lambda _: None)
    step = TrainingStep(m, adam(m), capture=True)
    step.replayed.graph_weights = list(m.parameters())
    return step


def test_a_graph_makes_rounded_weights_of_its_own_and_leaves_none_behind(monkeypatch):
    m, seen = build("vae").train(), []
    step = recorded(monkeypatch, m)
    m.head.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        for change in (1, 2, 3):
            m.encode(images())
            m.head.weight.data.mul_(0.9)
            step(images())  # 1 captures
            rounded = m.encode(images())
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                torch.clear_autocast_cache()
                assert torch.equal(rounded, m.encode(images())), change
    assert not torch.equal(seen[0], seen[1])  # before the first change, and in the graph


def test_a_replay_does_not_train_a_model_in_eval_mode(monkeypatch):
    m = build("vae").train()
    steps = training.SideBySide([TrainingStep(m, adam(m), capture=False)])
    steps.replayed = Recorded(lambda: steps._step(steps.x), None)
    for step, x in ((recorded(monkeypatch, m.train()), images()), (steps, images()[None])):
        step(x)
        m.eval()
        before = [p.clone() for p in m.parameters()]
        with pytest.raises(ValueError, match="the model is in eval mode"):
            step(x)
        assert all(torch.equal(p, q) for p, q in zip(m.parameters(), before, strict=True))
        m.train()


# ---- on a GPU ----------------------------------------------------------------------------------


def capturable(m):
    return torch.optim.Adam(m.parameters(), lr=torch.tensor(1e-3, device="cuda"), fused=True, capturable=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_replays_are_the_eager_steps(kind, options):
    """The same losses, weights and chain, step by step: noise, step size and learning rate advance on the device."""
    results = []
    for capture in (False, True):
        m = build(kind, **options).cuda()
        torch.manual_seed(3)  # the seed of the VAE's and Hoffman's draws
        step = TrainingStep(m, capturable(m), capture=capture)
        losses = [step(images(seed=i).cuda()).clone() for i in range(WARMUP + 6)]
        assert step.is_captured == capture
        results.append((torch.stack(losses), m))
    (eager, m), (replayed, other) = results
    count = len(eager) if kind == "lae" else WARMUP  # torch's own generator draws differently in a graph
    torch.testing.assert_close(replayed[:count], eager[:count], rtol=1e-4, atol=0)
    assert len(replayed.unique()) == len(replayed)  # new noise each time
    if kind == "lae":
        torch.testing.assert_close(other.phi, m.phi, rtol=1e-2, atol=1e-3)
        assert torch.equal(other.rng, m.rng)
        assert torch.equal(other.counters, m.counters)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_nothing_waits_for_the_gpu(kind, options):
    m = build(kind, **options).cuda()
    step, x = TrainingStep(m, capturable(m), capture=False), images().cuda()
    step(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_images_are_read_within_the_graph():
    """Each replay reads those of its own indices, new ones each time: an image that was never given is never seen."""
    stored = torch.cat((torch.zeros(200, 60), torch.ones(200, 60))).mul(255).to(torch.uint8).cuda()
    m = build("vae").cuda()
    step = TrainingStep(m, capturable(m), read=lambda index: stored[index] / 255)
    black, white = torch.arange(128, device="cuda"), torch.arange(200, 328, device="cuda")
    for _ in range(WARMUP + 40):
        learned = step(black).clone()
    assert step.is_captured
    assert step(white) > learned + 10  # other images than it has learned


@pytest.mark.gpu
def test_a_captured_step_refuses_other_shapes():
    m = build("vae").cuda()
    step = TrainingStep(m, capturable(m))
    for _ in range(WARMUP + 2):
        step(images().cuda())
    with pytest.raises(ValueError, match=r"images are torch.float32 \[64, 60\].*expected.*\[128, 60\]"):
        step(images(64).cuda())
    with pytest.raises(ValueError, match=r"capturable is False.*expected True and a Tensor"):
        TrainingStep(m, adam(m))


@pytest.mark.gpu
def test_steps_on_two_streams():
    models = [build("lae").cuda() for _ in range(2)]
    streams, x = [torch.cuda.Stream() for _ in models], images().cuda()
    torch.cuda.synchronize()
    for _ in range(5):
        for m, stream in zip(models, streams, strict=True):
            with torch.cuda.stream(stream):
                TrainingStep(m, capturable(m), capture=False)(x)
    torch.cuda.synchronize()
    assert torch.equal(models[0].phi, models[1].phi)
