"""The fully connected fast path against PyTorch's own layers, and against float64."""

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lae_fast import (
    LAE,
    Bernoulli,
    DiscretizedLogistic,
    Gaussian,
    ald_init,
    ald_step,
    ops,
)
from lae_fast.models import nets, products
from lae_fast.models.mlp import MLP
from lae_fast.ops import dense as dense_ops
from lae_fast.ops import library

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


def norm_problem(n, d, dtype, device="cpu"):
    g = torch.Generator().manual_seed(n + d)
    y, grad = torch.randn(2, n, d, generator=g, dtype=torch.float64) * 3 + 0.5
    weight, bias = torch.randn(2, d, generator=g, dtype=torch.float64)
    return [t.to(device, dtype) for t in (y, grad, weight, bias)]


NORM_RELU = {
    "op": (ops.norm_relu, ops.norm_relu_backward, ops.norm_relu_sums),
    "reference": (
        dense_ops.norm_relu_reference,
        dense_ops.norm_relu_backward_reference,
        dense_ops.norm_relu_sums_reference,
    ),
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("implementation", ["op", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 17), (70, 256), (0, 5)])
def test_norm_relu_is_layer_norm_and_relu(n, d, dtype, implementation, device):
    forward, backward, add_rows = NORM_RELU[implementation]
    y, grad, weight, bias = norm_problem(n, d, dtype, device)
    exact = [t.double().clone().requires_grad_() for t in (y, weight, bias)]
    wanted = F.layer_norm(exact[0], (d,), exact[1], exact[2], 1e-5).relu()
    out, rstd = forward(y, weight, bias, 1e-5)
    tolerance = 60 * EPS[dtype]
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance * 5)
    y_grad = backward(grad, out, y, rstd, weight)
    sums = add_rows(grad, out, y, y_grad)
    mask = (out > 0) == (wanted > 0)  # a value within rounding of 0 may fall on either side
    assert mask.all()
    wanted.backward(grad.double())
    torch.testing.assert_close(y_grad.double(), exact[0].grad, rtol=0, atol=tolerance * 20)
    column = torch.stack((exact[1].grad, exact[2].grad, exact[0].grad.sum(0)))
    torch.testing.assert_close(sums.double(), column, rtol=0, atol=tolerance * 20 * max(n, 1) ** 0.5)


def test_norm_relu_keeps_a_nan(device):
    y, grad, weight, bias = norm_problem(4, 8, torch.float32, device)
    y[1, 2] = math.nan
    out, rstd = ops.norm_relu(y, weight, bias, 1e-5)
    assert out[1].isnan().all()
    assert out[[0, 2, 3]].isfinite().all()
    y_grad = ops.norm_relu_backward(grad, out, y, rstd, weight)
    assert y_grad[1].isnan().all()
    assert y_grad[[0, 2, 3]].isfinite().all()


def fingerprint():
    """One for each number of threads."""
    before, digests = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        digest = hashlib.sha256()
        for dtype in (torch.float32, torch.float64):
            y, grad, weight, bias = norm_problem(130, 77, dtype)
            out, rstd = ops.norm_relu(y, weight, bias, 1e-5)
            y_grad = ops.norm_relu_backward(grad, out, y, rstd, weight)
            for t in (y, out, rstd, y_grad, ops.norm_relu_sums(grad, out, y, y_grad)):
                digest.update(t.numpy().tobytes())
        digests.append(digest.hexdigest())
    torch.set_num_threads(before)
    return digests


@pytest.mark.skipif(
    library.simd_level() not in ("avx2", "avx512"), reason="needs compiled kernels for x86-64"
)
@pytest.mark.slow
def test_every_simd_level_and_thread_count_computes_the_same_bits(fingerprints):
    digests = [digest for found in fingerprints.values() for digest in found["test_dense"]]
    assert len(digests) == 2 * len(fingerprints)
    assert {*digests, *fingerprint()} == {digests[0]}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("accepted", [True, False])
def test_keep_selects(accepted, device):
    latest = [torch.full((n,), math.nan, device=device) for n in (5, 4096, 0, 70_000)]
    latest.append(torch.full((3,), math.inf, dtype=torch.float64, device=device))
    latest.append(torch.tensor(math.nan, device=device))
    previous = [torch.arange(t.numel(), dtype=t.dtype, device=device).view_as(t) for t in latest]
    wanted = latest if accepted else previous
    for keep in (ops.keep, dense_ops.keep_reference):
        found = [t.clone() for t in latest]
        keep(found, previous, torch.tensor([accepted], device=device))
        for got, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("n", [1, 3, 2000])
