"""Data sets: IDX files as they come, splits, binarisation, and clear words when there is nothing to read."""

import gzip
import struct
import sys

import numpy as np
import pytest
import torch

from lae_fast import data, seeds

N_TRAIN, N_TEST, SIDE = 60, 20, 4


def idx_bytes(array):
    return (
        struct.pack(">I", 0x0800 | array.ndim)
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def mnist_folder(tmp_path):
    """A tiny data set in MNIST's own files: image i has pixel value i everywhere, label i % 10."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        images = np.arange(n, dtype=np.uint8)[:, None, None].repeat(SIDE, 1).repeat(SIDE, 2)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(n, dtype=np.uint8) % 10))
    return tmp_path


def test_mnist_files_and_splits(mnist_folder):
    d = data.load("mnist", mnist_folder, validation=10)
    assert d.name == "mnist"
    assert "found in" in d.source
    assert [len(s.images) for s in (d.train, d.validation, d.test)] == [50, 10, 20]
    assert d.train.images.shape == (50, SIDE**2)
    assert d.train.images.dtype == torch.uint8
    assert d.validation.images[:, 0].tolist() == list(range(50, 60))  # the last ones
    assert d.validation.labels.tolist() == [i % 10 for i in range(50, 60)]
    everything = data.load("auto", mnist_folder, validation=0)
    assert len(everything.train.images) == 60
    assert len(everything.validation.images) == 0


def test_gzipped_files(mnist_folder):
    raw = mnist_folder / "MNIST" / "raw"
    plain = data.load("mnist", mnist_folder, validation=0)
    for path in list(raw.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert torch.equal(data.load("mnist", mnist_folder, validation=0).train.images, plain.train.images)


def test_digits():
    d = data.load("digits")
    assert [len(s.images) for s in (d.train, d.validation, d.test)] == [1237, 200, 360]
    assert d.train.images.shape[1] == 64
    assert d.train.images.max() == 255
    assert set(d.test.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("name", ["mnist", "auto"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-7], r"holds 969 bytes; expected 976. Delete it"),
        (lambda content: content[:6], "holds 6 bytes"),
        (lambda content: b"<html>not found</html>", "is not an IDX file"),
        (lambda content: b"", "is not an IDX file"),
    ],
)
def test_damaged_files_are_never_replaced_by_something_else(mnist_folder, name, damage, message):
    path = mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=message):
        data.load(name, mnist_folder)


def test_a_damaged_gzip_file(mnist_folder):
    path = mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(gzip.compress(path.read_bytes()))
    content[20] ^= 0xFF
    path.with_name(path.name + ".gz").write_bytes(content)
    path.unlink()
    with pytest.raises(data.DataError, match="cannot be read"):
        data.load("mnist", mnist_folder)


def test_images_and_labels_must_belong_together(mnist_folder):
    raw = mnist_folder / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(data.DataError, match="do not belong together"):
        data.load("mnist", mnist_folder)


def test_without_mnist_auto_says_why_it_takes_the_digits(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # as beside a torch it does not fit
    d = data.load("auto", tmp_path)
    assert d.name == "digits"
    assert "because MNIST is not in" in d.source
    with pytest.raises(data.DataError, match="cannot be downloaded"):
        data.load("mnist", tmp_path)


def test_seeds_made_of_a_seed_stay_what_they_are():
    """Every result that was ever published hangs on them."""
    assert [seeds.mixed(0, 3), seeds.mixed(2, 5), seeds.apart(7)] == [3, 2_000_011, 1_000_010]


def test_binarisation(mnist_folder):
    fixed, again = (data.load("mnist", mnist_folder, validation=10, binarization="fixed") for _ in range(2))
    for split in ("train", "validation", "test"):
        images = getattr(fixed, split).images
        assert set(images.unique().tolist()) == {0, 255}
        assert torch.equal(images, getattr(again, split).images)
    dynamic = data.load("mnist", mnist_folder, validation=10, binarization="dynamic")
    assert torch.equal(dynamic.train.images, data.load("mnist", mnist_folder, validation=10).train.images)
    assert torch.equal(dynamic.test.images, fixed.test.images)
    grey = torch.tensor([0, 64, 128, 255], dtype=torch.uint8).repeat(100_000, 1)
    mean = data.binarize(grey, torch.Generator().manual_seed(0)).double().mean(0) / 255
    torch.testing.assert_close(
        mean, torch.tensor([0, 64, 128, 255]) / 255.0, rtol=0, atol=0.01, check_dtype=False
    )
    assert mean[0] == 0
    assert mean[3] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.load("cifar"), "dataset is 'cifar'; expected one of auto, mnist, digits"),
        (lambda: data.load("digits", binarization="yes"), "binarize is 'yes'"),
        (lambda: data.load("digits", validation=1437), "validation is 1437; expected 0 to 1436"),
        (lambda: data.load("digits", validation=-1), "validation is -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
