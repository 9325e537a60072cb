"""Augmented batches: whose variation is whose, what law they follow, and that the model is only read."""

import copy

import pytest
import torch
from budget import alpha, z_limit
from problems import ZScores
from scipy import stats
from test_ais import SCALE as LINEAR_SCALE
from test_ais import linear_model
from test_datapoint import reached
from test_lae import NX, NZ, images, joint, make
from test_step import Watch
from torch import nn

from lae_fast import LAE, VAE, Bernoulli, Gaussian, Hoffman, ops
from lae_fast.augmentation import SOURCES, augment, diagnose_variations
from lae_fast.data import load
from lae_fast.models import nets
from lae_fast.sampling.ald import evaluate_potential
from lae_fast.sampling.chains import Chains

ALPHA, Z_LIMIT = alpha("augmentation"), z_limit("augmentation")
N_PIXELS, M = 8, 6
CASES = [
    (cls, source) for cls in (LAE, VAE, Hoffman) for source in SOURCES if cls is LAE or source != "chain"
]


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def codes(dtype=torch.float32):
    """M different images [M, 8] of pixels 0 and 1."""
    numbers = torch.tensor([3, 86, 201, 124, 39, 240])
    return (numbers[:, None] >> torch.arange(N_PIXELS)).bitwise_and(1).to(dtype)


def copying(cls, scale=0.02, **options):
    """A model with as many latent dimensions as pixels, whose mean image of z is z, and whose q is N(x, 0.05^2 I)."""
    decoder = nn.Linear(N_PIXELS, N_PIXELS)
    model = cls(
        nn.Identity(), decoder, Gaussian(scale), nx=N_PIXELS, nz=N_PIXELS, d=N_PIXELS, **options
    ).requires_grad_(False)
    nn.init.eye_(decoder.weight)
    nn.init.zeros_(decoder.bias)
    if cls is LAE:
        nn.init.eye_(model.phi)
    else:
        nn.init.eye_(model.head.weight)
        model.head.weight[N_PIXELS:] = 0
        model.head.bias[N_PIXELS:] = 2 * torch.tensor(0.05).log()
    return model


def options_of(source):
    """A step size for chains of models that have not adapted one: small, so that proposals are accepted."""
    return {"chain": {"step_size": 1e-5}, "posterior": {"n_steps": 5}, "residual": {"scale": 0.1}}.get(
        source, {}
    )


def is_normal(noise):
    """Kolmogorov's test, and that no number occurs twice: shared noise would pass the first."""
    noise = noise.flatten().double()
    assert len(noise.unique()) == len(noise)
    return stats.kstest(noise.numpy(), "norm").pvalue > ALPHA


# ---- blocks and labels -------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "source"), CASES)
def test_labels_stay_with_their_images(cls, source):
    x, labels, n = codes(), torch.tensor([7, 1, 9, 0, 4, 4]), 3
    options = dict(source=source, generator=seeded(), **options_of(source))
    out, out_labels = augment(copying(cls), x, labels, n, **options)
    nearest = torch.cdist(out, x).argmin(1)  # 0.05 is far less than the 1 between any two
    assert nearest.view(n + 1, M).tolist() == [list(range(M))] * (n + 1)
    assert torch.equal(out_labels, labels[nearest])
    assert torch.equal(out[:M], x)
    variations = out[M:].view(n, M, -1)
    assert (variations - x).abs().max() < 0.5
    assert all(not torch.equal(a, b) for a, b in zip(variations, (x, *variations[:-1]), strict=True))


