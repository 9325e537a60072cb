"""What has no derivative says so: no op drops a gradient, a tangent or a saved tensor without a word."""

import pytest
import torch
from fuzz_calls import CALLS
from torch import nn
from torch.autograd import forward_ad, functional

import lae_fast
from lae_fast import models, ops
from lae_fast.ops import torch_private

# torch's own, of its forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")

OPS = [name for name in CALLS if name.startswith("ops.") and name not in ("ops.noise", "ops.make_rng")]
DIFFERENTIABLE = {("ops.energy", "output"), ("ops.energy", "log_scale"), ("ops.energy, Bernoulli", "output")}
IN_PLACE = {
    "ops.energy_": ["output"],
    "ops.norm_relu": ["y"],
    "ops.transition": ["phi", "potential", "grad", "proposal", "log_step_size", "log_alpha", "adaptation"],
}


def floats(name):
    """The names of an op's floating arguments."""
    arguments = CALLS[name].make()[1]
    return [k for k, v in arguments.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]


CASES = [(name, argument) for name in OPS if name != "ops.in_unit_range" for argument in floats(name)]


@pytest.mark.parametrize(("name", "argument"), [case for case in CASES if case not in DIFFERENTIABLE])
def test_a_gradient_is_refused_and_no_grad_is_not(name, argument):
    function, arguments = CALLS[name].make()
    leaf = arguments[argument].requires_grad_()
    op = name.split(",")[0].removeprefix("ops.")
    for t in (leaf, leaf * 1):
        with pytest.raises(ValueError, match=rf"^{op}: {argument} requires a gradient; expected none"):
            function(**arguments | {argument: t})
    with torch.no_grad():
        function(**arguments)


def test_keep_refuses_gradients_in_both_lists():
    for argument in ("latest", "previous"):
        function, arguments = CALLS["ops.keep"].make()
        arguments[argument][1] = arguments[argument][1].clone().requires_grad_() * 1
        with pytest.raises(ValueError, match=rf"^keep: {argument}\[1\] requires a gradient"):
            function(**arguments)
        with torch.no_grad():
            function(**arguments)


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_a_tangent_is_refused(name, argument):
    function, arguments = CALLS[name].make()
    match = rf": {argument} (has a forward-mode tangent|requires a gradient)"
    value, tangent = arguments[argument], torch.ones_like(arguments[argument])

    def of(t):
        function(**arguments | {argument: t})
        return t.sum()

    with forward_ad.dual_level(), torch.no_grad():
        function(**CALLS[name].make()[1])  # constants are taken
        with pytest.raises(ValueError, match=match):
            of(forward_ad.make_dual(value, tangent))
    with pytest.raises(ValueError, match=match):
        torch.func.jvp(of, (value,), (tangent,))
    with pytest.raises(ValueError, match=match):  # the tangent is hidden below another transform
        torch.func.jvp(lambda t: torch.func.vmap(lambda _: of(t))(torch.zeros(2)).sum(), (value,), (tangent,))
    with pytest.raises(ValueError, match=match):
        torch.func.hessian(of)(value)


def test_the_energy_says_which_gradients_it_has():
    function, arguments = CALLS["ops.energy"].make()
    for argument in ("output", "log_scale"):
        with pytest.raises(
            ValueError, match=rf"{argument} is under a gradient of torch\.func; expected torch"
        ):
            torch.func.grad(lambda t, name=argument: function(**arguments | {name: t})[0].sum())(
                arguments[argument]
            )


def test_torch_func_maps_over_what_writes_nothing():
    for name, argument in (("ops.propose", "phi"), ("ops.energy", "output"), ("ops.norm_relu_sums", "grad")):
        function, arguments = CALLS[name].make()
        two = torch.stack((arguments[argument], arguments[argument] + 1))
        mapped = torch.func.vmap(lambda t, f=function, a=arguments, k=argument: f(**a | {k: t})[0])(two)
        for got, t in zip(mapped, two, strict=True):
            assert torch.equal(got, function(**arguments | {argument: t})[0])


@pytest.mark.parametrize("name", ["ops.energy_", "ops.norm_relu", "ops.transition", "ops.keep", "ops.noise"])
def test_torch_func_does_not_map_over_what_writes(name):
    function, arguments = CALLS[name].make()
    for argument, value in arguments.items():
        many = torch.stack((value, value)) if isinstance(value, torch.Tensor) else None
        if name == "ops.keep" and argument != "is_accepted":
            many, value = torch.stack((value[0], value[0])), value[1]
        if many is None:
            continue

        def of(t, argument=argument, value=value):
            function(**arguments | {argument: [t, value] if name == "ops.keep" and t.dim() == 2 else t})
            return t

        with pytest.raises(ValueError, match=rf"{argument}\S* is under torch\.func\.vmap"):
            torch.func.vmap(of)(many)


@pytest.mark.parametrize("name", [*IN_PLACE, "ops.keep"])
def test_autograd_notices_what_an_op_has_overwritten(name):
    """A tensor that is saved for a backward pass, and then overwritten: torch's own error, no gradient from new values."""
    for argument in IN_PLACE.get(name, ["latest"]):
        function, arguments = CALLS[name].make()
        value = arguments[argument][0] if name == "ops.keep" else arguments[argument]
        x = torch.ones_like(value, requires_grad=True)
        saved = value * 1
        out = (x * saved).sum()
        arguments[argument] = [saved, *arguments[argument][1:]] if name == "ops.keep" else saved
        function(**arguments)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


