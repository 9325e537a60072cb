"""Whatever lies in a run's folder, by damage or by malice: commands go on with it, or refuse it in one line that names it."""

import contextlib
import copy
import io
import json
import math
import os
import random
import shutil

import pytest
import torch
from commands import SHORT_SCORE, SMALL_RUN

from lae_fast import checkpoint, models, score, train
from lae_fast.training import saved_state, trainer

QUICK = [*SMALL_RUN, *["--nz", "3", "--batch-size", "300", "--epochs", "1", "--log-every", "2"]]
FREE = "--epochs 2 --patience 9 --lr auto --cooldown 0.2 --log-every 2 --checkpoint-every 0 --device cpu --data-dir /nowhere"
SCORE = [*SHORT_SCORE, "--data-dir", "/nowhere"]
N_SEEDS = 15  # mutations of each kind

VALUES = (None, True, -1, 0, 7, 0.5, 10**9, 10**30, 1e300, math.inf, -math.inf, math.nan, "", "x", "8", "a\0b", "\ud800", [], [1],
          {}, {"a": 1}, [[[]]])  # fmt: skip
TENSORS = (torch.tensor(math.nan), torch.zeros(0), torch.zeros(3, 3), torch.full((3,), math.inf), torch.tensor([1, 2, 3]),
           torch.zeros(1, dtype=torch.float64), torch.tensor([True]), torch.zeros(2, 2).to_sparse())  # fmt: skip


def run(main, *arguments):
    """Exit code and stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), torch.random.fork_rng(devices=[]):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
    return code, err.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, err = run(train.main, *QUICK, "--output-dir", folder)
    assert code == 0, err
    return folder


def mutated(draw, value, leaves):
    """A copy of nested values in which one was replaced, removed, renamed or added."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        found, key = dict(value), draw.choice(list(value))
        kind = draw.random()
        if kind < 0.1:
            del found[key]
        elif kind < 0.2:
            found["x"] = found.pop(key)
        else:
            found[key] = mutated(draw, found[key], leaves)
        return found
    if isinstance(value, list) and value and draw.random() < 0.9:
        found, i = list(value), draw.randrange(len(value))
        found[i] = mutated(draw, found[i], leaves)
        return found
    if isinstance(value, torch.Tensor) and value.numel() and draw.random() < 0.5:
        return draw.choice(
            (
                value * float("nan"),
                value.double(),
                value[None],
                value.flatten()[:1],
                -value,
                value.to(torch.int32),
            )
        )
    return draw.choice(leaves)


def bytes_of(draw, content):
    """Flipped, cut or added bytes."""
    i = draw.randrange(len(content)) if content else 0
    return draw.choice(
        (
            content[:i] + bytes([draw.randrange(256)]) + content[i + 1 :],
            content[:i],
            content[:i] + draw.randbytes(9) + content[i:],
            b"",
            draw.randbytes(99),
            b"[" * 100_000,
        )
    )


def change_bytes(draw, folder):
    path = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.parent.name != "tensorboard"))
    path.write_bytes(bytes_of(draw, path.read_bytes()))


def change_kind(draw, folder):
    """A folder for a file, a file for a folder, a pipe, or nothing."""
    path = draw.choice(sorted(p for p in folder.rglob("*") if p.parent.name != "tensorboard"))
    was_folder = path.is_dir()
    shutil.rmtree(path) if was_folder else path.unlink()
    kind = draw.randrange(3)
    if kind == 0:
        path.write_bytes(b"") if was_folder else path.mkdir()
    elif kind == 1:
        os.mkfifo(path)


def change_config(draw, folder):
    path = folder / "config.json"
    record = json.loads(path.read_text())
    if draw.random() < 0.8:
        record["options"] = mutated(draw, record["options"], VALUES)
    else:
        record = mutated(draw, record, VALUES)
    path.write_text(json.dumps(record))


def change_metrics(draw, folder):
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = mutated(draw, lines, VALUES)
    found = found if isinstance(found, list) else [found]
    path.write_text("".join(json.dumps(line) + "\n" for line in found))


def change_weights(draw, folder):
    """Weights or metadata, with a hash that fits."""
    path = draw.choice(sorted(folder.rglob("*.safetensors")))
    weights, metadata = checkpoint.load_weights(path)
    if draw.random() < 0.5:
        metadata = mutated(draw, metadata, VALUES)
    else:
        weights = mutated(draw, weights, [t for t in TENSORS if not t.is_sparse])
        if not isinstance(weights, dict):
            weights = {"x": weights}
    checkpoint.save_weights(path, weights, metadata)


