"""Models and samplers inside somebody else's program: what it has switched on changes no result, and a question changes nothing."""

import copy
import math
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn

import lae_fast
from lae_fast import LAE, VAE, Bernoulli, Hoffman, view
from lae_fast.evaluation import anneal, simulated_gap
from lae_fast.isolation import _settings, isolated
from lae_fast.models import Architecture, build
from lae_fast.models.precision import products_in
from lae_fast.models.with_chain import AutoencoderWithChain
from lae_fast.training import TrainingStep, adam

NX, NZ, D, N = 16, 2, 12, 8
MODELS = {
    "datapoint": (LAE, {}),
    "joint": (LAE, dict(decisions="joint")),
    "vae": (VAE, {}),
    "hoffman": (Hoffman, {}),
}


def precisions():
    return tuple(setting.fp32_precision for setting, _ in _settings())


class Quirky(nn.Module):
    """A decoder with everything that behaves otherwise in train mode, and a record of what surrounds its calls."""

    def __init__(self, *between):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(NZ, 20), *between, nn.Tanh(), nn.Linear(20, NX))
        self.seen = []

    def forward(self, z):
        settings = precisions()
        self.seen.append((self.training, torch.is_autocast_enabled("cpu"), settings))
        return self.net(z)


def make(kind="datapoint", *between, dtype=torch.float32, likelihood=None, **options):
    torch.manual_seed(1)
    cls, own = MODELS[kind]
    encoder = nn.Sequential(nn.Linear(NX, D), nn.Tanh())
    model = cls(encoder, Quirky(*between), likelihood or Bernoulli(), nx=NX, nz=NZ, d=D, **(own | options))
    return model.to(dtype)


def quirks():
    return nn.BatchNorm1d(20), nn.Dropout(0.5)


def images(n=N, dtype=torch.float32):
    return torch.rand(n, NX, generator=torch.Generator().manual_seed(2)).to(dtype)


def schedule(model):
    return lae_fast.fit_schedule(model, images(), n_temperatures=4, n_chains=2, n_pilot=4)


QUESTIONS = {
    "evaluate": lambda m: lae_fast.evaluate(m, images()),
    "importance_bound": lambda m: lae_fast.importance_bound(m, images(), n_draws=3),
    "quadrature": lambda m: lae_fast.quadrature(m, images(), n_cells=16),
    "fit_schedule": schedule,
    "anneal": lambda m: anneal(m, images(), n_temperatures=4, n_chains=2, progress=False),
    "simulated_gap": lambda m: simulated_gap(m, schedule(m), 3, n_chains=2),
    "augment": lambda m: lae_fast.augment(m, images(), torch.arange(N), 2, generator=seeded()),
    "augment, posterior": lambda m: lae_fast.augment(
        m, images(), torch.arange(N), 2, source="posterior", n_steps=3, generator=seeded()
    ),
    "sample": lambda m: m.sample(3, seeded()),
    "simulate": lambda m: m.simulate(3, seeded()),
    "reconstruct": lambda m: m.reconstruct(images()),
    "interpolate": lambda m: m.interpolate(images(), images(), 3),
}


def seeded():
    return torch.Generator().manual_seed(3)


