"""The main job: it trains, stops and resumes exactly, keeps what it has, and names what it cannot use."""

import contextlib
import dataclasses
import gc
import io
import itertools
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import SMALL_RUN

from lae_fast import checkpoint, data, load, train, view
from lae_fast.data import mnist_download
from lae_fast.training import run_folder, runlog, trainer
from lae_fast.training.config import Config, TrainingError
from lae_fast.training.trainer import Trainer

QUICK = [*SMALL_RUN, *["--batch-size", "100", "--epochs", "2", "--log-every", "5"]]


def with_quick(arguments):
    quick = [] if "--resume" in arguments else QUICK
    return [*quick, *map(str, arguments)]


def run(*arguments):
    """The command line in this process, which has imported everything already: what it returns and prints."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        torch.random.fork_rng(devices=[]),
    ):
        code = train.main(with_quick(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


# On one thread, as the tests' own process is: then runs agree bit for bit.
APART = {"capture_output": True, "text": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "timeout": 120}


def run_apart(*arguments, **options):
    """The same in a process of its own, as a user would type it."""
    command = [sys.executable, "-m", "lae_fast.train", *with_quick(arguments)]
    return subprocess.run(command, **APART, **options)


def metrics(folder):
    """The lines of metrics.jsonl without wall-clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return lines


def last_checkpoint(folder):
    return checkpoint.load_latest(folder / "checkpoints")


