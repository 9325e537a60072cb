"""The chain's decoder by one op a layer: the same numbers as by products and norms, and when which of them serves.

A CPU has no such kernels: here the ops' references serve.
"""

import itertools

import pytest
import torch
from test_dense import images, model
from torch import nn

from lae_fast import info
from lae_fast.models import mlp, whole_layers
from lae_fast.models.decoder_pass import decoder_pass
from lae_fast.training.step import TrainingStep, adam

CASES = [
    {},
    {"decisions": "datapoint", "step_size": 0.3},
    {"decisions": "datapoint", "decoder_window": "after", "feature_window": "after", "n_steps": 4},
    {"likelihood": "logistic"},
    {"mh": False},
]


def take(monkeypatch, network):
    """Evaluate decoders by the functions of `network`."""
    obstacle = None if network is whole_layers else "the test"
    monkeypatch.setattr(whole_layers, "obstacle", lambda *_: obstacle)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@torch.no_grad()  # as within a step
def test_an_evaluation_is_that_by_products_and_norms(monkeypatch, dtype, error):
    m, x = model(True, dtype=dtype), images(dtype=dtype)
    found = []
    for network in (mlp, whole_layers):
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
    for network in (mlp, whole_layers):
        take(monkeypatch, network)
        m = model(True, dtype=torch.float64, **options)
        start = m.phi.clone()
        step = TrainingStep(m, adam(m, lr=1e-3))
        losses = torch.stack([step(images(dtype=torch.float64, seed=i)) for i in range(3)])
        assert not torch.equal(m.phi, start)
        states.append([losses, *m.state_dict().values()])
    for got, wanted in zip(*states, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def network(*widths, ends_in_relu=False):
    modules = []
    for k, m in itertools.pairwise(widths):
        modules += [nn.Linear(k, m), nn.LayerNorm(m), nn.ReLU()]
    return mlp.MLP(*(modules if ends_in_relu else modules[:-2]))


@pytest.fixture
def card(monkeypatch):
    """A GPU whose kernels would serve."""
    monkeypatch.delenv(whole_layers.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(whole_layers.ops, "is_compiled", lambda device: True)
    return torch.device("cuda")


def test_a_card_with_the_kernels_takes_them(card):
    assert whole_layers.obstacle(card) is None
    assert whole_layers.obstacle(card, network(8, 256, 896, 784).layers(), ("float32", "float32")) is None


@pytest.mark.parametrize(
    ("net", "precisions", "reason"),
    [
        (network(8, 256, 784), ("float32", "tf32"), "products are tf32"),
        (network(8, 256, 784).double(), (), "products are torch.float64"),
        (network(8, 256, 784, ends_in_relu=True), (), "the network ends in a ReLU"),
        (network(2, 256, 784), (), "a layer has 2 features; expected multiples of 4, at most 896"),
        (network(8, 900, 784), (), "a layer has 900 features"),
    ],
)
def test_what_a_network_lacks_is_said(card, net, precisions, reason):
    assert whole_layers.obstacle(card, net.layers(), precisions).startswith(reason)


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
        assert info.report()["decoder layers"].startswith(words)


def test_who_asks_for_parts_gets_them(card, monkeypatch):
    monkeypatch.setenv("LAE_FAST_LAYERS", "parts")
    assert whole_layers.obstacle(card) == "LAE_FAST_LAYERS=parts asked for it"
    monkeypatch.setenv("LAE_FAST_LAYERS", "whole")
    assert whole_layers.obstacle(card) is None
    monkeypatch.setenv("LAE_FAST_LAYERS", "fast")
    with pytest.raises(ValueError, match="LAE_FAST_LAYERS='fast'; expected one of whole, parts"):
        whole_layers.obstacle(card)