def tensors(value):
    """All numbers in a result, as one tensor."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().flatten()
    if isinstance(value, (tuple, list)):
        return torch.cat([tensors(v) for v in value])
    return (
        torch.tensor([float(value)]).double() if isinstance(value, (int, float)) else torch.zeros(0).double()
    )


def answer(question, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few temperatures collapse, so few cells are coarse
        return tensors(QUESTIONS[question](model))


def state(model):
    return {name: t.clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def changed(model, before):
    return [name for name, t in state(model).items() if not torch.equal(t, before[name])]


# ---- 1. a model that is only asked something stays as it is ----


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_in_eval_mode_and_changes_nothing(question, kind):
    model = make(kind, *quirks())
    model.decoder.net[1].eval()  # frozen by its owner
    before, modes = state(model), [m.training for m in model.modules()]
    got = answer(question, model)
    assert {training for training, *_ in model.decoder.seen} == {False}
    assert [m.training for m in model.modules()] == modes
    assert not changed(model, before)
    assert torch.equal(got, answer(question, model.eval()))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("question", ["sample", "simulate", "reconstruct", "interpolate"])
def test_pictures_are_made_without_gradients(question, kind):
    answers = QUESTIONS[question](make(kind))
    for t in answers if isinstance(answers, tuple) else (answers,):
        t.numpy()  # as matplotlib does; raises where a gradient is wanted


def test_the_mode_is_restored_when_a_question_fails():
    model = make("vae", *quirks())
    model.decoder.net[2].eval()
    modes = [m.training for m in model.modules()]
    model.encoder.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lae_fast.evaluate(model, images())
    assert [m.training for m in model.modules()] == modes


def test_many_threads_may_ask_at_once():
    """The one that leaves first must not switch train mode on under the others."""
    model, inside, seen = make("vae", *quirks()), threading.Barrier(3), []

    def ask(n_rounds):
        with isolated(model):
            inside.wait()
            for _ in range(n_rounds):
                inside.wait()
                seen.append(any(m.training for m in model.modules()))

    threads = [threading.Thread(target=ask, args=(3,)) for _ in range(2)]
    for t in threads:
        t.start()
    with isolated(model):
        inside.wait()
    for _ in range(3):
        inside.wait()
    for t in threads:
        t.join()
    assert seen == [False] * 6
    assert all(m.training for m in model.modules())


def test_a_part_that_another_model_is_asked_with_stays_in_eval_mode():
    """Not for a moment may it be in train mode, as a call of the whole model's `train` would have it."""
    seen = []

    class Shared(nn.Linear):
        def train(self, mode=True):
            seen.append(mode)
            return super().train(mode)

    part = Shared(2, 2)
    one, other = nn.Sequential(part, nn.Dropout()), nn.Sequential(part)
    with isolated(other):
        seen.clear()
        with isolated(one):
            pass
        assert True not in seen
        assert (part.training, one.training, one[1].training) == (False, True, True)
    assert part.training


def test_an_attack_that_ends_does_not_disturb_another_one():
    model, seen, started, goes_on = (
        nn.Sequential(nn.Dropout(0.5), nn.Linear(NX, 3)),
        [],
        threading.Event(),
        threading.Event(),
    )

    def watch(*_):
        if threading.current_thread() is not threading.main_thread():
            seen.append(model.training)
            if len(seen) == 2:
                started.set()
                goes_on.wait()

    model.register_forward_pre_hook(watch)
    options = dict(eps=0.1, n_steps=3, random_start=False)
    x, labels, results = images(), torch.zeros(N, dtype=torch.int64), []
    expected = lae_fast.attacks.pgd(model, x, labels, **options)
    other = threading.Thread(target=lambda: results.append(lae_fast.attacks.pgd(model, x, labels, **options)))
    other.start()
    started.wait()
    lae_fast.attacks.pgd(model, x, labels, **options)
    goes_on.set()
    other.join()
    assert seen == [False] * 4
    assert torch.equal(results[0], expected)
    assert model.training


@pytest.mark.parametrize("kind", ["datapoint", "joint", "hoffman"])
def test_a_potential_that_is_not_a_function_is_refused(kind):
    model = make(kind, nn.Dropout(0.5))
    before = state(model)
    with pytest.raises(ValueError, match="the potential is not a function: two evaluations"):
        model.loss(images())
    assert not changed(model, before)
    model.decoder.eval()
    assert model.loss(images()).isfinite()


@pytest.mark.parametrize("mh", [True, False])
@pytest.mark.parametrize(("kind", "is_refused"), [("datapoint", True), ("hoffman", True), ("joint", False)])
def test_a_chain_for_each_datapoint_needs_potentials_of_their_own(kind, is_refused, mh):
    """BatchNorm in train mode ties the images together; one chain of all of them may depend on all of them."""
    between = [nn.BatchNorm1d(20)] if mh else [nn.BatchNorm1d(20), nn.Dropout(0.5)]
    model = make(kind, *between, mh=mh)
    before = state(model)
    if is_refused:
        with pytest.raises(
            ValueError, match=r"not a function.*GroupNorm instead of BatchNorm, and Dropout with mh=False"
        ):
            model.loss(images())
        assert not changed(model, before)
    else:
        assert model.loss(images()).isfinite()