def assert_same_run(a, b):
    assert metrics(a) == metrics(b)
    x, y = last_checkpoint(a), last_checkpoint(b)
    assert x.path.name == y.path.name
    assert all(torch.equal(x.weights[k], y.weights[k]) for k in x.weights)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of three epochs, in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = run_apart("--output-dir", folder, "--epochs", 3, "--nz", 2)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_run_leaves_its_records(finished):
    folder, result = finished
    for name in (
        "best.safetensors",
        "config.json",
        "metrics.jsonl",
        "results.json",
        "samples.png",
        "reconstructions.png",
        "latent_plane.png",
        "tensorboard",
        "view.html",
    ):
        assert (folder / name).exists(), name
    assert "scikit-learn's bundled digits" in result.stdout
    assert "kernels   cpu:" in result.stdout
    assert "negative ELBO" in result.stdout
    bound = re.search(
        r"-log p\(x\) at most (\d+\.\d+) nats: the importance-weighted bound, of the first 100 images",
        result.stdout,
    )
    results = json.loads((folder / "results.json").read_text())
    assert float(bound[1]) == pytest.approx(results["test_importance_bound"], abs=0.01)
    assert results["test_importance_bound"] < results["test_negative_elbo"]
    assert "no probability of these pixels" in result.stdout
    lines = metrics(folder)
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, 37, 5))
    assert all(
        0 <= line[key] <= 1 for line in lines if "loss" in line for key in ("acceptance_rate", "unmoved")
    )
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    epochs = [line for line in lines if "validation_negative_elbo" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    record = json.loads((folder / "config.json").read_text())
    assert record["options"]["nz"] == 2
    assert "digits" in record["data"]
    assert "python -m lae_fast.train" in record["command"]
    assert "torch" in record["versions"]
    weights, architecture = checkpoint.load_weights(folder / "best.safetensors")
    assert weights["phi"].shape == (2, 16)
    assert architecture["model"] == "lae"
    assert len(list((folder / "checkpoints").iterdir())) == 1  # older ones are removed


MODELS = ["lae", "vae", "hoffman"]


def killed_options(model):
    return ["--model", model, "--epochs", "3", "--checkpoint-every", "7", "--binarize", "dynamic"]


# Runs that kill themselves, as hard as can be, some steps after a checkpoint in the middle of epoch 2. Each is a process of
# its own, a child of one that has imported what takes longer than a run.
KILLED = """
import json, os, signal, sys
import sklearn.datasets, torch._dynamo
from lae_fast import train

step = train.Trainer._step

def fatal(self, x):
    metrics = step(self, x)
    if self.progress.step == 23:
        self.log.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return metrics

train.Trainer._step = fatal
codes = []
for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try:
            train.main(arguments)
        finally:
            os._exit(99)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """By model: the folder of a run that was killed, and its exit code."""
    folders = {model: tmp_path_factory.mktemp("killed") / model for model in MODELS}
    runs = [with_quick([*killed_options(m), "--output-dir", folder]) for m, folder in folders.items()]
    result = subprocess.run([sys.executable, "-c", KILLED, json.dumps(runs)], **APART)
    assert result.returncode == 0, result.stderr
    codes = json.loads(result.stdout.splitlines()[-1])
    return {model: (folders[model], code) for model, code in zip(MODELS, codes, strict=True)}


@pytest.mark.parametrize("model", MODELS)
def test_kill_in_mid_epoch_and_resume_bit_for_bit(model, killed, tmp_path):
    assert run("--output-dir", tmp_path / "whole", *killed_options(model)).returncode == 0
    folder, code = killed[model]
    assert code == -signal.SIGKILL
    assert last_checkpoint(folder).state["progress"]["step"] == 21
    assert metrics(folder)[-1]["step"] >= 20
    with (folder / "metrics.jsonl").open("a") as file:  # what a crash may leave beyond the checkpoint
        file.write('{"step": 22, "loss": 1.0}\n{"step": 2')
    resumed = run("--resume", folder)
    assert resumed.returncode == 0, resumed.stderr
    assert "step-000000021" in resumed.stdout
    assert_same_run(tmp_path / "whole", folder)


def test_killed_before_the_first_checkpoint_it_starts_anew(finished, tmp_path):
    whole, _ = finished
    folder = tmp_path / "early"
    folder.mkdir()
    record = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n')
    result = run("--resume", folder)
    assert result.returncode == 0, result.stderr
    assert "no checkpoint was written yet: starting anew" in result.stdout
    assert_same_run(whole, folder)


def test_resume_with_more_epochs_goes_on(tmp_path):
    folder, constant = tmp_path / "run", ["--cooldown", 0]  # a cooldown would depend on the number of epochs
    assert run("--output-dir", folder, "--epochs", 1, *constant).returncode == 0
    assert run("--resume", folder, "--epochs", 2).returncode == 0
    assert run("--output-dir", tmp_path / "whole", "--epochs", 2, *constant).returncode == 0
    assert_same_run(folder, tmp_path / "whole")


def test_ctrl_c_leaves_a_usable_run(tmp_path):
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "lae_fast.train",
        *QUICK,
        "--epochs",
        "100000",
        "--patience",
        "100000",
        "--output-dir",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (folder / "checkpoints").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"--resume {folder}" in stdout
    step = last_checkpoint(folder).state["progress"]["step"]
    resumed = run("--resume", folder, "--epochs", step // 12 + 1)
    assert resumed.returncode == 0, resumed.stderr


def validate_as(losses, monkeypatch):
    """Let validation find these losses, epoch by epoch: when training stops must not hang on how well it goes."""
    evaluate, found = trainer.evaluate, itertools.chain(losses, itertools.repeat(99))

    def scripted(model, images, **options):
        result = evaluate(model, images, **options)
        return result if options else result._replace(negative_elbo=next(found))  # the test takes options

    monkeypatch.setattr(trainer, "evaluate", scripted)


def test_early_stopping(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    validate_as([9, 7, 8, 6, 6.5, 6], monkeypatch)
    result = run("--output-dir", folder, "--epochs", 50, "--patience", 2)
    assert result.returncode == 0, result.stderr
    epochs = [line for line in metrics(folder) if "validation_negative_elbo" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5, 6]
    best, _ = checkpoint.load_weights(folder / "best.safetensors")
    norms = [line["phi_norm"] for line in epochs]
    assert len(set(norms)) == 6
    assert best["phi"].norm().item() == norms[3]


def test_a_kill_leaves_best_weights_of_an_epoch_that_a_checkpoint_knows(tmp_path, monkeypatch):
    validate_as([9, 8, 8], monkeypatch)  # epoch 2 is tried twice
    digits, keep = data.load("digits"), Trainer._keep_weights

    def fitted(epochs, lr=1e-3):
        config = Config(
            model="vae", dataset="digits", nh=8, depth=1, batch_size=300, device="cpu", epochs=epochs, lr=lr
        )
        saved = checkpoint.load_latest(tmp_path / "checkpoints")
        Trainer(config, digits, tmp_path, torch.device("cpu"), saved=saved).fit()

    def best():
        return checkpoint.load_weights(tmp_path / "best.safetensors")[0]

    def killed(*_):
        raise KeyboardInterrupt

    def keep_or_killed(trainer):
        (killed if trainer.progress.epoch == 2 else keep)(trainer)

    fitted(1)
    first = best()
    for owner, name, kill in ((checkpoint, "save", killed), (Trainer, "_keep_weights", keep_or_killed)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, kill)
            with pytest.raises(KeyboardInterrupt):
                fitted(2)
        assert all(torch.equal(t, first[name]) for name, t in best().items())
    second = last_checkpoint(tmp_path).weights
    fitted(3, lr=0.3)
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert all(torch.equal(t, second[name]) for name, t in best().items())


def test_non_finite_training_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    step = train.Trainer._step

    def diverge(self, x):
        if self.progress.step == 17:
            with torch.no_grad():
                self.model.decoder[0].weight.fill_(float("nan"))
        return step(self, x)

    monkeypatch.setattr(train.Trainer, "_step", diverge)
    assert train.main([*QUICK, "--output-dir", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "not finite at step 20" in message
    assert "the last good checkpoint is" in message
    saved = last_checkpoint(folder)
    assert saved.state["progress"]["step"] == 12
    assert all(t.isfinite().all() for t in saved.weights.values())


@pytest.mark.parametrize(
    "options",
    [
        ["--network", "conv"],
        ["--likelihood", "logistic", "--no-mh"],
        ["--likelihood", "gaussian", "--step-size", "1e-4"],
        ["--validation", "0"],
        ["--binarize", "fixed", "--n-steps", "1"],
        ["--precision", "bf16"],
        ["--precision", "bf16", "--no-mh"],
        ["--precision", "bf16", "--model", "vae", "--network", "conv"],
        ["--precision", "bf16", "--model", "hoffman"],
    ],
)
def test_options(options, tmp_path):
    assert (
        train.main([*QUICK, "--epochs", "1", "--depth", "2", *options, "--output-dir", str(tmp_path / "run")])
        == 0
    )


def test_a_step_size_of_zero_is_finite_and_none_at_all_is_not(tmp_path, monkeypatch):
    config = Config(dataset="digits", nh=16, depth=1, batch_size=100, device="cpu", step_size=0)
    made = Trainer(config, data.load("digits"), tmp_path, torch.device("cpu"))
    weights = made.model.state_dict
    # whether or not the state of the chain is among the weights
    monkeypatch.setattr(made.model, "state_dict", lambda *a, **k: weights(*a, **k) | made.model.chain_state())
    assert made.chain.log_step_size.item() == -math.inf
    made._check_finite()
    for bad in (math.nan, math.inf):
        made.chain.log_step_size.fill_(bad)
        with pytest.raises(TrainingError, match="not finite"):
            made._check_finite()


def test_a_run_without_steps_resumes(tmp_path):
    assert run("--step-size", 0, "--epochs", 1, "--output-dir", tmp_path / "run").returncode == 0
    result = run("--resume", tmp_path / "run", "--epochs", 2)
    assert result.returncode == 0, result.stderr


def test_the_learning_rate_cools_down(tmp_path, monkeypatch):
    rates = []
    step = train.Trainer._step

    def record(self, x):
        metrics = step(self, x)
        rates.append(self.optimizer.param_groups[0]["lr"])
        return metrics

    monkeypatch.setattr(train.Trainer, "_step", record)
    assert train.main([*QUICK, "--cooldown", "0.5", "--output-dir", str(tmp_path / "run")]) == 0
    n = len(rates)
    expected = [2e-3 * min(1, (1 - i / n) / 0.5) for i in range(n)]
    assert rates == pytest.approx(expected)


def test_config_survives_json():
    config = Config(nz=3, data_dir=Path("x"), step_size=0.1)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


# ---- bad input: a clear error before work starts, nothing lost, exit code non-zero ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nz", "0"], "--nz is 0; expected at least 1"),
        (["--nz", "-3"], "--nz is -3"),
        (["--nh", "0"], "--nh is 0"),
        (["--n-steps", "0"], "--n-steps is 0; expected at least 1"),
        (["--step-size", "-0.1"], "--step-size is -0.1"),
        (["--step-size", "nan"], "--step-size is nan"),
        (["--lr", "0"], "--lr is 0"),
        (["--lr", "inf"], "--lr is inf"),
        (["--cooldown", "1.5"], "--cooldown is 1.5"),
        (["--beta1", "1"], "--beta1 is 1"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--batch-size", "5000"], "--batch-size is 5000; expected at most 1237 images"),
        (["--validation", "-1"], "--validation is -1"),
        (["--validation", "99999"], "validation is 99999; expected 0 to 1436"),
        (["--seed", "-1"], "--seed is -1"),
        (["--dataset", "imagenet"], "imagenet"),
        (["--model", "gan"], "gan"),
        (["--likelihood", "poisson"], "poisson"),
        (["--binarize", "sometimes"], "sometimes"),
        (["--nz", "two"], "two"),
        (["--no-such-flag"], "no-such-flag"),
        (["--device", "cuda:77"], "--device is 'cuda:77'; expected a device of this machine"),
        (["--device", "abacus"], "--device is 'abacus'; expected a device of this machine"),
        (["--device", "meta"], "--device is meta"),
        (["--device", "cpu", "--precision", "tf32"], "--precision tf32 on cpu; expected a GPU"),
        (["--chain-precision", "bf16"], "chain_precision is 'bf16' with mh"),
        (["--network", "conv", "--depth", "5"], "depth is 5; expected at most 3"),
        (["--resume", "/nonexistent"], "/nonexistent/config.json cannot be read: there is no such file"),
    ],
)  # fmt: skip
def test_bad_options(options, message, tmp_path, capsys):
    output = [] if "--resume" in options else ["--output-dir", str(tmp_path / "run")]
    try:
        code = train.main([*QUICK, *options, *output])
    except SystemExit as stop:  # tyro's own errors
        code = stop.code
    assert code not in (0, None)
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_folder_of_a_resumed_run_may_be_spelled_in_another_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in (tmp_path / "run", "run/"):
        assert Config(resume=Path("run"), output_dir=Path(other)).resume == Path("run")
    with pytest.raises(ValueError, match="--output-dir other beside --resume run: a run stays in its folder"):
        Config(resume=Path("run"), output_dir=Path("other"))


def test_output_folder_is_a_file(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    for target in (tmp_path / "run", tmp_path / "run" / "below"):
        assert train.main([*QUICK, "--output-dir", str(target)]) == 2
        assert "cannot be made" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_holds_a_run_is_left_alone(finished, capsys):
    folder, _ = finished
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert train.main([*QUICK, "--output-dir", str(folder)]) == 2
    assert "holds a run already; continue it with --resume" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def copied_run(finished, tmp_path):
    """A copy of the finished run, to be damaged; and its last checkpoint's folder."""
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    return folder, next((folder / "checkpoints").iterdir())


class Malice:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def unsigned(saved):
    """Let a checkpoint say nothing of its state file, as older ones."""
    weights = saved / "model.safetensors"
    checkpoint.save_weights(weights, *checkpoint.load_weights(weights))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: truncate(c / "model.safetensors"), "cannot be read"),
        (lambda c: (c / "model.safetensors").write_bytes(b"junk"), "cannot be read"),
        (lambda c: (c / "model.safetensors").unlink(), "cannot be read"),
        (
            lambda c: (c / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}"),
            "not one of lae_fast",
        ),
        (lambda c: truncate(c / "state.pt"), "damaged or not a plain state file"),
        (lambda c: (c / "state.pt").write_bytes(b"junk"), "damaged or not a plain state file"),
        (lambda c: (c / "state.pt").unlink(), "damaged or not a plain state file"),
        (lambda c: (c / "state.pt").write_bytes(pickle.dumps(Malice())), "damaged or not a plain state file"),
        (lambda c: torch.save(Malice(), c / "state.pt"), "damaged or not a plain state file"),
        (lambda c: torch.save({"a": 1}, c / "state.pt"), "does not hold what was written"),
        (lambda c: (torch.save([1], c / "state.pt"), unsigned(c)), "holds a list; expected a dictionary"),
        (
            lambda c: (torch.save({"a": 1}, c / "state.pt"), unsigned(c)),
            "state.pt is not a state of this training job",
        ),
    ],
)
def test_damaged_checkpoints(damage, message, copied_run, monkeypatch, tmp_path, capsys):
    folder, saved = copied_run
    monkeypatch.chdir(tmp_path)
    damage(saved)
    records = (folder / "metrics.jsonl").read_bytes()
    assert train.main(["--resume", str(folder), "--epochs", "9"]) == 2
    assert message in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == records
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("nz", 5, "nz is 2 there, 5 in this run"), ("model", "vae", "model is 'lae' there, 'vae' in this run"),
     ("nh", 17, "nh is 16 there, 17 in this run")],
)  # fmt: skip
def test_a_checkpoint_of_another_architecture(option, value, message, copied_run, capsys):
    folder, _ = copied_run
    record = json.loads((folder / "config.json").read_text())
    record["options"][option] = value
    (folder / "config.json").write_text(json.dumps(record))
    assert train.main(["--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "is of another architecture" in error
    assert message in error


OTHERS = {  # a value of every option that differs from that of the finished run
    "model": "vae", "nz": 5, "nh": 17, "depth": 2, "network": "conv", "channels": 9, "likelihood": "gaussian", "n_steps": 3, "mh": False,
    "step_size": 0.1, "adaptation_rate": 0.1, "decisions": "joint", "decoder_window": "before",
    "feature_window": "before", "spread": False, "memory": 5, "ridge": 0.1, "whiten": True, "gradient": "last", "start": "prior",
    "precision": "bf16", "chain_precision": "float32", "batch_size": 50, "epochs": 9, "lr": 0.1, "beta1": 0.3,
    "cooldown": 0.5, "patience": 3, "seed": 3, "deterministic_reduce": True, "device": "auto", "dataset": "mnist", "data_dir": "elsewhere",
    "data": "elsewhere", "validation": 7, "binarize": "fixed", "log_every": 2, "checkpoint_every": 2,
}  # fmt: skip


@pytest.mark.parametrize("option", OTHERS)
def test_a_run_keeps_what_its_past_depends_on(option, copied_run, capsys, monkeypatch):
    """What may be changed is a list; whatever is not on it stays."""
    folder, _ = copied_run
    if option == "whiten":  # only joint decisions know it
        record = json.loads((folder / "config.json").read_text())
        record["options"]["decisions"] = "joint"
        (folder / "config.json").write_text(json.dumps(record))
    if option == "data":  # beside a data set by name it would be refused
        record = json.loads((folder / "config.json").read_text())
        record["options"] |= {"dataset": "auto", "data": "here"}
        (folder / "config.json").write_text(json.dumps(record))
    flag = f"--{option.replace('_', '-')}"
    given = {True: [flag], False: [flag.replace("--", "--no-")]}.get(
        OTHERS[option], [flag, str(OTHERS[option])]
    )
    monkeypatch.setattr(train, "train", lambda config, command, _: 0)
    code = train.main(["--resume", str(folder), *given])
    changeable = {
        "epochs",
        "lr",
        "cooldown",
        "patience",
        "device",
        "data",
        "data_dir",
        "log_every",
        "checkpoint_every",
    }
    assert code == (0 if option in changeable else 2)
    if code:
        assert "a run keeps it when it resumes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "beta1", "lr"),
    [
        ({}, 0.9, 2e-3),
        ({"decisions": "joint"}, 0.5, 1e-3),
        ({"model": "vae"}, 0.9, 1e-3),
        ({"beta1": 0.3, "lr": 5e-4}, 0.3, 5e-4),
    ],
)
def test_adam_is_the_model_s_unless_told_otherwise(options, beta1, lr, tmp_path):
    config = Config(dataset="digits", nh=16, depth=1, batch_size=100, device="cpu", **options)
    made = Trainer(config, data.load("digits"), tmp_path, torch.device("cpu"))
    assert [group["betas"] for group in made.optimizer.param_groups] == [(beta1, 0.999)]
    made._step(next(iter(made.batches())))
    assert made.optimizer.param_groups[0]["lr"] == lr


def test_dynamically_binarized_images_are_drawn_anew_for_every_step(tmp_path):
    config = Config(
        dataset="digits", binarize="dynamic", nh=16, depth=1, batch_size=100, epochs=1, device="cpu"
    )
    made = Trainer(config, data.load("digits", binarization="dynamic"), tmp_path, torch.device("cpu"))
    index = next(iter(made.batches()))
    grey = made.train.images[index] / 255
    assert ((grey > 0) & (grey < 1)).sum() > 0
    seen = []
    made.training_step.model.add_gradients = lambda x: (seen.append(x), torch.zeros(()))[1]
    for _ in range(2):
        made._step(index)
    assert not torch.equal(*seen)
    for x in seen:
        assert x.unique().tolist() == [0, 1]
        assert (x[grey == 0] == 0).all()
        assert (x[grey == 1] == 1).all()


def test_a_run_records_which_data_auto_was(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_download, "MIRRORS", ["file:///nowhere/"])
    folder = tmp_path / "run"
    options = [*QUICK, "--dataset", "auto", "--data-dir", str(tmp_path), "--epochs", "1"]
    assert train.main([*options, "--output-dir", str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["options"]["dataset"] == "digits"


def test_without_validation_images_the_weights_are_those_of_the_last_whole_epoch(tmp_path):
    options = dict(dataset="digits", model="vae", nh=16, depth=1, batch_size=300, device="cpu", validation=0)
    config = Config(epochs=2, **options)
    trainer = Trainer(config, data.load("digits", validation=0), tmp_path, torch.device("cpu"))
    seen = []
    trainer.fit(
        lambda event: (
            seen.append({k: t.clone() for k, t in trainer.model.state_dict().items()}) or len(seen) == 6
        )
    )
    run_folder.write_record(tmp_path, config, data="digits", fingerprint=None)
    weights, metadata = checkpoint.load_weights(tmp_path / "best.safetensors")
    assert trainer.progress.step == 6
    # Of the fourth minibatch, the epoch's last.
    assert all(torch.equal(weights[name], t) for name, t in seen[3].items())
    assert metadata["epoch"] == 1
    lines = runlog.read(tmp_path / "metrics.jsonl")
    assert run_folder.epochs(tmp_path, lines) == 1
    assert run_folder.epochs(tmp_path, lines[:0]) == 1  # whatever the records have lost
    assert load(tmp_path).nz == 8
    (tmp_path / "results.json").write_text('{"epochs": 1, "test_negative_elbo": 12.345}')
    text = view.write(tmp_path, trainer.model, trainer.test).read_text()
    assert "<dd>12.35<" in text


def test_a_folder_that_is_removed_stops_the_run_and_stays_away(tmp_path):
    options = dict(dataset="digits", model="vae", nh=16, depth=1, batch_size=300, epochs=2, device="cpu")
    (folder := tmp_path / "run").mkdir()
    trainer = Trainer(Config(**options, checkpoint_every=1), data.load("digits"), folder, torch.device("cpu"))
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        trainer.fit(lambda event: shutil.rmtree(folder) or False)
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        checkpoint.save(folder / "checkpoints", 1, {}, {}, {})
    assert not folder.exists()
    gc.collect()  # a file left open would be a warning, and so an error


def test_the_generator_of_the_program_around_goes_on(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert train.main([*QUICK, "--epochs", "1", "--output-dir", str(tmp_path / "run")]) == 0
    assert torch.equal(torch.rand(3), expected)


def test_a_run_may_be_fitted_in_parts(tmp_path):
    """What has been recorded stays, whether one trainer goes on or another."""
    config = Config(
        dataset="digits", nh=16, depth=1, batch_size=100, epochs=2, log_every=5, device="cpu", cooldown=0
    )
    dataset = data.load("digits")

    def trainer(name, **options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Trainer(config, dataset, folder, torch.device("cpu"), **options)

    trainer("whole").fit()
    events = []
    parts = trainer("parts")
    parts.fit(lambda event: events.append(event) or len(events) == 7)
    assert (len(events), parts.progress.step) == (7, 7)
    parts.fit(lambda event: events.append(event) or len(events) == 15)
    assert parts.progress.step == 15
    trainer("parts", saved=last_checkpoint(tmp_path / "parts")).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert sum(event.n_images for event in events) == 1500
    assert [i for i, event in enumerate(events) if event.metrics] == [4, 9, 14]
    assert [i for i, event in enumerate(events) if event.messages] == [11]  # the end of an epoch


@pytest.mark.parametrize("given", [[], ["--dataset", "auto"], ["--dataset", "digits"]])
def test_an_older_run_that_said_auto_keeps_the_data_it_had(given, copied_run, monkeypatch):
    folder, _ = copied_run
    record = json.loads((folder / "config.json").read_text())
    record["options"]["dataset"] = "auto"
    (folder / "config.json").write_text(json.dumps(record))
    seen = []
    monkeypatch.setattr(train, "train", lambda config, command, _: seen.append(config.dataset) or 0)
    assert train.main(["--resume", str(folder), *given]) == 0
    assert seen == ["digits"]
    assert train.main(["--resume", str(folder), "--dataset", "mnist"]) == 2


def test_every_option_is_tried_on_a_resumed_run():
    assert OTHERS.keys() | {"output_dir", "resume"} == {f.name for f in dataclasses.fields(Config)}


def test_an_early_stopped_run_goes_on_with_more_patience(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    validate_as([5, 6, 7, 8], monkeypatch)
    for arguments, epoch in (
        (["--epochs", 4, "--patience", 1, "--output-dir", folder], 2),
        (["--resume", folder], 2),
        (["--resume", folder, "--patience", 100], 4),
    ):
        assert run(*arguments).returncode == 0
        assert last_checkpoint(folder).state["progress"]["epoch"] == epoch


def test_damaged_run_folder(copied_run, capsys):
    folder, _ = copied_run
    (folder / "config.json").write_text("{")
    assert train.main(["--resume", str(folder)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def test_unreadable_data_folder(tmp_path, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 5, 1, 1) + b"abc")
    assert train.main(["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "run")]) == 2
    assert "holds 19 bytes; expected 21. Delete it to have it fetched anew" in capsys.readouterr().err


def test_a_full_disk_keeps_the_last_good_checkpoint(copied_run):
    """Writing fails for good in mid-run (a limit on file size stands in for the disk)."""
    folder, saved = copied_run
    good = {p.name: p.read_bytes() for p in saved.iterdir()}

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    result = run_apart("--resume", folder, "--epochs", 5, preexec_fn=limit)
    assert result.returncode == 2
    assert "error:" in result.stderr
    assert "Traceback" not in result.stderr
    assert {p.name: p.read_bytes() for p in next((folder / "checkpoints").iterdir()).iterdir()} == good
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_disk_without_room_is_seen_before_work_starts(tmp_path, monkeypatch, capsys):
    usage = run_folder.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert train.main([*QUICK, "--output-dir", str(tmp_path / "run")]) == 2
    assert "has 1 MB free; this run needs about" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_small_file_system(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(mount)]).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        result = run("--output-dir", mount / "run")
        assert result.returncode == 2
        assert "MB free; this run needs about" in result.stderr
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_tensorboard_compares_runs_by_their_options(finished):
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams import metadata

    folder, _ = finished
    runs = EventMultiplexer({"whole": str(folder / "tensorboard")}).Reload()
    tags = runs.PluginRunToTagToContent(metadata.PLUGIN_NAME)["whole"]
    options = metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG]).hparams
    assert (options["nz"].number_value, options["model"].string_value) == (2, "lae")
    measures = metadata.parse_experiment_plugin_data(tags[metadata.EXPERIMENT_TAG]).metric_infos
    assert {m.name.tag for m in measures} <= set(runs.GetAccumulator("whole").Tags()["tensors"])


def test_a_joint_chain_with_too_few_features_says_so(tmp_path):
    message = "16 features for minibatches of 100"
    for decisions, says in (("joint", True), ("datapoint", False)):
        result = run("--output-dir", tmp_path / decisions, "--decisions", decisions, "--epochs", 1)
        assert (message in result.stdout) == says
        assert ("with q(z|x) = N(f(x), diag(s^2)), s = " in result.stdout) == says


def test_a_chain_whose_step_size_still_adapts_is_not_warned_of(tmp_path):
    """After an epoch of twelve minibatches it accepts nearly all proposals, and nobody can mend that."""
    result = run("--output-dir", tmp_path / "run", "--step-size", "auto", "--epochs", 2)
    assert [
        line["epoch_acceptance_rate"] > 0.95
        for line in metrics(tmp_path / "run")
        if "epoch_acceptance_rate" in line
    ] == [True] * 2
    assert "the chain accepts" not in result.stderr


@pytest.mark.parametrize(("step_size", "message"), [("1e5", "less than 5%"), ("1e-9", "more than 95%")])
def test_a_frozen_or_timid_chain_is_warned_of_once(step_size, message, tmp_path):
    result = run("--output-dir", tmp_path / "run", "--step-size", step_size)
    assert result.returncode == 0
    assert result.stderr.count(message) == 1
    epochs = [line for line in metrics(tmp_path / "run") if "epoch_acceptance_rate" in line]
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert all(line["phi_norm"] > 0 for line in epochs)
    saved = last_checkpoint(tmp_path / "run")
    chain = saved.weights
    accepted = 1 - chain["counters"].sum().item() / chain["n_decisions"].item()
    assert sum(line["epoch_acceptance_rate"] for line in epochs) / 2 == pytest.approx(accepted, abs=1e-9)
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_a_run_from_before_decisions_were_a_choice_is_read():
    values = Config(model="lae").to_json()
    for new in ("decisions", "decoder_window", "feature_window", "spread", "memory", "ridge"):
        del values[new]
    record = {"options": values | {"window": "before", "whiten": True}, "data": "MNIST"}
    config = Config.from_json(run_folder.options_in(record))
    assert (config.decisions, config.decoder_window, config.feature_window) == ("joint", "before", "before")
    assert config.whiten
