"""A model that is saved and loaded is the same model, bit for bit."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import lae_fast
from lae_fast.checkpoint import CheckpointError
from lae_fast.models import MODELS, Architecture, Likelihood, build
from lae_fast.models.nets import conv

ARCHITECTURES = [
    (Architecture("lae", nx=16, nz=2, nh=8, depth=1), {}),
    (Architecture("lae", nx=16, nz=2, nh=8, depth=2), dict(decisions="joint", whiten=True, step_size=0.01)),
    (
        Architecture("lae", "conv", "gaussian", shape=(3, 5, 4), nz=2, nh=8, depth=1, channels=4),
        dict(mh=False),
    ),
    (Architecture("vae", "conv", nx=16, nz=2, nh=8, depth=2), dict(precision="bf16")),
    (Architecture("hoffman", likelihood="logistic", nx=16, nz=2, nh=8), dict(gradient="last", n_steps=3)),
]


def next_loss(model, x):
    torch.manual_seed(5)
    return model.train().loss(x)


def trained(model, n=3):
    """After some steps, with a chain that has a state."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(n):
        optimizer.zero_grad()
        model.loss(images(model)).backward()
        optimizer.step()
    return model


def images(model):
    return torch.rand(6, *model.shape, generator=torch.Generator().manual_seed(1))


def assert_same(loaded, model):
    assert not loaded.training
    assert type(loaded) is type(model)
    assert loaded.options() == model.options()
    assert loaded.shape == model.shape
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert torch.equal(next_loss(loaded, images(model)), next_loss(model, images(model)))


@pytest.mark.parametrize(("architecture", "options"), ARCHITECTURES)
def test_a_model_comes_back_bit_for_bit(architecture, options, tmp_path):
    torch.manual_seed(0)
    model = trained(build(architecture, **options))
    assert model.options().items() >= options.items()
    model.save(tmp_path / "new" / "folder")
    assert_same(lae_fast.load(tmp_path / "new" / "folder"), copy.deepcopy(model))
    model.save(tmp_path / "one.safetensors")
    assert_same(lae_fast.load(str(tmp_path / "one.safetensors")), model)


def test_a_name_of_a_pickle_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"model.pt; expected a folder, or a file that ends in .safetensors"):
        build(ARCHITECTURES[0][0]).save(tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_a_model_made_by_hand_of_these_parts_is_recognised(tmp_path):
    torch.manual_seed(0)
    networks = conv((3, 8, 8), nz=2, nh=16, channels=4)
    model = lae_fast.LAE(*networks, lae_fast.Bernoulli(), shape=(3, 8, 8), nz=2)
    trained(model).save(tmp_path)
    assert_same(lae_fast.load(tmp_path), model)


class Laplace(Likelihood):
    def __init__(self):
        super().__init__()
        self.log_width = nn.Parameter(torch.tensor(-2.0))

    def pixel_energies(self, output, x):
        return (x - output).abs() / self.log_width.exp() + math.log(2) + self.log_width


def own_parts():
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Tanh())
    encoder.register_buffer("mean", torch.rand(2, dtype=torch.float64))  # buffers may be of any type
    return dict(encoder=encoder, decoder=nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4))))


@pytest.mark.parametrize("kind", MODELS)
def test_own_networks_are_given_again(kind, tmp_path):
    torch.manual_seed(0)
    model = trained(MODELS[kind](**own_parts(), likelihood=Laplace(), shape=(1, 4, 4), nz=2))
    model.save(tmp_path)
    assert_same(lae_fast.load(tmp_path, **own_parts(), likelihood=Laplace()), model)
    expected = "expected load(path, encoder=..., decoder=..., likelihood=...), as they are not"
    with pytest.raises(CheckpointError, match=re.escape(f"parts given are none; {expected}")):
        lae_fast.load(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"parts given are likelihood; {expected}")):
        lae_fast.load(tmp_path, likelihood=Laplace())
    wider = own_parts() | dict(encoder=nn.Sequential(nn.Flatten(), nn.Linear(16, 9)))
    with pytest.raises(CheckpointError, match="another architecture"):
        lae_fast.load(tmp_path, **wider, likelihood=Laplace())
    swapped = dict(zip(("decoder", "encoder"), own_parts().values(), strict=True))
    with pytest.raises(CheckpointError, match="is of other parts than those given: the encoder does not fit"):
        lae_fast.load(tmp_path, **swapped, likelihood=Laplace())


