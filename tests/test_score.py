"""The table of likelihoods: from runs on disk to a CSV, and clear words for what cannot be scored."""

import csv
import os

import numpy as np
import pytest
import torch
from commands import SMALL_RUN

from lae_fast import score, train, view
from lae_fast.models import Architecture, build, load
from lae_fast.training import run_folder
from lae_fast.training.config import Config

RUN = [*SMALL_RUN, *["--nz", "2", "--batch-size", "100", "--epochs", "1"]]
QUICK = [
    "--images",
    "20",
    "--n-temperatures",
    "20",
    "--n-chains",
    "4",
    "--n-draws",
    "10",
    "--simulated",
    "10",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, options in {
        "hoffman": ["--model", "hoffman", "--binarize", "dynamic", "--likelihood", "bernoulli"],
        "grey": ["--model", "lae"],
        "gaussian": ["--model", "vae", "--likelihood", "gaussian"],  # whose own images leave [0, 1]
    }.items():
        assert train.main([*RUN, *options, "--log-every", "2", "--output-dir", str(folder / name)]) == 0
    return folder


@pytest.mark.filterwarnings("ignore:p.x, z. of .* is sharper than the cells")  # of the Gaussian model
@pytest.mark.filterwarnings("ignore:the weights of")  # so few temperatures
def test_scores_of_several_runs(runs, tmp_path, capsys):
    table = tmp_path / "table.csv"
    arguments = [str(runs / "hoffman"), str(runs / "grey"), str(runs / "gaussian"), *QUICK]
    assert score.main([*arguments, "--output", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "compare among themselves" in next(
        line for line in printed.splitlines() if line.startswith("grey:")
    )
    assert "compare among themselves" not in next(
        line for line in printed.splitlines() if line.startswith("hoffman:")
    )
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["model"] for row in rows] == ["hoffman", "lae", "vae"]
    for row in rows:
        value = {k: float(row[k]) for k in ("ais", "negative_elbo", "reconstruction", "rate", "bits_per_dim")}
        assert value["negative_elbo"] == pytest.approx(value["reconstruction"] + value["rate"], rel=1e-4)
        assert value["ais"] < value["negative_elbo"] + 5 * float(row["standard_error"])
        exact = float(row["quadrature"] or value["ais"])
        assert exact < value["ais"] + 5 * float(row["standard_error"])  # AIS bounds it from above
        assert value["bits_per_dim"] == pytest.approx(exact / 64 / 0.6931472, rel=1e-4)
        assert row["model"] == "vae" or 0 <= float(row["training_acceptance"]) <= 1
        assert float(row["seconds_per_epoch"]) > 0
    assert [row["data"] for row in rows] == ["digits, fixed", "digits, grey", "digits, grey"]
    assert [row["is_comparable"] for row in rows] == ["True", "False", "False"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "-5"], "--images is -5"),
        (["--output", "nowhere/table.csv"], "nowhere/table.csv"),
        (["--device", "nothing"], "nothing"),
        (["--device", "meta"], "--device is meta; expected auto, cpu or cuda"),
    ],
)
def test_bad_options(options, message, runs, capsys):
    try:
        code = score.main([str(runs / "grey"), *options])
    except SystemExit as stop:  # tyro's way, for what it finds while it parses
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_run_that_is_named_twice_is_scored_once(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    names = (tmp_path / "run", tmp_path / "other", tmp_path / "x" / ".." / "run", tmp_path / "link")
    assert [run.name for run in score.Options(names).runs] == ["link", "other"]


def test_a_table_replaces_files_alone(runs, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SystemExit, match="2"):
        score.main([str(runs / "grey"), "--output", str(tmp_path / "pipe")])
    assert "in a folder that exists" in capsys.readouterr().err
    (link := tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    assert score.main([str(runs / "grey"), *QUICK, "--base", "prior", "--output", str(link)]) == 0
    assert link.is_symlink()
    assert (tmp_path / "real.csv").read_text().splitlines()[1].startswith("grey,lae,")


def test_no_run_is_an_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        score.main([])
    assert "no RUN is given; expected folders" in capsys.readouterr().err


def test_a_run_that_cannot_be_scored_is_named_and_the_others_are_scored(runs, capsys):
    assert score.main([str(runs / "missing"), str(runs / "grey"), *QUICK, "--base", "prior"]) == 2
    out, err = capsys.readouterr()
    assert "missing is not the folder of a run" in err
    assert "from the prior" in out


def test_the_run_in_the_folder_one_stands_in_has_its_name(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(runs / "grey")
    assert score.main([".", *QUICK, "--base", "prior", "--output", str(tmp_path / "table.csv")]) == 0
    assert capsys.readouterr().out.startswith("grey: ")
    assert (tmp_path / "table.csv").read_text().splitlines()[1].startswith("grey,lae,")


def test_load_gives_back_the_trained_model(runs):
    model = load(runs / "grey" / "best.safetensors")
    assert not model.training
    assert model.phi.shape == (2, 16)
    fresh = build(Architecture(nx=64, nz=2, nh=16, depth=1))
    fresh.load_state_dict(model.state_dict())
    x = torch.rand(3, 64)
    assert torch.equal(fresh.encode(x), model.encode(x))


@pytest.mark.parametrize("main", [score.main, view.main])
def test_a_place_of_data_that_no_run_has_is_refused(main, runs, tmp_path, capsys):
    own = tmp_path / "own"
    run_folder.write_record(own.parent, Config(data=own), data="own")
    for folder, arguments in (
        (runs / "grey", ["--data", "/nowhere"]),
        (tmp_path, ["--data-dir", "/nowhere"]),
    ):
        assert main([str(folder), *arguments]) == 2
        assert f"{arguments[0]} /nowhere: expected a run on" in capsys.readouterr().err


def test_other_images_are_not_taken_for_the_run_s(tmp_path, capsys):
    """Test images of other data may have been training images of the run."""
    pictures, folder = tmp_path / "own.npy", tmp_path / "run"
    draw = np.random.default_rng(0)
    np.save(pictures, draw.integers(256, size=(60, 4, 4), dtype=np.uint8))
    options = ["--device", "cpu", "--nh", "8", "--depth", "1", "--nz", "2", "--epochs", "1"]
    assert train.main([*options, "--data", str(pictures), "--output-dir", str(folder)]) == 0
    np.save(pictures, draw.integers(256, size=(61, 4, 4), dtype=np.uint8))
    for main in (score.main, view.main):
        capsys.readouterr()
        assert main([str(folder)]) == 2
        assert "was trained on other data" in capsys.readouterr().err