def test_keep_selects_row_by_row(n, device):
    """Rows of 3 bytes up to 2 MB, some of them not whole multiples of 16 bytes."""
    is_accepted = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
    shapes = [(n,), (n, 1), (n, 3), (n, 4, 5), (n, 0), (n, 10**6 // n)]
    latest = [torch.full(shape, math.nan, device=device) for shape in shapes]
    latest.append(torch.full((n, 3), 7, dtype=torch.uint8, device=device))
    previous = [torch.randn(t.shape).to(t) for t in latest]
    wanted = [t.clone() for t in latest]
    for new, old in zip(wanted, previous, strict=True):
        new[~is_accepted] = old[~is_accepted]
    ops.keep(latest, previous, is_accepted.to(device))
    for got, expected in zip(latest, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_keep_refuses_what_has_other_rows(device):
    flags, t = torch.tensor([True, False], device=device), torch.zeros(3, 2, device=device)
    with pytest.raises(ValueError, match=r"latest\[0\] .* as many rows as is_accepted"):
        ops.keep([t], [t.clone()], flags)
    with pytest.raises(RuntimeError):
        dense_ops.keep_reference([t], [t.clone()], flags)


def test_opcheck(device):
    y, grad, weight, bias = norm_problem(6, 5, torch.float32, device)
    out, rstd = ops.norm_relu(y.clone(), weight, bias, 1e-5)
    namespace = torch.ops.lae_fast
    torch.library.opcheck(namespace.norm_relu.default, (y, weight, bias, 1e-5))
    torch.library.opcheck(namespace.norm_relu_backward.default, (grad, out, y, rstd, weight))
    torch.library.opcheck(namespace.norm_relu_sums.default, (grad, out, y, y))
    torch.library.opcheck(namespace.keep.default, ([y], [grad], torch.tensor([False], device=device)))


def test_the_compiler_takes_products_as_large_as_onednn_s():
    a, weight, bias = torch.randn(512, 32), torch.randn(64, 32), torch.randn(64)
    compiled = torch.compile(products.linear, fullgraph=True)(a, weight, bias)
    torch.testing.assert_close(compiled, products.linear(a, weight, bias), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("n", "k", "m"), [(512, 256, 784), (512, 784, 256), (512, 8, 256), (100, 256, 8), (3, 2, 5)]
)
def test_products(n, k, m):
    g = torch.Generator().manual_seed(0)
    a, weight, bias = (
        torch.randn(n, k, generator=g),
        torch.randn(m, k, generator=g),
        torch.randn(m, generator=g),
    )
    grad = torch.randn(n, m, generator=g)
    cases = [  # the product, its two factors, what is added
        (lambda d: products.linear(a, weight, bias, d), a, weight.T, bias),
        (lambda d: products.input_gradient(grad, weight, d), grad, weight, torch.zeros(1)),
        (lambda d: products.weight_gradient(grad, a, d), grad.T, a, torch.zeros(1)),
    ]
    for product, left, right, added in cases:
        single, rounded = product(None), product(torch.bfloat16)
        assert single.dtype == rounded.dtype == torch.float32
        left, right, added = left.double(), right.double(), added.double()
        exact, sizes = left @ right + added, left.abs() @ right.abs() + added.abs()
        assert (
            (single - exact).abs() <= (left.shape[1] + 1) * 2.0**-24 * sizes
        ).all()  # whatever the order of sums
        error = (rounded.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert 1e-4 < error < 1e-2  # bfloat16's error, and no smaller: bfloat16 was asked for


def network(encoder=False):
    torch.manual_seed(0)
    net = nets.mlp(60, 4, nh=300)[0 if encoder else 1]
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net


@pytest.mark.parametrize("encoder", [True, False])
def test_mlp_is_its_layers(encoder):
    net = network(encoder)
    x = torch.randn(200, 60 if encoder else 4)
    weights = torch.randn(200, 300 if encoder else 60)
    results = {}
    for is_fast in (True, False):
        net.is_fast = is_fast
        assert net.takes_fast_path(x) == is_fast
        leaf = x.clone().requires_grad_()
        out = net(leaf)
        grads = torch.autograd.grad((out * weights).sum(), [leaf, *net.parameters()])
        results[is_fast] = (out, *grads)
    for name, fast, plain in zip(["out", "x", *dict(net.named_parameters())], *results.values(), strict=True):
        assert fast.shape == plain.shape
        assert (fast - plain).abs().max() <= 3e-5 * plain.abs().max(), name


def test_mlp_has_the_layers_of_a_sequential():
    net = network()
    plain = nn.Sequential(*net)
    assert list(net.state_dict()) == list(plain.state_dict())
    x = torch.randn(7, 4, dtype=torch.float64)
    assert torch.equal(net.double()(x), plain(x))  # float64: PyTorch's own layers
    assert not net.takes_fast_path(x)
    net.float()
    x = x.float()
    torch.testing.assert_close(torch.func.vmap(net)(x[:, None])[:, 0], net(x))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))


def test_mlp_under_autocast_rounds_its_products():
    net, x = network(), torch.randn(200, 4)
    exact = net(x)
    results = []
    for is_fast in (True, False):
        net.is_fast = is_fast
        with torch.autocast("cpu", torch.bfloat16):
            results.append(net(x).float())
    errors = [((r - exact).square().mean() / exact.square().mean()).sqrt() for r in results]
    assert 1e-3 < errors[0] < 3 * errors[1] < 0.2


def test_weight_gradients_are_made_only_when_somebody_wants_them(monkeypatch):
    net, x = network(), torch.randn(20, 4, requires_grad=True)
    calls, original = [], products.weight_gradient
    monkeypatch.setattr(products, "weight_gradient", lambda *a: calls.append(1) or original(*a))
    state = ald_init(lambda phi: net(phi).sum(), x.detach(), 1e-3)
    state, _ = ald_step(lambda phi: net(phi).sum(), state)
    torch.autograd.grad(net(2 * x).sum(), x)
    net(x).sum().backward(inputs=[x])
    assert not calls
    state.potential.backward()
    assert calls
    assert net[0].weight.grad is not None
    calls.clear()
    (last,) = torch.autograd.grad(net(x).sum(), [net[-1].weight])
    assert calls
    net.zero_grad()
    net(x).sum().backward()
    assert torch.equal(net[-1].weight.grad, last)


def test_mlp_refuses_a_second_derivative():
    net, x = network(), torch.randn(20, 4, requires_grad=True)
    (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative through lae_fast\.MLP"):
        torch.autograd.grad(first.square().sum(), list(net.parameters()), retain_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative through lae_fast\.MLP"):
        first.square().sum().backward()
    net.is_fast = False
    (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    first.square().sum().backward()


def test_mlp_names_layers_it_cannot_take():
    with pytest.raises(ValueError, match="'Linear', 'Tanh'"):
        MLP(nn.Linear(3, 4), nn.Tanh())
    with pytest.raises(ValueError, match="without bias"):
        MLP(nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.ReLU())
    with pytest.raises(ValueError, match="expected blocks"):
        MLP(nn.Linear(3, 4))


STEP_SIZES = {"bernoulli": 2e-3, "gaussian": 3e-5, "logistic": 2e-4}  # at which some proposals fail
LIKELIHOODS = {"bernoulli": Bernoulli, "gaussian": Gaussian, "logistic": DiscretizedLogistic}


def model(is_fast, likelihood="bernoulli", dtype=torch.float32, **options):
    torch.manual_seed(0)
    encoder, decoder = nets.mlp(60, 4, nh=300)
    encoder.is_fast = decoder.is_fast = is_fast
    options = {"n_steps": 3, "step_size": STEP_SIZES[likelihood], "decisions": "joint"} | options
    return LAE(encoder, decoder, LIKELIHOODS[likelihood](), nx=60, nz=4, d=300, **options).to(dtype)


def images(n=128, dtype=torch.float32, seed=2):
    return torch.randint(0, 256, (n, 60), generator=torch.Generator().manual_seed(seed)).to(dtype) / 255


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    "options", [{}, {"decoder_window": "before", "feature_window": "before"}, {"mh": False}, {"whiten": True}]
)
def test_the_fast_step_is_the_general_one(likelihood, options):
    """In float64, where no decision can fall differently; the fast path's kernels and selection, autograd's gradients."""
    results = []
    for is_fast in (True, False):
        m = model(is_fast, likelihood, torch.float64, **options)
        seen = []
        for _ in range(3):
            loss = m.loss(images(dtype=torch.float64))
            grads = torch.autograd.grad(loss, list(m.parameters()))
            seen += [loss, *grads, m.phi.clone(), m.acceptance_rate.clone()]
        results.append((seen, m))
    (fast, m), (plain, other) = results
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, b.abs().max().item()))
    assert torch.equal(m.counters, other.counters)
    if options.get("mh", True):
        assert 0 < m.counters[0, 0] < 9  # both outcomes were met


def test_the_fast_step_is_the_general_one_in_float32():
    """To rounding, but for a ReLU whose input lies within rounding of zero: it may fall on either side.

    One of a layer's 128 x 300 that does so moves the gradients below it by some 1 / sqrt(128 * 300) = 5e-3.
    """
    fast, plain = ([m := model(f), m.loss(images())] for f in (True, False))
    torch.testing.assert_close(fast[1], plain[1], rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, list(m.parameters())) for m, loss in (fast, plain)]
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm() + 1e-7
    above_all_relus = [a[-2:] for a in gradients]  # the decoder's last layer
    for a, b in zip(*above_all_relus, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_weight_gradients_are_made_for_states_only(monkeypatch):
    calls = []
    original = products.weight_gradient
    monkeypatch.setattr(products, "weight_gradient", lambda *a: calls.append(1) or original(*a))
    m = model(True, n_steps=5)
    m.loss(images())
    assert len(calls) == 5 * 4 + 6  # T states x layers, and phi's own at T + 1; before the encoder's turn
    assert m.counters[0, 0] > 0


@pytest.mark.parametrize("step_size", [1e30, 1e300])
@pytest.mark.parametrize("is_fast", [True, False])
def test_a_rejected_evaluation_leaves_no_trace(is_fast, step_size):
    """Proposals so far out that their energies, or they themselves, are not finite: all gradients are the first state's."""
    m, x = model(is_fast, step_size=step_size), images()
    start = m.phi.clone()
    loss = m.loss(x)
    gradients = torch.autograd.grad(loss, list(m.parameters()))
    assert m.counters.sum() == 3
    assert torch.equal(m.phi, start)
    expected = m.potential(x, m.encoder(x) @ start.T).mean()
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-6, atol=0)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, list(m.parameters())), strict=True):
        assert (got - wanted).norm() <= 1e-5 * wanted.norm()


