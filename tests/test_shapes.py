"""Images of any shape: every function of a model gives the same numbers for [n, c, h, w] as for flat images, in the right shape;
networks for any size; a user's own; and what a convolutional decoder's weight gradients are."""

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import lae_fast
from lae_fast import LAE, VAE, Bernoulli, DiscretizedLogistic, Gaussian, Hoffman, attacks, checkpoint
from lae_fast.models import Architecture, build, decoder_pass, images_for, nets
from lae_fast.models import load as load_model
from lae_fast.training import adam, pictures
from lae_fast.training.config import Config

GREY, COLOUR, N = (1, 6, 7), (3, 5, 4), 6
shapes = pytest.mark.parametrize("shape", [GREY, COLOUR], ids=["grey", "colour"])


def made(shape, model="lae", network="conv", **options):
    torch.manual_seed(0)
    return build(Architecture(model, network, nz=2, nh=9, depth=2, channels=4, shape=shape), **options)


def images(shape, n=N, seed=1):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed=2):
    return torch.Generator().manual_seed(seed)


LABELS = torch.arange(N) % 3


def trained(m, x):
    torch.manual_seed(4)
    step = lae_fast.TrainingStep(m, adam(m, 1e-2))
    return torch.stack([step(x) for _ in range(3)])


def classifier(x):
    """[n, ...] -> [n, 3]."""
    return torch.stack([x.flatten(1).mean(1), x.flatten(1)[:, 0], x.flatten(1)[:, -1]], 1)


# name -> what it computes for a model and images, and whether that is images in the shape of the given ones
FUNCTIONS = {
    "train": (trained, False),
    "eval loss": (lambda m, x: m.eval().loss(x), False),
    "posterior": (lambda m, x: torch.cat(m.posterior(x)), False),
    "encode": (lambda m, x: m.encode(x), False),
    "potential": (lambda m, x: m.potential(x, torch.ones(2, N, 2)), False),
    "reconstruction": (lambda m, x: m.reconstruction(x, torch.ones(N, 2)), False),
    "reconstruct": (lambda m, x: m.reconstruct(x), True),
    "interpolate": (lambda m, x: m.interpolate(x[:2], x[2:4], 3).flatten(0, 1), True),
    "augment": (lambda m, x: lae_fast.augment(m, x, LABELS, 2, generator=seeded())[0], True),
    "augment by chains": (lambda m, x: lae_fast.augment(m, x, LABELS, 1, source="posterior", n_steps=2, generator=seeded())[0], True),
    "augment by its chain": (lambda m, x: lae_fast.augment(m, x, LABELS, 2, source="chain", generator=seeded())[0], True),
    "augment by residuals": (lambda m, x: lae_fast.augment(m, x, LABELS, 2, source="residual", generator=seeded())[0], True),
    "diagnose residuals": (lambda m, x: torch.stack(lae_fast.diagnose_variations(m, x, LABELS, source="residual", generator=seeded())[:2]), False),
    "evaluate": (lambda m, x: torch.tensor(lae_fast.evaluate(m, x)), False),
    "bound": (lambda m, x: lae_fast.importance_bound(m, x, n_draws=3), False),
    "quadrature": (lambda m, x: lae_fast.quadrature(m, x, n_cells=128), False),
    "schedule": (lambda m, x: lae_fast.fit_schedule(m, x, n_temperatures=3, n_chains=2, n_pilot=2).beta, False),
    "fgsm": (lambda m, x: attacks.fgsm(classifier, x, LABELS, eps=0.1), True),
    "pgd": (lambda m, x: attacks.pgd(classifier, x, LABELS, eps=0.1, n_steps=2, generator=seeded()), True),
}  # fmt: skip


@shapes
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_numbers_for_flat_images_in_the_shape_that_was_given(name, shape):
    function, gives_images = FUNCTIONS[name]
    x = images(shape)
    shaped, flat = (function(made(shape), given) for given in (x, x.flatten(1)))
    if gives_images:
        assert (shaped.shape[1:], flat.shape[1:]) == (shape, x[0].flatten().shape)
        shaped = shaped.flatten(1)
    assert torch.equal(shaped, flat)