@pytest.mark.parametrize("kind", ["datapoint", "hoffman"])
def test_a_minibatch_of_one_image_does_not_vouch_for_larger_ones(kind):
    model = make(kind, nn.Unflatten(1, (4, 5)), nn.BatchNorm1d(4), nn.Flatten())
    assert model.loss(images()[:1]).isfinite()
    with pytest.raises(ValueError, match="the potential is not a function"):
        model.loss(images())


@pytest.mark.parametrize("kind", ["datapoint", "joint", "hoffman"])
def test_without_decisions_a_potential_may_be_random_and_is_looked_at_in_secret(kind, monkeypatch):
    losses = []
    for look in (AutoencoderWithChain._check_function, lambda *_, **__: None):
        monkeypatch.setattr(AutoencoderWithChain, "_check_function", look)
        model = make(kind, nn.Dropout(0.5), mh=False)
        torch.manual_seed(5)
        losses.append([model.loss(images()).item() for _ in range(2)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["datapoint", "joint", "hoffman"])
@pytest.mark.parametrize("change", ["train", "a part", "insert", "hook", "subclass"])
def test_what_becomes_random_later_is_refused_too(kind, change):
    if change in ("hook", "subclass"):  # an MLP is known to the letter, but not with these
        mlp = lae_fast.MLP(nn.Linear(NZ, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, NX))
        model = make(kind)
        model.decoder = Noisy(*mlp) if change == "subclass" else mlp
        if change == "hook":
            model.decoder.register_forward_hook(lambda *given: given[-1] + torch.randn(()))
    else:
        model = make(kind, nn.Dropout(0.5) if change != "insert" else nn.Identity())
        model.decoder.eval()
        model.loss(images())
        {"train": model.decoder, "a part": model.decoder.net[1], "insert": model.decoder}[change].train()
        if change == "insert":
            model.decoder.net[1] = nn.Dropout(0.5)
    with pytest.raises(ValueError, match="not a function"):
        model.loss(images())


class Noisy(lae_fast.MLP):
    def forward(self, x):
        return super().forward(x) + torch.randn(())


def test_the_function_is_asked_for_once_in_a_run():
    model = make()
    counts = []
    for _ in range(3):
        model.decoder.seen.clear()
        model.loss(images())
        counts.append(len(model.decoder.seen))
    assert counts[0] == counts[1] + 2
    assert counts[1] == counts[2]


@pytest.mark.parametrize(
    ("between", "scale"),
    [(lambda: nn.Dropout(0.5), 0.0), *((lambda: nn.BatchNorm1d(20), s) for s in (1.0, 0.0))],
)
def test_samplers_and_states_refuse_what_is_no_function_of_a_chain_alone(between, scale):
    """Random, or of the other chains, too; also where all of them start at one place."""
    model, x = make("vae", between()), images()
    z = scale * torch.randn(4, N, NZ, generator=torch.Generator().manual_seed(1))

    def energy(z):
        return model.potential(x, z)

    with pytest.raises(ValueError, match="not a function"):
        lae_fast.langevin_sample(energy, z, n_draws=2, progress=False)
    with pytest.raises(ValueError, match="not a function"):
        lae_fast.ald_sample(energy, torch.randn(N, D), nz=NZ, n_draws=2, progress=False)
    with pytest.raises(ValueError, match="one datapoint's potential depend on others"):
        lae_fast.ald_init(energy, z, 0.1, n_chains=4)
    assert lae_fast.ald_step(energy, z, 0.1, n_chains=4, mh=False)[0].phi.isfinite().all()
    model.eval()
    assert lae_fast.ald_init(energy, z, 0.1, n_chains=4).potential.isfinite().all()


def test_who_moves_a_chain_behind_the_sampler_s_back_is_refused():
    def clamped(z):
        with torch.no_grad():
            z.clamp_(min=0)
        return 0.5 * z.square().sum(-1)

    def energy(z):
        return 0.5 * z.square().sum(-1)

    z, state = torch.ones(4, 3, 2), lae_fast.ald_init(energy, torch.ones(4, 3), 0.1, n_chains=4)
    options = dict(n_draws=2, n_warmup=2, progress=False)
    for who, call in (
        ("potential", lambda: lae_fast.ald_init(clamped, torch.ones(4, 3), 0.1, n_chains=4)),
        ("potential", lambda: lae_fast.ald_step(clamped, state)),
        ("potential", lambda: lae_fast.langevin_sample(clamped, z, **options)),
        ("value_and_grad", lambda: lae_fast.langevin_sample(energy, z, value_and_grad=lambda z: (clamped(z), z), **options)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{who} has changed its argument in place; expected a function"):
            call()


def test_a_chain_of_all_images_may_depend_on_all_of_them():
    model, x = make("vae", nn.BatchNorm1d(20)), images()
    z = torch.randn(1, N, NZ, generator=torch.Generator().manual_seed(1))
    state = lae_fast.ald_init(lambda z: model.potential(x, z), z, 0.1, n_chains=1)
    assert state.potential.isfinite().all()


@pytest.mark.parametrize("kind", MODELS)
def test_a_loss_in_eval_mode_is_the_negative_elbo_and_moves_nothing(kind):
    model, x = make(kind).eval(), images()
    before = state(model)
    with torch.no_grad():
        torch.manual_seed(4)
        losses = torch.stack([model.loss(x) for _ in range(400)])
    assert not changed(model, before)
    expected = lae_fast.evaluate(model, x, n_draws=2000).negative_elbo
    assert losses.mean().item() == pytest.approx(expected, abs=5 * losses.std().item() / math.sqrt(400))
    torch.manual_seed(5)
    called = model(x)
    torch.manual_seed(5)
    assert torch.equal(called, model.loss(x))
    assert called.requires_grad


def test_a_training_step_wants_train_mode():
    model = make().eval()
    with pytest.raises(ValueError, match="the model is in eval mode"):
        TrainingStep(model, adam(model, 1e-3))(images())


@pytest.mark.parametrize("kind", ["datapoint", "joint", "hoffman"])
def test_the_state_dict_goes_on_where_the_model_stopped(kind):
    model, x = make(kind), images()
    for _ in range(5):
        model.loss(x)
    other = make(kind)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert other.n_decisions > 0
    assert other.log_step_size != make(kind).log_step_size
    for m in (model, other):
        torch.manual_seed(6)
        m.values = torch.stack([m.loss(x) for _ in range(3)])
    assert torch.equal(model.values, other.values)
    assert torch.equal(model.rng, other.rng)


@pytest.mark.parametrize("kind", ["datapoint", "joint", "hoffman"])
def test_weights_without_a_chain_still_load(kind):
    model = make(kind)
    weights = {k: v for k, v in make(kind).state_dict().items() if k not in model.chain_state()}
    before = model.chain_state()
    model.load_state_dict(weights)
    assert all(torch.equal(v, model.chain_state()[k]) for k, v in before.items())


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ({"decisions": "joint"}, {}),
        ({"decisions": "joint"}, {"spread": False}),
        ({"spread": False}, {}),
        ({"spread": False}, {"decisions": "joint"}),
        ({"decisions": "joint", "whiten": True}, {"decisions": "joint"}),
        ({"decisions": "joint"}, {"decisions": "joint", "whiten": True}),
    ],
)
def test_a_chain_of_other_decisions_is_not_taken(there, here):
    """Its step size is in other units."""
    other, own = make("datapoint", **there), make("datapoint", **here)
    other.loss(images())
    before = own.chain_state()
    own.load_state_dict(other.state_dict())
    assert torch.equal(own.phi, other.phi)
    assert all(torch.equal(v, own.chain_state()[k]) for k, v in before.items())


@pytest.mark.parametrize("kind", ["lae", "vae", "hoffman"])
def test_a_model_made_on_the_meta_device_trains_as_any_other(kind):
    torch.manual_seed(7)
    whole = build(Architecture(kind, nx=NX, nh=D, nz=NZ))
    with torch.device("meta"):
        empty = build(Architecture(kind, nx=NX, nh=D, nz=NZ))
    assert {t.device.type for t in state(empty).values()} == {"meta"}
    filled, assigned = copy.deepcopy(empty).to_empty(device="cpu"), copy.deepcopy(empty)
    filled.load_state_dict(whole.state_dict())
    assigned.load_state_dict(copy.deepcopy(whole.state_dict()), assign=True)
    assert {t.device.type for t in state(assigned).values()} == {"cpu"}
    losses = []
    for model in (whole, filled, assigned):
        torch.manual_seed(8)
        losses.append(torch.stack([model.loss(images()) for _ in range(3)]))
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("kind", MODELS)
def test_half_precision_weights_are_named(kind):
    model = make(kind).half()
    with pytest.raises(ValueError, match="parameters are float16; expected float32 or float64"):
        model.loss(images().half())
    assert model.float().loss(images()).isfinite()


@pytest.mark.parametrize("kind", MODELS)
def test_a_whole_model_can_be_pickled(kind):
    model = make(kind)
    other = pickle.loads(pickle.dumps(model))
    assert not changed(other, state(model))
    other.load_state_dict(model.state_dict())


# ---- 2. the program around a call ----


def fitted(model):
    model = copy.deepcopy(model)
    lae_fast.fit_posterior_scale(model, images())
    return model.posterior_scale if hasattr(model, "posterior_scale") else torch.ones(NZ)


CALLS = {
    "fit_posterior_scale": fitted,
    "loss": lambda m: m.loss(images()),
    "ald_sample": lambda m: (
        lae_fast.ald_sample(
            lambda z: m.potential(images(), z),
            torch.randn(N, D, generator=seeded()),
            nz=NZ,
            n_draws=3,
            n_warmup=2,
            progress=False,
        ).z
    ),
    "langevin_sample": lambda m: (
        lae_fast.langevin_sample(
            lambda z: m.potential(images(), z), torch.zeros(2, N, NZ), n_draws=3, n_warmup=2, progress=False
        ).z
    ),
    "ald_step": lambda m: (
        lae_fast.ald_step(lambda z: m.potential(images(), z), torch.zeros(N, NZ), 0.1)[0].phi
    ),
    "ald_step, another": lambda m: (
        lae_fast.ald_step(
            lambda z: m.potential(images(), z),
            lae_fast.ald_step(lambda z: m.potential(images(), z), torch.zeros(N, NZ), 0.1)[0],
        )[0].phi
    ),
} | QUESTIONS


def called(name, model):
    torch.manual_seed(9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tensors(CALLS[name](model))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", CALLS)
def test_inference_mode_changes_nothing(name, kind):
    expected = called(name, make(kind))
    with torch.inference_mode():
        assert torch.equal(called(name, make(kind)), expected)  # a model that was made there, too
    model = make(kind)
    with torch.inference_mode():
        assert torch.equal(called(name, model), expected)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", CALLS)
def test_autocast_and_rounded_products_stay_outside(name, kind):
    """The encoder's features may be rounded where a user asks for it; what decides and what is measured may not."""
    if kind == "vae" and name == "loss":
        return  # no chain: autocast is the user's choice
    expected = called(name, make(kind))
    model = make(kind)
    own = precisions()
    torch.set_float32_matmul_precision("medium")
    try:
        rounded = precisions()
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "loss"):
            got = called(name, model)
        assert precisions() == rounded != own
    finally:
        torch.set_float32_matmul_precision("highest")
    chain = model.decoder.seen if name != "loss" or kind != "hoffman" else model.decoder.seen[1:-1]
    for _, is_autocast, settings in chain:
        assert not is_autocast
        assert not {"tf32", "bf16"} & set(settings)
    if name != "loss":  # whose features the user may have rounded
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", MODELS)
def test_codes_of_rounded_features_can_be_decoded(kind):
    model, x = make(kind).eval(), images()
    with torch.autocast("cpu", torch.bfloat16):
        mean, std = model.posterior(x)
        assert mean.dtype == std.dtype == torch.float32
        assert model.decode(model.encode(x)).shape == x.shape
        assert model.potential(x, mean).isfinite().all()


def tf32_products(*_):
    with products_in("tf32", torch.device("cpu")):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.parametrize(("call", "rounded"), [(lae_fast.evaluate, "bf16"), (tf32_products, "tf32")])
def test_settings_that_are_inherited_stay_inherited(call, rounded):
    backends = torch.backends
    settings = {backends.cuda.matmul, *(setting for setting, _ in _settings())}
    for setting in settings:
        setting.fp32_precision = "none"
    backends.fp32_precision = rounded
    try:
        inherited = [setting.fp32_precision for setting in settings]
        assert rounded in inherited
        call(make(), images())
        assert [setting.fp32_precision for setting in settings] == inherited
        backends.fp32_precision = "ieee"
        assert {setting.fp32_precision for setting in settings} == {"ieee"}
    finally:
        backends.fp32_precision = "none"


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_older_interface_of_settings_can_be_read_inside(precision):
    class Reading(nn.Linear):
        def forward(self, z):
            with torch.backends.cudnn.flags(enabled=True, deterministic=True):
                assert torch.get_float32_matmul_precision() == "highest"
                assert not torch.backends.cuda.matmul.allow_tf32
                return super().forward(z)

    model = make()
    model.decoder.net = Reading(NZ, NX)
    torch.set_float32_matmul_precision(precision)
    try:
        lae_fast.evaluate(model, images())
        model.loss(images())
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def augmented(model, x):
    return lae_fast.augment(model, x, torch.arange(N), 1)[0][N:] / (255 if x.dtype == torch.uint8 else 1)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("given", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_images_of_any_type_are_taken_by_all(kind, given, own):
    model = make(kind, dtype=own)
    x = (images() * 255).round().to(torch.uint8) if given == torch.uint8 else images().to(given)
    exact = x.to(own) / 255 if given == torch.uint8 else x.to(own)
    for ask in (
        lambda m, x: lae_fast.evaluate(m, x),
        lambda m, x: lae_fast.importance_bound(m, x, n_draws=2),
        lambda m, x: lae_fast.quadrature(m, x, n_cells=8),
        lambda m, x: lae_fast.fit_schedule(m, x, n_temperatures=3, n_chains=2, n_pilot=2),
        lambda m, x: anneal(m, x, n_temperatures=3, n_chains=2, progress=False),
        lambda m, x: m.encode(x),
        lambda m, x: m.reconstruct(x),
        lambda m, x: m.interpolate(x, x, 3),
        lambda m, x: m.potential(
            x, torch.ones(N, NZ, dtype=m.phi.dtype if hasattr(m, "phi") else m.head.weight.dtype)
        ),
        augmented,
        lambda m, x: m.train().loss(x),
        lambda m, x: m.eval().loss(x),
    ):
        results = []
        for argument in (x, exact):
            torch.manual_seed(10)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results.append(tensors(ask(copy.deepcopy(model), argument)))
        if ask is augmented:  # the result is of the images' own type
            rounding = 1e-6 if given in (torch.float32, torch.float64) else 1e-2
            torch.testing.assert_close(*results, rtol=rounding, atol=rounding)
        else:
            assert torch.equal(*results)


def test_a_decoder_may_return_images_of_any_shape():
    flat, shaped = make("vae"), make("vae")
    for form in ((1, 4, 4), (1, 4, 4, 1)):
        shaped.decoder.net = nn.Sequential(*flat.decoder.net, nn.Unflatten(1, form))
        for name in CALLS:
            assert torch.equal(called(name, flat), called(name, shaped)), name
    shaped.decoder.net[-2] = nn.Linear(20, 32)
    shaped.decoder.net[-1] = nn.Identity()
    with pytest.raises(
        ValueError, match=r"the decoder returned float32 \[8, 32\] .* expected floating point \[8, 16\]"
    ):
        lae_fast.evaluate(shaped, images())


@pytest.mark.parametrize("cls", [lae_fast.LAE, lae_fast.VAE, lae_fast.Hoffman])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_networks_that_change_what_they_are_given_are_refused(cls, mode):
    """They would change a caller's images, the target of the likelihood, and z behind the prior."""

    def model(encoder, decoder):
        return getattr(cls(encoder, decoder, Bernoulli(), nx=NX, nz=NZ, d=NX), mode)()

    inplace = nn.Dropout(0.5, inplace=True) if mode == "train" else nn.Hardtanh(0.2, 0.8, inplace=True)
    x = images()
    with pytest.raises(ValueError, match="the encoder has changed its argument in place"):
        model(nn.Sequential(inplace, nn.Linear(NX, NX)), nn.Linear(NZ, NX)).loss(x)
    decoder = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(NZ, NX))
    with pytest.raises(ValueError, match="the decoder has changed its argument in place"):
        model(nn.Linear(NX, NX), decoder).decode(torch.randn(N, NZ))


def test_images_that_a_gaussian_model_simulates_are_images_to_all():
    model = make("vae", likelihood=lae_fast.Gaussian(2.0))
    x, _ = model.simulate(N, seeded())
    assert x.min() < 0 or x.max() > 1
    for ask in (lae_fast.evaluate, lae_fast.importance_bound, lae_fast.fit_schedule, type(model).loss):
        ask(model, x)


# ---- ald_step in a training loop ----


def n_nodes(t):
    """The number of nodes in the graph of a tensor."""
    seen, open_ = set(), [t.grad_fn]
    while open_:
        node = open_.pop()
        if node is not None and node not in seen:
            seen.add(node)
            open_ += [parent for parent, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize("n_chains", [None, 3])
def test_the_graph_of_a_state_does_not_grow(n_chains):
    theta = torch.ones((), requires_grad=True)

    def potential(phi):
        return 0.5 * theta * phi.square().flatten(0 if n_chains is None else 1).sum(-1)

    torch.manual_seed(11)
    state = lae_fast.ald_init(potential, torch.ones(3, 4), 1.0, n_chains=n_chains)
    sizes, outcomes = {n_nodes(state.potential)}, []
    for _ in range(50):
        state, info = lae_fast.ald_step(potential, state)
        sizes.add(n_nodes(state.potential))
        outcomes.append(info.is_accepted.double().mean().item())
    assert len(sizes) == 1
    assert 0.1 < sum(outcomes) / 50 < 0.9
    (gradient,) = torch.autograd.grad(state.potential.sum(), theta)
    torch.testing.assert_close(gradient, 0.5 * state.phi.square().sum())


@pytest.mark.parametrize("n_chains", [None, 3])
def test_a_rejected_infinity_leaves_gradients_whole(n_chains):
    theta = torch.ones((), requires_grad=True)

    def potential(phi):  # infinite from 2 on, and its derivatives are not finite there
        energy = -theta * (2 - phi).clamp(min=0).log()
        return energy.flatten(0 if n_chains is None else 1).sum(-1)

    start = torch.full((3, 1) if n_chains else (1,), 1.5)
    state = lae_fast.ald_init(potential, start, 0.01, n_chains=n_chains)
    noise = torch.zeros_like(start)
    noise.view(-1)[0] = 50.0
    state, info = lae_fast.ald_step(
        potential, state, noise=noise, uniform=torch.full_like(state.potential, 1e-9)
    )
    assert not info.is_accepted.view(-1)[0]
    assert info.is_accepted.sum() == (n_chains or 1) - 1
    (gradient,) = torch.autograd.grad(state.potential.sum(), theta)
    torch.testing.assert_close(gradient, -(2 - state.phi).log().sum())


def test_a_state_has_a_phi_of_its_own():
    phi = torch.ones(3)
    state = lae_fast.ald_init(lambda p: p.square().sum(), phi, 0.1)
    phi.fill_(7.0)
    assert torch.equal(state.phi, torch.ones(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n_chains=3), "n_chains is 3 beside a state of one chain"),
        (dict(generator=torch.Generator()), "generator is given beside a state"),
    ],
)
def test_what_a_state_knows_already_is_not_taken_twice(options, message):
    def potential(phi):
        return phi.square().sum()

    state = lae_fast.ald_init(potential, torch.ones(3), 0.1)
    for call in (lae_fast.ald_init, lae_fast.ald_step):
        with pytest.raises(ValueError, match=message):
            call(potential, state, **options)


