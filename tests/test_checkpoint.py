"""Checkpoints are written whole or not at all, and read without trust."""

import pytest
import torch

from lae_fast import checkpoint


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


def test_a_full_device(tmp_path, monkeypatch):
    """The kernel's own full disk: /dev/full takes no byte."""
    (tmp_path / ".file.tmp").symlink_to("/dev/full")
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


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