@shapes
@pytest.mark.parametrize("model", ["lae", "vae", "hoffman"])
@pytest.mark.parametrize("network", nets.NETWORKS)
def test_what_starts_from_z_has_the_model_s_shape(shape, model, network):
    m = made(shape, model, network)
    assert (m.shape, m.nx) == (shape, shape[0] * shape[1] * shape[2])
    assert m.sample(5, seeded()).shape == (5, *shape)
    assert m.decode(torch.zeros(2, 4, 2)).shape == (2, 4, *shape)
    assert m.simulate(4, seeded())[0].shape == (4, *shape)
    assert m.output(torch.zeros(4, 2)).shape == (4, m.nx)
    x = (images(shape) * 255).to(torch.uint8)
    assert torch.equal(m.encode(x), m.encode(x / 255))
    assert m.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("model", ["lae", "vae"])
def test_an_mlp_learns_the_same_with_a_shape_as_without(model):
    """The networks see the same numbers, and the dry run draws none."""
    results = []
    for shape in (COLOUR, (60,)):
        m = made(shape, model, "mlp")
        results.append((trained(m, images(COLOUR).view(N, *shape)), m.sample(3, seeded()).flatten(1)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_flat_model_takes_images_of_any_shape():
    m, x = made((60,), network="mlp"), images(COLOUR)
    assert torch.equal(m.encode(x), m.encode(x.flatten(1)))
    assert m.reconstruct(x).shape == x.shape


def test_grey_images_need_no_axis_of_channels():
    m, x = made(GREY), images(GREY)
    assert torch.equal(m.reconstruct(x[:, 0]), m.reconstruct(x)[:, 0])


@pytest.mark.parametrize("wrong", [(3, 4, 5), (5, 4, 3), (59,), (3, 20), ()])
def test_images_of_another_shape_are_named(wrong):
    expected = r"images are float32 .*; expected floating point \[n, 3, 5, 4\] or \[n, 60\] with n >= 1"
    with pytest.raises(ValueError, match=expected):
        images_for(made(COLOUR), torch.rand(N, *wrong))


# ---- networks ----


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 9, 4), (1, 1, 7), (3, 13, 30)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_conv_gives_back_every_size(shape, depth):
    encoder, decoder = nets.conv(shape, 2, 8, depth, channels=2)
    assert encoder(torch.rand(2, *shape)).shape == (2, 8)
    assert torch.equal(encoder(ones := torch.ones(2, *shape)), encoder(ones.flatten(1)))
    assert decoder(torch.rand(2, 2)).shape == (2, *shape)
    assert encoder[1].out_channels == 2


def test_weights_of_conv_keep_their_names_and_sizes():
    """Those of files from before images had a shape."""
    encoder, decoder = nets.conv(784, 4, 16, 2)
    names = {"1": [32, 1, 3, 3], "3": [64, 32, 3, 3], "6": [16, 3136]}
    assert {n: list(encoder.state_dict()[f"{n}.weight"].shape) for n in names} == names
    names = {"0": [16, 4], "3": [3136, 16], "6": [64, 32, 4, 4], "8": [32, 1, 4, 4]}
    assert {n: list(decoder.state_dict()[f"{n}.weight"].shape) for n in names} == names


def test_mlp_is_the_paper_s_network():
    """Three blocks of 1,024 units for 32 x 32 colour images, as in the authors' code."""
    with torch.device("meta"):
        encoder, decoder = nets.mlp((3, 32, 32), 8, 1024)
    block = ["Linear", "LayerNorm", "ReLU"]
    assert [type(m).__name__ for m in encoder] == block * 3
    assert [type(m).__name__ for m in decoder] == [*block * 3, "Linear"]
    assert [m.out_features for m in decoder if isinstance(m, nn.Linear)] == [1024, 1024, 1024, 3072]


@pytest.mark.parametrize("network", nets.NETWORKS)
def test_a_shape_goes_into_a_file_and_comes_back(network, tmp_path):
    m, path = made(COLOUR, network=network), tmp_path / "best.safetensors"
    facts = dataclasses.asdict(Architecture("lae", network, nz=2, nh=9, depth=2, channels=4, shape=COLOUR))
    checkpoint.save_weights(path, m.state_dict(), facts)
    loaded = load_model(path)
    assert loaded.shape == COLOUR
    assert torch.equal(loaded.sample(2, seeded()), m.sample(2, seeded()))
    older = {k: v for k, v in facts.items() if k not in ("shape", "channels")}
    if network == "mlp":
        checkpoint.save_weights(path, m.state_dict(), older)
        assert load_model(path).shape == (60,)
    checkpoint.save_weights(path, m.state_dict(), facts | {"nx": 61})
    with pytest.raises(checkpoint.CheckpointError, match=r"nx is 61 beside the shape \(3, 5, 4\)"):
        load_model(path)


def test_the_command_line_s_architecture_has_the_data_s_shape():
    a = Config(network="conv", depth=2, channels=5).architecture(torch.Size([3, 8, 8]))
    assert (a.shape, a.nx, a.channels) == ((3, 8, 8), 192, 5)
    assert Config().architecture((784,)) == Architecture()


# ---- a user's own networks ----


def test_the_manual_s_networks_train():
    page = (Path(__file__).parent.parent / "docs" / "networks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    names = {}
    torch.manual_seed(0)
    exec(code, names)  # it is our own text
    assert names["model"].d == 128
    assert names["losses"][1] < names["losses"][0]
    assert names["model"].sample(2).shape == (2, 3, 32, 32)


def own(encoder=None, decoder=None, cls=LAE, likelihood=None, **options):
    torch.manual_seed(0)
    encoder = encoder or nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(24, 10))
    decoder = decoder or nn.Sequential(
        nn.Linear(2, 4), nn.Unflatten(1, (4, 1, 1)), nn.ConvTranspose2d(4, 3, (5, 4))
    )
    return cls(encoder, decoder, likelihood or Bernoulli(), **{"shape": COLOUR, "nz": 2} | options)


class Twice(nn.Module):
    def forward(self, x):
        return x, x


class Counting(nn.Module):
    def forward(self, x):
        return (x > 0.5).flatten(1).sum(1, keepdim=True)


class Centred(nn.Module):
    def forward(self, x):
        return x.sub_(0.5).flatten(1)


def channels_last():
    return nn.Sequential(nn.Linear(2, 60), nn.Unflatten(1, (5, 4, 3)))


@pytest.mark.parametrize("cls", [LAE, VAE, Hoffman])
def test_the_number_of_features_is_found(cls):
    m = own(cls=cls)
    assert (m.d, m.shape, m.training) == (10, COLOUR, True)
    assert m.loss(images(COLOUR)).isfinite()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (dict(d=11), r"the encoder returned float32 \[2, 10\] .* for images \[2, 3, 5, 4\]; expected features \[2, 11\]"),
        (dict(encoder=nn.Conv2d(3, 4, 3)), r"the encoder returned float32 \[2, 4, 3, 2\] .*; expected features \[2, d\]"),
        (dict(encoder=nn.Conv2d(1, 4, 3)), r"the encoder does not fit images float32 \[2, 3, 5, 4\] on cpu: .*channels"),
        (dict(encoder=nn.Linear(60, 4)), r"the encoder does not fit images float32 \[2, 3, 5, 4\] on cpu: "),
        (dict(encoder=nn.BatchNorm1d(3)), r"the encoder does not fit images float32 \[2, 3, 5, 4\] on cpu: expected 2D or 3D"),
        (dict(encoder=Counting()), r"the encoder returned int64 \[2, 1\] .*; expected features \[2, d\], floating point"),
        (dict(encoder=Centred()), "the encoder has changed its argument in place"),
        (dict(encoder=Twice()), r"the encoder returned \(float32 .*\(tuple\) for images \[2, 3, 5, 4\]; expected features"),
        (dict(decoder=nn.Linear(2, 61)), r"the decoder returned float32 \[2, 61\] .* for z \[2, 2\]; expected .* or \[2, 60\]"),
        (dict(decoder=nn.Linear(3, 60)), r"the decoder does not fit z float32 \[2, 2\] on cpu: "),
        (dict(decoder=nn.Linear(2, 60).double()), r"the decoder does not fit z float32 .*: .*dtype"),
        (dict(decoder=channels_last()), r"the decoder returned float32 \[2, 5, 4, 3\] .*; expected floating point \[2, 3, 5, 4\] or"),
        (dict(nx=61), r"nx is 61 beside the shape \(3, 5, 4\); expected its product, 60"),
        (dict(shape=(3, 0, 4)), "a size of the shape is 0; expected at least 1"),
    ],
)  # fmt: skip
def test_networks_that_do_not_fit_are_named_before_training(parts, message):
    with pytest.raises(ValueError, match=message):
        own(**parts)


