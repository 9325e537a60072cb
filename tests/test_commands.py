"""The commands under one name, each of which names itself as it was typed; and options from a file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import SMALL_RUN

from lae_fast import __main__, __version__, checkpoint, score, train
from lae_fast.training import run_folder, runlog
from lae_fast.training.config import Config, TrainingError
from lae_fast.view import command

ROOT = Path(__file__).parent.parent

WAYS = {  # sys.argv[0], and how the command names itself
    "/usr/local/bin/lae-fast": "lae-fast {}",
    "C:\\Scripts\\lae-fast.exe".replace("\\", "/"): "lae-fast {}",
    f"{ROOT}/lae_fast/__main__.py": "python -m lae_fast {}",
    f"{ROOT}/lae_fast/train.py": "python -m lae_fast.{}",
}


@pytest.mark.parametrize("command", __main__.COMMANDS)
@pytest.mark.parametrize("program", WAYS)
def test_a_command_names_itself_as_it_was_typed(command, program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit) as stop:
        __main__.main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {WAYS[program].format(command)} [-h]")


def test_python_m_takes_commands():
    result = subprocess.run(
        [sys.executable, "-m", "lae_fast", "info", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert result.stdout.startswith("usage: python -m lae_fast info [-h]"), result.stderr


def test_the_command_is_installed():
    name, target = re.search(
        r"\[project.scripts\]\n(.*) = \"(.*)\"", (ROOT / "pyproject.toml").read_text()
    ).groups()
    assert (name, target) == ("lae-fast", f"{__main__.__name__}:main")


def test_all_commands_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lae-fast"])
    assert __main__.main([]) == 2
    usage = capsys.readouterr().err
    assert usage.startswith("usage: lae-fast COMMAND [OPTIONS]")
    assert all(f"  {name} " in usage for name in ("train", "score", "view", "info", "experiments"))
    assert __main__.main(["--help"]) == 0
    assert capsys.readouterr().out == usage
    assert __main__.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lae_fast {__version__}\n"
    assert __main__.main(["trian"]) == 2
    assert "'trian' is no command; expected one of train, score," in capsys.readouterr().err


def test_a_run_records_the_command_as_typed(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "train", lambda config, command, _: seen.append(command) or 0)
    monkeypatch.setattr(sys, "argv", ["/bin/lae-fast", "train", "--nz", "3"])
    assert __main__.main() == 0
    assert seen == ["lae-fast train --nz 3"]


# ---- options from a file ----


@pytest.fixture
def parsed(monkeypatch):
    """The options that `train` would work with, or the exit code where it would not."""
    seen = []
    monkeypatch.setattr(train, "train", lambda config, command, _: seen.append(config) or 0)

    def parse(*arguments):
        code = train.main([str(a) for a in arguments])
        return code or seen.pop()

    return parse


FILES = {
    "a.yaml": "nz: 3\nlr: 1e-3\nstep_size: .5e1\nmodel: lae  # the default\nspread: false\ndata_dir: elsewhere\nvalidation: null\n",
    "b.yml": "{nz: 3, lr: 0.001, step_size: 5, spread: no, data_dir: elsewhere}",
    "c.json": '{"nz": 3, "lr": 1e-3, "step_size": 5, "spread": false, "data_dir": "elsewhere"}',
}


@pytest.mark.parametrize("name", FILES)
def test_options_come_from_a_file_and_flags_win(name, parsed, tmp_path):
    path = tmp_path / name
    path.write_text(FILES[name])
    expected = dict(nz=3, lr=1e-3, step_size=5.0, spread=False, data_dir=Path("elsewhere"))
    assert parsed("--config", path) == Config(**expected)
    found = parsed("--nz", 4, f"--config={path}", "--spread", "--epochs", 2)
    assert found == Config(**(expected | dict(nz=4, spread=True, epochs=2)))


@pytest.mark.parametrize(
    "content", ["", "# nz: 16\n", "---\n", "validation: None\noutput_dir: None\ndata: null\n"]
)
def test_a_file_without_options_leaves_the_defaults(content, parsed, tmp_path):
    (tmp_path / "a.yaml").write_text(content)
    assert parsed("--config", tmp_path / "a.yaml") == Config()


def test_a_run_s_record_is_such_a_file(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    options = [*SMALL_RUN, "--epochs", "1", "--batch-size", "300", "--n-steps", "1", "--lr", "1e-2"]
    assert train.main([*options, "--output-dir", str(first)]) == 0
    assert train.main(["--config", str(first / "config.json"), "--output-dir", str(second)]) == 0
    weights = [checkpoint.load_weights(run / "best.safetensors")[0] for run in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert "--config" in json.loads((second / "config.json").read_text())["command"]


def test_a_record_s_run_is_not_meant_but_its_options(parsed, tmp_path):
    config = Config(nz=5, output_dir=tmp_path / "run", resume=tmp_path / "run")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"options": config.to_json() | {"dataset": "auto"}, "data": "scikit-learn's"}))
    found = parsed("--config", path)
    assert (found.nz, found.output_dir, found.resume, found.dataset) == (5, None, None, "digits")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.yaml", "batchsize: 64", "'batchsize' is no option; did you mean batch_size?"),
        ("x.yaml", "batch-size: 64", "'batch-size' is no option; did you mean batch_size?"),
        ("x.json", '{"colour": "red"}', "'colour' is no option; expected options as --help lists them"),
        ("x.yaml", "resume: runs/x", "'resume' is no option"),
        ("x.yaml", "1: 2", "1 is no option"),
        ("x.yaml", "window: last\ndecisions: datapoint", "'window' is no option"),  # but in old records
        ("x.yaml", "data_dir: None", "--data-dir is None (NoneType); expected a path"),
        ("x.yaml", "nz: '3'", "--nz is '3' (str); expected a whole number"),
        ("x.yaml", "nz: 3.0", "--nz is 3.0 (float); expected a whole number"),
        ("x.json", '{"mh": 1}', "--mh is 1 (int); expected True or False"),
        ("x.yaml", "model: gan", "--model is 'gan' (str); expected lae, vae, hoffman"),
        ("x.yaml", "data_dir: 5", "--data-dir is 5 (int); expected a path"),
        ("x.yaml", "data_dir: ~", "--data-dir is None"),
        ("x.yaml", "nz: 0", "--nz is 0; expected at least 1"),
        ("x.yaml", "[nz, 3]", "it holds ['nz', 3] (list); expected options by name"),
        ("x.json", "", "Expecting value"),
        ("x.json", "null", "it holds None"),
        ("x.yaml", "nz: [", "it is not YAML"),
        ("x.yaml", "nz: 1\nseed: 1\nnz: 2", "nz is given twice; expected once"),
        ("x.json", '{"nz": 1, "nz": 2}', "nz is given twice; expected once"),
        ("x.yaml", "seed: 010", "010 is 8 in YAML; expected a number without zeros in front"),
        ("x.yaml", "epochs: 1:30", "1:30 is 90 in YAML; expected"),
        ("x.yaml", "lr: 0:0.5", "0:0.5 is 0.5 in YAML; expected"),
        ("x.yaml", "resum: runs/x", "'resum' is no option; expected options as --help lists them"),
        ("x.yaml", "nz: !!python/object/apply:os.system [touch hacked]", "it is not YAML"),
        ("x.json", "{", "Expecting property name"),
        ("x.json", '{"options": {"colours": 1}, "data": "MNIST"}', "'colours' is no option"),
        ("x.json", '{"options": 5, "data": 5}', "options is 5 (int); expected a dict"),
        ("x.yaml", "options:\n  nz: 3", "'options' is no option; expected options as --help lists them"),
        ("x.toml", "nz = 3", "expected a file whose name ends in .yaml, .yml or .json"),
        ("x.yaml", None, "x.yaml: there is no such file"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(name, content, message, parsed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    assert parsed("--config", name) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --config {name}: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("hacked").exists()


def test_a_flag_without_its_file_is_told_by_the_command_as_typed(parsed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lae-fast"])
    with pytest.raises(SystemExit):
        parsed("--config")
    assert capsys.readouterr().err.startswith("usage: lae-fast train [OPTIONS]\n")


def test_a_file_and_a_run_to_resume_exclude_each_other(parsed, tmp_path, capsys):
    assert parsed("--config", tmp_path / "x.yaml", "--resume", tmp_path) == 2
    assert "x.yaml beside --resume: a run goes on with its own options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"model": "vae"}, []),
        ({"model": "vae", "n_steps": 50, "decisions": "joint"}, ["--n-steps", "--decisions"]),
        ({"model": "hoffman", "memory": 5, "n_steps": 50, "start": "prior"}, ["--memory"]),
        ({"start": "prior"}, ["--start"]),
        ({"channels": 99}, ["--channels"]),
        ({"channels": 99, "network": "conv"}, []),
        ({"step_size": 1e-3, "adaptation_rate": 0.5}, ["--adaptation-rate"]),
        ({"mh": False, "adaptation_rate": 0.5}, ["--adaptation-rate"]),
        ({"adaptation_rate": 0.5}, []),
        ({"decisions": "joint", "memory": 5, "ridge": 1.0, "spread": False}, ["--spread", "--memory", "--ridge"]),
        ({"decisions": "joint", "memory": 5, "ridge": 1.0, "whiten": True}, []),
        ({"memory": 5, "ridge": 1.0, "spread": False}, []),
        ({"validation": 0, "patience": 5}, ["--patience"]),
        ({"data": Path("a"), "data_dir": Path("b")}, ["--data-dir"]),
        ({"dataset": "digits", "data_dir": Path("b")}, ["--data-dir"]),
    ],
)  # fmt: skip
def test_options_without_effect_are_told(options, expected):
    assert Config(**options).without_effect() == expected


def test_a_run_says_at_its_start_which_options_have_no_effect(tmp_path, capsys):
    options = [*SMALL_RUN, "--model=vae", "--epochs=1", "--batch-size=600", "--n-steps=50", "--channels=9"]
    options += ["--validation=0"]  # beside which a patience would have none: it was not given
    assert train.main([*options, "--output-dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "note      without effect beside the other options: --channels, --n-steps\n" in out


def test_a_missing_tensorboard_names_its_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert (
        train.main(
            [*SMALL_RUN, "--epochs", "1", "--batch-size", "300", "--output-dir", str(tmp_path / "run")]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        'note      no curves for TensorBoard, which is not installed: pip install "lae_fast[tensorboard]"'
        in out
    )
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_no_record_for_tensorboard_stops_a_run(tmp_path, monkeypatch):
    name = os.fsdecode(b"caf\xe9")  # of a file system whose names are not UTF-8
    (tmp_path / "run").mkdir()
    with runlog.RunLog(tmp_path / "run", options={"data": name}) as log:
        log.scalars(1, {"loss": 1.0})
    assert next((tmp_path / "run" / "tensorboard").iterdir()).read_bytes().find(b"caf\\udce9") > 0
    with pytest.raises(ValueError, match="expected a name in UTF-8"):  # before hours of training
        Config(output_dir=tmp_path / name)

    def broken(name):
        raise ImportError("TensorBoard logging requires another version")

    def lacking(name):
        raise ModuleNotFoundError("No module named 'google'", name="google.protobuf")

    monkeypatch.setattr(runlog.importlib, "import_module", lacking)
    assert runlog.why_no_board() == "which cannot be imported: No module named 'google'"
    monkeypatch.setattr(runlog.importlib, "import_module", broken)
    (tmp_path / "other").mkdir()
    assert runlog.why_no_board() == "which cannot be imported: TensorBoard logging requires another version"
    with runlog.RunLog(tmp_path / "other", options={"nz": 3}) as log:
        log.scalars(1, {"loss": 1.0})
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("written", "flag"), [("data: own.npy\n", "--dataset=digits"), ("dataset: digits\n", "--data=own.npy")]
)
def test_a_flag_for_data_wins_over_the_file_s_other_one(written, flag, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(written)
    found = train._parse(["--config", str(file), flag])
    assert (found.dataset, found.data) == (("digits", None) if "set" in flag else ("auto", Path("own.npy")))


def test_flags_that_are_none_override_nothing(tmp_path):
    """`None` is what --help calls it."""
    file = tmp_path / "options.yaml"
    file.write_text("dataset: cifar10\n")
    found = train._parse(["--config", str(file), "--data", "None", "--resume=None"])
    assert found == Config(dataset="cifar10")
    assert train._parse(["--config=None"]) == Config()


@pytest.mark.parametrize(
    ("written", "flags", "message"),
    [
        ("whiten: true", ["--decisions", "joint"], "--whiten moves phi"),
        ("chain_precision: bf16", ["--no-mh"], "chain_precision is 'bf16' with mh"),
        ("data: own.npy\ndataset: digits", ["--data", "other.npy"], "--data own.npy beside --dataset digits"),
    ],
)
def test_options_are_compared_when_flags_have_overridden_the_file_s(
    written, flags, message, parsed, tmp_path, capsys
):
    (tmp_path / "a.yaml").write_text(written)
    assert isinstance(parsed("--config", tmp_path / "a.yaml", *flags), Config)
    assert parsed("--config", tmp_path / "a.yaml") == 2
    assert message in capsys.readouterr().err


def test_a_file_that_nests_too_deep_is_named(tmp_path):
    file = tmp_path / "options.json"
    file.write_text("[" * 100_000)
    with pytest.raises(TrainingError, match=f"--config {file}: "):
        train._parse(["--config", str(file)])


# ---- paths ----


def test_every_path_of_a_command_starts_at_home(parsed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "options.yaml").write_text("output_dir: ~/run\ndata: ~/own.npy\n")
    found = parsed("--config", "~/options.yaml")
    assert (found.output_dir, found.data) == (tmp_path / "run", tmp_path / "own.npy")
    assert parsed("--data=~/own.npy").data == tmp_path / "own.npy"
    run_folder.write_record(tmp_path, found, data="own.npy")
    assert parsed("--resume", "~").resume == tmp_path
    assert str(found.data_dir) == "~/.cache/lae_fast"  # in a record, which other machines read
    home, scored = Path("~/a"), score.Options((Path("~/a"), Path("b")), data=Path("~/a"), output=Path("~/a"))
    assert (*scored.runs, scored.data, scored.output) == (
        tmp_path / "a",
        Path("b"),
        tmp_path / "a",
        tmp_path / "a",
    )
    shown = command.Options(home, home, home, home)
    assert {shown.run, shown.table, shown.data, shown.data_dir} == {tmp_path / "a"}


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (train.main, ["--device", "none", "--output-dir", ""]),
        (train.main, ["--device=none", "--output-dir="]),
        (train.main, ["--device", "none", "--config", "empty.json"]),
        (score.main, [".", "--output", ""]),
        (command.main, [""]),
    ],
)
def test_an_empty_path_is_not_the_folder_one_stands_in(main, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text('{"output_dir": ""}')
    assert main(arguments) == 2
    assert " is empty; expected a " in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["empty.json"]


# ---- run folders of other versions ----


def test_a_run_of_a_newer_version_is_told_by_the_option_that_is_new(tmp_path, capsys):
    run_folder.write_record(tmp_path, Config(), data="MNIST")
    record = json.loads((tmp_path / "config.json").read_text())
    record["options"]["new_option"] = 3
    (tmp_path / "config.json").write_text(json.dumps(record))
    for main, arguments in ((train.main, ["--resume"]), (score.main, []), (command.main, [])):
        assert main([*arguments, str(tmp_path)]) == 2
        assert (
            f"{tmp_path} is not the folder of a run of lae_fast {__version__}: 'new_option' is no option; expected"
            in capsys.readouterr().err
        )


def test_a_run_without_weights_yet_names_its_checkpoint(tmp_path, capsys):
    run_folder.write_record(tmp_path, Config(), data="MNIST")
    (tmp_path / "metrics.jsonl").touch()
    kept = tmp_path / "checkpoints" / "step-000000003" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.touch()
    for main in (score.main, command.main):
        assert main([str(tmp_path)]) == 2
        assert f"the run's last checkpoint is {kept}" in capsys.readouterr().err
