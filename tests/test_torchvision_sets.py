"""Data sets by way of torchvision, which is planted or stubbed here: none of them can be downloaded by a test."""

import hashlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from own_data import Malice, N, bytes_like
from PIL import Image
from test_data import idx_bytes

from lae_fast import data
from lae_fast.data import DataError, mnist_download

IDX = [("fashion-mnist", "FashionMNIST", "train", "t10k"), ("kmnist", "KMNIST", "train", "t10k"),
       ("emnist-digits", "EMNIST", "emnist-digits-train", "emnist-digits-test")]  # fmt: skip


def write_idx(raw, train="train", test="t10k", seed=0):
    """Files of images that are symmetric nowhere."""
    raw.mkdir(parents=True)
    for k, (prefix, n) in enumerate(((train, N), (test, 10))):
        images = bytes_like(n, 4, 4, seed=seed + k).numpy()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(n, dtype=np.uint8) % 10))


@pytest.mark.parametrize(("name", "kind", "train", "test"), IDX)
def test_kin_of_mnist_are_read(name, kind, train, test, tmp_path):
    write_idx(tmp_path / kind / "raw", train, test)
    for root in (tmp_path, tmp_path / kind, tmp_path / kind / "raw"):
        dataset = data.load(name, root, validation=5)
        assert dataset.shape == (1, 4, 4)
        images = bytes_like(10, 1, 4, 4, seed=1)  # EMNIST's rows are columns
        assert torch.equal(dataset.test.images, images.mT if name == "emnist-digits" else images)
        assert dataset.test.labels.tolist() == list(range(10))


def test_data_sets_whose_files_are_called_the_same_are_not_mistaken(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setattr(mnist_download, "MIRRORS", ["file:///nowhere/"])
    write_idx(tmp_path / "FashionMNIST" / "raw")
    write_idx(tmp_path / "plain")
    assert data.load("mnist", tmp_path / "plain", validation=5).shape == (1, 4, 4)
    for name, root in (("mnist", "FashionMNIST"), ("kmnist", "FashionMNIST"), ("fashion-mnist", "plain")):
        with pytest.raises(DataError, match=r"MNIST is not in .* cannot be downloaded"):
            data.load(name, tmp_path / root)


def test_a_folder_is_known_by_its_whole_path(tmp_path, monkeypatch):
    """However it is typed, and by the nearest name."""
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setattr(mnist_download, "MIRRORS", ["file:///nowhere/"])
    fashion = tmp_path / "MNIST" / "FashionMNIST"
    write_idx(fashion / "raw")
    for folder in (fashion, fashion / "raw"):
        monkeypatch.chdir(folder)
        assert data.load("fashion-mnist", ".", validation=5).shape == (1, 4, 4)
        for name, root in (("mnist", "."), ("mnist", folder), ("kmnist", ".")):
            with pytest.raises(DataError, match=r"MNIST is not in .* cannot be downloaded"):
                data.load(name, root)


@pytest.mark.parametrize(("name", "kind", "train", "test"), IDX)
def test_kin_of_mnist_are_downloaded(name, kind, train, test, tmp_path, monkeypatch):
    def download(root, download, **options):
        assert download
        assert options == ({"split": "digits"} if name == "emnist-digits" else {})
        write_idx(root / kind / "raw", train, test)

    def stub(root, **options):
        return download(Path(root), **options)

    monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(**{kind: stub}))
    dataset = data.load(name, tmp_path, validation=5)
    assert "downloaded to" in dataset.source
    assert sorted(p.name for p in tmp_path.iterdir()) == [kind]
    assert "found in" in data.load(name, tmp_path, validation=5).source