class Tempered(Bernoulli):
    def energy(self, output, x):
        return 0.1 * super().energy(output, x)


class EnergyOnly(nn.Module):
    def energy(self, output, x):
        return (output - x).square().sum(-1, dtype=torch.float64)


class Mine(LAE):
    def potential(self, x, z):
        return 0.1 * super().potential(x, z)


class Shifted(MLP):
    def forward(self, x):
        return super().forward(x) + 1


def changed(change):
    """A model whose user has changed something that the fast step must not overlook."""
    m = model(True)
    if change == "likelihood":
        m.likelihood = Tempered()
    elif change == "likelihood without potential":
        m.likelihood = EnergyOnly()
    elif change == "potential":
        m.__class__ = Mine
    elif change == "potential of this one":
        m.potential = lambda x, z: 0.1 * LAE.potential(m, x, z)
    elif change == "output of this one":
        m.output = lambda z: 2 * LAE.output(m, z)
    elif change == "energy of this one":
        m.likelihood.energy = lambda output, x: 0.1 * Bernoulli.energy(m.likelihood, output, x)
    elif change == "decoder's forward":
        m.decoder.__class__ = Shifted
    elif change == "pre-hook":
        m.decoder.register_forward_pre_hook(lambda _, z: (z[0] + 5,))
    elif change == "hook inside":
        m.decoder[3].register_forward_hook(lambda _, z, out: 2 * out)
    elif change == "another layer":
        m.decoder[2] = nn.GELU()
    elif change == "another norm":
        m.decoder[1] = nn.BatchNorm1d(300)
    elif change == "one more layer":
        m.decoder.append(nn.Tanh())
    elif change == "parametrization":
        nn.utils.parametrizations.weight_norm(m.decoder[3])
    elif change == "shared layer":
        m.decoder[6] = m.decoder[3]
    return m