@pytest.mark.parametrize("form", [(1, 5, 4), (5, 4), (5, 4, 1), (1, 1, 5, 4), (20,)])
def test_a_decoder_s_image_may_lack_or_have_axes_of_one(form):
    decoder = nn.Sequential(nn.Linear(2, 20), nn.Unflatten(1, form))
    model = own(encoder=nn.Flatten(), decoder=decoder, shape=(1, 5, 4))
    z = torch.randn(3, 2)
    assert torch.equal(model.output(z), decoder[0](z))


def test_a_vae_s_encoder_of_two_heads_is_named():
    class Heads(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2], x.flatten(1)[:, 2:4]

    with pytest.raises(
        ValueError, match=r"returned \(float32 \[2, 2\] on cpu, float32 \[2, 2\] on cpu\) \(tuple\)"
    ):
        lae_fast.LAE(Heads(), nn.Linear(2, 12), lae_fast.Bernoulli(), shape=(3, 2, 2), nz=2)


@pytest.mark.parametrize("likelihood", [lae_fast.Bernoulli, nn.BCEWithLogitsLoss()], ids=["class", "module"])
def test_what_is_no_likelihood_is_named_before_training(likelihood):
    with pytest.raises(TypeError, match=r"expected a likelihood, as lae_fast.Bernoulli\(\)"):
        lae_fast.VAE(nn.Linear(12, 4), nn.Linear(2, 12), likelihood, nx=12, nz=2)


