"""A minibatch that two processes share: one chain, the decisions and the weights of one process that has all of it."""

import copy
import io
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import lae_fast
from lae_fast import evaluation, sharing
from lae_fast.models import Architecture, build
from lae_fast.sharing import ProcessError, Shared
from lae_fast.training import TrainingStep, adam

N_PROCESSES, N = 2, 16  # images of a minibatch
N_CHAINS = 5  # of samples
KINDS = {
    "datapoint": ("lae", {"memory": 5}),
    "datapoint, no spread": ("lae", {"spread": False}),
    "datapoint, unadjusted": ("lae", {"mh": False}),
    "joint": ("lae", {"decisions": "joint", "step_size": 0.1}),
    "joint, whitened": ("lae", {"decisions": "joint", "whiten": True, "memory": 5, "step_size": 0.1}),
    "hoffman": ("hoffman", {}),
    "hoffman, prior": ("hoffman", {"start": "prior"}),
    "vae": ("vae", {}),
}
N_STEPS = dict.fromkeys(KINDS, 20) | {"datapoint": 100, "joint": 100}  # minibatches
N_PARTS = 4  # of a minibatch, where sums have a fixed order


def made(kind, dtype=torch.float64):
    """A small model; in float64 no decision can fall differently because of the order of a sum."""
    torch.manual_seed(0)
    model, options = KINDS[kind]
    return build(Architecture(model=model, nx=10, nz=3, nh=8, depth=1), **options).to(dtype).train()


def normalised():
    """A model whose encoder keeps averages over minibatches."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU())
    return lae_fast.LAE(encoder, torch.nn.Linear(2, 10), lae_fast.Bernoulli(), nx=10, nz=2).train()


def normalised_after_steps(n_parts, model):
    step = TrainingStep(model, adam(model, 0.01), n_parts=n_parts)
    torch.manual_seed(2)
    for x in minibatches("datapoint", torch.float32)[:5]:
        step(x if model.share is None else model.share.rows(x))
    return model.state_dict()


def minibatches(kind, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(N_STEPS[kind], N, 10, generator=generator, dtype=dtype).round()


def trained(kind, model, parts_of, wrapped=None):
    """What is to be the same on all processes after each of some steps, and losses."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    states, losses = [], []
    torch.manual_seed(2)
    for x in minibatches(kind):
        optimizer.zero_grad()
        loss = (wrapped or model)(parts_of(x))
        loss.backward()
        optimizer.step()
        states.append({name: t.detach().clone() for name, t in model.state_dict().items()})
        losses.append(loss.detach())
    return states, torch.stack(losses)


def trained_in_parts(kind, parts_of, model):
    """Models and losses after each step in float32, the same bits for any number of processes."""
    step = TrainingStep(model, adam(model, 0.01), n_parts=N_PARTS)
    torch.manual_seed(2)
    states = []
    for x in minibatches(kind, torch.float32):
        loss = step(parts_of(x))
        states.append({name: t.clone() for name, t in model.state_dict().items()} | {"loss": loss})
    return states


def tasks(rank, failing=None):
    """Five tasks, of which one may fail: each draws a number that says how often numbers were drawn before."""
    generator = torch.Generator().manual_seed(0)
    for i in range(5):
        drawn = torch.rand((), generator=generator).item()
        yield lambda i=i, drawn=drawn: (i, drawn, rank, 1 / (i != failing))


def drawn(chains):
    """By the recipe in docs/several_processes.md."""
    return lae_fast.ald_sample(
        lambda z: z.square().sum(-1),
        torch.eye(3),
        nz=2,
        n_chains=N_CHAINS,
        chains=chains,
        generator=torch.Generator().manual_seed(0),
        n_draws=20,
        n_warmup=50,
        progress=False,
    )


