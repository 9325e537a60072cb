"""Checkpoints are written whole or not at all, and read without trust."""

import errno
import io
import math
import os
import time
import zipfile
from pathlib import Path

import pytest
import torch

import lae_fast
from lae_fast import checkpoint
from lae_fast.training import runlog


def test_round_trip_and_only_the_newest_stays(tmp_path):
    weights, state = {"a": torch.arange(6.0).view(2, 3).t()}, {"step": 3, "rng": torch.get_rng_state()}
    checkpoint.save(tmp_path, 1, weights, {"model": "lae"}, state)
    checkpoint.save(tmp_path, 20, weights, {"model": "lae"}, state)
    saved = checkpoint.load_latest(tmp_path)
    assert saved.path.name == "step-000000020"
    assert torch.equal(saved.weights["a"], weights["a"])
    assert saved.metadata == {"model": "lae"}
    assert torch.equal(saved.state["rng"], state["rng"])
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000020"]


def test_a_failed_write_changes_nothing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"a": torch.ones(2)}, {}, {"step": 1})

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, {"a": torch.zeros(2)}, {}, {"step": 2})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    assert torch.equal(checkpoint.load_latest(tmp_path).weights["a"], torch.ones(2))


@pytest.fixture
def full_disk(monkeypatch):
    """Nothing reaches the disk. (A limit on the size of files would stop what the tests themselves print into one.)"""

    def refuse(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_full_disk_is_told_with_the_file_s_name(tmp_path, full_disk):
    (tmp_path / "file").write_bytes(b"old")
    weights = {"a": torch.ones(9)}
    for write in (
        lambda: checkpoint.write_atomically(tmp_path / "file", bytes(17)),
        lambda: checkpoint.save_weights(tmp_path / "file", weights, {}),
        lambda: checkpoint.save(tmp_path / "steps", 3, weights, {}, {"step": 3}),
    ):
        with pytest.raises(OSError, match="No space left") as caught:
            write()
        assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "steps"}
    assert not list((tmp_path / "steps").iterdir())