@pytest.mark.parametrize("part", ["pixel_energies", "mean", "sample"])
def test_what_a_likelihood_lacks_is_named(part):
    class Empty(lae_fast.models.Likelihood):
        pass

    output = torch.zeros(1, 4)
    with pytest.raises(NotImplementedError, match=f"Empty has no {part}"):
        getattr(Empty(), part)(*(output, output)[: 2 if part == "pixel_energies" else 1])


@pytest.mark.parametrize("part", ["pixel_energies", "mean", "sample"])
def test_a_likelihood_of_sums_over_pixels_is_named(part):
    """Summed once more, over images, its energies would grow with the minibatch."""

    likelihood = type("Summed", (Gaussian,), {part: lambda self, output, *_: output.sum(-1)})()
    m = VAE(nn.Linear(60, 4), nn.Linear(2, 60), likelihood, nx=60, nz=2)
    expected = rf"{part} returned float32 \[6\] on cpu; expected \[6, 60\], one for each pixel"
    with pytest.raises(ValueError, match=expected):
        m.loss(images((60,))), m.decode(torch.zeros(6, 2)), m.simulate(6)


class Rounded(nn.Module):
    """A network under an autocast of its own, as pretrained ones are run."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x)


@pytest.mark.parametrize(
    ("cls", "options"), [(LAE, {}), (LAE, dict(decisions="joint")), (VAE, {}), (Hoffman, {})]
)
def test_networks_may_return_half_precision(cls, options):
    nets = nn.Sequential(nn.Flatten(), nn.Linear(60, 8)), nn.Sequential(nn.Linear(2, 60))
    m, x = own(*map(Rounded, nets), cls, **options), images(COLOUR)
    m.loss(x).backward()
    assert lae_fast.augment(m, x, LABELS, 1)[0].isfinite().all()
    assert lae_fast.evaluate(m, x).negative_elbo < torch.inf


@pytest.mark.parametrize(
    ("cls", "options"),
    [(LAE, {}), (LAE, dict(spread=False)), (LAE, dict(decisions="joint", whiten=True)), (VAE, {}), (Hoffman, {})],
)  # fmt: skip
def test_what_a_model_adds_is_as_its_networks(cls, options):
    """In their type and on their device."""
    reference = own(cls=cls, **options)
    networks = (copy.deepcopy(reference.encoder).double(), copy.deepcopy(reference.decoder).double())
    m, x = own(*networks, cls, **options), images(COLOUR)
    assert m.loss(x).isfinite()
    assert m.encode(x).dtype == m.reconstruct(x).dtype == m.sample(2).dtype == torch.float64
    on_meta = own(*(copy.deepcopy(net).to("meta") for net in networks), cls, **options)
    assert {t.device.type for t in (*on_meta.parameters(), *on_meta.buffers())} == {"meta"}
    with pytest.raises(ValueError, match="parameters are float16; expected float32 or float64"):
        own(*(net.half() for net in networks), cls, **options).loss(x)


def test_a_shape_or_the_number_of_elements_is_needed():
    with pytest.raises(TypeError, match=r"neither shape nor nx is given; expected one: shape=\(c, h, w\)"):
        own(shape=None)
    with pytest.raises(TypeError, match="shape is 60"):
        own(shape=60)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_a_trial_changes_nothing():
    """Neither the random stream nor BatchNorm's averages."""
    norm = nn.BatchNorm2d(3)
    torch.manual_seed(0)
    VAE(nn.Sequential(Noisy(), norm, nn.Flatten()), nn.Linear(2, 60), Bernoulli(), shape=COLOUR, nz=2)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    VAE(nn.Sequential(norm, nn.Flatten()), nn.Linear(2, 60), Bernoulli(), nx=60, nz=2, d=60)
    assert torch.equal(torch.rand(3), drawn)
    assert norm.training
    assert (norm.running_mean == 0).all()


