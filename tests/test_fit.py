"""`fit`: a loop for models of one's own."""

import copy
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import lae_fast
from lae_fast import data, models
from lae_fast.training import TrainingError, adam

KINDS = torch.rand(4, 3, 4, 5, generator=torch.Generator().manual_seed(0)).round().mul(255).to(torch.uint8)
RGB = KINDS.repeat(10, 1, 1, 1)  # ten of each of four pictures


def model(kind=lae_fast.LAE, **options):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(2, 60), nn.Unflatten(1, (3, 4, 5)))
    return kind(encoder, decoder, lae_fast.Bernoulli(), shape=(3, 4, 5), nz=2, **options)


def weights(m):
    return torch.cat([t.double().flatten() for t in m.state_dict().values()])


@pytest.mark.parametrize("kind", [lae_fast.LAE, lae_fast.VAE, lae_fast.Hoffman])
def test_it_trains(kind):
    m = model(kind).eval()
    losses = lae_fast.fit(m, RGB, epochs=20, batch_size=10, lr=0.02)
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 1
    assert not m.training


def test_it_is_the_plain_loop():
    m, twin = model(), model()
    losses = lae_fast.fit(m, RGB, epochs=2, batch_size=15, cooldown=0, seed=3)
    torch.manual_seed(3)
    step, own = lae_fast.TrainingStep(twin, adam(twin, twin.lr, twin.beta1)), []
    for epoch in range(2):
        batches = data.shuffled(40, 15, lae_fast.seeds.mixed(3, epoch))
        own.append(sum(step(RGB[index] / 255).item() for index in batches) / 2)
    assert losses == pytest.approx(own, rel=1e-6)
    assert torch.equal(weights(m), weights(twin))


@pytest.mark.parametrize(("binarization", "is_drawn"), [("dynamic", True), ("fixed", False)])
def test_pixels_are_drawn_anew_at_each_use_where_a_data_set_asks_for_it(binarization, is_drawn):
    grey, seen = torch.full((1030, 1, 4, 5), 51, dtype=torch.uint8), []
    dataset = data.from_images(grey, test=grey[:10], validation=30, binarization=binarization)
    encoder, decoder = nn.Sequential(nn.Flatten(), nn.Linear(20, 4)), nn.Linear(2, 20)
    m = lae_fast.VAE(encoder, decoder, lae_fast.Bernoulli(), shape=(1, 4, 5), nz=2)
    m.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten()))
    lae_fast.fit(m, dataset, epochs=2, batch_size=1000)
    assert [x.unique().tolist() for x in seen] == [[0.0, 1.0]] * 2
    assert all(abs(x.mean().item() - 0.2) < 0.02 for x in seen)  # seven standard deviations
    assert (seen[0].sum() != seen[1].sum()).item() == is_drawn


def test_the_learning_rate_falls_to_nothing(monkeypatch):
    rates = []
    monkeypatch.setattr(
        lae_fast.training.loop, "cool_down", lambda _, lr, done, c: rates.append((lr, done, c))
    )
    lae_fast.fit(model(), RGB, epochs=2, batch_size=20, lr=0.1, cooldown=0.5)
    assert rates == [(0.1, 0.0, 0.5), (0.1, 0.25, 0.5), (0.1, 0.5, 0.5), (0.1, 0.75, 0.5)]


@pytest.mark.parametrize(
    "images",
    [
        RGB.numpy(),
        RGB.permute(0, 2, 3, 1),
        RGB.flatten(1),
        TensorDataset(RGB, torch.arange(40)),
        [np.asarray(image) for image in RGB.permute(0, 2, 3, 1)],
        data.Split(RGB, torch.arange(40)),
    ],
    ids=["array", "channels last", "flat", "data set", "list", "split"],
)
def test_images_come_in_many_forms(images):
    reference, m = model(), model()
    lae_fast.fit(reference, RGB, epochs=1, batch_size=20)
    lae_fast.fit(m, images, epochs=1, batch_size=20)
    assert torch.equal(weights(m), weights(reference))


@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 6, 1), (2, 3, 4)], ids=str)
def test_channels_may_be_last_where_the_model_s_shape_tells(shape):
    images = torch.rand(20, *shape)
    losses = []
    for x in (images, images.permute(0, 2, 3, 1)):
        torch.manual_seed(0)
        n = images[0].numel()
        m = lae_fast.VAE(nn.Flatten(), nn.Linear(2, n), lae_fast.Bernoulli(), shape=shape, nz=2)
        losses += lae_fast.fit(m, x, epochs=1, batch_size=20)
    assert losses[0] == losses[1]


def test_bytes_become_floats_a_minibatch_at_a_time(monkeypatch):
    """All at once they may be more than fits into memory."""
    sizes, convert = [], models.autoencoder.images_for
    for module in (models.autoencoder, lae_fast.training.loop):
        monkeypatch.setattr(module, "images_for", lambda m, x: sizes.append(len(x)) or convert(m, x))
    lae_fast.fit(model(), RGB, epochs=1, batch_size=10)
    assert max(sizes) == 10