# ---- Ctrl-C ----


@pytest.mark.parametrize("sampler", ["ald", "langevin"])
def test_ctrl_c_offers_what_was_drawn_and_the_chain_goes_on(sampler):
    calls, stop_at = [], 60

    def energy(z):
        calls.append(0)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return 0.5 * z.square().sum(-1)

    def sample(**options):
        if sampler == "ald":
            return lae_fast.ald_sample(energy, torch.eye(3), progress=False, **options)
        return lae_fast.langevin_sample(energy, progress=False, **options)

    start = dict(nz=2) if sampler == "ald" else dict(z=torch.zeros(4, 3, 2))
    with pytest.raises(lae_fast.SamplingInterrupted, match=r"stopped after \d+ of 500 draws") as caught:
        sample(n_draws=500, n_warmup=20, **start)
    drawn = caught.value.samples
    assert isinstance(caught.value, KeyboardInterrupt)
    assert torch.equal(pickle.loads(pickle.dumps(caught.value)).samples.z, drawn.z)
    assert 20 < drawn.z.shape[1] < 60
    assert drawn.z.shape[1] == drawn.potential.shape[1] == drawn.acceptance_rate.shape[1]
    energies = 0.5 * drawn.z.square().sum(-1)  # each draw with its own energy
    torch.testing.assert_close(drawn.potential.float(), energies.sum(-1) if sampler == "ald" else energies)
    stop_at = 0
    going_on = dict(phi=drawn.phi) if sampler == "ald" else dict(z=drawn.z[:, -1])
    for step_size in (drawn.step_size, drawn.step_size.flatten()):
        more = sample(n_draws=5, n_warmup=0, step_size=step_size, **going_on)
        assert torch.equal(more.step_size, drawn.step_size)
    shared = sample(n_draws=5, n_warmup=5, share_step_size=True, **going_on)
    options = dict(n_draws=5, n_warmup=0, step_size=shared.step_size, share_step_size=True)
    assert torch.equal(sample(**options, **going_on).step_size, shared.step_size)