def test_nothing_is_kept_on_meta(tmp_path):
    model = lae_fast.VAE(**own_parts(), likelihood=Laplace(), shape=(1, 4, 4), nz=2)
    model.save(tmp_path)
    parts = own_parts() | dict(likelihood=Laplace())
    with pytest.raises(ValueError, match="decoder is on meta, where weights cannot be kept"):
        lae_fast.load(tmp_path, **parts | dict(decoder=parts["decoder"].to("meta")))
    with pytest.raises(ValueError, match=r"float64 .* on meta; expected it on a device of this machine"):
        model.to("meta").save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_of_a_run_without_weights_the_checkpoint_is_named(tmp_path):
    model = build(ARCHITECTURES[0][0])
    kept = tmp_path / "checkpoints" / "step-000000007" / "model.safetensors"
    model.save(kept)
    with pytest.raises(
        CheckpointError,
        match=re.escape(f"best.safetensors is not there yet; the run's last checkpoint is {kept}"),
    ):
        lae_fast.load(tmp_path)
    assert_same(lae_fast.load(kept), model)


def test_an_own_likelihood_beside_networks_of_here(tmp_path):
    architecture = ARCHITECTURES[0][0]
    model = lae_fast.LAE(*architecture.bodies(), Laplace(), nx=16, nz=2, d=8)
    trained(model).save(tmp_path)
    assert_same(lae_fast.load(tmp_path, likelihood=Laplace()), model)


def test_parts_that_are_not_asked_for_are_refused(tmp_path):
    build(ARCHITECTURES[0][0]).save(tmp_path)
    with pytest.raises(ValueError, match="parts given are encoder; expected none"):
        lae_fast.load(tmp_path, encoder=nn.Linear(16, 8))


def test_networks_that_only_look_alike_are_not_taken_for_those_of_here(tmp_path):
    encoder, decoder = ARCHITECTURES[0][0].bodies()
    plain = lae_fast.VAE(nn.Sequential(*encoder), nn.Sequential(*decoder), lae_fast.Bernoulli(), nx=16, nz=2)
    plain.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"encoder=\.\.\., decoder=\.\.\."):
        lae_fast.load(tmp_path)


def test_what_is_not_trained_stays_so(tmp_path):
    """A fixed scale of the Gaussian, and a layer that its user has frozen."""
    architecture = ARCHITECTURES[0][0]
    model = lae_fast.VAE(*architecture.bodies(), lae_fast.Gaussian(0.3), nx=16, nz=2, d=8)
    model.encoder[0].weight.requires_grad_(False)
    model.save(tmp_path)
    loaded = lae_fast.load(tmp_path)
    assert not loaded.likelihood.log_scale.requires_grad
    assert not loaded.encoder[0].weight.requires_grad
    assert loaded.encoder[0].bias.requires_grad


def test_networks_that_were_changed_are_their_user_s(tmp_path):
    encoder, decoder = ARCHITECTURES[0][0].bodies()
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(decoder[0])  # a hook, that no text of the network shows
    lae_fast.VAE(encoder, decoder, lae_fast.Bernoulli(), nx=16, nz=2, d=8).save(tmp_path)
    assert isinstance(lae_fast.load(tmp_path, encoder=encoder, decoder=decoder), lae_fast.VAE)
    shapes = [
        Architecture(network="conv", shape=(1, *sides), depth=1, nh=8, nz=2) for sides in ((16, 4), (8, 8))
    ]
    (encoder, _), (_, decoder) = (a.bodies() for a in shapes)
    lae_fast.VAE(encoder, decoder, lae_fast.Bernoulli(), shape=(1, 8, 8), nz=2, d=8).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"encoder=\.\.\."):
        lae_fast.load(tmp_path)


def test_numbers_of_numpy_are_options(tmp_path):
    lae_fast.LAE(
        *ARCHITECTURES[0][0].bodies(), lae_fast.Bernoulli(), nx=16, nz=2, d=8, step_size=np.float32(0.5)
    ).save(tmp_path)
    assert lae_fast.load(tmp_path).step_size == 0.5


def test_what_load_would_refuse_is_not_written(tmp_path):
    class Mine(lae_fast.VAE):
        pass

    parts = (*ARCHITECTURES[0][0].bodies(), lae_fast.Bernoulli())
    model = build(ARCHITECTURES[0][0])
    model.phi[0, 0] = math.nan
    spoilt = build(ARCHITECTURES[0][0])
    spoilt.log_step_size.fill_(math.nan)
    for wrong, words in (
        (Mine(*parts, nx=16, nz=2), "model is Mine, a class of its own; .*state_dict"),
        (build(ARCHITECTURES[0][0]).double(), "float64 .*; expected float32: .*state_dict"),
        (model, "phi holds values that are not finite"),
        (spoilt, "log_step_size holds values that are not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong.save(tmp_path / "x")
    with pytest.raises(TypeError, match="path is 3"):
        model.save(3)
    with pytest.raises(CheckpointError, match="no such file"):
        lae_fast.load(tmp_path)
    assert not list(tmp_path.iterdir())