def test_of_a_parted_data_set_the_training_images_serve():
    dataset, reference, m = data.from_images(RGB, test=RGB, validation=10), model(), model()
    lae_fast.fit(reference, dataset.train.images, epochs=1, batch_size=15)
    lae_fast.fit(m, dataset, epochs=1, batch_size=15)
    assert torch.equal(weights(m), weights(reference))


def test_the_program_s_random_stream_stays():
    torch.manual_seed(7)
    expected = torch.rand(3)
    m = model()
    torch.manual_seed(7)
    lae_fast.fit(m, RGB, epochs=1, batch_size=20)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", [lae_fast.LAE, lae_fast.VAE, lae_fast.Hoffman])
def test_who_looks_after_an_epoch_changes_nothing_and_draws_the_program_s_numbers(kind):
    m, watched, drawn = model(kind), model(kind), []

    def look(epoch, loss):
        drawn.append(torch.rand(2))
        watched.sample(4)

    torch.manual_seed(7)
    losses = lae_fast.fit(watched, RGB, epochs=3, batch_size=20, on_epoch=look)
    drawn.append(torch.rand(2))
    assert losses == lae_fast.fit(m, RGB, epochs=3, batch_size=20)
    assert torch.equal(weights(m), weights(watched))
    torch.manual_seed(7)
    for numbers in drawn[:3]:
        assert torch.equal(numbers, torch.rand(2))
        torch.randn(4, 2)  # of the sample
    assert torch.equal(drawn[3], torch.rand(2))


@pytest.mark.parametrize("kind", [lae_fast.LAE, lae_fast.VAE])
def test_what_looks_in_eval_mode_leaves_training_in_train_mode(kind):
    m, watched = model(kind), model(kind)

    def look(epoch, loss):
        watched.eval().loss(RGB)

    losses = lae_fast.fit(watched, RGB, epochs=3, batch_size=20, on_epoch=look)
    assert losses == lae_fast.fit(m, RGB, epochs=3, batch_size=20)
    assert torch.equal(weights(m), weights(watched))


def test_a_seed_stays_on_the_model_s_device():
    """Also the seed of a GPU's generator, which waits until there is one."""
    seeded, m = [], model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "manual_seed_all", seeded.append)
        lae_fast.fit(m, RGB, epochs=1, batch_size=20)
    assert not seeded


def test_every_module_has_its_own_mode_again():
    m = model()
    m.encoder.eval()
    lae_fast.fit(m, RGB, epochs=1, batch_size=20)
    assert (m.training, m.encoder.training, m.decoder.training) == (True, False, True)


class Merging(nn.Linear):
    """As adapters do: in eval mode what they add is part of the weights."""

    is_merged = False

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.added = nn.Parameter(torch.ones(()))

    def train(self, mode=True):
        with torch.no_grad():
            self.weight += self.added * (int(not mode) - int(self.is_merged))
        self.is_merged = not mode
        return super().train(mode)

    def forward(self, x):
        return nn.functional.linear(x, self.whole(), self.bias)

    def whole(self):
        return self.weight if self.is_merged else self.weight + self.added


@pytest.mark.parametrize("modes", [(False, False), (True, False), (True, True)])
def test_a_module_that_does_more_than_set_a_flag_is_told_of_its_mode(modes):
    torch.manual_seed(0)
    m = lae_fast.VAE(Merging(60, 4), nn.Linear(2, 60), lae_fast.Bernoulli(), nx=60, nz=2)
    m.train(modes[0]).encoder.train(modes[1])

    before = m.encoder.whole().detach().clone()
    lae_fast.fit(m, RGB, epochs=1, batch_size=20, lr=0.0)
    lae_fast.evaluate(m, RGB)
    assert (m.training, m.encoder.training, m.encoder.is_merged) == (*modes, not modes[1])
    torch.testing.assert_close(m.encoder.whole().detach(), before)


def test_no_gradient_is_left():
    m = model(lae_fast.VAE)
    with pytest.raises(TrainingError):
        lae_fast.fit(m, RGB, epochs=2, batch_size=20, lr=1e30)
    assert all(p.grad is None for p in m.parameters())