@pytest.mark.parametrize(("name", "kind", "train", "test"), IDX)
def test_a_failed_download_leaves_no_folders(name, kind, train, test, tmp_path, monkeypatch):
    def stub(root, download, **options):
        write_idx(Path(root) / kind / "raw", train, test)
        (Path(root) / kind / "raw" / f"{train}-labels-idx1-ubyte").write_bytes(b"cut")

    monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(**{kind: stub}))
    with pytest.raises(DataError, match=r"cannot be downloaded: .* is not an IDX file"):
        data.load(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_whatever_a_download_fails_with_is_one_line(tmp_path, monkeypatch):
    class FileURLRetrievalError(Exception):
        """gdown's, when Google has counted too many visitors."""

    def stub(root, **options):
        raise FileURLRetrievalError("Failed to retrieve file url:\n\n\tToo many users have viewed it.\n")

    monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(CelebA=stub))
    with pytest.raises(DataError) as caught:
        data.load("celeba", tmp_path)
    reason = "Failed to retrieve file url: Too many users have viewed it."
    assert str(caught.value) == f"CelebA is not in {tmp_path} and cannot be downloaded: {reason}"


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_cifar10_as_torchvision_keeps_it(tmp_path, monkeypatch):
    """Ten images a file in CIFAR-10's own format, with checksums that fit."""
    datasets = pytest.importorskip("torchvision.datasets")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def planted(name, seed):
        values = {"data": bytes_like(10, 3072, seed=seed).numpy(), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(values))
        return [name, md5((folder / name).read_bytes())]

    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    meta = {
        "filename": "batches.meta",
        "key": "label_names",
        "md5": md5((folder / "batches.meta").read_bytes()),
    }
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [planted(f"data_batch_{k}", k) for k in range(1, 6)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [planted("test_batch", 9)])
    dataset = data.load("cifar10", tmp_path, validation=10)
    assert dataset.shape == (3, 32, 32)
    assert torch.equal(dataset.train.images[:10], bytes_like(10, 3072, seed=1).view(10, 3, 32, 32))
    assert torch.equal(dataset.test.images, bytes_like(10, 3072, seed=9).view(10, 3, 32, 32))
    assert dataset.test.labels.tolist() == list(range(10))
    assert dataset.classes == tuple("abcdefghij")
    # Damage is seen by the checksum, and there is nowhere to download from.
    (folder / "test_batch").write_bytes(pickle.dumps(Malice()))
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/nothing")
    with pytest.raises(DataError, match=r"CIFAR-10 is not in .* and cannot be downloaded"):
        data.load("cifar10", tmp_path)


def test_svhn_as_torchvision_keeps_it(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    scipy_io = pytest.importorskip("scipy.io")
    lists = {}
    for k, split in enumerate(("train", "test")):
        path = tmp_path / f"{split}_32x32.mat"
        images = bytes_like(20, 3, 32, 32, seed=k)
        values = {"X": images.permute(2, 3, 1, 0).numpy(), "y": (np.arange(20) % 10 + 1)[:, None]}
        scipy_io.savemat(path, values)
        lists[split] = ["http://127.0.0.1:9/nothing", path.name, md5(path.read_bytes())]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    dataset = data.load("svhn", tmp_path, validation=5)
    assert torch.equal(dataset.test.images, bytes_like(20, 3, 32, 32, seed=1))
    assert dataset.test.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_celeba_is_cut_and_made_small(tmp_path, monkeypatch):
    """Pictures of CelebA's size in place of torchvision's class: grey levels fall from the top to the bottom."""
    pytest.importorskip("torchvision.transforms")
    sizes = {"train": 12, "valid": 3, "test": 4}

    class CelebA:
        def __init__(self, root, split, target_type, download):
            assert (target_type, download) == ([], True)
            self.split = split

        def __len__(self):
            return sizes[self.split]

        def __getitem__(self, i):
            rows = np.arange(218, dtype=np.uint8)[:, None, None].repeat(178, 1).repeat(3, 2)
            rows[..., 0] = i
            return Image.fromarray(rows), None

    monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(CelebA=CelebA))
    dataset = data.load("celeba", tmp_path)
    assert dataset.shape == (3, 64, 64)
    assert [len(s.images) for s in dataset[2:5]] == [12, 3, 4]
    assert dataset.train.labels is None
    assert dataset.train.images[:, 0, 5, 5].tolist() == list(range(12))  # in their order, however many read
    column = dataset.test.images[0, 1, :, 7].float()
    assert column[0] == pytest.approx(20, abs=3)  # of 218 rows, 20 to 198 are left
    assert column[-1] == pytest.approx(197, abs=3)


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist", "emnist-digits", "cifar10", "svhn", "celeba"])
def test_without_torchvision_the_extra_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(
        DataError, match=r"cannot be downloaded: .*torchvision.*pip install 'lae_fast\[data\]'"
    ) as caught:
        data.load(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