# ---- weight gradients, layer by layer ----


def residue(layered, m, x, monkeypatch):
    """Loss, phi and all gradients of two steps, layer by layer or by autograd alone."""
    with monkeypatch.context() as patch:
        if not layered:
            patch.setattr(decoder_pass, "is_layered", lambda *_: False)
        torch.manual_seed(3)
        found = []
        for _ in range(2):
            loss = m.loss(x)
            found += [
                loss,
                *torch.autograd.grad(loss, [p for p in m.parameters() if p.requires_grad]),
                m.phi.clone(),
            ]
    return [t.detach().double() for t in found]


def many_layers():
    """One of each kind that is known, nested, with a frozen layer and modules that work in place."""
    inner = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False))
    layers = [
        nn.Linear(2, 24),
        nn.LayerNorm(24),
        nn.Unflatten(1, (6, 2, 2)),
        nn.LeakyReLU(0.5, inplace=True),
        nn.GroupNorm(2, 6),
        inner,
    ]
    layers += [nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=(0, 0)), nn.SiLU(inplace=True)]
    layers += [nn.ConvTranspose2d(4, 3, (1, 2), padding=(0, 1)), nn.Flatten(), nn.ELU(inplace=True)]
    layers[1].bias.requires_grad_(False)
    layers[6].requires_grad_(False)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("decisions", LAE.kinds)
@pytest.mark.parametrize("likelihood", [Bernoulli, Gaussian, DiscretizedLogistic])
def test_weight_gradients_layer_by_layer_are_autograd_s(decisions, likelihood, monkeypatch):
    """In float64, with proposals of which some are rejected."""
    step_size = 1.5 if likelihood is Bernoulli else 0.2 if decisions == "datapoint" else 0.8
    options = dict(n_steps=3, decoder_window="after", decisions=decisions, step_size=step_size)
    x, results = images(COLOUR, 20).double(), []
    for layered in (True, False):
        torch.manual_seed(7)
        m = own(decoder=many_layers(), likelihood=likelihood(), **options).double()
        if decisions == "datapoint":
            m.set_constant_std(0.8)
        found = decoder_pass.decoder_pass(m, x.flatten(1), by_row=decisions == "datapoint")
        assert isinstance(found, decoder_pass.LayeredPass)
        results.append(residue(layered, m, x, monkeypatch))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    n_proposals = 6 * (20 if decisions == "datapoint" else 4.0)
    assert 0 < m.counters[0, 0] < n_proposals  # the case covers both decisions


def test_only_states_that_count_pay_for_weight_gradients(monkeypatch):
    from lae_fast.models import layers

    made_for, original = [], layers.parameter_gradients
    monkeypatch.setattr(layers, "parameter_gradients", lambda *a: made_for.append(1) or original(*a))
    for window, n_states in (("last", 1), ("after", 5)):
        made_for.clear()
        made(COLOUR, n_steps=5, decoder_window=window).loss(images(COLOUR))
        assert len(made_for) == n_states


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(60, 60)

    def forward(self, a):
        return a + self.inner(a)


def hooked():
    decoder = nn.Sequential(nn.Linear(2, 60))
    decoder[0].register_forward_hook(lambda module, a, out: 2 * out)
    return decoder


def patched():
    decoder = nn.Sequential(nn.Linear(2, 60))
    own = decoder[0].forward
    decoder[0].forward = lambda z: 2 * own(z)
    return decoder


class Borrowing(nn.Module):
    """A module without parameters that uses another one's."""

    def __init__(self, other):
        super().__init__()
        self.others = [other]

    def forward(self, a):
        return self.others[0](a)