@pytest.mark.parametrize("name", ["ops.propose", "ops.energy_", "ops.norm_relu"])
def test_a_compiled_function_refuses_too(name):
    function, arguments = CALLS[name].make()
    argument = floats(name)[0]
    arguments[argument].requires_grad_()
    with pytest.raises(ValueError, match="requires a gradient"):
        torch.compile(function, backend="eager")(**arguments)


def test_raising_leaves_everything_as_it_was():
    function, arguments = CALLS["ops.transition"].make()
    arguments["uniform"].requires_grad_()  # the last one
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    with pytest.raises(ValueError, match="uniform"):
        function(**arguments)
    assert all(torch.equal(arguments[k], v) for k, v in before.items())


@pytest.mark.parametrize("records", [True, False])
def test_what_is_overwritten_is_no_part_of_another_argument(records):
    function, arguments = CALLS["ops.transition"].make()
    x, flags = torch.rand(5, 4), torch.ones(3, dtype=torch.bool)
    before = x.clone()
    calls = {
        "transition: phi shares memory with grad": lambda: function(**arguments | {"phi": arguments["grad"]}),
        "transition: proposal shares memory with noise": lambda: function(
            **arguments | {"noise": arguments["proposal"]}
        ),
        "energy_: output shares memory with x": lambda: ops.energy_(x, x[:1], ops.BERNOULLI),
        "norm_relu: y shares memory with bias": lambda: ops.norm_relu(x, torch.ones(4), x[4], 1e-5),
        r"keep: latest\[0\] shares memory with previous\[0\]": lambda: ops.keep([x[1:4]], [x[:3]], flags),
        r"keep: latest\[0\] shares memory with latest\[1\]": lambda: ops.keep(
            [x[1:4], x[:3]], [torch.ones(3, 4), torch.ones(3, 4)], flags
        ),
    }
    with torch.set_grad_enabled(records):
        for message, call in calls.items():
            with pytest.raises(ValueError, match=message):
                call()
        assert torch.equal(x, before)
        ops.keep([x[:2], x[2:4]], [torch.ones(2, 4), x[4].expand(2, 4)], flags[:2])  # neighbours
        assert torch.equal(x, before)
        ops.energy_(x[:4], x[4:], ops.BERNOULLI)


def test_what_is_overwritten_has_memory_of_its_own():
    function, arguments = CALLS["ops.transition"].make()
    with pytest.raises(ValueError, match="transition: phi is expanded; expected memory of its own"):
        function(**arguments | {"phi": arguments["phi"][:1].expand(3, -1)})
    with pytest.raises(ValueError, match="norm_relu: y is not contiguous"):
        ops.norm_relu(torch.zeros(4, 3).T, torch.ones(4), torch.ones(4), 1e-5)
    for name, argument in [(name, a) for name, names in IN_PLACE.items() for a in names]:
        function, arguments = CALLS[name].make()
        with torch.inference_mode():
            arguments[argument] = arguments[argument].clone()
        with pytest.raises(ValueError, match=rf"{argument} is an inference tensor; expected a clone"):
            function(**arguments)
        with torch.inference_mode():
            function(**arguments)


def test_without_torch_s_private_names(monkeypatch):
    t = torch.ones(2)
    monkeypatch.delattr(torch._C, "_functorch")
    assert not torch_private.is_batched(t)
    assert not torch_private.is_differentiated(t)
    assert not torch_private.has_tangent(t)
    with forward_ad.dual_level():
        assert torch_private.has_tangent(t)  # nobody knows


def _potential(kind):
    torch.manual_seed(0)
    model = models.build(models.Architecture(model=kind, nx=9, nz=2, nh=8)).eval()
    x = torch.rand(1, 9)
    return lambda z: model.potential(x, z).sum()


def _energy(kind):
    x, log_scale = torch.rand(2, 9), None if kind == ops.BERNOULLI else torch.tensor(-1.0)
    return lambda output: ops.energy(output.expand(2, 9), x, kind, log_scale)[0].sum()


def _network():
    torch.manual_seed(0)
    net = lae_fast.MLP(nn.Linear(2, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    return lambda z: net(z).square().sum()


ONCE = {
    "Bernoulli": (lambda: _energy(ops.BERNOULLI), (1, 9)),
    "Gaussian": (lambda: _energy(ops.GAUSSIAN), (1, 9)),
    "logistic": (lambda: _energy(ops.LOGISTIC), (1, 9)),
    "MLP": (_network, (1, 2)),
    "LAE": (lambda: _potential("lae"), (1, 2)),
    "VAE": (lambda: _potential("vae"), (1, 2)),
    "Hoffman": (lambda: _potential("hoffman"), (1, 2)),
}


@pytest.mark.parametrize("name", ONCE)
def test_pytorch_s_own_second_derivatives_are_refused_and_not_zero(name):
    """They look for a path from the gradient to the input, and take zeros where they find none."""
    make, shape = ONCE[name]
    f, z = make(), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    v = torch.ones(shape)
    asked = {
        "hessian": lambda: functional.hessian(f, z),
        "hvp": lambda: functional.hvp(f, z, v),
        "vhp": lambda: functional.vhp(f, z, v),
        "jvp": lambda: functional.jvp(f, z, v),  # by the derivative of a gradient by its cotangent
    }
    for ask in asked.values():
        with pytest.raises(RuntimeError, match="second derivative through lae_fast"):
            ask()
    z.requires_grad_()
    (first,) = torch.autograd.grad(f(z), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative through lae_fast"):
        torch.autograd.grad(first.sum(), z, allow_unused=True)
    assert torch.equal(functional.jacobian(f, z), first)