def test_what_others_have_planted_is_neither_used_nor_removed(tmp_path):
    """A temporary name that is known beforehand could lead anywhere."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    for name in (".file.tmp", ".step-000000003.tmp"):
        (tmp_path / name).symlink_to(mine)
    checkpoint.write_atomically(tmp_path / "file", b"new")
    checkpoint.save(tmp_path, 3, {"a": torch.ones(2)}, {}, {})
    assert mine.read_bytes() == b"mine"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert {p.name for p in tmp_path.iterdir()} == {
        "mine",
        "file",
        "step-000000003",
        ".file.tmp",
        ".step-000000003.tmp",
    }


def test_what_is_written_has_the_mode_of_other_files(tmp_path):
    checkpoint.write_atomically(tmp_path / "file", b"new")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_a_killed_process_left_is_swept(tmp_path):
    for name in (".results.json.ab12_x9z.tmp", ".notes.tmp", "mine"):
        (tmp_path / name).mkdir()
    checkpoint.sweep(tmp_path)
    checkpoint.sweep(tmp_path / "absent")
    assert {p.name for p in tmp_path.iterdir()} == {".notes.tmp", "mine"}


def test_what_may_not_be_looked_at_is_a_checkpoint_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse)
    for read in (checkpoint.load_latest, checkpoint.read_json, runlog.read, lae_fast.load):
        with pytest.raises(checkpoint.CheckpointError, match=r"x cannot be read: .*Permission denied"):
            read(tmp_path / "x")


def test_what_others_may_write_now_is_not_swept(tmp_path):
    for name, seconds in (("old", 7200), ("new", 1800)):
        folder = tmp_path / f".file.{name:_<8}.tmp"
        folder.mkdir()
        then = time.time() - seconds
        os.utime(folder, (then, then))
    checkpoint.sweep(tmp_path, age=3600.0)
    assert [p.name for p in tmp_path.iterdir()] == [".file.new_____.tmp"]


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    (tmp_path / ".step-000000009.tmp").mkdir()
    assert checkpoint.load_latest(tmp_path) is None
    assert checkpoint.load_latest(tmp_path / "absent") is None


def test_load_into_names_the_first_misfit(tmp_path):
    model = torch.nn.Linear(3, 2)
    weights = {"weight": torch.ones(2, 4), "bias": torch.ones(2)}
    with pytest.raises(checkpoint.CheckpointError, match=r"weight is \[2, 4\] there, \[2, 3\] in this model"):
        checkpoint.load_into(model, weights, tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="bias is missing there"):
        checkpoint.load_into(model, {"weight": torch.ones(2, 3)}, tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"extra is \[1\] there, not expected"):
        checkpoint.load_into(model, {**model.state_dict(), "extra": torch.ones(1)}, tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"weight is torch.float64 there, torch.float32 in"):
        checkpoint.load_into(model, {**model.state_dict(), "weight": torch.ones(2, 3).double()}, tmp_path)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(checkpoint.CheckpointError, match="bias holds values that are not finite"):
            checkpoint.load_into(model, {**model.state_dict(), "bias": torch.tensor([1, bad])}, tmp_path)


def test_a_step_size_of_zero_is_a_logarithm_that_is_not_finite(tmp_path):
    log_step_size = {"log_step_size": torch.tensor([-math.inf])}
    checkpoint.check_tensors(log_step_size, log_step_size, tmp_path, unbounded=["log_step_size"])
    for bad in (math.nan, math.inf):
        with pytest.raises(checkpoint.CheckpointError, match="not finite"):
            checkpoint.check_tensors(
                log_step_size, {"log_step_size": torch.tensor([bad])}, tmp_path, unbounded=["log_step_size"]
            )


class Chain(torch.nn.Linear):
    def chain_state(self):
        return {"rng": torch.zeros(3)}


def test_a_file_from_before_the_chain_was_among_the_weights_is_read(tmp_path):
    old = Chain(3, 2).state_dict()
    model = Chain(3, 2)
    model.register_buffer("rng", torch.zeros(3))
    model.register_load_state_dict_pre_hook(lambda _, weights, *__: weights.setdefault("rng", torch.ones(3)))
    checkpoint.load_into(model, old, tmp_path)
    assert torch.equal(model.weight, old["weight"])
    assert torch.equal(model.rng, torch.ones(3))  # the model knows how to complete it


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_every_changed_byte_is_seen(name, tmp_path):
    weights, state = {"a": torch.arange(6.0)}, {"rng": torch.arange(9)}
    path = checkpoint.save(tmp_path, 1, weights, {"model": "lae"}, state) / name
    whole = path.read_bytes()
    for i in range(0, len(whole), 7):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        try:
            saved = checkpoint.load_latest(tmp_path)
        except checkpoint.CheckpointError:
            pass
        else:  # the name of a hash itself, which then counts as an older file
            assert torch.equal(saved.weights["a"], weights["a"])
            assert torch.equal(saved.state["rng"], state["rng"])
            assert saved.metadata == {"model": "lae"}


def test_a_compressed_state_is_no_bomb(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"a": torch.ones(1)}, {}, {"a": torch.zeros(10**6)})
    checkpoint.write_atomically(path / "model.safetensors", b"")
    checkpoint.save_weights(path / "model.safetensors", {"a": torch.ones(1)}, {})  # names no hash
    stored = zipfile.ZipFile(io.BytesIO((path / "state.pt").read_bytes()))
    with zipfile.ZipFile(path / "state.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    with pytest.raises(checkpoint.CheckpointError, match="would take more memory than the file has"):
        checkpoint.load_latest(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_nobody_waits_for_a_named_pipe(name, tmp_path):
    path = checkpoint.save(tmp_path, 1, {"a": torch.ones(1)}, {}, {}) / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(checkpoint.CheckpointError, match="there is no such file"):
        checkpoint.load_latest(tmp_path)
