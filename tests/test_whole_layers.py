"""Fully connected networks by one op a layer: the same numbers as by products and norms, and when which of them serves.

A CPU has no such kernels: here the ops' references serve.
"""

import itertools

import pytest
import torch
from test_dense import images, model
from torch import nn

from lae_fast import LAE, VAE, DiscretizedLogistic, annealed_log_likelihood, fit_schedule, info
from lae_fast.evaluation.annealing import Annealing, Draws
from lae_fast.models import layers_in_parts, mlp, whole_layers
from lae_fast.models.decoder_pass import DensePass, RecomputingPass, decoder_pass
from lae_fast.models.precision import products_in
from lae_fast.training.step import TrainingStep, adam

CASES = [
    {},
    {"decisions": "datapoint", "step_size": 0.3},
    {"decisions": "datapoint", "decoder_window": "after", "feature_window": "after", "n_steps": 4},
    {"likelihood": "logistic"},
    {"mh": False},
]


def take(monkeypatch, network):
    """Evaluate networks by the functions of `network`."""
    obstacle = None if network is whole_layers else "the test"
    monkeypatch.setattr(whole_layers, "obstacle", lambda *_: obstacle)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@torch.no_grad()  # as within a step
def test_an_evaluation_is_that_by_products_and_norms(monkeypatch, dtype, error):
    m, x = model(True, dtype=dtype), images(dtype=dtype)
    found = []
    for network in (layers_in_parts, whole_layers):
        take(monkeypatch, network)
        decoder = decoder_pass(m, x, by_row=True)
        assert decoder.network is network
        for seed in (0, 1):  # two states, and some rows of each
            z = torch.randn(len(x), 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
            energy, z_grad = decoder.evaluate(z)
            if seed == 0:
                decoder.start()
        decoder.decide(torch.arange(len(x)) % 3 == 0)
        once, again = (
            decoder.weight_gradients(),
            decoder.weight_gradients(),
        )  # a state may count more than once
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        found.append([energy, z_grad, decoder.z_grad, *once])
    for got, wanted in zip(*found, strict=True):
        assert (got - wanted).norm() <= error * wanted.norm()


@pytest.mark.parametrize("options", CASES)
def test_training_is_that_by_products_and_norms(monkeypatch, options):
    states = []
    for network in (layers_in_parts, whole_layers):
        take(monkeypatch, network)
        m = model(True, dtype=torch.float64, **options)
        start = m.phi.clone()
        step = TrainingStep(m, adam(m, lr=1e-3))
        losses = torch.stack([step(images(dtype=torch.float64, seed=i)) for i in range(3)])
        assert not torch.equal(m.phi, start)
        states.append([losses, *m.state_dict().values()])
    for got, wanted in zip(*states, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")  # so short a schedule
@pytest.mark.parametrize("kind", [LAE, VAE])
def test_annealing_is_that_by_autograd(monkeypatch, kind):
    m, x = model(True, dtype=torch.float64), images(dtype=torch.float64)[:7]
    if kind is VAE:
        m = VAE(m.encoder, m.decoder, m.likelihood, nx=m.nx, nz=m.nz, d=m.d).double()
    monkeypatch.setattr("lae_fast.evaluation.annealing.ROWS", 20)  # five images of four chains, then two
    schedule = fit_schedule(m, x, n_temperatures=40, n_pilot=10)
    found, evaluated = [], []
    evaluate = DensePass.evaluate
    monkeypatch.setattr(DensePass, "evaluate", lambda *a: evaluated.append(a[1].shape) or evaluate(*a))
    for network in (layers_in_parts, whole_layers):
        take(monkeypatch, network)
        found.append(annealed_log_likelihood(m, x, schedule, n_chains=4, progress=False))
        assert ((20, m.nz) in evaluated) == (network is whole_layers)
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_annealing_evaluates_all_batches_of_a_size_in_the_same_memory(monkeypatch):
    """A graph of a move goes on reading what the decoder's pass read when it was captured, also what the pass has converted."""

    class Scaled(DiscretizedLogistic):
        """Its scale is computed whenever somebody asks."""

        log_scale = property(lambda self: self.raw_scale + 0.5)

        def __init__(self):
            nn.Module.__init__(self)
            self.register_buffer("raw_scale", torch.tensor(-2.0))

    take(monkeypatch, whole_layers)
    m, x = model(True), images()[:10]
    m.likelihood = Scaled()
    draws = [Draws.of(part, m.nz, 4, torch.Generator().manual_seed(0)) for part in (x[:5], x[5:])]
    chains = Annealing(m.eval(), x[:5], "prior", draws[0])
    held = [
        chains.decoder,
        chains.images.data_ptr(),
        chains.decoder.x.data_ptr(),
        chains.decoder.log_scale.data_ptr(),
    ]
    chains.start(x[5:], draws[1])
    assert [chains.decoder, chains.images.data_ptr(), *held[2:]] == held
    assert chains.decoder.x.data_ptr() == chains.images.data_ptr()
    assert torch.equal(chains.images, x[5:].repeat(4, 1))


def network(*widths, ends_in_relu=False):
    modules = []
    for k, m in itertools.pairwise(widths):
        modules += [nn.Linear(k, m), nn.LayerNorm(m), nn.ReLU()]
    return mlp.MLP(*(modules if ends_in_relu else modules[:-2]))


def gradients_of(net, x, cotangent):
    """The output of a network, and its gradients by x, where x has one, and by the parameters."""
    net.zero_grad()
    x = x.detach().requires_grad_(x.requires_grad)
    out = net(x)
    out.backward(cotangent)
    return [out.detach(), *([x.grad] if x.requires_grad else []), *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("ends_in_relu", [False, True])
@pytest.mark.parametrize("widths", [(36, 20), (36, 64, 20), (36, 40, 8, 100, 12)])
def test_a_module_s_passes_are_those_by_products_and_norms(monkeypatch, widths, ends_in_relu, to_input):
    if len(widths) == 2 and not ends_in_relu:
        return  # a linear layer alone is no MLP
    torch.manual_seed(0)
    net = network(*widths, ends_in_relu=ends_in_relu)
    for norm in net[1::3]:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, cotangent = torch.randn(33, widths[0], requires_grad=to_input), torch.randn(33, widths[-1])
    found, calls = [], []
    for functions in (layers_in_parts, whole_layers):
        take(monkeypatch, functions)
        backward = functions.backward
        monkeypatch.setattr(functions, "backward", lambda *a, f=backward, **k: calls.append(f) or f(*a, **k))
        found.append(gradients_of(net, x, cotangent))
        monkeypatch.setattr(functions, "backward", backward)
    assert calls == [layers_in_parts.backward, whole_layers.backward]
    assert len(found[0]) == 1 + to_input + len(list(net.parameters()))
    for got, wanted in zip(*found, strict=True):
        assert (got - wanted).norm() <= 1e-5 * wanted.norm() + 1e-6


def test_a_module_takes_rows_that_begin_anywhere(monkeypatch):
    take(monkeypatch, whole_layers)
    net, memory = network(8, 12, 4), torch.randn(5 * 8 + 1)
    x = memory[1:].view(5, 8)
    torch.testing.assert_close(net(x), net(x.clone()), rtol=0, atol=0)
    _, *read = net(x).grad_fn.saved_tensors  # x itself, which no kernel reads, and what they do
    assert x.data_ptr() % 16
    assert all(t.data_ptr() % 16 == 0 for t in read)


@pytest.mark.parametrize("functions", [layers_in_parts, whole_layers])
@torch.no_grad()
def test_a_decoder_may_end_in_a_relu(monkeypatch, functions):
    """The energy is written over the decoder's output, of which the last ReLU's derivative is made."""
    take(monkeypatch, functions)
    m, x = model(True), images()
    m.decoder = network(4, 16, x.shape[1], ends_in_relu=True)
    z, found = torch.randn(len(x), 4), []
    for kind in (DensePass, RecomputingPass):
        decoder = kind(m, x, by_row=True)
        energy, z_grad = decoder.evaluate(z)
        decoder.start()
        found.append([energy, z_grad, *decoder.weight_gradients()])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture
def card(monkeypatch):
    """A GPU whose kernels would serve."""
    monkeypatch.setenv(whole_layers.VARIABLE, "whole")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(whole_layers.ops, "is_compiled", lambda device: True)
    return torch.device("cuda")


def test_a_card_with_the_kernels_takes_them(card):
    assert whole_layers.obstacle(card) is None
    assert whole_layers.obstacle(card, network(8, 256, 896, 784).layers(), ("float32", "float32")) is None
    assert whole_layers.obstacle(card, network(784, 256, 256, ends_in_relu=True).layers()) is None


@pytest.mark.parametrize(
    ("net", "precisions", "reason"),
    [
        (network(8, 256, 784), ("float32", "tf32"), "products are tf32"),
        (network(8, 256, 784).double(), (), "products are torch.float64"),
        (network(2, 256, 784), (), "a layer has 2 features; expected multiples of 4, at most 896"),
        (network(8, 900, 784), (), "a layer has 900 features"),
    ],
)
def test_what_a_network_lacks_is_said(card, net, precisions, reason):
    assert whole_layers.obstacle(card, net.layers(), precisions).startswith(reason)


def test_products_that_the_program_rounds_are_in_parts(card):
    layers = network(8, 256, 784).layers(dtype=torch.bfloat16)
    assert whole_layers.obstacle(card, layers) == "products are torch.bfloat16; expected float32"
    with products_in("tf32", card):
        assert (
            whole_layers.obstacle(card, network(8, 256, 784).layers())
            == "products are tf32; expected float32"
        )


def test_parameters_that_loads_of_16_bytes_cannot_take_are_noticed(card):
    net = network(8, 256, 784)
    flat = torch.zeros(257)
    net[0].bias = nn.Parameter(flat[1:])
    assert "16 bytes" in whole_layers.obstacle(card, net.layers())
    net[0].bias = nn.Parameter(flat[:256])
    net[0].weight = nn.Parameter(torch.zeros(8, 256).T)
    assert "not contiguous" in whole_layers.obstacle(card, net.layers())


def test_what_a_device_lacks_is_said(card, monkeypatch):
    assert whole_layers.obstacle(torch.device("cpu")) == "only GPUs have kernels of whole layers"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert whole_layers.obstacle(card) == "the GPU has compute capability 8.6; expected 9.0"
    monkeypatch.setattr(whole_layers.ops, "is_compiled", lambda device: False)
    assert whole_layers.obstacle(card) == "the compiled kernels for GPUs are not in use"


def test_info_says_which_serves(monkeypatch):
    for obstacle, words in (
        ("too old", "a product and a norm each: too old"),
        (None, "one kernel each, where widths"),
    ):
        monkeypatch.setattr(whole_layers, "obstacle", lambda *_, obstacle=obstacle: obstacle)
        assert info.report()["network layers"].startswith(words)


def test_who_asks_for_layers_in_parts_gets_them(card, monkeypatch):
    for choice in ("whole", "parts"):
        monkeypatch.setenv("LAE_FAST_LAYERS", choice)
        reason = None if choice == "whole" else "LAE_FAST_LAYERS=parts asks for that"
        assert whole_layers.obstacle(card) == reason
    monkeypatch.delenv("LAE_FAST_LAYERS")
    assert whole_layers.obstacle(card) is None
    monkeypatch.setenv("LAE_FAST_LAYERS", "fast")
    with pytest.raises(ValueError, match="LAE_FAST_LAYERS='fast'; expected one of whole, parts"):
        whole_layers.obstacle(card)


def test_a_layer_of_no_features_is_in_parts(card):
    layers = network(8, 256, 784).layers()
    layers[-1] = layers[-1]._replace(weight=torch.zeros(0, 256), bias=torch.zeros(0))
    assert whole_layers.obstacle(card, layers).startswith("a layer has 0 features")
