"""A run's folder belongs to one process, and a resumed run to what it was started with."""

import contextlib
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SHORT_SCORE, SMALL_RUN

import lae_fast
from lae_fast import checkpoint, data, score, seeds, train
from lae_fast.evaluation import Evaluation
from lae_fast.training import run_folder, runlog, trainer
from lae_fast.training.config import Config, TrainingError
from lae_fast.view import command as view

QUICK = [*SMALL_RUN, *["--batch-size", "100", "--epochs", "1", "--log-every", "5", "--model", "vae"]]


def run(*arguments):
    """Exit code, stdout and stderr of the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), torch.random.fork_rng(devices=[]):
        try:
            code = train.main([*map(str, arguments)])
        except SystemExit as stop:  # tyro's way, for what it finds while it parses
            code = stop.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a run"
    assert run(*QUICK, "--output-dir", folder)[0] == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished, folder], check=True)
    return folder


# ---- whose folder it is ----


def test_starts_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Stopped(run_folder.datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2020, 1, 2, 3, 4, 5)

    monkeypatch.setattr(run_folder.datetime, "datetime", Stopped)
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(run_folder.claimed(Config())) for _ in range(3)]
        for folder in folders:
            (folder / "config.json").write_text("{}")
    names = ["lae-20200102-030405", "lae-20200102-030405-2", "lae-20200102-030405-3"]
    assert [str(f) for f in folders] == [f"runs/{name}" for name in names]


@pytest.mark.parametrize("flag", ["--output-dir", "--resume"])
def test_a_folder_in_use_is_refused_in_one_line(flag, copied):
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    with run_folder.claimed(Config(resume=copied)):
        code, _, err = run(*(QUICK if flag == "--output-dir" else []), flag, copied)
    assert code == 2
    assert err == f"error: {copied} is in use by another process; wait for it, or choose another folder\n"
    assert before == {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}


HOLD = """
import sys, time
from pathlib import Path
from lae_fast.training import run_folder
from lae_fast.training.config import Config
with run_folder.claimed(Config(output_dir=Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_may_lie_at_home(tmp_path, monkeypatch):
    """Where no shell has seen the ~: in a file of options, and after an = sign."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    (home / "options.yaml").write_text("output_dir: ~/first\n")
    assert run(*QUICK, "--config=~/options.yaml")[0] == 0
    assert run("--resume=~/first")[0] == 0
    assert (home / "first" / "results.json").exists()
    assert not list(work.iterdir())
    assert run("--resume=~nobody-here/first")[2].startswith(
        "error: --resume is ~nobody-here/first; expected a path"
    )
    options = score.Options((home / "first",), output=Path("~/table.csv"))
    assert options.output == home / "table.csv"
    looked_at = view.Options(home / "first", table=Path("~/table.csv"))
    with pytest.raises(checkpoint.CheckpointError, match=f"{home}/table.csv cannot be read"):
        view.view(looked_at)


def test_a_lock_dies_with_its_process(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(TrainingError, match="in use by another process"),
        run_folder.claimed(Config(output_dir=tmp_path)),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with run_folder.claimed(Config(output_dir=tmp_path)):
        pass


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"config.json": "{}"},
        {"config.json": ""},
        {"config.json": "\0" * 100},
        {"config.json": '{\n  "options": {\n    "model": "la'},
        {"config.json": "{", "metrics.jsonl": "", ".config.json.12345678.tmp": None, "checkpoints": None, "tensorboard": None},
    ],
)  # fmt: skip
def test_what_never_started_is_in_nobody_s_way(left, tmp_path):
    for name, content in left.items():
        (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_text(content)
    code, _, err = run(*QUICK, "--output-dir", tmp_path)
    assert code == 0, err
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    "name", ["results.json", "best.safetensors", "metrics.jsonl", "checkpoints/step-000000003"]
)
def test_what_is_worth_keeping_is_kept_with_and_without_a_record(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    code, _, err = run(*QUICK, "--output-dir", tmp_path)
    assert code == 2
    assert (
        f"holds a run already; continue it with --resume {tmp_path}, or choose another folder: {name} is"
        in err
    )
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("content", ['{"my": "project"}', "[1, 2]", "{ // mine\n}", "hello", '{"my', "0"])
def test_somebody_s_config_is_not_written_over(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    code, _, err = run(*QUICK, "--output-dir", tmp_path)
    assert code == 2
    assert "config.json is not the record of a run, which would take its place; choose another folder" in err
    assert (tmp_path / "config.json").read_text() == content


def test_a_run_of_a_job_is_that_of_its_command(tmp_path):
    """A job's name that is used once more, for other options, starts nothing again."""
    run_folder.write_record(tmp_path, Config(), "train --epochs 3", job="first")
    assert run_folder.is_of_job(tmp_path, "first", "train --epochs 3")
    assert not run_folder.is_of_job(tmp_path, "first", "train --epochs 4")
    assert not run_folder.is_of_job(tmp_path, "second", "train --epochs 3")
    assert not run_folder.is_of_job(tmp_path / "nothing", "first", "train --epochs 3")


def test_a_record_keeps_the_command_that_made_the_run_and_those_that_resumed_it(copied):
    first = json.loads((copied / "config.json").read_text())["command"]
    for _ in range(2):
        assert run("--resume", copied)[0] == 0
    record = json.loads((copied / "config.json").read_text())
    assert record["command"] == first
    assert [command.split(" --")[1] for command in record["resumed"]] == [f"resume {copied}"] * 2
    assert "Resumed by" in (copied / "view.html").read_text()


def test_a_run_finds_its_data_set_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*QUICK, "--output-dir", "run", "--data-dir", "sets")[0] == 0
    assert run_folder.read_options(tmp_path / "run")["data_dir"] == str(tmp_path / "sets")
    assert run(*QUICK, "--output-dir", "other", "--data-dir", "~/sets")[0] == 0
    assert run_folder.read_options(tmp_path / "other")["data_dir"] == "~/sets"


def test_images_per_second_are_of_the_minibatches_that_took_them(tmp_path, monkeypatch):
    """A minibatch takes a second, by a clock of its own; a run is stopped between two lines of the log, and resumed."""
    step, clock = train.Trainer._step, [0.0]

    def a_second(self, index):
        clock[0] += 1.0
        return step(self, index)

    monkeypatch.setattr(train.Trainer, "_step", a_second)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: clock[0])
    folder = tmp_path / "run"
    assert run(*QUICK, "--epochs", 2, "--checkpoint-every", 1, "--output-dir", folder)[0] == 0
    done = sorted((folder / "checkpoints").iterdir())[-1]
    assert run("--resume", folder, "--epochs", 4)[0] == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert int(done.name.split("-")[1]) % 5
    assert {line["images_per_second"] for line in lines if "images_per_second" in line} == {100.0}