@pytest.mark.parametrize(
    "change",
    [
        "likelihood",
        "likelihood without potential",
        "potential",
        "potential of this one",
        "output of this one",
        "energy of this one",
        "decoder's forward",
        "pre-hook",
        "hook inside",
        "another layer",
        "another norm",
        "one more layer",
        "parametrization",
        "shared layer",
    ],
)
def test_what_a_user_has_changed_counts(change):
    m, x = changed(change), images()
    m.mh, m.n_steps = False, 1
    m.decoder_window = m.feature_window = "before"  # the loss is that of the first state
    start = m.phi.clone()
    loss = m.loss(x)
    m.decoder.is_fast = False
    expected = m.potential(x, m.encoder(x) @ start.T).mean()
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=0)
    got, wanted = (torch.autograd.grad(v, list(m.decoder.parameters())) for v in (loss, expected))
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-6


@pytest.mark.parametrize(
    "change", ["hook inside", "another layer", "another norm", "one more layer", "parametrization"]
)
def test_an_mlp_whose_layers_were_changed_computes_them(change):
    net, z = changed(change).decoder, torch.randn(200, 4)
    plain = z
    for layer in net:
        plain = layer(plain)
    torch.testing.assert_close(net(z), plain)


def test_a_slice_of_an_mlp_is_a_sequential():
    net, z = network(), torch.randn(5, 4)
    assert type(net[:3]) is nn.Sequential
    torch.testing.assert_close(net[3:](net[:3](z)), net(z))
    assert isinstance(net[-1], nn.Linear)


