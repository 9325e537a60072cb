"""A network's layers as one op each, against PyTorch's own layers in float64."""

import math

import numpy as np
import pytest
import torch

from lae_fast import ops
from lae_fast.ops import layer

EPS = 1e-5
ERROR = {"cuda": 2e-7, "cpu": 4e-7}  # of a product; on a CPU it is that of torch's library
SHAPES = [(1, 4, 4), (33, 36, 100), (5, 896, 36), (70, 8, 256), (40, 256, 784), (0, 8, 8)]


def normal(*shape, device="cpu", seed=0, size=1.0, shift=0.0):
    t = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (size * t + shift).to(device, torch.float32)


def product_error(got, a, weight, bias=0.0):
    """The error of a product a weight^T + bias, in units of what its norm would be if the factors were random."""
    norm = (a.norm() * weight.norm() / max(a.shape[1], 1) ** 0.5).item()
    return (got.double() - (a @ weight.double().T + bias)).norm().item() / (norm or 1.0)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("n", "k", "m"), SHAPES)
def test_a_layer_is_norm_relu_and_a_product(n, k, m, has_norm, device):
    x = normal(n, k, device=device, size=3, shift=1)
    weight, bias = normal(m, k, device=device, seed=1, size=k**-0.5), normal(m, device=device, seed=2)
    norm = [normal(k, device=device, seed=3), normal(k, device=device, seed=4)]
    given = [layer.moments_of(x), *norm, EPS] if has_norm else []
    y, moments, statistics = ops.layer_forward(x, weight, bias, *given)
    a = x.double()
    if has_norm:
        a = torch.nn.functional.layer_norm(a, (k,), norm[0].double(), norm[1].double(), EPS).relu()
    assert product_error(y, a, weight, bias.double()) < ERROR[device]
    wanted = layer.moments_of(y.double())
    torch.testing.assert_close(moments.double(), wanted, rtol=1e-5, atol=1e-5)
    assert statistics.shape == (n if has_norm else 0, 2)
    if has_norm:
        exact = x.double()
        distance = exact - exact.mean(1, keepdim=True)
        wanted = torch.stack((exact.mean(1), (distance.square().mean(1) + EPS).rsqrt()), 1)
        torch.testing.assert_close(statistics.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("has_input_norm", [False, True])
@pytest.mark.parametrize(("n", "k", "m"), [(n, m, k) for n, k, m in SHAPES])
def test_a_layer_s_gradient_is_autograd_s(n, k, m, has_norm, has_input_norm, device):
    """Of relu(norm(a weight^T)) with a = relu(norm(x)), each norm where there is one."""
    x, y = normal(n, k, device=device, size=3, shift=1), normal(n, m, device=device, seed=1, size=3)
    weight, grad = (
        normal(m, k, device=device, seed=2, size=m**-0.5),
        normal(n, m, device=device, seed=3, size=1e6),
    )
    norms = [[normal(w, device=device, seed=s) for s in (4, 5)] for w in (k, m)]

    def norm_relu(t, weight, bias):
        return torch.nn.functional.layer_norm(t, t.shape[1:], weight.double(), bias.double(), EPS).relu()

    y_leaf, x_leaf = (t.double().requires_grad_() for t in (y, x))
    g, given = grad.double(), {}
    if has_norm:
        out = norm_relu(y_leaf, *norms[1])
        grad = grad.masked_fill(out <= 0, 0)
        (g,) = torch.autograd.grad(out, y_leaf, grad.double())
        moments = layer.moments_of(y)
        statistics = layer.statistics_of(moments, m, EPS)
        y_sums = layer.sums_of(grad, layer.normalized(y, statistics), norms[1][0])
        given |= dict(y=y, y_moments=moments, y_norm_weight=norms[1][0], y_sums=y_sums, y_eps=EPS)
    wanted = g @ weight.double()
    if has_input_norm:
        before = torch.nn.functional.layer_norm(x_leaf, (k,), *(t.double() for t in norms[0]), EPS)
        wanted = wanted.masked_fill(before <= 0, 0)
        given |= dict(
            x=x, x_moments=layer.moments_of(x), x_norm_weight=norms[0][0], x_norm_bias=norms[0][1], x_eps=EPS
        )
    x_grad, sums, means = ops.layer_backward(grad, weight, **given)
    if has_input_norm:  # rounding decides whether a ReLU cuts off at 0
        wanted = wanted.where(before.abs() > 1e-5, x_grad.double())
    scale = max((g.norm() * weight.norm()).item() / m**0.5, 1e-30)
    assert (x_grad.double() - wanted).norm().item() < 6e-6 * scale
    assert means.shape == (n if has_norm else 0, 2)
    if has_norm:
        torch.testing.assert_close(means, y_sums.sum(1) / m, rtol=1e-5, atol=1.0)
    assert sums.shape == (n, layer.n_parts(k) if has_input_norm else 0, 2)
    if has_input_norm:
        normalized = torch.nn.functional.layer_norm(x.double(), (k,), eps=EPS)
        wanted = layer.sums_of(x_grad.double(), normalized, norms[0][0].double())
        torch.testing.assert_close(
            sums.double(), wanted, rtol=0, atol=1e-5 * max(wanted.abs().max().item() if n else 0, 1)
        )


def gradient_problem(n, widths, device="cpu"):
    """What `layer_gradients` takes for a network of these widths, its input's first."""
    inputs = [normal(n, k, device=device, seed=i, size=3, shift=1) for i, k in enumerate(widths[:-1])]
    norms = [[normal(k, device=device, seed=s + i) for s in (50, 100)] for i, k in enumerate(widths[1:-1])]
    grads = [normal(n, m, device=device, seed=150 + i, size=1e6) for i, m in enumerate(widths[1:])]
    statistics, means = [], []
    for i, (weight, bias) in enumerate(norms):
        y = inputs[i + 1]
        statistics.append(layer.statistics_of(layer.moments_of(y), y.shape[1], EPS))
        normalized = layer.normalized(y, statistics[i])
        grads[i].masked_fill_(torch.addcmul(bias, normalized, weight) <= 0, 0)
        means.append(layer.means_of(layer.sums_of(grads[i], normalized, weight), y.shape[1]))
    return inputs, statistics, [w for w, _ in norms], [b for _, b in norms], grads, means


@pytest.mark.parametrize(
    ("n", "widths"),
    [(1, (4, 4, 4)), (70, (36, 100, 8, 12)), (0, (8, 4, 4)), (130, (8, 12) * 10), (65, (8, 4))],
)
def test_gradients_of_all_layers_are_autograd_s(n, widths, device):
    inputs, statistics, weights, biases, grads, means = gradient_problem(n, widths, device)
    got = iter(ops.layer_gradients_unchecked(inputs, statistics, weights, biases, grads, means))
    a = inputs[0].double()
    for i, grad in enumerate(grads):
        g, out, norm = grad.double(), None, []
        if i < len(weights):
            y, *norm = (t.double().requires_grad_() for t in (inputs[i + 1], weights[i], biases[i]))
            out = torch.nn.functional.layer_norm(y, y.shape[1:], *norm, EPS)
            g, *norm = torch.autograd.grad(out, (y, *norm), g)
        scale = (g.norm() * a.norm()).item() / max(n, 1) ** 0.5
        assert (next(got).double() - g.T @ a).norm().item() <= 1e-5 * scale
        for wanted in (g.sum(0), *norm):
            torch.testing.assert_close(
                next(got).double(), wanted, rtol=0, atol=1e-6 * grad.abs().double().sum().item() + 1e-30
            )
        a = None if out is None else out.detach().relu()
    assert next(got, None) is None


def test_moments_join_to_those_of_the_row():
    y = normal(3, 100, size=2, shift=50).double()
    statistics = layer.statistics_of(layer.moments_of(y), 100, EPS)
    wanted = torch.nn.functional.layer_norm(y, (100,), eps=EPS)
    torch.testing.assert_close(layer.normalized(y, statistics), wanted)
    torch.testing.assert_close(statistics[:, 1], (y.var(1, correction=0) + EPS).rsqrt())


def test_a_nan_stays_in_its_row(device):
    x, weight, bias = (normal(*shape, device=device) for shape in ((34, 36), (40, 36), (40,)))
    x[1, 2] = math.nan
    first, moments, _ = ops.layer_forward(x, weight, bias)
    second, _, _ = ops.layer_forward(first, weight.T.contiguous(), x[0], moments, bias, bias, EPS)
    for y in (first, second):
        assert y[1].isnan().all()
        assert y[[0, *range(2, 34)]].isfinite().all()


def test_rows_may_begin_anywhere(device):
    x, weight, bias = (
        normal(37, device=device)[1:].view(1, 36),
        normal(8, 36, device=device),
        normal(9, device=device),
    )
    y, _, _ = ops.layer_forward(x, weight, bias[1:])
    assert product_error(y, x.double(), weight, bias[1:].double()) < ERROR[device]


def test_what_another_library_s_memory_holds_is_copied_where_it_is_not_aligned():
    """Such a tensor has no offset, wherever it begins."""
    memory = np.zeros(41, np.float32)
    first = -memory.ctypes.data // 4 % 4 + 1  # not at a multiple of 16 bytes
    x = torch.from_numpy(memory[first : first + 36])
    assert x.storage_offset() == 0
    assert x.data_ptr() % 16
    assert layer.aligned(x).data_ptr() % 16 == 0
    whole = torch.zeros(36)
    assert layer.aligned(whole) is whole


def test_what_does_not_fit_is_named():
    x, weight, bias = normal(3, 36), normal(8, 36), normal(8)
    moments = layer.moments_of(x)
    with pytest.raises(ValueError, match=r"x is .*; expected columns in multiples of 4, at most 896"):
        ops.layer_forward(normal(3, 900), normal(8, 900), bias)
    with pytest.raises(ValueError, match=r"weight\.T is .*; expected columns in multiples of 4"):
        ops.layer_forward(x, normal(7, 36), normal(7))
    with pytest.raises(
        ValueError, match="norm_weight is None beside moments; expected all of moments, norm_weight"
    ):
        ops.layer_forward(x, weight, bias, moments)
    with pytest.raises(ValueError, match=r"moments is .*; expected float32 \[3, 2, 2\]"):
        ops.layer_forward(x, weight, bias, moments[:, :1], normal(36), normal(36))
    with pytest.raises(ValueError, match="x is float64"):
        ops.layer_forward(x.double(), weight, bias)


def test_opcheck(device):
    x, weight, bias, norm = (normal(*shape, device=device) for shape in ((6, 40), (8, 40), (8,), (40,)))
    forward = torch.ops.lae_fast.layer_forward.default
    torch.library.opcheck(forward, (x, weight, bias, None, None, None, 0.0))
    moments = layer.moments_of(x)
    torch.library.opcheck(forward, (x, weight, bias, moments, norm, norm, EPS))
    backward = torch.ops.lae_fast.layer_backward.default
    torch.library.opcheck(backward, (x, weight.T.contiguous(), *[None] * 4, 0.0, *[None] * 4, 0.0))
    own = (x, moments, norm, layer.sums_of(x, x, norm), EPS)
    torch.library.opcheck(backward, (x, normal(40, 40, device=device), *own, x, moments, norm, norm, EPS))
    gradients = torch.ops.lae_fast.layer_gradients.default
    torch.library.opcheck(gradients, gradient_problem(5, (8, 12, 4), device))
