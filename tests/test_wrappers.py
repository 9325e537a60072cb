"""Loops of one's own: DistributedDataParallel, FSDP2 and accelerate train in two processes the model that one process trains, by the
code in docs/several_processes.md."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.fsdp import fully_shard

import lae_fast
from lae_fast.models import Architecture, build

PAGE = (Path(__file__).parent.parent / "docs" / "several_processes.md").read_text()
LOOPS = re.findall(
    r"```python\n(.*?)```",
    PAGE.partition("## A loop of your own\n")[2].partition("\n## ")[0],
    flags=re.DOTALL,
)
LOOPS = dict(zip(("ddp", "fsdp", "accelerate"), LOOPS, strict=True))
N_PROCESSES = 2


def own(cls, likelihood=lae_fast.Bernoulli, **options):
    encoder = nn.Sequential(nn.Linear(10, 8), nn.Tanh())
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 10))
    return cls(encoder, decoder, likelihood(), nx=10, nz=3, d=8, **options)


SIZES = Architecture(nx=10, nz=3, nh=8, depth=1)
MODELS = {
    "lae": lambda: build(SIZES),
    "lae, joint": lambda: build(SIZES, decisions="joint", step_size=0.1),
    "lae, learned scale": lambda: own(lae_fast.LAE, lae_fast.DiscretizedLogistic),
    "vae": partial(own, lae_fast.VAE),
    "hoffman": partial(own, lae_fast.Hoffman),
}


def made(kind):
    """In float64, where no decision can fall differently because of the order of a sum."""
    torch.manual_seed(0)
    return MODELS[kind]().double().train()


def names(model):
    """What the page calls the reader's, and the random stream of all processes."""
    torch.manual_seed(1)
    minibatches = torch.rand(6, 12, 10, dtype=torch.float64).round()
    torch.manual_seed(2)
    return {
        "model": model,
        "minibatches": minibatches,
        "images": minibatches[0],
    }


def whole(model):
    state = model.state_dict()
    return {
        k: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for k, t in state.items()
    }


def sharded(*parts):
    """An error that a model meets when some of its parts are sharded before it; None: it trains."""
    model = made(parts[0])
    model.share_minibatches()
    for part in parts[1:]:
        fully_shard(getattr(model, part) if part else model)
    try:
        (model if "" in parts else model.loss)(model.share.rows(names(model)["images"])).backward()
    except ValueError as error:
        return str(error)


def work(rank, folder):
    """What each process does."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(N_PROCESSES)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # accelerate asks for them
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=N_PROCESSES
    )
    found = {}
    for loop, code in LOOPS.items():
        if importlib.util.find_spec("accelerate") or loop != "accelerate":
            for kind in MODELS:
                page = names(made(kind))
                exec(code, page)
                found[loop, kind] = whole(page["model"]), page.get("quality")
    found["encoder"] = sharded("lae", "encoder", "")
    found["decoder"] = sharded("lae", "decoder", "")
    found["decoder of hoffman"] = sharded("hoffman", "decoder", "")
    page = names(made("vae"))
    exec(LOOPS["fsdp"], page)
    for name, ask in {
        "loss": page["model"].loss,
        "evaluate": lambda x: lae_fast.evaluate(page["model"], x),
        "share": lambda x: page["model"].share_minibatches(),
    }.items():
        try:
            ask(page["images"])
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrapped")
    done = subprocess.run([sys.executable, __file__, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(N_PROCESSES)]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_wrapper_trains_the_model_of_one_process(results, loop, kind):
    if loop == "accelerate":
        pytest.importorskip("accelerate")
    alone = names(made(kind))
    model = alone["model"]
    optimizer = torch.optim.Adam(model.parameters(), model.lr, betas=(model.beta1, 0.999))
    for x in alone["minibatches"]:
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()
    for state, quality in (found[loop, kind] for found in results):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(
                state[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
            )
        if quality is not None:
            assert quality.negative_elbo == pytest.approx(
                lae_fast.evaluate(model, alone["images"]).negative_elbo
            )


def test_what_may_be_sharded_by_itself(results):
    for found in results:
        assert found["encoder"] is found["decoder of hoffman"] is None
        assert found["decoder"] == (
            "decoder.0.weight is sharded over processes; expected whole parameters: fully_shard(model) without one of its "
            "decoder, and model(x) instead of model.loss(x)"
        )


def test_a_sharded_model_says_how_it_becomes_whole(results):
    for found in results:
        assert "expected whole parameters: model(x) instead of model.loss(x)" in found["loss"]
        assert "expected whole parameters: call model.unshard() before" in found["evaluate"]
        assert "expected whole parameters: share_minibatches() before fully_shard()" in found["share"]


if __name__ == "__main__":  # what takes long to import is imported once
    multiprocessing.start_processes(work, (sys.argv[1],), N_PROCESSES, start_method="fork")