def test_a_bias_that_is_not_contiguous():
    a, weight = torch.randn(512, 256), torch.randn(300, 256)
    for bias in (torch.randn(600)[::2], torch.randn(1).expand(300)):
        torch.testing.assert_close(
            products.linear(a, weight, bias), a @ weight.T + bias, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameters_that_are_not_contiguous(name, index):
    results = []
    for is_strided in (True, False):
        m = model(
            True, decisions="datapoint", decoder_window="first"
        )  # the state that no decision has touched
        for net in (m.encoder, m.decoder):
            p = getattr(net[index], name).detach()
            setattr(net[index], name, nn.Parameter(torch.stack((p, p), -1)[..., 0] if is_strided else p))
        loss = m.loss(images())
        results.append([loss, *torch.autograd.grad(loss, list(m.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whiten", [True, False])
def test_more_latent_dimensions_than_features(whiten):
    torch.manual_seed(0)
    m = LAE(*nets.mlp(60, 8, nh=4), Bernoulli(), nx=60, nz=8, d=4, decisions="joint", whiten=whiten)
    assert m.loss(images()).isfinite()


def test_the_loss_can_be_differentiated_in_parts():
    m, x = model(True), images()
    loss = m.loss(x)
    encoder, decoder = list(m.encoder.parameters()), list(m.decoder.parameters())
    whole = torch.autograd.grad(loss, [*encoder, *decoder], retain_graph=True)
    parts = torch.autograd.grad(loss, encoder, retain_graph=True) + torch.autograd.grad(loss, decoder)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_images_that_require_a_gradient_are_refused():
    with pytest.raises(ValueError, match="images require a gradient"):
        model(True).loss(images().requires_grad_())


@pytest.mark.parametrize("is_fast", [True, False])
def test_an_outer_autocast_does_not_reach_the_chain(is_fast):
    potentials = []
    for enabled in (False, True):
        m = model(is_fast, decoder_window="before", feature_window="before", n_steps=1)
        m.encoder = nn.Identity()
        m.d, m.phi = 60, torch.randn(4, 60, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            potentials.append(m.loss(images()))
    assert torch.equal(*potentials)
    net, z = network(), torch.randn(200, 4, requires_grad=True)
    (wanted,) = torch.autograd.grad(net(z).sum(), z)
    out = net(z).sum()
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(out, z)
    assert torch.equal(got, wanted)


def test_frozen_or_hooked_decoders_take_the_general_path():
    from lae_fast.models.decoder_pass import AutogradPass, DensePass, LayeredPass, decoder_pass

    m = model(True)
    assert isinstance(decoder_pass(m, images()), DensePass)
    assert isinstance(decoder_pass(m, images().double()), AutogradPass)
    m.decoder[0].weight.requires_grad_(False)
    assert isinstance(decoder_pass(m, images()), LayeredPass)
    loss = m.loss(images())
    loss.backward()
    assert m.decoder[0].weight.grad is None
    assert m.decoder[3].weight.grad.isfinite().all()


def test_a_layer_with_a_forward_of_its_own_is_not_passed_over():
    from lae_fast.models.decoder_pass import DensePass, decoder_pass

    m = model(True)
    plain, z = m.decode(torch.zeros(3, m.nz)), torch.zeros(3, m.nz)
    layer = m.decoder[-1]
    layer.forward = lambda a: -F.linear(a, layer.weight, layer.bias)
    torch.testing.assert_close(m.decode(z), 1 - plain)  # of logits with the other sign
    assert not isinstance(decoder_pass(m, images()), DensePass)


def test_hooks_of_all_modules_see_the_layers_of_an_mlp():
    layers = [nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)]
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        MLP(*layers)(torch.zeros(2, 3))
    finally:
        handle.remove()
    assert seen[:4] == layers
