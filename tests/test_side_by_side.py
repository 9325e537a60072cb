"""Models trained side by side: each becomes what it would become alone. Who waits for whom on a GPU: test_beside.py."""

import contextlib
import dataclasses
import itertools

import pytest
import torch
from test_lae import NX, images, make

from lae_fast import LAE, VAE, Hoffman
from lae_fast.experiments import autoencoders
from lae_fast.experiments.autoencoders import TrainedAutoencoder
from lae_fast.experiments.recipes import Lab
from lae_fast.experiments.runner import run
from lae_fast.training import OwnNumbers, SideBySide, TrainingStep, adam

KINDS = {
    "vae": lambda: make(VAE),
    "another vae": lambda: make(VAE, seed=1),
    "lae": lambda: make(LAE),
    "joint": lambda: make(LAE, decisions="joint", n_steps=3),
    "hoffman": lambda: make(Hoffman),
}


def step_of(model, **options):
    return TrainingStep(model, adam(model, lr=1e-2), capture=False, **options)


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def close(one, other):
    """To rounding: plain PyTorch's products round by where their operands lie in memory."""
    assert one.keys() == other.keys()
    for name, t in one.items():
        torch.testing.assert_close(t, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("has_read", [False, True])
def test_side_by_side_each_becomes_what_it_becomes_alone(has_read):
    x = torch.stack([torch.stack([images(32, seed=10 * k + t) for t in range(6)]) for k in range(len(KINDS))])
    read = (lambda i: x.flatten(0, 2)[i]) if has_read else None
    given = torch.arange(x[..., 0].numel()).view(x.shape[:3]) if has_read else x  # [k, t, 32(, NX)]
    alone, losses = {}, []
    for k, (name, build) in enumerate(KINDS.items()):
        model, numbers = build(), OwnNumbers(seed=100 + k)
        step = step_of(model, read=read)
        with numbers():
            losses.append(torch.stack([step(minibatch) for minibatch in given[k]]))
        alone[name] = state(model)
    models = [build() for build in KINDS.values()]
    steps = SideBySide(
        [step_of(m, read=read) for m in models], [OwnNumbers(100 + k) for k in range(len(models))]
    )
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = torch.stack([steps(given[:, t]) for t in range(6)], 1)
    assert torch.equal(torch.get_rng_state(), before)  # the program's own numbers
    torch.testing.assert_close(found, torch.stack(losses))
    for name, model in zip(KINDS, models, strict=True):
        close(state(model), alone[name])


def test_without_numbers_of_their_own_models_draw_in_turn():
    models, x = [make(VAE), make(VAE)], images(32)[None].expand(2, -1, -1)
    steps = SideBySide([step_of(m) for m in models])
    torch.manual_seed(3)
    found = steps(x)
    again = [make(VAE), make(VAE)]
    torch.manual_seed(3)
    expected = torch.stack([step_of(m)(x[0]) for m in again])
    torch.testing.assert_close(found, expected)
    assert found[0] != found[1]


def test_numbers_of_one_s_own_go_on_and_leave_the_program_s_alone():
    torch.manual_seed(5)
    expected = torch.rand(8)
    torch.manual_seed(1)
    program = torch.rand(4)
    torch.manual_seed(1)
    first = torch.rand(2)
    numbers, other = OwnNumbers(5), OwnNumbers(1)
    with numbers():
        drawn = [torch.rand(2)]
        with other():
            assert torch.equal(torch.rand(2), first)
        drawn.append(torch.rand(2))
    with contextlib.suppress(ArithmeticError), numbers():
        drawn.append(torch.rand(2))
        raise ArithmeticError
    with numbers():
        drawn.append(torch.rand(2))
    assert torch.equal(torch.cat(drawn), expected)
    assert torch.equal(torch.rand(2), program[2:])


def vae_step():
    return step_of(make(VAE))


def sharing_steps():
    """Of two models with one decoder: as branches of a graph they would write it at once."""
    models = [make(VAE), make(VAE)]
    models[1].decoder = models[0].decoder
    return [step_of(m) for m in models]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: SideBySide([]), ValueError, "0 steps are on 0 devices"),
        (lambda: SideBySide(None), TypeError, "steps are None.*; expected a list of TrainingStep"),
        (lambda: SideBySide(vae_step()), TypeError, "steps are .*TrainingStep.*; expected a list"),
        (lambda: SideBySide([make(VAE)]), TypeError, "one of the steps is VAE.*; expected all TrainingStep"),
        (lambda: SideBySide([vae_step()] * 2), ValueError, "two steps share parameters"),
        (lambda: SideBySide(sharing_steps()), ValueError, "two steps share parameters"),
        (lambda: SideBySide([step_of(make(VAE), n_parts=2)]), ValueError, "in parts"),
        (lambda: SideBySide([vae_step()], [OwnNumbers(0)] * 2), ValueError, "numbers for 2 of 1 models"),
        (
            lambda: SideBySide([vae_step()], [7]),
            TypeError,
            "one of the numbers is 7.*; expected all OwnNumbers",
        ),
        (lambda: SideBySide([vae_step()], OwnNumbers(0)), TypeError, "expected a list of OwnNumbers"),
        (
            lambda: SideBySide([vae_step()], [OwnNumbers(0, "meta")]),
            ValueError,
            "numbers are on meta; .* on cpu",
        ),
        (lambda: SideBySide([vae_step()], capture=True), ValueError, "capture with an optimizer whose"),
        (lambda: SideBySide([vae_step()], capture=1), TypeError, "capture"),
        (lambda: SideBySide([vae_step()])(images(32)), ValueError, "one for each of 1 models"),
        (lambda: SideBySide([vae_step()])(None), TypeError, "minibatches are None"),
        (lambda: OwnNumbers(-1), ValueError, "seed"),
        (lambda: OwnNumbers(0, "moon"), ValueError, "device"),
    ],
)
def test_what_cannot_be_trained_side_by_side_says_so(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_models_on_several_devices_are_refused():
    one, other = vae_step(), vae_step()
    other.model.to("meta")
    with pytest.raises(ValueError, match="2 steps are on 2 devices"):
        SideBySide([one, other])


# ---- recipes ----

VAES = [TrainedAutoencoder("vae", 2, seed, 6, 3e-2, nh=16, patience=1) for seed in range(3)]
OTHERS = [
    TrainedAutoencoder("lae", 3, 0, 2, 1e-3, mh=True, step_size=None, nh=16, decisions="datapoint"),
    TrainedAutoencoder("report", 2, 1, 3, 1e-3, nh=16),
]
WAITS = TrainedAutoencoder("report", 2, 1, 1, 1e-3, nh=16, mh=True)
LONGER = TrainedAutoencoder("lae", 2, 0, 1, 1e-3, n_steps=4, nh=16)


def open_lab(folder, at_once=1):
    return Lab.open("digits", folder, "cpu", folder, 600, 64, at_once)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The products of each recipe, made one by one."""
    lab = open_lab(tmp_path_factory.mktemp("alone"))
    return {recipe: lab.get(recipe) for recipe in (*VAES, *OTHERS)}


@pytest.mark.parametrize("at_once", [2, 5])
def test_recipes_made_side_by_side_are_those_made_alone(at_once, alone, tmp_path):
    """Also where one ends before the others, and the next one takes its place."""
    assert len({product.metrics["epochs"] for product in alone.values()}) > 2
    found = run([*VAES, *OTHERS], lambda: open_lab(tmp_path, at_once), 1)
    assert dict(found) == dict.fromkeys((*VAES, *OTHERS))
    lab = open_lab(tmp_path)
    for recipe, expected in alone.items():
        assert lab.has(recipe)
        product = lab.get(recipe)
        close(product.weights, expected.weights)
        assert product.metrics.pop("seconds") > 0
        assert product.metrics == pytest.approx({k: v for k, v in expected.metrics.items() if k != "seconds"})


def test_seed_and_epoch_decide_the_order_of_images(tmp_path):
    lab = open_lab(tmp_path)

    def epochs(recipe):
        training = autoencoders._Training(recipe, lab)
        return [torch.cat(list(training.minibatches())) for _ in range(2)]

    (first, second), (other, _) = map(epochs, VAES[:2])
    assert first.sort().values.unique().numel() == first.numel() == 512
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(first, epochs(OTHERS[0])[0])  # whatever the model: they are compared with each other


def test_each_is_kept_as_soon_as_it_is_there(tmp_path):
    """Who stops a run loses those that are being trained, and no others."""
    lab = open_lab(tmp_path, 2)
    short, long = (dataclasses.replace(VAES[0], epochs=epochs, patience=9) for epochs in (1, 3))
    made = lab.make_all([long, short])
    assert next(made) == (short, None)
    assert lab.has(short)
    assert not lab.has(long)
    made.close()


@pytest.mark.parametrize("model", ["vae", "lae", "report"])
def test_one_that_diverges_leaves_the_others_alone(model, alone, tmp_path):
    """Also where only its last step of an epoch did, and no loss knows."""
    bad = TrainedAutoencoder(model, 2, 0, 6, 1e30, nh=16, patience=1)
    found = dict(run([VAES[0], bad, VAES[1]], lambda: open_lab(tmp_path, 3), 1))
    assert found.pop(bad).startswith("training diverged in its first epoch")
    assert found == dict.fromkeys(VAES[:2])
    for recipe in VAES[:2]:
        close(open_lab(tmp_path).get(recipe).weights, alone[recipe].weights)


def test_who_is_trained_beside_whom(tmp_path, monkeypatch):
    """Equally long steps together; alone whoever waits for the device, or everybody if one is made at once."""
    groups, original = [], autoencoders.train
    lae = dataclasses.replace(LONGER, n_steps=2)

    def noted(recipes, lab):
        groups.append(list(recipes))
        return original(recipes, lab)

    monkeypatch.setattr(autoencoders, "train", noted)
    recipes = [VAES[0], lae, WAITS, LONGER, *OTHERS, VAES[1]]
    list(run(recipes, lambda: open_lab(tmp_path, 4), 1))
    assert groups == [VAES[:2], [lae, *OTHERS], [WAITS], [LONGER]]
    del groups[:]
    list(run(recipes, lambda: open_lab(tmp_path / "in turn"), 1))
    assert groups == [[recipe] for recipe in recipes]


def test_seconds_are_each_one_s_share(tmp_path, monkeypatch):
    """By a clock that goes on by one whenever somebody looks: one second an epoch, for all that are trained in it."""
    monkeypatch.setattr(autoencoders.time, "perf_counter", itertools.count().__next__)
    recipes = [dataclasses.replace(VAES[0], seed=seed, epochs=epochs) for seed, epochs in enumerate((1, 3))]
    lab = open_lab(tmp_path, 2)
    assert dict(lab.make_all(recipes)) == dict.fromkeys(recipes)
    assert [lab.get(r).metrics["seconds"] for r in recipes] == [0.5, 2.5]


def test_at_most_so_many_are_trained_at_once(tmp_path, monkeypatch):
    sizes = []

    class Counted(SideBySide):
        def __init__(self, steps, *arguments, **options):
            sizes.append(len(steps))
            super().__init__(steps, *arguments, **options)

    monkeypatch.setattr(autoencoders, "SideBySide", Counted)
    recipes = [dataclasses.replace(VAES[0], seed=seed, epochs=1 + seed % 2) for seed in range(5)]
    list(itertools.islice(run(recipes, lambda: open_lab(tmp_path, 2), 1), None))
    assert max(sizes) == 2
    assert sizes == [2, 2, 2, 1]


def test_a_step_is_of_images_of_the_model_s_size():
    with pytest.raises(ValueError, match="images are"):
        SideBySide([vae_step()])(torch.rand(1, 4, NX + 1))