def test_a_start_that_fails_leaves_no_folder(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        assert run(*QUICK, "--batch-size", "9999", "--output-dir", tmp_path / name)[0] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_command_that_is_printed_can_be_pasted(tmp_path, monkeypatch):
    folder = tmp_path / "a b; rm *"
    monkeypatch.setattr(train, "_fit", lambda trainer: signal.SIGTERM)
    code, out, _ = run(*QUICK, "--output-dir", folder)
    assert code == 143
    command = out.split("continue with: ")[1]
    assert shlex.split(command) == ["python", "-m", "lae_fast.train", "--resume", str(folder)]


# ---- seeds ----

LARGEST = 2**63 - 1


def test_the_largest_seed_trains_and_the_next_is_refused(tmp_path):
    code, _, err = run(*QUICK, "--model", "lae", "--seed", LARGEST, "--output-dir", tmp_path / "largest")
    assert code == 0, err
    code, _, err = run(*QUICK, "--seed", LARGEST + 1, "--output-dir", tmp_path / "more")
    assert code == 2
    assert "--seed is 9223372036854775808; expected at most 9223372036854775807" in " ".join(err.split())
    assert not (tmp_path / "more").exists()


def test_score_takes_the_same_seeds(finished, capsys):
    assert score.main([str(finished), *SHORT_SCORE, "--seed", str(LARGEST)]) == 0
    capsys.readouterr()
    for bad in (LARGEST + 1, -1):
        with contextlib.suppress(SystemExit):  # tyro's way, for what it finds while it parses
            assert score.main([str(finished), *SHORT_SCORE, "--seed", str(bad)]) == 2
        out, err = capsys.readouterr()
        assert f"--seed is {bad}" in out + err
        assert "-log p(x)" not in out


def test_seeds_made_of_large_seeds_are_torch_s_and_differ():
    made = [seeds.mixed(LARGEST - i, j) for i in range(9) for j in range(9)]
    made += [seeds.apart(LARGEST - i) for i in range(9)]
    assert len(set(made)) == len(made)
    for seed in made:
        torch.Generator().manual_seed(seed)
    small = 9_000_000_000_000
    assert (seeds.mixed(small, 5), seeds.apart(small)) == (small * seeds.STRIDE + 5, small + seeds.STRIDE)


# ---- what a resumed run goes on with ----


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("part", ["images", "labels"])
def test_other_data_are_seen(split, part, copied, monkeypatch):
    other = data.load("digits")
    getattr(getattr(other, split), part)[0] += 1
    monkeypatch.setattr(data, "load", lambda *_, **__: other)
    code, _, err = run("--resume", copied, "--epochs", 2)
    assert code == 2
    assert "was trained on other data: their fingerprint is" in err


def test_a_record_without_a_fingerprint_resumes_and_has_one_then(copied):
    path = copied / "config.json"
    record = json.loads(path.read_text())
    fingerprint = record.pop("fingerprint")
    path.write_text(json.dumps(record))
    assert run("--resume", copied)[0] == 0
    assert json.loads(path.read_text())["fingerprint"] == fingerprint


def test_an_option_that_was_changed_in_the_record_is_seen(copied):
    path = copied / "config.json"
    record = json.loads(path.read_text())
    record["options"]["seed"] = 3
    path.write_text(json.dumps(record))
    code, _, err = run("--resume", copied)
    assert code == 2
    assert "state.pt is not a state of this training job: --seed was 0, now 3: a run keeps it" in err


def test_a_checkpoint_from_before_options_and_hashes_resumes(copied):
    saved = checkpoint.load_latest(copied / "checkpoints")
    del saved.state["options"]
    torch.save(saved.state, saved.path / "state.pt")
    checkpoint.save_weights(saved.path / "model.safetensors", saved.weights, saved.metadata)
    assert run("--resume", copied, "--epochs", 2)[0] == 0


# ---- the program around ----


def test_off_the_main_thread_it_trains(tmp_path):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run(*QUICK, "--output-dir", tmp_path / "run")))
    thread.start()
    thread.join()
    assert codes[0][0] == 0, codes[0][2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint(number, code, tmp_path, monkeypatch):
    step = train.Trainer._step

    def stopped(self, x):
        if self.progress.step == 4:
            os.kill(os.getpid(), number)
        return step(self, x)

    monkeypatch.setattr(train.Trainer, "_step", stopped)
    assert run(*QUICK, "--output-dir", tmp_path / "run")[0] == code
    assert checkpoint.load_latest(tmp_path / "run" / "checkpoints").state["progress"]["step"] == 5


def test_a_signal_before_training_promises_no_checkpoint(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", stopped)
    code, _, err = run(*QUICK, "--output-dir", tmp_path / "run")
    assert (code, list(tmp_path.iterdir())) == (130, [])
    assert err.endswith("--resume continues from the last checkpoint if there is one\n")


class ClosedPipe(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_closed_pipe_does_not_end_a_training(tmp_path):
    with contextlib.redirect_stdout(ClosedPipe()), contextlib.redirect_stderr(ClosedPipe()):
        assert train.main([*QUICK, "--output-dir", str(tmp_path / "run")]) == 0
    assert math.isfinite(json.loads((tmp_path / "run" / "results.json").read_text())["test_negative_elbo"])


def test_a_score_is_written_before_it_is_shown(finished, tmp_path, monkeypatch):
    def fails(text):
        raise RuntimeError("shown")

    monkeypatch.setattr(score, "say", fails)
    with pytest.raises(RuntimeError, match="shown"):
        score.main([str(finished), *SHORT_SCORE, "--output", str(tmp_path / "table.csv")])
    assert (tmp_path / "table.csv").read_text().count("\n") == 2


def test_a_score_that_cannot_be_written_is_shown_and_the_next_run_scored(
    finished, copied, tmp_path, monkeypatch, capsys
):
    write, written = checkpoint.write_atomically, []

    def full(path, content):
        written.append(content)
        if len(written) == 1:
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    table = tmp_path / "table.csv"
    assert score.main([str(finished), str(copied), *SHORT_SCORE, "--output", str(table)]) == 2
    out, err = capsys.readouterr()
    assert out.count("-log p(x)") == 2
    assert err.count("error: [Errno 28] No space left on device") == 1
    assert "table.csv" in err
    assert table.read_text().count("\n") == 3  # the next run's turn writes both


# ---- records ----


def test_a_line_cut_by_a_crash_is_dropped_and_one_in_the_middle_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "loss": 1.5}\n{"step": 10, "loss": 1.25}\n{"step": 1')
    assert [line["step"] for line in runlog.read(path)] == [5, 10]
    assert [line["step"] for line in runlog.read(path, last_step=5)] == [5]
    for bad in ("[]", "7", '{"step": "5"}', '{"step": true}', '{"loss": 1}', '{"step": 5, "loss": "x"}', "\0" * 9,
                '{"step": 5, "loss": NaN}', "[" * 100_000, '{"step": 5, "loss": null}'):  # fmt: skip
        path.write_text(f'{{"step": 5, "loss": 1.5}}\n{bad}\n{{"step": 10, "loss": 1.25}}\n')
        assert [line["step"] for line in runlog.read(path, last_step=5)] == [5]
        with pytest.raises(checkpoint.CheckpointError, match=r"metrics.jsonl: line 2 is damaged"):
            runlog.read(path)
    path.write_bytes(b'\xff\xfe\n{"step": 5}\n')
    with pytest.raises(checkpoint.CheckpointError, match="line 1 is damaged"):
        runlog.read(path)


def test_a_run_goes_on_though_its_validation_is_not_finite(tmp_path):
    """One picture of a value that no float32 can square."""
    x, path, folder = np.zeros((60, 4, 4), np.float32), tmp_path / "own.npy", tmp_path / "run"
    x[:, 0, 0] = np.arange(60)  # who is who
    np.save(path, x)
    parts = data.load(path, validation=6, binarization="none")
    x[int(parts.validation.images.flatten(1)[0, 0]), 1, 1] = 1e25
    np.save(path, x)
    small = [
        "--model",
        "vae",
        "--nh",
        "4",
        "--depth",
        "1",
        "--nz",
        "1",
        "--batch-size",
        "8",
        "--log-every",
        "1",
    ]
    images = ["--data", path, "--validation", "6", "--likelihood", "gaussian"]
    code, _, err = run(*small, *images, "--epochs", "1", "--output-dir", folder)
    assert (code, err.count("epoch 1: these weights are not kept as the best ones")) == (0, 1)
    assert run("--resume", folder, "--epochs", "2")[0] == 0
    best, _ = checkpoint.load_weights(folder / "best.safetensors")  # the last ones
    saved = checkpoint.load_latest(folder / "checkpoints")
    assert all(torch.equal(best[name], t) for name, t in saved.weights.items())
    ends = [line for line in runlog.read(folder / "metrics.jsonl") if "loss" not in line]
    assert [line["epoch"] for line in ends] == [1, 2]
    assert all("validation_rate" in line and "validation_negative_elbo" not in line for line in ends)
    assert lae_fast.view.write(folder, lae_fast.load(folder), torch.zeros(9, 4, 4)).exists()


def test_without_validation_the_weights_of_the_last_whole_epoch_stay(tmp_path):
    options = dict(dataset="digits", device="cpu", model="vae", nz=2, nh=16, depth=1, validation=0)
    digits = data.load("digits", validation=0)
    with torch.random.fork_rng(devices=[]):
        run = trainer.Trainer(Config(**options), digits, tmp_path, torch.device("cpu"))
        run.fit(lambda event: run.progress.step == run.n_batches + 2)
        best = tmp_path / "best.safetensors"
        before, later = best.read_bytes(), run.model.state_dict()["head.weight"].clone()
        run.finish()
    assert best.read_bytes() == before
    tested = run.model.state_dict()
    assert all(torch.equal(t, tested[name]) for name, t in checkpoint.load_weights(best)[0].items())
    assert not torch.equal(tested["head.weight"], later)


def test_results_that_are_not_finite_are_null(copied, monkeypatch):
    (copied / "results.json").unlink()
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: Evaluation(math.inf, math.nan, 1.0, 0.5))
    assert run("--resume", copied)[0] == 0
    values = json.loads((copied / "results.json").read_text(), parse_constant=pytest.fail)
    assert [values[f"test_{name}"] for name in Evaluation._fields] == [None, None, 1.0, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nz": "8"}, "--nz is '8' (str); expected a whole number"),
        ({"nz": 8.0}, "--nz is 8.0 (float); expected a whole number"),
        ({"nz": True}, "--nz is True (bool)"),
        ({"mh": 1}, "--mh is 1 (int); expected True or False"),
        ({"validation": [1]}, "--validation is [1] (list); expected a whole number or None"),
        ({"lr": "fast"}, "--lr is 'fast' (str); expected a number or auto"),
        ({"model": "gan"}, "--model is 'gan' (str); expected lae, vae, hoffman"),
        ({"model": ["lae"]}, "--model is ['lae'] (list)"),
        ({"device": None}, "--device is None"),
        ({"lr": 10**400}, "--lr is inf; expected a positive finite number"),
        ({"adaptation_rate": -(10**400)}, "--adaptation-rate is -inf"),
    ],
)
def test_options_have_their_types(options, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        Config(**options)
    assert message in str(caught.value)


def test_a_model_that_is_too_large_is_refused(tmp_path):
    code, _, err = run(*QUICK, "--nh", 2**40, "--output-dir", tmp_path / "run")
    assert code == 2
    assert "cannot be built" in err
    assert not (tmp_path / "run").exists()


def test_fingerprints_tell_shapes_apart():
    images = torch.arange(12, dtype=torch.uint8)
    splits = [data.Split(images.view(shape), torch.zeros(1, dtype=torch.int64)) for shape in ((3, 4), (4, 3))]
    prints = {data.Dataset("x", "y", split, split, split).fingerprint() for split in splits}
    assert len(prints) == 2
