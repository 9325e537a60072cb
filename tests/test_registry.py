"""Models by name: a signature is the truth about options, and what is registered is all that is needed."""

import dataclasses
import inspect
import math

import pytest
import torch
from torch import nn

from lae_fast import LAE, VAE, Gaussian, Hoffman, checkpoint, evaluate, importance_bound
from lae_fast.data import DATASETS, Source, Split, load
from lae_fast.models import LIKELIHOODS, MODELS, NETWORKS, Architecture, Likelihood, build, options_of
from lae_fast.models import load as load_model
from lae_fast.models.decoder_pass import AutogradPass, RecomputingPass, decoder_pass
from lae_fast.training.config import Config

SMALL = dict(nx=16, nz=2, nh=8, depth=1)


@pytest.mark.parametrize("model", MODELS)
def test_options_are_the_signature_s(model):
    """Each option is an argument of the class or of one of its bases, and the built model holds its value."""
    found = options_of(model)
    assert not found.keys() & {"nx", "nz", "d", "encoder", "decoder", "likelihood"}
    for name, default in found.items():
        owners = [c for c in MODELS[model].__mro__ if name in inspect.signature(c.__init__).parameters]
        assert inspect.signature(owners[0].__init__).parameters[name].default == default
    built = build(Architecture(model, **SMALL), **found)
    kept = {"decisions", "memory", "ridge", "whiten", "n_steps", "mh", "gradient", "start", "precision"}
    for name in found.keys() & kept:
        assert getattr(built, name) == found[name]


def test_a_file_of_weights_gives_the_model_with_its_options_and_its_chain(tmp_path):
    options = dict(decisions="joint", n_steps=3, step_size=0.01)
    architecture = Architecture(**SMALL)
    torch.manual_seed(0)
    model = build(architecture, **options)
    model.loss(torch.rand(4, 16))
    path, facts = tmp_path / "best.safetensors", dataclasses.asdict(architecture)
    checkpoint.save_weights(path, model.state_dict(), facts | {"options": options})
    loaded = load_model(path)
    assert (loaded.decisions, loaded.n_steps, loaded.adaptation_rate) == ("joint", 3, 0.0)
    assert all(torch.equal(v, loaded.chain_state()[k]) for k, v in model.chain_state().items())
    checkpoint.save_weights(path, model.state_dict(), facts | {"options": {"n_steps": 0}})
    with pytest.raises(
        checkpoint.CheckpointError, match="holds options that its model does not take: n_steps is 0"
    ):
        load_model(path)


def test_options_reach_the_model_and_strangers_are_refused():
    assert build(Architecture("lae", **SMALL), decoder_window="before", n_steps=5).n_steps == 5
    assert build(Architecture("hoffman", **SMALL), gradient="last").gradient == "last"
    with pytest.raises(ValueError, match=r"vae takes no option memory, n_steps; expected some of precision"):
        build(Architecture("vae", **SMALL), n_steps=2, memory=3)
    with pytest.raises(ValueError, match="decoder_window is 'never'; expected one of after, before"):
        build(Architecture("lae", **SMALL), decoder_window="never")


@pytest.mark.parametrize("model", MODELS)
def test_the_command_line_offers_every_option_with_the_model_s_default(model):
    config = Config(model=model)
    for name, default in options_of(model).items():
        shown = getattr(config, name)
        assert shown == default or (shown == "auto" and default is None)
    assert config.model_options() == {k: v for k, v in options_of(model).items() if v is not None}


def test_momentum_is_the_model_s():
    for options, beta1 in (
        ({}, 0.9),
        ({"feature_window": "after"}, 0.5),
        ({"decisions": "joint"}, 0.5),
        ({"decisions": "joint", "feature_window": "before"}, 0.9),
    ):
        model = build(Architecture("lae", **SMALL), **options)
        own = ("after", "after") if model.is_joint else ("last", "first")
        chosen = own[0], options.get("feature_window", own[1])
        assert (model.decoder_window, model.feature_window) == chosen
        assert (model.beta1, model.lr) == (beta1, 1e-3 if model.is_joint else 2e-3)
    assert (VAE.beta1, VAE.lr) == (Hoffman.beta1, Hoffman.lr) == (0.9, 1e-3)