@pytest.mark.parametrize(("cls", "source"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_type_and_shape_are_kept_whatever_the_model_s(cls, source, dtype):
    x = images(dtype=torch.float64).to(dtype).view(-1, 1, 4, 4)
    labels = torch.eye(len(x), 3, dtype=torch.bool)
    out, out_labels = augment(make(cls), x, labels, 2, source=source, **options_of(source))
    assert (out.shape, out.dtype) == ((3 * len(x), 1, 4, 4), dtype)
    assert torch.equal(out[: len(x)], x)
    assert torch.equal(out_labels, torch.cat([labels] * 3))
    flat, _ = augment(make(cls), x.flatten(1), labels, 2, source=source, **options_of(source))
    assert flat.shape == (3 * len(x), NX)


@pytest.mark.parametrize("cls", [LAE, VAE, Hoffman])
def test_no_variations_are_the_batch_itself(cls):
    x, labels = images(), torch.arange(6)
    out, out_labels = augment(make(cls), x, labels, 0)
    assert out is x
    assert out_labels is labels


@pytest.mark.parametrize(("cls", "default"), [(LAE, "isotropic"), (VAE, "encoder"), (Hoffman, "encoder")])
def test_defaults(cls, default):
    model, x, labels = make(cls), images(), torch.arange(6)
    if cls is LAE:
        model.set_constant_std(0.3)  # else the two sources are one
    results = {
        source: augment(model, x, labels, 2, source=source, generator=seeded())[0]
        for source in (None, "encoder", "isotropic")
    }
    assert [s for s in ("encoder", "isotropic") if torch.equal(results[s], results[None])] == [default]


# ---- laws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [LAE, VAE])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_isotropic_is_normal_around_the_code(cls, scale):
    model, x, n = copying(cls).double(), codes(torch.float64), 400
    weight = torch.randn(N_PIXELS, N_PIXELS, generator=seeded(1), dtype=torch.float64)
    (model.phi if cls is LAE else model.head.weight[:N_PIXELS]).copy_(weight)
    options = {} if scale is None else {"scale": scale}
    out, _ = augment(model, x, torch.arange(M), n, source="isotropic", generator=seeded(), **options)
    assert is_normal((out[M:].view(n, M, -1) - x @ weight.T) / (scale or 0.05))


@pytest.mark.parametrize("cls", [LAE, VAE, Hoffman])
def test_encoder_is_q(cls):
    """VAE and Hoffman have a deviation for every image and dimension; here the LAE's is constant."""
    model, x, n = copying(cls).double(), codes(torch.float64), 400
    if cls is LAE:
        model.set_constant_std(0.2)
        std = 0.2
    else:
        weight = torch.randn(N_PIXELS, N_PIXELS, generator=seeded(1), dtype=torch.float64)
        model.head.weight[N_PIXELS:] = weight
        std = 0.05 * torch.exp(0.5 * x @ weight.T)
    out, _ = augment(model, x, torch.arange(M), n, source="encoder", generator=seeded())
    assert is_normal((out[M:].view(n, M, -1) - x) / std)


@pytest.mark.parametrize("cls", [LAE, VAE])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_residual_adds_to_the_image_what_a_step_of_its_code_changes(cls, scale):
    """The decoder loses half of the pixels; the image keeps them."""
    model, x, n = copying(cls).double(), codes(torch.float64), 400
    model.decoder.weight.mul_((torch.arange(N_PIXELS) < 4)[:, None])
    options = {} if scale is None else {"scale": scale}
    out, _ = augment(model, x, torch.arange(M), n, source="residual", generator=seeded(), **options)
    moves = out[M:].view(n, M, -1) - x
    assert (moves[..., 4:] == 0).all()
    spread = x.std(0)[:4]  # of the codes, which are the images
    assert is_normal((moves[..., :4] / ((scale or 0.5) * spread))[..., spread > 0])
    assert (moves[..., :4][..., spread == 0] == 0).all()


def test_residual_images_stay_images():
    model = make(LAE)
    nn.init.normal_(model.decoder[-1].weight, std=30)  # reckless, so that bounds matter
    out, _ = augment(model, images(), torch.arange(6), 5, source="residual", scale=2.0, generator=seeded())
    assert (out.min(), out.max()) == (0, 1)
    exact = images().double()
    out, _ = augment(model.double(), exact, torch.arange(6), 5, source="residual", scale=0.0)
    torch.testing.assert_close(out, exact.repeat(6, 1), rtol=0, atol=1e-14)


def test_residual_needs_codes_that_spread():
    with pytest.raises(ValueError, match="'residual' for one image; expected two or more"):
        augment(make(LAE), images()[:1], torch.arange(1), 2, source="residual")


@pytest.mark.parametrize(("cls", "source"), [(c, s) for c, s in CASES if s not in ("isotropic", "residual")])
def test_a_scale_that_nobody_would_read_is_an_error(cls, source):
    with pytest.raises(
        ValueError, match=f"scale is 0.1 with source '{source}'; expected None: only isotropic and"
    ):
        augment(make(cls), images(), torch.arange(6), 2, source=source, scale=0.1)


# ---- diagnosis ---------------------------------------------------------------------------------


def test_a_diagnosis_by_hand():
    """Variations N(x, 0.2^2 I) of images of two labels; a classifier that sees one of them everywhere."""
    model, x = copying(VAE).double(), codes(torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    report = diagnose_variations(
        model,
        x,
        labels,
        4000,
        source="isotropic",
        scale=0.2,
        classifier=lambda x: torch.tensor([0.0, 1.0, -torch.inf]).expand(len(x), 3),
        generator=seeded(),
    )
    assert report.diversity == pytest.approx(0.2, rel=0.01)  # of 192,000 numbers: six deviations
    within = 3 * x[:3].var(0).mean() + 2 * x[3:5].var(0).mean()  # the last label has one image
    assert report.real_diversity == pytest.approx((within / 5).sqrt().item(), rel=1e-12)
    assert report.label_agreement == pytest.approx(2 / 6)
    assert report.acceptance_rate is None


@pytest.mark.parametrize("source", ["chain", "posterior"])
def test_a_diagnosis_tells_the_acceptance(source):
    rates = []
    for step_size in (1e-9, 1e9):
        options = dict(source=source, n_steps=4, step_size=step_size, generator=seeded())
        rates.append(diagnose_variations(make(LAE), images(), torch.arange(6) % 2, **options).acceptance_rate)
    assert rates[0] > 0.999
    assert rates[1] < 1e-6


def test_a_diagnosis_asks_a_classifier_in_eval_mode():
    classifier = nn.Sequential(nn.Dropout(0.9), nn.Linear(NX, 3))
    found = [
        diagnose_variations(
            make(LAE), images(), torch.arange(6) % 3, classifier=classifier, generator=seeded()
        )
        for _ in range(2)
    ]
    assert torch.equal(found[0].label_agreement, found[1].label_agreement)
    assert classifier.training


def test_a_diagnosis_shows_a_classifier_images_as_augment_makes_them():
    model, seen = make(LAE), []
    x = (images() * 255).byte()

    def classifier(x):
        seen.append(x)
        return torch.zeros(len(x), 2)

    diagnose_variations(model, x, torch.arange(6) % 2, 3, classifier=classifier, generator=seeded())
    drawn, _ = augment(model, x, torch.arange(6) % 2, 3, generator=seeded())
    assert torch.equal(seen[0], drawn[6:])


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (
            torch.zeros(1),
            torch.arange(6) % 2,
            r"labels are up to 1, and .* \[24, 1\] .*with classes >= 2",
        ),
        (
            torch.zeros(1),
            torch.zeros(6).long(),
            r"labels are up to 0, and .* \[24, 1\] .*with classes >= 2",
        ),
        (torch.zeros(4), 1 + torch.arange(6) % 4, r"labels are up to 4, and .* \[24, 4\] .*classes >= 5"),
        (torch.zeros(4), -(torch.arange(6) % 4), r"labels are from -3 on; expected"),
        (torch.tensor([0.0, torch.nan]), torch.arange(6) % 2, "scores that are no numbers"),
    ],
)
def test_scores_that_say_nothing_of_the_labels_are_refused(scores, labels, message):
    options = dict(classifier=lambda x: scores.expand(len(x), -1), generator=seeded())
    with pytest.raises(ValueError, match=message):
        diagnose_variations(make(LAE), images(), labels, 4, **options)


def test_labels_are_looked_at_before_anything_is_drawn():
    generator = seeded()
    before = generator.get_state()
    for labels, error in (
        (torch.arange(6), ValueError),
        (torch.zeros(6), TypeError),
        (torch.arange(5), ValueError),
    ):
        with pytest.raises(error):
            diagnose_variations(make(LAE), images(), labels, generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("labels", "n", "message"),
    [
        (torch.arange(6), 4, "no two of 6 images have the same label"),
        (torch.zeros(6, 2), 4, r"labels are float32 \[6, 2\] on cpu; expected"),
        (torch.arange(6) % 2, 1, "n is 1; expected at least 2"),
    ],
)
def test_what_cannot_be_diagnosed_is_said(labels, n, message):
    with pytest.raises(ValueError, match=message):
        diagnose_variations(make(LAE), images(), labels, n)


def moments(model, x, source, n=1000, **options):
    """z-scores [m, 2 nz] of the means and variances of z against the exact posterior's."""
    w, b = (p.detach() for p in model.decoder.parameters())
    covariance = torch.linalg.inv(torch.eye(model.nz, dtype=w.dtype) + w.T @ w / LINEAR_SCALE**2)
    out, _ = augment(model, x, torch.arange(len(x)), n, source=source, generator=seeded(), **options)
    z = (out[len(x) :].view(n, len(x), -1) - b) @ torch.linalg.pinv(w).T  # the decoder is injective
    centred = z - (x - b) @ w @ covariance / LINEAR_SCALE**2
    expected = (*[0.0] * model.nz, *covariance.diagonal().tolist())
    statistics = torch.cat((centred, centred**2), -1)
    return torch.stack([ZScores.of(statistics[:, i], expected).values for i in range(len(x))])


@pytest.mark.parametrize("options", [{"n_steps": 60}, {"n_steps": 100, "step_size": 0.2}])
def test_posterior_reaches_a_known_one(options):
    """From draws of a q that is twice as wide: 12 z-scores below the limit, where q's own are beyond it."""
    model = linear_model().double()
    x = model.simulate(2, seeded(3))[0].detach()
    assert 0 < x.min() < x.max() < 1
    assert moments(model, x, "posterior", **options).abs().max() < Z_LIMIT
    assert moments(model, x, "encoder")[:, model.nz :].abs().min() > Z_LIMIT


@pytest.mark.parametrize("cls", [LAE, VAE])
def test_posterior_starts_at_draws_of_q(cls):
    model, x, labels = make(cls), images(), torch.arange(6)
    still = augment(model, x, labels, 2, source="posterior", step_size=0, generator=seeded())[0]
    torch.testing.assert_close(still, augment(model, x, labels, 2, source="encoder", generator=seeded())[0])
    default, twenty = (
        augment(model, x, labels, 2, source="posterior", generator=seeded(), **options)[0]
        for options in ({}, {"n_steps": 20})
    )
    assert torch.equal(default, twenty)
    assert not torch.equal(default, still)


@pytest.mark.parametrize("whiten", [False, True])
def test_a_chain_that_takes_no_steps_decodes_the_code(whiten):
    model, x = joint(whiten=whiten).double(), images(dtype=torch.float64)
    out, _ = augment(model, x, torch.arange(6), 3, source="chain", step_size=0, n_steps=4)
    expected = model.reconstruct(x).detach().expand(3, -1, -1)
    torch.testing.assert_close(out[6:].view(3, 6, -1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mh", [True, False])
@pytest.mark.parametrize("whiten", [False, True])
def test_a_chain_is_the_model_s_own(whiten, mh):
    """One chain ends where `LAE.loss` would take phi on this minibatch, with the same random numbers."""
    model = joint(n_steps=3, mh=mh, whiten=whiten, step_size=0.02).double()
    for seed in range(3):  # the running average of the whitening has a history
        model.loss(images(seed=seed, dtype=torch.float64))
    x, own = images(9, seed=4, dtype=torch.float64), copy.deepcopy(model)
    own.rng.copy_(ops.make_rng("cpu", seeded()))
    own.loss(x)
    assert not torch.equal(own.phi, model.phi)
    out, _ = augment(model, x, torch.arange(9), 1, source="chain", generator=seeded())
    torch.testing.assert_close(out[9:], own.reconstruct(x).detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("spread", [True, False])
def test_chains_with_a_decision_for_each_datapoint_are_the_model_s_own(spread):
    """Two variations are where two runs of the model's chains end, from the same starts, with the same random numbers."""
    model = make(n_steps=3, spread=spread, step_size=0.5).double()
    x, generator = images(9, seed=4, dtype=torch.float64), seeded()
    out, _ = augment(model, x, torch.arange(9), 2, source="chain", generator=seeded())
    mean, std = model.posterior(x)
    noise = torch.randn(18, model.nz, generator=generator, dtype=torch.float64) if spread else 0
    starts = mean.repeat(2, 1) + std.repeat(2, 1) * noise
    model.rng.copy_(ops.make_rng("cpu", generator))
    z = reached(model, x.repeat(2, 1), starts if spread else None)
    assert model.acceptance_rate < 1
    torch.testing.assert_close(out[9:], model.decode(z).detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("mh", [True, False])
def test_n_chains_by_hand(mh):
    """n = 4 of them, T = 5 instead of the model's 2 steps, a step size per example instead of the model's own."""
    n, n_steps, step_size = 4, 5, 0.1
    model, x = joint(mh=mh).double(), images(dtype=torch.float64)
    m, h = len(x), model.encoder(x).detach()

    def potential(phi):  # [n, nz d] -> [n]
        return torch.stack([model.potential(x, h @ p.view_as(model.phi).T).sum() for p in phi])

    eta = torch.tensor([step_size / m], dtype=torch.float64)
    with torch.no_grad():
        chains = Chains(
            lambda rows: evaluate_potential(potential, rows, n),
            model.phi.flatten().expand(n, -1),
            eta.log(),
            ops.make_rng("cpu", seeded()),
            mh=mh,
        )
        for _ in range(n_steps):
            chains.step()
    if mh:
        assert 0 < chains.counters[:, 0].sum() < n * n_steps  # the case covers both
    expected = [model.decode(h @ phi.view_as(model.phi).T) for phi in chains.phi]
    options = dict(source="chain", n_steps=n_steps, step_size=step_size, generator=seeded())
    out, _ = augment(model, x, torch.arange(m), n, **options)
    torch.testing.assert_close(out[m:], torch.cat(expected).detach(), rtol=0, atol=1e-11)


def test_a_chain_takes_the_model_s_step_size_and_number_of_steps():
    x, labels, options = images(), torch.arange(6), dict(source="chain")
    model = make(n_steps=3)
    model.log_step_size.fill_(0.05).log_()
    given = dict(n_steps=3, step_size=0.05)
    outs = [augment(model, x, labels, 2, generator=seeded(), **options, **o)[0] for o in ({}, given)]
    torch.testing.assert_close(*outs)
    other = augment(model, x, labels, 2, generator=seeded(), **options, n_steps=2)[0]
    assert not torch.allclose(other, outs[0])


# ---- what it may not do ------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "source"), CASES)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_only_read(cls, source, training):
    model, x = make(cls), images()
    model.loss(images(seed=2)).backward()
    model.train(training)
    before, grads = copy.deepcopy(model), [p.grad.clone() for p in model.parameters()]
    seen, copied, rng = [], x.clone(), torch.get_rng_state()
    model.decoder.register_forward_hook(lambda *_: seen.append(model.decoder.training))
    augment(model, x, torch.arange(6), 2, source=source, generator=seeded(), **options_of(source))
    assert set(seen) == {False}  # Dropout and BatchNorm would answer otherwise
    assert all(m.training == training for m in model.modules())
    tensors = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (before, model)]
    assert tensors[0].keys() == tensors[1].keys()  # buffers outside the state_dict included
    for name, t in tensors[0].items():
        assert torch.equal(tensors[1][name], t), name
        assert tensors[1][name].requires_grad == t.requires_grad, name
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(x, copied)
    assert torch.equal(torch.get_rng_state(), rng)  # the generator decided all


@pytest.mark.parametrize(("cls", "source"), CASES)
def test_no_graph_hangs_on_the_result(cls, source):
    x = images().requires_grad_()
    out, _ = augment(make(cls), x, torch.arange(6), 2, source=source, **options_of(source))
    assert not out.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("cls", "source"), CASES)
def test_the_generator_decides(cls, source):
    model, x, labels = make(cls), images(), torch.arange(6)
    options = dict(source=source, **options_of(source))

    def draw(generator=None):
        return augment(model, x, labels, 2, generator=generator, **options)[0]

    assert torch.equal(draw(seeded()), draw(seeded()))
    generator = seeded()
    assert not torch.equal(draw(generator), draw(generator))
    assert not torch.equal(draw(), draw())
    torch.manual_seed(3)
    first = draw()
    torch.manual_seed(3)
    assert torch.equal(draw(), first)


@pytest.mark.parametrize(("cls", "source"), [case for case in CASES if case[1] != "posterior"])
def test_it_never_asks_the_device(cls, source):
    model, x, labels = make(cls), images(), torch.arange(6)
    with Watch() as watch:
        augment(model, x, labels, 2, source=source, **options_of(source))
    assert not watch.offences
    assert sum(watch.allocated.values()) > 5  # it did watch


@pytest.mark.gpu
@pytest.mark.parametrize(("cls", "source"), CASES)
def test_on_a_gpu(cls, source):
    model, x, labels = make(cls).cuda(), images().cuda(), torch.arange(6)
    generator = torch.Generator("cuda").manual_seed(0)

    def run():
        return augment(model, x, labels, 2, source=source, generator=generator, **options_of(source))[0]

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("default" if source == "posterior" else "error")
    try:
        out = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.is_cuda
    assert out.isfinite().all()


@pytest.mark.parametrize(("cls", "source"), [case for case in CASES if case[1] in ("encoder", "isotropic")])
def test_one_pass_through_encoder_and_decoder(cls, source):
    model, rows = make(cls), []
    for net in (model.encoder, model.decoder):
        net.register_forward_hook(lambda net, inputs, output: rows.append(len(inputs[0])))
    augment(model, images(), torch.arange(6), 4, source=source)
    assert rows == [6, 24]


@pytest.mark.parametrize("source", ["chain", "posterior"])
@pytest.mark.parametrize("step_size", [1e-3, None])
def test_chains_evaluate_once_a_step(source, step_size):
    """And once where they start: every time all n of them. `langevin_sample` looks once more whether the energy is one."""
    model, shapes = make(), []
    potential = model.potential
    model.potential = lambda x, z: shapes.append(tuple(z.shape)) or potential(x, z)
    augment(model, images(), torch.arange(6), 4, source=source, n_steps=7, step_size=step_size)
    assert shapes == [(4, 6, NZ)] * (9 if source == "posterior" else 8)


@pytest.mark.parametrize("source", ["chain", "posterior"])
def test_autocast_does_not_reach_the_chain(source):
    model, is_on = make(), set()
    energy = model.likelihood.energy
    model.likelihood.energy = lambda *given: is_on.add(torch.is_autocast_enabled("cpu")) or energy(*given)
    options = dict(source=source, generator=seeded(), **options_of(source))
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = augment(model, images(), torch.arange(6), 2, **options)
    assert is_on == {False}
    assert out.dtype == torch.float32


BAD = [
    ({"n": -1}, "n is -1; expected at least 0"),
    (
        {"source": "prior"},
        "source is 'prior'; expected one of encoder, isotropic, residual, chain, posterior",
    ),
    ({"cls": VAE, "source": "chain"}, "source is 'chain' for a VAE; expected an LAE"),
    ({"cls": Hoffman, "source": "chain"}, "source is 'chain' for a Hoffman; expected an LAE"),
    ({"labels": torch.arange(5)}, r"labels are \[5\]; expected \[6, \.\.\.\], one for each image"),
    ({"labels": torch.tensor(1)}, r"labels are \[\]; expected \[6, \.\.\.\]"),
    ({"x": torch.rand(6, 15)}, r"images are float32 \[6, 15\] on cpu; expected floating point \[n, 16\]"),
    (
        {"x": torch.rand(6, 2, 4, 4)},
        r"images are float32 \[6, 2, 4, 4\] on cpu; expected floating point \[n, 16\]",
    ),
    ({"x": torch.rand(16)}, r"images are float32 \[16\] on cpu; expected floating point \[n, 16\]"),
    ({"x": torch.rand(0, 16), "labels": torch.arange(0)}, r"\[0, 16\] on cpu; expected .* with n >= 1"),
    (
        {"x": torch.zeros(6, 16, dtype=torch.int16)},
        r"images are int16 \[6, 16\] on cpu; expected floating point",
    ),
    ({"x": torch.full((6, 16), 1.5)}, r"values from 1.5 to 1.5; expected all in \[0, 1\]"),
    ({"x": torch.full((6, 16), -0.5), "n": 0}, r"values from -0.5 to -0.5; expected all in \[0, 1\]"),
    ({"scale": -0.1}, "scale is -0.1; expected a finite number >= 0"),
    ({"scale": float("nan")}, "scale is nan; expected a finite number >= 0"),
    ({"source": "chain", "step_size": -1.0}, "step_size is -1; expected a finite number >= 0"),
    ({"source": "chain", "step_size": float("inf")}, "step_size is inf; expected a finite number >= 0"),
    ({"source": "chain", "n_steps": 0}, "n_steps is 0; expected at least 1"),
    ({"source": "posterior", "n_steps": 1}, "n_steps is 1; expected at least 2"),
    ({"n_steps": 3}, "n_steps is 3 with source 'isotropic'; expected None: it runs no chain"),
    ({"source": "encoder", "step_size": 0.1}, "step_size is 0.1 with source 'encoder'; expected None"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_arguments_are_named(changes, message):
    arguments = {"cls": LAE, "x": images(), "labels": torch.arange(6), "n": 2} | changes
    with pytest.raises(ValueError, match=message):
        augment(make(arguments.pop("cls")), **arguments)


def test_one_step_of_a_given_size_is_enough():
    out, _ = augment(make(), images(), torch.arange(6), 2, source="posterior", n_steps=1, step_size=1e-3)
    assert out.isfinite().all()


# ---- a training loop ---------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "source"), [(LAE, None), (VAE, None), (LAE, "chain"), (LAE, "posterior")])
def test_a_classifier_learns_from_augmented_digits(cls, source):
    """Softmax regression on scikit-learn's digits, 200 steps for the model and 200 for it: 0.82 to 0.84 of the test
    images right. Were labels and images at odds: 0.12 to 0.25."""
    digits = load("digits")
    torch.manual_seed(0)
    model = cls(*nets.mlp(64, 4, 32, 1), Bernoulli(), nx=64, nz=4, d=32)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    steps = [torch.optim.Adam(m.parameters(), 1e-2) for m in (model, classifier)]
    images, labels = digits.train.images / 255, digits.train.labels
    for epoch in range(20):
        for index in torch.randperm(len(images)).split(64):
            x, y = images[index].view(-1, 1, 8, 8), labels[index]
            if epoch < 10:
                loss = model.loss(x.flatten(1))
            else:
                batch, targets = augment(model, x, y, 2, source=source, n_steps=4 if source else None)
                loss = nn.functional.cross_entropy(classifier(batch), targets)
            steps[epoch >= 10].zero_grad()
            loss.backward()
            steps[epoch >= 10].step()
    right = classifier(digits.test.images / 255).argmax(1) == digits.test.labels
    assert right.float().mean() > 0.7
