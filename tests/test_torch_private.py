"""Torch's private names may go: what serves then gives the same results."""

import pytest
import torch
from torch import nn
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lae_fast import MLP
from lae_fast.ops import torch_private


def network():
    torch.manual_seed(0)
    return MLP(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def gradients(net, x):
    net.zero_grad()
    net(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize(
    "gone",
    [
        (torch._C, "_will_engine_execute_node"),
        (torch, "_foreach_add_"),
    ],
    ids=lambda gone: gone[1],
)
def test_a_network_computes_the_same_without(gone, monkeypatch):
    net, x = network(), torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    expected = net(x), gradients(net, x)
    monkeypatch.delattr(*gone)
    torch.testing.assert_close((net(x), gradients(net, x)), expected)


def test_without_the_transforms_state_everything_counts_as_transformed(monkeypatch):
    net, x = network(), torch.randn(4, 5)
    expected = net(x)
    assert net.takes_fast_path(x)
    monkeypatch.delattr(torch._C, "_are_functorch_transforms_active")  # torch's own backward pass needs it
    assert torch_private.is_transformed()
    assert not net.takes_fast_path(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)


class Bare:
    """A module of a torch that keeps hooks and parameters under other names."""

    def __init__(self, module):
        self.module = module

    def named_parameters(self, recurse=True):
        return self.module.named_parameters(recurse=recurse)


def test_a_module_without_the_known_dictionaries():
    layer = nn.Linear(3, 2)
    assert not torch_private.is_altered(layer)
    assert torch_private.is_altered(Bare(layer))  # nobody knows: the layers run one by one
    own, other = torch_private.own_parameters(layer), torch_private.own_parameters(Bare(layer))
    assert own.keys() == other.keys() == {"weight", "bias"}
    assert all(own[name] is other[name] for name in own)


def test_one_op_on_each_with_and_without_one_launch_for_all(monkeypatch):
    for is_gone in (False, True):
        if is_gone:
            monkeypatch.delattr(torch, "_foreach_add_")
            monkeypatch.delattr(torch, "_foreach_mul_")
        totals = [torch.ones(2), torch.zeros(3)]
        torch_private.on_each("add_", totals, [torch.full((2,), 2.0), torch.ones(3)])
        torch_private.on_each("mul_", totals, 0.5)
        torch_private.on_each("mul_", [], 0.5)
        assert [t.tolist() for t in totals] == [[1.5, 1.5], [0.5, 0.5, 0.5]]


def test_what_is_traced_is_known_where_torch_tells_it(monkeypatch):
    found = []
    make_fx(lambda t: found.append(torch_private.is_traced()) or t * 2)(torch.ones(2))
    assert found == [True]
    assert not torch_private.is_traced()
    monkeypatch.delattr(proxy_tensor, "get_proxy_mode")
    assert not torch_private.is_traced()


def test_hooks_on_parameters():
    p = torch.nn.Parameter(torch.ones(2))
    assert not torch_private.has_hooks(p)
    for register in (p.register_hook, p.register_post_accumulate_grad_hook):
        handle = register(lambda _: None)
        assert torch_private.has_hooks(p)
        handle.remove()
        assert not torch_private.has_hooks(p)
    assert torch_private.has_hooks(object())  # nobody knows


def test_without_onednn_there_is_no_other_linear(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert torch_private.onednn_linear() is None
    monkeypatch.undo()
    linear = torch_private.onednn_linear()
    if linear is None:
        pytest.skip("this torch has no oneDNN")
    a, weight, bias = torch.randn(4, 5), torch.randn(3, 5), torch.randn(3)
    torch.testing.assert_close(linear(a, weight, bias), a @ weight.T + bias)