def borrowing():
    layer = nn.Linear(60, 60)
    return nn.Sequential(nn.Linear(2, 60), layer, nn.ReLU(), Borrowing(layer))


TIED = nn.Linear(60, 60)
ROWS_OF_THREE = [nn.Linear(2, 60), nn.Unflatten(1, (3, 20)), nn.Flatten(0, 1), nn.Linear(20, 20)]


@pytest.mark.parametrize(
    "decoder",
    [
        lambda: nn.Sequential(nn.Linear(2, 60), Residual()),
        hooked,
        lambda: nn.Sequential(nn.Linear(2, 60), TIED, nn.ReLU(), TIED),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 60))),
        lambda: nn.Sequential(nn.Linear(2, 60), nn.Unflatten(1, COLOUR), nn.Conv2d(3, 3, 3, padding="same")),
        lambda: nn.Sequential(nn.Linear(2, 60), nn.BatchNorm1d(60)).eval(),
        patched,
        borrowing,
        lambda: nn.Sequential(*ROWS_OF_THREE, nn.Unflatten(0, (-1, 3)), nn.Flatten()),
        lambda: nn.Sequential(nn.Linear(2, 60), nn.Softmax(0)),
    ],
    ids=[
        "residual",
        "hooked",
        "tied",
        "weight norm",
        "same",
        "batch norm",
        "patched",
        "borrowing",
        "rows",
        "mixing",
    ],
)
def test_other_decoders_are_left_to_autograd(decoder):
    m = own(decoder=decoder(), mh=False, decisions="joint")  # which images may share that a decoder mixes
    found = decoder_pass.decoder_pass(m, images(COLOUR).flatten(1), by_row=True)
    assert isinstance(found, decoder_pass.RecomputingPass)
    assert m.loss(images(COLOUR)).isfinite()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch's own tracing
@pytest.mark.slow
def test_a_compiled_loss_has_the_eager_gradients():
    """Also of the features: what the backward pass needs of phi is of before phi moved."""
    results = []
    for backend in (None, "aot_eager"):
        torch.manual_seed(0)
        m = LAE(*nets.mlp(60, 2, 8, 1), Bernoulli(), nx=60, nz=2, d=8, n_steps=1, spread=False)
        loss = m.loss if backend is None else torch.compile(m.loss, backend=backend)
        results.append(torch.autograd.grad(loss(images(COLOUR)), list(m.parameters())))
    torch._dynamo.reset()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# ---- pictures ----


def test_a_grid_has_gaps_and_enlarged_tiles():
    x = torch.zeros(3, 3, 2, 1)
    x[0, 0], x[2, 2, 1] = 1, 1
    picture = pictures.grid(x, 2, gap=1, scale=2)
    assert picture.shape == (2 * 4 + 1, 2 * 2 + 1, 3)
    assert (picture[:4, :2] == torch.tensor([1.0, 0, 0])).all()  # the first image, red
    assert (picture[7:9, :2] == torch.tensor([0.0, 0, 1])).all()  # the third one's lower half, blue
    assert (picture[4] == 1).all()  # the gaps
    assert (picture[:, 2] == 1).all()
    assert (picture[5:, 3:] == 0).all()  # nothing


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 8, 8), (8 * 80 + 14, 8 * 80 + 14)), ((64,), (8 * 80 + 14, 8 * 80 + 14)), ((3, 32, 20), (8 * 64 + 14, 8 * 40 + 14, 3)),
     ((1, 100, 90), (8 * 100 + 14, 8 * 90 + 14)), ((7,), (8 * 12 + 14, 8 * 84 + 14)), ((2, 6, 6), (8 * 84 + 14, 8 * 84 + 14))],
)  # fmt: skip
def test_pictures_of_a_model(shape, expected, tmp_path):
    m = made(shape, network="mlp")
    picture = pictures.samples(m)
    assert picture.shape == expected
    assert picture.min() >= 0
    assert picture.max() <= 1
    rows = pictures.reconstructions(m, torch.rand(20, m.nx))
    assert rows.shape[1] > picture.shape[1]
    assert rows.shape[2:] == picture.shape[2:]
    pictures.save_picture(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("labels", [None, torch.arange(6), 20 * torch.arange(6)])
def test_the_latent_plane_with_and_without_labels(labels, tmp_path):
    pictures.save_latent_plane(made(COLOUR), images(COLOUR), labels, tmp_path / "plane.png")
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")
