"""Training steps in parts of a fixed order: what one process can show. Several: test_sharing.py, test_torchrun.py."""

from concurrent.futures import Future
from typing import ClassVar

import pytest
import torch
from test_fit import Merging
from test_sharing import N_PARTS, made, minibatches, normalised

import lae_fast
from lae_fast import data
from lae_fast.training import TrainingStep, adam
from lae_fast.training.config import Config
from lae_fast.training.trainer import Trainer


class Own(torch.nn.Module):
    """A network that no kernel of this package knows: a convolution with channels last, and a parameter that nobody asks for."""

    seen: ClassVar = []  # types of outputs, of all copies

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(12, 1)
        )
        self.network.to(memory_format=torch.channels_last)
        self.unused = torch.nn.Parameter(torch.ones(3))

    def loss(self, x):
        out = self.network(x.view(-1, 2, 4, 4))
        self.seen.append(out.dtype)
        return out.square().mean()


def both(made_model):
    """A model and its twin, which trains in parts."""
    whole, parted = made_model(), made_model()
    return [(m, TrainingStep(m, adam(m, 0.01), n_parts=n)) for m, n in ((whole, None), (parted, N_PARTS))]


def test_parts_give_gradients_as_parameters_lie_in_memory():
    (whole, step), (parted, in_parts) = both(Own)
    for k in range(5):
        x = torch.randn(8, 32, generator=torch.Generator().manual_seed(k))
        torch.testing.assert_close(in_parts(x), step(x))
    for p, q in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert parted.unused.grad is None


def test_parameters_may_have_two_types():
    def model():
        torch.manual_seed(0)
        networks = torch.nn.Linear(12, 7).double(), torch.nn.Linear(2, 12).double()
        return lae_fast.VAE(*networks, lae_fast.Gaussian(), nx=12, nz=2)

    for trained, step in both(model):
        torch.manual_seed(1)
        step(torch.rand(8, 12, generator=torch.Generator().manual_seed(2)))
        assert trained.likelihood.log_scale.grad.dtype == torch.float32 != trained.encoder.weight.grad.dtype


def test_running_averages_are_those_of_all_parts():
    model, x = normalised(), torch.rand(16, 10)
    in_parts = TrainingStep(model, adam(model, 0.0), n_parts=N_PARTS)
    in_parts(x)
    parts = model.encoder[0](x).view(N_PARTS, -1, 6)
    torch.testing.assert_close(model.encoder[1].running_mean, 0.1 * parts.mean((0, 1)))
    torch.testing.assert_close(model.encoder[1].running_var, 0.9 + 0.1 * parts.var(1).mean(0))
    model.encoder[0].track_running_stats = True  # of somebody's own module, which averages nothing
    model.encoder[1].eval()  # frozen
    kept = model.encoder[1].running_mean.clone()
    in_parts(x)
    assert torch.equal(model.encoder[1].running_mean, kept)


def test_parts_follow_what_is_frozen_and_cast_and_what_the_caller_computes_in():
    _, (parted, in_parts) = both(Own)
    x = torch.randn(8, 32)
    in_parts(x)
    parted.network[2].bias.requires_grad_(False)
    kept = parted.network[2].bias.clone()
    with torch.autocast("cpu", torch.bfloat16):
        in_parts(x)
    assert Own.seen[-N_PARTS:] == [torch.bfloat16] * N_PARTS
    assert torch.equal(parted.network[2].bias, kept)
    model = made("datapoint", torch.float32)
    in_parts = TrainingStep(model, torch.optim.SGD(model.parameters(), 0.05), n_parts=2)
    in_parts(minibatches("datapoint", torch.float32)[0])
    model.double()
    assert in_parts(minibatches("datapoint")[1]).isfinite()


def test_parts_follow_modes_that_are_more_than_a_flag():
    """An adapter is part of the weights in the first step, and not in the second."""
    states = []
    for n_parts in (None, 2):
        torch.manual_seed(0)
        model = lae_fast.VAE(Merging(8, 4), torch.nn.Linear(2, 8), lae_fast.Bernoulli(), nx=8, nz=2).eval()
        step = TrainingStep(model, torch.optim.SGD(model.parameters(), 1e-4), n_parts=n_parts)
        for mode in (False, True):
            model.train().encoder.train(mode)
            torch.manual_seed(1)
            loss = step(torch.full((4, 8), 0.01)).float()
        states.append([loss, *model.state_dict().values()])
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b)


def test_what_parts_cannot_do_as_the_model_does_is_refused():
    model = Own()
    in_parts = TrainingStep(model, adam(model, 0.01), n_parts=2)
    handle = model.unused.register_hook(lambda g: g)
    with pytest.raises(ValueError, match="a parameter has hooks"):
        in_parts(torch.randn(8, 32))
    handle.remove()
    model.share = object()
    with pytest.raises(ValueError, match=r"expected share_minibatches\(\) before TrainingStep"):
        in_parts(torch.randn(8, 32))
    closed = torch.nn.Linear(3, 1)
    closed.loss = lambda x: closed(x).square().mean()
    with pytest.raises(ValueError, match="expected a method of the model"):
        TrainingStep(closed, adam(closed, 0.01), n_parts=2)(torch.randn(4, 3))


def test_an_interrupted_step_has_ended_before_the_next_one():
    model, x = made("datapoint"), minibatches("datapoint")[0]
    in_parts = TrainingStep(model, torch.optim.SGD(model.parameters(), 0.05), n_parts=N_PARTS)
    in_parts(x)
    result, seen = Future.result, []

    def interrupted(self, timeout=None):
        Future.result = result
        seen.append(self)
        raise KeyboardInterrupt

    Future.result = interrupted
    with pytest.raises(KeyboardInterrupt):
        in_parts(x)
    assert seen[0].done()
    assert in_parts(x).isfinite()


def test_bits_of_any_number_of_processes_are_those_of_one_thread(tmp_path):
    config = Config(dataset="digits", nh=16, depth=1, batch_size=120, device="cpu", deterministic_reduce=True)
    trainer = Trainer(config, data.load("digits"), tmp_path, torch.device("cpu"))
    own, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        trainer.fit(lambda _: seen.append(torch.get_num_threads()) is None)  # one minibatch
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(own)
    assert trainer.training_step.parts.n_parts == 8