def test_unknown_names_are_told_what_there_is():
    for field, known in (("model", MODELS), ("network", NETWORKS), ("likelihood", LIKELIHOODS)):
        with pytest.raises(ValueError, match=f"{field} is 'x'; expected one of {', '.join(known)}"):
            Architecture(**{field: "x"})


class Laplace(Likelihood):
    """A likelihood without a kernel: what a user writes is all of it."""

    def pixel_energies(self, output, x):
        return (x - output).abs() / 0.1 + math.log(0.2)

    def mean(self, output):
        return output

    def sample(self, output, generator=None):
        u = torch.rand(output.shape, generator=generator) - 0.5
        return output - 0.1 * u.sign() * torch.log1p(-2 * u.abs())


@pytest.mark.parametrize("model", MODELS)
def test_a_likelihood_without_a_kernel_trains_and_is_evaluated(model, monkeypatch):
    monkeypatch.setitem(LIKELIHOODS, "laplace", Laplace)
    torch.manual_seed(0)
    m, x = build(Architecture(model, likelihood="laplace", **SMALL)), torch.rand(20, 16)
    output = torch.randn(20, 16)
    expected = -torch.distributions.Laplace(output.double(), 0.1).log_prob(x.double()).sum(1)
    torch.testing.assert_close(m.likelihood.energy(output, x).double(), expected, rtol=1e-5, atol=1e-4)
    if isinstance(m, LAE):
        assert isinstance(decoder_pass(m, x), AutogradPass)
        assert isinstance(decoder_pass(m, x, by_row=True), RecomputingPass)
    optimizer = torch.optim.Adam(m.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = m.loss(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert math.isfinite(evaluate(m, x).negative_elbo)
    assert importance_bound(m, x, n_draws=2).isfinite().all()


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value


class Tied(Gaussian):
    """Its scale follows from another parameter."""

    def __init__(self):
        super().__init__()
        self.root = nn.Parameter(torch.tensor(-1.0))
        del self.log_scale

    @property
    def log_scale(self):
        return 2 * self.root


@pytest.mark.parametrize("kind", ["parametrized", "tied"])
def test_a_scale_that_is_made_of_something_else_has_its_gradient(kind):
    torch.manual_seed(0)
    m = build(
        Architecture("lae", likelihood="gaussian", **SMALL),
        n_steps=1,
        mh=False,
        spread=False,
        decoder_window="first",
    )
    if kind == "parametrized":
        nn.utils.parametrize.register_parametrization(m.likelihood, "log_scale", Doubled())
    else:
        m.likelihood = Tied()
    x, parameters = torch.rand(6, 16), list(m.likelihood.parameters())
    expected = m.potential(x, m.encoder(x) @ m.phi.T).mean()  # the loss is that of the first state
    wanted = torch.autograd.grad(expected, parameters)
    got = torch.autograd.grad(m.loss(x), parameters)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_likelihood_may_say_that_it_has_no_scale():
    class Plain(Laplace):
        log_scale = None

    output, x = torch.randn(3, 16), torch.rand(3, 16)
    assert torch.equal(Plain().energy(output, x), Laplace().energy(output, x))


def test_a_data_set_is_a_function_and_an_entry(monkeypatch, tmp_path):
    def noise(root):
        images = torch.randint(256, (30, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        split = Split(images, torch.zeros(30, dtype=torch.int64))
        return Source(f"noise from {root}", split, split.at(slice(7)), n_validation=4)

    monkeypatch.setitem(DATASETS, "noise", noise)
    dataset = load("noise", tmp_path)
    assert (dataset.name, dataset.source) == ("noise", f"noise from {tmp_path}")
    assert [len(s.images) for s in (dataset.train, dataset.validation, dataset.test)] == [26, 4, 7]


def test_architecture_is_what_files_of_weights_say():
    """The names of old files stay readable."""
    names = ["model", "network", "likelihood", "nx", "nz", "nh", "depth", "shape", "channels"]
    assert [f.name for f in dataclasses.fields(Architecture)] == names


def test_an_autoencoder_is_a_module_of_its_parts():
    m = build(Architecture("vae", **SMALL))
    assert isinstance(m, nn.Module)
    assert {"encoder", "decoder", "likelihood"} <= {name for name, _ in m.named_children()}