@pytest.mark.parametrize("kind", [lae_fast.LAE, lae_fast.VAE, lae_fast.Hoffman])
def test_one_region_of_autocast_around_it_is_one_around_each_step(kind):
    """Autocast keeps rounded weights until its outermost region ends: those before the first step, if nobody tells it."""
    m, twin = model(kind), model(kind)
    with torch.autocast("cpu", torch.bfloat16):
        m.posterior(RGB[:15] / 255)  # which leaves rounded weights, too
        losses = lae_fast.fit(m, RGB, epochs=3, batch_size=15, lr=0.02, cooldown=0)
        codes = m.encode(RGB / 255)
    step = lae_fast.TrainingStep(twin, adam(twin, 0.02, twin.beta1))
    torch.manual_seed(0)
    for epoch in range(3):
        for index in data.shuffled(40, 15, lae_fast.seeds.mixed(0, epoch)):
            with torch.autocast("cpu", torch.bfloat16):
                step(RGB[index] / 255)
    assert torch.equal(weights(m), weights(twin))
    assert losses[-1] < losses[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codes, twin.encode(RGB / 255))


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_off(switched_off):
    modes = []
    own, m, twin = (torch.is_grad_enabled, torch.is_inference_mode_enabled), model(), model()
    lae_fast.fit(twin, RGB / 255, epochs=2, batch_size=20)
    with switched_off():
        outside = [mode() for mode in own]
        lae_fast.fit(
            m, RGB / 255, epochs=2, batch_size=20, on_epoch=lambda *_: modes.append([f() for f in own])
        )
        with pytest.raises(TrainingError):
            lae_fast.fit(m, RGB / 255, epochs=2, batch_size=20, lr=1e30)
    assert modes == [outside] * 2
    assert torch.equal(weights(m), weights(twin))
    lae_fast.fit(m, RGB, epochs=1, batch_size=20)  # and later, outside


def test_a_model_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        m = model()
    with pytest.raises(ValueError, match="the model was made in inference mode"):
        lae_fast.fit(m, RGB, epochs=1, batch_size=20)


def test_features_that_are_all_0_leave_phi_where_it_is():
    m = model()
    nn.init.zeros_(m.encoder[0].weight)
    nn.init.constant_(m.encoder[0].bias, -1.0)  # and then a ReLU
    before = m.phi.clone()
    lae_fast.fit(m, RGB, epochs=2, batch_size=20)
    assert torch.equal(m.phi, before)


def test_a_model_that_is_not_finite_is_refused():
    m = model()
    m.phi[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite; expected finite ones"):
        lae_fast.fit(m, RGB, epochs=1, batch_size=20)


def test_on_epoch_is_told_and_may_stop():
    told = []
    losses = lae_fast.fit(
        model(), RGB, epochs=9, batch_size=20, on_epoch=lambda e, loss: told.append((e, loss)) or e == 3
    )
    assert told == list(zip((1, 2, 3), losses, strict=True))


@pytest.mark.parametrize(
    ("answer", "n"),
    [
        (np.True_, 1),
        (torch.tensor(True), 1),
        (torch.tensor([True]), 1),
        (np.False_, 3),
        (torch.tensor(False), 3),
        (7, 3),
        ("x", 3),
        (torch.tensor(3.5), 3),
        (torch.ones(3), 3),
        (torch.tensor([True, True]), 3),
    ],
)
def test_what_stops_training_is_true_itself(answer, n):
    m = model(lae_fast.VAE)
    assert len(lae_fast.fit(m, RGB, epochs=3, batch_size=20, on_epoch=lambda epoch, loss: answer)) == n


def test_a_network_s_mask_may_be_infinite():
    m = model()
    m.encoder.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
    assert len(lae_fast.fit(m, RGB, epochs=1, batch_size=20)) == 1


def test_training_that_fails_leaves_the_last_good_weights():
    m = model(lae_fast.VAE)
    lae_fast.fit(m, RGB, epochs=1, batch_size=20)
    good = copy.deepcopy(m.state_dict())
    kept = []

    def spoil(epoch, loss):
        kept.append(copy.deepcopy(m.state_dict()))
        if epoch == 2:
            m.decoder.register_forward_hook(lambda _, __, out: out * math.nan)

    with pytest.raises(TrainingError, match="epoch 3: the loss or a weight is not finite"):
        lae_fast.fit(m, RGB, epochs=5, batch_size=20, on_epoch=spoil)
    assert all(torch.equal(t, kept[1][name]) for name, t in m.state_dict().items())
    assert not all(torch.equal(t, good[name]) for name, t in m.state_dict().items())
    assert m.training


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(images=RGB[:, :2]), "images are uint8 .40, 2, 4, 5."),
        (dict(images=RGB.float()), "images have values from 0 to 25"),
        (dict(images=3), "images are 3"),
        (dict(batch_size=41), "batch_size is 41; expected at most 40"),
        (dict(epochs=0), "epochs is 0"),
        (dict(lr=-1.0), "lr is -1"),
        (dict(cooldown=5), "cooldown is 5; expected a number from 0 to 1"),
        (dict(on_epoch=3), "on_epoch is 3"),
        (dict(model=nn.Linear(2, 2)), "model is Linear"),
        (dict(model=model().to("meta")), "the model is on meta, where it has no weights"),
        (dict(model=model().requires_grad_(False)), "no parameter of the model requires a gradient"),
    ],
)
def test_bad_arguments_are_named(wrong, words):
    with pytest.raises((TypeError, ValueError), match=words):
        lae_fast.fit(**dict(model=model(), images=RGB, batch_size=10) | wrong)


def test_a_bar_needs_no_terminal(capsys):
    lae_fast.fit(model(), RGB, epochs=1, batch_size=20)
    assert capsys.readouterr().err == ""
    assert "tqdm" in sys.modules