def test_ctrl_c_before_the_first_draw_is_ctrl_c():
    def energy(z):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        lae_fast.langevin_sample(energy, torch.zeros(1, 1, 1), n_draws=5, progress=False)
    assert not isinstance(caught.value, lae_fast.SamplingInterrupted)


def test_a_model_without_parameters_computes_in_the_type_of_phi(tmp_path):
    """A chain on phi alone, between networks that do not learn."""

    def model(dtype=torch.float32):
        made = lae_fast.LAE(nn.Flatten(), nn.Identity(), Bernoulli(), nx=2, nz=2, d=2, decisions="joint").to(
            dtype
        )
        with torch.no_grad():
            made.phi.copy_(torch.eye(2))
        return made

    x = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        pixels = (x / 255).to(dtype)
        for given in (x, x / 255, (x / 255).double()):
            torch.testing.assert_close(model(dtype).encode(given), pixels)
        assert model(dtype).sample(3, seeded()).dtype == dtype
    assert lae_fast.evaluate(model(), x) == lae_fast.evaluate(model(), x / 255)
    view.write(tmp_path, model(), x)


def test_a_model_of_buffers_computes_in_their_type():
    decoder = nn.BatchNorm1d(2, affine=False).double()  # its averages are all that it holds
    model = lae_fast.LAE(nn.Flatten(), decoder, Bernoulli(), nx=2, nz=2, d=2, decisions="joint").eval()
    assert model.phi.dtype == model.sample(3, seeded()).dtype == torch.float64