def change_state(draw, folder):
    """The state of the training, with a hash that fits."""
    saved = checkpoint.load_latest(folder / "checkpoints")
    state = mutated(draw, copy.deepcopy(saved.state), VALUES + TENSORS)
    shutil.rmtree(saved.path)
    checkpoint.save(folder / "checkpoints", int(saved.path.name[5:]), saved.weights, saved.metadata, state)


KINDS = (change_bytes, change_kind, change_config, change_metrics, change_weights, change_state)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("seed", range(N_SEEDS))
@pytest.mark.parametrize("change", KINDS)
def test_a_changed_folder_is_used_or_refused_in_one_line(change, seed, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "N_BOUND", 2)
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    change(random.Random(f"{change.__name__} {seed}"), folder)
    for main, arguments in (
        (score.main, [folder, *SCORE]),
        (train.main, ["--resume", folder, *FREE.split()]),
    ):
        code, err = run(main, *arguments)
        assert code in (0, 2), err
        if code:
            errors = [line for line in err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, err
            assert err.splitlines()[-1] == errors[0]
            assert str(folder) in errors[0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"nh": 10**9}, r"encoder.0.weight is \[16, 64\] there, \[1000000000, 64\] in this model"),
        ({"nx": 10**12, "shape": None}, r"encoder.0.weight is \[16, 64\] there"),
        ({"nz": 10**12}, r"decoder.0.weight is \[16, 3\] there"),
        ({"nh": 10**30}, "is not of a model of this package"),
        ({"depth": 10**12}, "depth is 1000000000000, and it holds"),
        ({"nx": 10**12}, "nx is 1000000000000 beside the shape"),
        ({"shape": [2] * 99}, "is not of a model of this package"),
        ({"network": "conv", "nx": 2**80, "shape": None, "depth": 1}, "is not of a model of this package"),
        ({"nh": 16.0}, "nh is 16.0"),
        ({"nh": True}, "nh is True"),
        ({"nh": "16"}, "is not of a model of this package"),
        ({"model": ["lae"]}, "is not of a model of this package"),
    ],
)
def test_sizes_are_compared_before_they_take_memory(sizes, message, finished, tmp_path):
    weights, metadata = checkpoint.load_weights(finished / "best.safetensors")
    checkpoint.save_weights(tmp_path / "best.safetensors", weights, metadata | sizes)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        models.load(tmp_path / "best.safetensors")
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    saved = checkpoint.load_latest(folder / "checkpoints")
    shutil.rmtree(saved.path)
    checkpoint.save(folder / "checkpoints", int(saved.path.name[5:]), weights, metadata | sizes, saved.state)
    record = json.loads((folder / "config.json").read_text())
    record["options"] |= {name: size for name, size in sizes.items() if name not in ("nx", "shape")}
    (folder / "config.json").write_text(json.dumps(record))
    code, err = run(train.main, "--resume", folder, *FREE.split())
    assert code == 2
    assert str(folder) in err


@pytest.mark.parametrize(
    "options", [["--decisions", "joint"], ["--no-spread"], ["--decisions", "joint", "--whiten"]]
)
def test_a_model_with_one_s_for_all_images_is_loaded_and_scored(options, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "N_BOUND", 2)
    folder = tmp_path / "run"
    assert run(train.main, *QUICK, *options, "--output-dir", folder)[0] == 0
    assert not models.load(folder / "best.safetensors").spread
    assert run(score.main, folder, *SCORE)[0] == 0


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])]
)
def test_best_weights_that_are_gone_are_missed_before_training_goes_on(
    damage, finished, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    monkeypatch.setattr(trainer.Trainer, "_is_best", lambda _: False)  # whose checkpoint has them, too
    shutil.copytree(finished, folder)
    damage(folder / "best.safetensors")
    records = (folder / "metrics.jsonl").read_bytes()
    code, err = run(train.main, "--resume", folder, "--epochs", 2)
    assert code == 2
    assert f"error: {folder / 'best.safetensors'} cannot be read" in err
    assert (folder / "metrics.jsonl").read_bytes() == records


@pytest.mark.parametrize("name", ["counters", "n_decisions"])
def test_a_chain_that_has_made_less_than_no_decisions_is_refused(name, tmp_path):
    model = models.build(models.Architecture(model="lae", nx=6, nz=2, nh=4, depth=1))
    saved_state.restore_chain(model, {}, model.state_dict(), tmp_path)
    getattr(model, name).sub_(1)
    with pytest.raises(ValueError, match="the chain has made less than no decisions"):
        saved_state.restore_chain(model, {}, model.state_dict(), tmp_path)
