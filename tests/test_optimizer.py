"""Our Adam: PyTorch's numbers, state and options, by a kernel where it serves, by PyTorch's own step elsewhere."""

import copy
import io

import pytest
import torch
from torch import nn

from lae_fast import models, ops, training
from lae_fast.training import optimizer as optimizer_module
from lae_fast.training.optimizer import Adam

SHAPES = [(7, 5), (5,), (3,), (1,), (40, 30)]


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """How many parameters each call of the op had. The op serves on a CPU, too, there by its reference."""
    counts, op = [], ops.adam_unchecked_

    def counted(params, *others):
        counts.append(len(params))
        op(params, *others)

    monkeypatch.setattr(ops, "adam_unchecked_", counted)
    monkeypatch.setattr(optimizer_module, "_has_kernel", lambda device: True)
    return counts


def parameters(dtype=torch.float64, device="cpu"):
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(device, dtype)) for s in SHAPES]


def set_gradients(params, seed):
    g = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p)


def ours(params, lr=1e-2, betas=(0.7, 0.99)):
    return Adam(params, torch.tensor(lr, device=params[0].device), betas)


def torchs(params, lr=1e-2, betas=(0.7, 0.99), **options):
    lr = torch.tensor(lr, device=params[0].device)
    return torch.optim.Adam(params, lr, betas, **dict(fused=True, capturable=True) | options)


def take(optimizer, first, last):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for seed in range(first, last):
        set_gradients(params, seed)
        optimizer.step()


def assert_same(a, b, tolerance):
    for p, q in zip(a.param_groups[0]["params"], b.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        for name, value in a.state[p].items():
            torch.testing.assert_close(value, b.state[q][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_steps_are_pytorch_s(dtype, tolerance, device, calls):
    a, b = ours(parameters(dtype, device)), torchs(parameters(dtype, device))
    take(a, 0, 6)
    take(b, 0, 6)
    assert calls == [5] * 5  # PyTorch's own step has made the state
    assert_same(a, b, tolerance)


def test_options_and_state_are_pytorch_s_and_either_loads_the_other_s(device):
    pairs = []
    for first, second in ((ours, torchs), (torchs, ours), (ours, ours)):
        a = first(parameters(device=device))
        take(a, 0, 3)
        file = io.BytesIO()
        torch.save(a.state_dict(), file)
        b = second([nn.Parameter(p.detach().clone()) for p in a.param_groups[0]["params"]])
        b.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
        take(b, 3, 6)
        pairs.append((a, b))
    states = [a.state_dict() for a, _ in pairs]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for i, state in states[0]["state"].items():
        assert list(state) == list(states[1]["state"][i])
        assert [t.dtype for t in state.values()] == [t.dtype for t in states[1]["state"][i].values()]
    for _, b in pairs[1:]:
        assert_same(pairs[0][1], b, 1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"amsgrad": True},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"fused": False, "foreach": True, "capturable": False, "lr": 0.01},
        {"capturable": False},
        {"lr": 0.01},
    ],
)
def test_other_options_are_left_to_pytorch(change, calls):
    a, b = (make(parameters()) for make in (ours, torchs))
    for optimizer in (a, b):
        optimizer.param_groups[0].update(change)
        take(optimizer, 0, 4)
    assert not calls
    assert_same(a, b, 0)


def test_other_gradients_and_closures_are_left_to_pytorch(calls):
    params = parameters()
    optimizer, x = ours(params), torch.ones(3)
    take(optimizer, 0, 2)
    assert calls == [5]
    params[0].grad = torch.zeros(5, 7, dtype=torch.float64).T  # not contiguous
    assert optimizer._arguments(optimizer.param_groups[0]) is None
    set_gradients(params, 0)

    def closure():
        assert torch.is_grad_enabled()
        return (x * 2).sum()

    assert optimizer.step(closure) == 6
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    before = params[0].clone()
    optimizer.step()  # a gradient scaler has found an infinity: no step
    assert torch.equal(params[0], before)
    assert calls == [5]
    del optimizer.grad_scale, optimizer.found_inf
    optimizer.step()
    assert calls == [5, 5]


def test_parameters_without_a_gradient_stay(calls):
    params = parameters()
    optimizer = ours(params)
    take(optimizer, 0, 2)
    before = [p.clone() for p in params]
    params[1].grad = params[4].grad = None
    optimizer.step()
    assert calls == [5, 3]
    assert [torch.equal(p, q) for p, q in zip(params, before, strict=True)] == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert optimizer.state[params[1]]["step"] == 2
    optimizer.zero_grad()
    optimizer.step()  # no gradient at all
    assert calls == [5, 3, 0]


def test_hooks_are_called_once():
    torchs(parameters())  # from now on PyTorch's step calls hooks, too
    optimizer, seen = ours(parameters()), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    take(optimizer, 0, 2)  # by PyTorch's step, and by the op
    assert seen == ["before", "after"] * 2


def test_autograd_and_copies(device):
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64, device=device))
    optimizer = ours([weight])
    take(optimizer, 0, 1)
    loss = (weight @ weight).sum()
    take(optimizer, 1, 2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    copied = copy.deepcopy(optimizer)
    take(optimizer, 2, 4)
    take(copied, 2, 4)
    assert_same(optimizer, copied, 0)
    assert not (weight == 1).any()


def test_a_cpu_has_pytorch_s_own():
    assert type(training.adam(nn.Linear(2, 1), 1e-3)) is torch.optim.Adam


@pytest.mark.parametrize(("decisions", "beta1"), [("datapoint", 0.9), ("joint", 0.5)])
def test_adam_has_the_momentum_of_its_model(decisions, beta1):
    model = models.build(models.Architecture("lae", nx=4, nz=2, nh=4, depth=1), decisions=decisions)
    assert training.adam(model, 1e-3).param_groups[0]["betas"] == (beta1, 0.999)
    assert training.adam(model, 1e-3, 0.7).param_groups[0]["betas"] == (0.7, 0.999)
    assert training.adam(model.decoder, 1e-3).param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, device):
    lists = [[torch.rand(s, dtype=dtype, device=device) for s in SHAPES] for _ in range(4)]
    steps = [torch.zeros((), device=device) for _ in SHAPES]
    lr = torch.tensor(1e-3, device=device)
    torch.library.opcheck(torch.ops.lae_fast.adam_.default, (*lists, steps, lr, 0.9, 0.999, 1e-8))