def part_of(k):
    return range(N_CHAINS * k // N_PROCESSES, N_CHAINS * (k + 1) // N_PROCESSES)


def work(rank, folder):
    """What each process does."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=N_PROCESSES
    )
    found = {}
    for kind in KINDS:
        model = made(kind)
        if rank > 0:  # what it has is not what counts
            for value in model.state_dict().values():
                value.zero_()
        wrapped = DistributedDataParallel(model.share_minibatches(), broadcast_buffers=False)
        found[kind] = trained(kind, model, model.share.rows, wrapped)
        model = made(kind, torch.float32).share_minibatches()
        found[kind, "parts"] = trained_in_parts(kind, model.share.rows, model)
    for n_parts in (None, N_PARTS):
        found["normalised", n_parts] = normalised_after_steps(n_parts, normalised().share_minibatches())
    x, found["eval"] = torch.rand(3 + rank, 10, dtype=torch.float64), []
    for model in (made("vae").share_minibatches(), made("vae")):
        torch.manual_seed(0)
        found["eval"].append(model.eval()(x).detach())
    model = made("datapoint").share_minibatches()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    part = model.share.rows(torch.ones(N, 10, dtype=torch.float64))
    found["step"] = TrainingStep(model, optimizer)(part), model.state_dict()
    try:
        TrainingStep(model, optimizer, capture=True)
    except ValueError as error:
        found["capture"] = str(error)
    share = Shared()
    found["done"] = share.done(tasks(rank))
    try:
        share.done(tasks(rank, failing=3))
    except (ProcessError, ZeroDivisionError) as error:
        found["failed"] = str(error)
    found["samples"] = lae_fast.Samples.joined(
        share.done(partial(drawn, part_of(k)) for k in range(share.size))
    ).z
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    done = subprocess.run([sys.executable, __file__, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(N_PROCESSES)]


@pytest.mark.parametrize("kind", KINDS)
def test_all_processes_have_the_same_model_after_every_step(results, kind):
    for first, second in zip(results[0][kind][0], results[1][kind][0], strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(t, second[name]) for name, t in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_of_one_process(results, kind):
    expected, losses = trained(kind, made(kind), lambda x: x)
    found = results[0][kind][0]
    for t, (state, wanted) in enumerate(zip(found, expected, strict=True)):
        for name, value in wanted.items():
            torch.testing.assert_close(
                state[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name, t=t: f"{t}, {n}: {m}"
            )
    torch.testing.assert_close(sum(r[kind][1] for r in results) / N_PROCESSES, losses)
    if "counters" in wanted and KINDS[kind][1].get("mh", True):
        assert 0 < wanted["counters"][0, 0] < wanted["n_decisions"]  # both outcomes were met


@pytest.mark.parametrize("kind", KINDS)
def test_in_parts_it_is_the_model_of_one_process_bit_for_bit(results, kind):
    torch.manual_seed(3)  # what was drawn before does not matter
    alone = trained_in_parts(kind, lambda x: x, made(kind, torch.float32))
    for of_process in results:
        for state, wanted in zip(of_process[kind, "parts"], alone, strict=True):
            assert all(torch.equal(state[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("kind", KINDS)
def test_parts_change_the_order_of_sums_alone(kind):
    model, whole = made(kind), made(kind)
    in_parts = TrainingStep(model, torch.optim.SGD(model.parameters(), 0.05), n_parts=N_PARTS)
    step = TrainingStep(whole, torch.optim.SGD(whole.parameters(), 0.05))
    for x in minibatches(kind)[:5]:
        torch.manual_seed(2)
        loss = step(x)
        after = torch.get_rng_state()
        torch.manual_seed(2)
        torch.testing.assert_close(in_parts(x), loss, rtol=1e-12, atol=1e-12)
        assert torch.equal(torch.get_rng_state(), after)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_parts", [None, N_PARTS])
def test_running_averages_are_the_same_on_all_processes(results, n_parts):
    """Without parts of their own, processes have one each."""
    alone = normalised_after_steps(n_parts or N_PROCESSES, normalised())
    for of_process in results:
        for name, value in of_process["normalised", n_parts].items():
            assert torch.equal(value, results[0]["normalised", n_parts][name]), name
            torch.testing.assert_close(
                value, alone[name], rtol=0 if n_parts else 1e-3, atol=0 if n_parts else 1e-4
            )


def test_unequal_parts_are_refused():
    share = object.__new__(Shared)
    share.group, share.size = None, 4
    for share.rank in range(4):
        assert share.rows(torch.arange(8)).tolist() == [2 * share.rank, 2 * share.rank + 1]
        for n in (0, 3, 6, 9):
            with pytest.raises(
                ValueError, match=f"a minibatch has {n} rows for 4 processes; expected a multiple"
            ):
                share.rows(torch.arange(n))


def test_parts_follow_what_is_loaded_between_two_steps():
    model, other = made("datapoint"), made("datapoint")
    torch.nn.init.ones_(other.decoder[0].weight)
    steps = [TrainingStep(m, torch.optim.SGD(m.parameters(), 0.05), n_parts=2) for m in (model, other)]
    first, *others = minibatches("datapoint")[:3]
    steps[0](first)
    for p in model.parameters():
        p.data = p.data.clone()  # as a model has its parameters that was elsewhere in between
    model.load_state_dict(other.state_dict())
    for x in others:
        losses = []
        for step in steps:
            torch.manual_seed(2)
            losses.append(step(x))
        assert torch.equal(*losses)


def test_an_error_in_a_part_is_the_steps_error_and_the_next_step_works():
    model = made("datapoint")
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), 0.05), n_parts=N_PARTS)
    x = minibatches("datapoint")[0]
    bad = x.clone()
    bad[N // 2 :] = 2  # from the third part on
    with pytest.raises(ValueError, match="expected all in"):
        step(bad)
    assert step(x).isfinite()


@pytest.mark.parametrize(
    ("n_parts", "n", "error"),
    [
        (3, N, "n_parts is 3; expected a power of two"),
        (4, N - 2, "a minibatch's 14 images in 4 parts; expected a multiple of 4"),
        (0, N, "n_parts is 0; expected"),
    ],
)
def test_parts_that_cannot_be_are_refused(n_parts, n, error):
    model = made("vae")
    with pytest.raises(ValueError, match=error):
        TrainingStep(model, torch.optim.SGD(model.parameters(), 0.05), n_parts=n_parts)(
            minibatches("vae")[0][:n]
        )


def test_eval_mode_shares_nothing(results):
    for of_process in results:
        assert torch.equal(*of_process["eval"])


def test_tasks_are_shared_out_and_each_has_the_draws_of_one_process(results):
    alone = sharing.done(tasks(0), None)
    for found in results:
        assert [(i, drawn) for i, drawn, _, _ in found["done"]] == [(i, drawn) for i, drawn, _, _ in alone]
        assert [rank for _, _, rank, _ in found["done"]] == [0, 1, 0, 1, 0]


def test_a_task_that_fails_is_known_to_all_processes(results):
    assert results[1]["failed"] == "division by zero"
    assert results[0]["failed"] == "process 1 of 2 has failed: division by zero"


def test_chains_are_shared_out_and_drawn_as_by_one_process(results):
    expected = drawn(None).z
    assert all(torch.equal(found["samples"], expected) for found in results)


def test_who_shares_a_question_is_checked():
    model, x = made("vae").eval(), torch.rand(4, 10, dtype=torch.float64)
    for ask in (evaluation.importance_bound, evaluation.anneal):
        with pytest.raises(TypeError, match=r"share is 'all' .*expected None or a Shared"):
            ask(model, x, share="all")


def test_without_a_process_group_it_says_what_is_missing():
    with pytest.raises(ValueError, match="there is no process group; expected one"):
        made("vae").share_minibatches()


def test_a_training_step_takes_the_mean_of_all_gradients_and_is_not_captured(results):
    """Each of two processes has half of the images, and takes the step of one that has all."""
    alone = made("datapoint")
    step = TrainingStep(alone, torch.optim.SGD(alone.parameters(), 0.05))
    loss = step(torch.ones(N, 10, dtype=torch.float64))
    for found in results:
        torch.testing.assert_close(found["step"][0], loss)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found["step"][1][name], value, rtol=1e-9, atol=1e-9)
        assert found["capture"] == (
            "capture of a model that shares its minibatches with other processes; expected False"
        )


def test_a_copy_shares_and_a_file_does_not(tmp_path):
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(TypeError, match=r"process_group is 'world' .*expected a process group"):
            made("vae").share_minibatches("world")
        model = made("datapoint").share_minibatches()
        assert copy.deepcopy(model).share is model.share
        assert pickle.loads(pickle.dumps(model)).share is None
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        assert torch.load(file, weights_only=False).share is None
        assert isinstance(model.share, Shared)
        with pytest.raises(ValueError, match="shares its minibatches"):
            lae_fast.fit(model, torch.rand(32, 10), epochs=1, batch_size=16, progress=False)
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":  # what takes long to import is imported once
    multiprocessing.start_processes(work, (sys.argv[1],), N_PROCESSES, start_method="fork")
