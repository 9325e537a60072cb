"""Data sets: IDX files as they come, splits, binarisation, and clear words when there is nothing to read."""

import contextlib
import gzip
import hashlib
import math
import os
import struct
import subprocess
import sys
import time
import types
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from lae_fast import data, seeds
from lae_fast.data import mnist_download

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
    assert d.train.images.shape == (50, 1, SIDE, SIDE)
    assert d.shape == (1, SIDE, SIDE)
    assert d.train.images.dtype == torch.uint8
    assert d.validation.images[:, 0, 0, 0].tolist() == list(range(50, 60))  # the last ones
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
    assert d.shape == (1, 8, 8)
    assert d.train.images.max() == 255
    assert set(d.test.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "auto"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-7], r"holds 969 bytes; expected 976. Delete it"),
        (lambda content: content + b"x", r"holds 977 bytes; expected 976. Delete it"),
        (lambda content: content[:6], "holds 6 bytes, less than its header. Delete it"),
        (lambda content: b"\0\0\x08\x01" + content[4:], "holds an array of 1 axes; expected 3. Delete it"),
        (lambda content: content[:4] + b"\xff" * 12, "expected at most 2147483648. Delete it"),
        (lambda content: b"<html>not found</html>", "is not an IDX file"),
        (lambda content: b"", "is not an IDX file"),
    ],
)
def test_damaged_files_are_never_replaced_by_something_else(mnist_folder, packed, name, damage, message):
    path = mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = damage(path.read_bytes())
    path.unlink()
    path = path.with_name(f"{path.name}.gz") if packed else path
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(name, mnist_folder)
    assert str(path) in str(caught.value)


def flipped(content):
    return content[:20] + bytes([content[20] ^ 0xFF]) + content[21:]


@pytest.mark.parametrize(
    "damage", [flipped, lambda content: content[:-20], lambda content: b"", lambda content: b"junk"]
)
def test_a_damaged_gzip_file(mnist_folder, damage):
    path = mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.with_name(path.name + ".gz").write_bytes(damage(gzip.compress(path.read_bytes())))
    path.unlink()
    with pytest.raises(
        data.DataError, match=r"train-images-idx3-ubyte.gz .*Delete it to have it fetched anew"
    ):
        data.load("mnist", mnist_folder)


MEMORY = """
import resource, sys
import lae_fast.data
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 64 * 2**20,) * 2)
try:
    lae_fast.data.load("mnist", sys.argv[1])
except lae_fast.data.DataError as error:
    print(error)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no way to know the memory here")
@pytest.mark.parametrize("header", [(5, 1, 1), (60, 4, 4), (2**22, 1, 2)])
def test_a_bomb_takes_no_memory(mnist_folder, header):
    """Much in little: neither what is packed nor what a header says is believed."""
    path = mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.unlink()
    with gzip.open(f"{path}.gz", "wb", compresslevel=1) as file:
        file.write(struct.pack(">I3I", 0x0803, *header))
        for _ in range(256):
            file.write(bytes(2**20))
    result = subprocess.run([sys.executable, "-c", MEMORY, mnist_folder], capture_output=True, text=True)
    assert "train-images-idx3-ubyte.gz holds" in result.stdout, result.stderr


def test_a_header_takes_no_memory(mnist_folder):
    path = mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">I3I", 0x0803, 2**29, 1, 2) + bytes(100))
    result = subprocess.run([sys.executable, "-c", MEMORY, mnist_folder], capture_output=True, text=True)
    assert "holds 116 bytes; expected 1073741840" in result.stdout, result.stderr


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("below", [".", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("kaggle", [False, True])
def test_files_are_found_by_all_their_names_and_from_each_of_their_folders(
    mnist_folder, below, kaggle, ending
):
    plain = data.load("mnist", mnist_folder, validation=10)
    for path in list((mnist_folder / "MNIST" / "raw").iterdir()):
        name = path.name.replace("-idx", ".idx") if kaggle else path.name
        content = path.read_bytes()
        path.unlink()
        path.with_name(name + ending).write_bytes(gzip.compress(content) if ending else content)
        if kaggle:  # beside its files Kaggle has folders of the other name
            path.mkdir()
    found = data.load("mnist", mnist_folder / below, validation=10)
    assert found.fingerprint() == plain.fingerprint()


def test_binary_files_of_bytes_0_and_1_are_named(mnist_folder):
    path = mnist_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(idx_bytes(np.arange(N_TRAIN * SIDE**2, dtype=np.uint8).reshape(-1, SIDE, SIDE) % 2))
    with pytest.raises(data.DataError, match=rf"{path}: images are uint8 \[60, 4, 4\] on cpu of 0 and 1"):
        data.load("mnist", mnist_folder)


def test_labels_are_of_the_classes(mnist_folder):
    path = mnist_folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(data.DataError, match=r"t10k-labels-idx1-ubyte holds the label 10; expected 0 to 9"):
        data.load("mnist", mnist_folder)


def test_what_lies_in_no_home_needs_none(tmp_path, monkeypatch):
    def homeless(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert data.load("digits").shape == (1, 8, 8)
    np.save(tmp_path / "x.npy", np.arange(2560, dtype=np.uint8).reshape(40, 8, 8))
    assert data.load(tmp_path / "x.npy").shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"root \(--data-dir\) is ~/.cache/lae_fast; expected a path"):
        data.load("auto")


@pytest.fixture
def mirrors(mnist_folder, tmp_path, monkeypatch):
    """Two mirrors of the tiny data set, folders of this machine; the package knows their hashes for those of MNIST."""
    folders = [tmp_path / "mirror", tmp_path / "other-mirror"]
    facts = {}
    for path in (mnist_folder / "MNIST" / "raw").iterdir():
        content = gzip.compress(path.read_bytes())
        facts[f"{path.name}.gz"] = len(content), hashlib.sha256(content).hexdigest()
        for folder in folders:
            folder.mkdir(exist_ok=True)
            (folder / f"{path.name}.gz").write_bytes(content)
    monkeypatch.setattr(mnist_download, "FILES", facts)
    monkeypatch.setattr(mnist_download, "MIRRORS", [f"{folder.as_uri()}/" for folder in folders])
    return folders


def test_mnist_is_downloaded_without_torchvision(mirrors, mnist_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (mirrors[0] / "train-images-idx3-ubyte.gz").unlink()  # the next mirror has it
    root = tmp_path / "data"
    found, expected = (data.load("mnist", place, validation=10) for place in (root, mnist_folder))
    assert found.fingerprint() == expected.fingerprint()
    assert found.source == f"MNIST, downloaded to {root}"
    assert data.load("mnist", root, validation=10).source == f"MNIST, found in {root}"
    assert {p.name for p in (root / "MNIST" / "raw").iterdir()} == set(mnist_download.FILES)


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda p: os.truncate(p, 100), lambda p: p.write_bytes(p.read_bytes() + b"x"),
     lambda p: p.write_bytes(gzip.compress(b"another file"))],
)  # fmt: skip
def test_a_download_is_there_as_a_whole_or_not_at_all(mirrors, tmp_path, damage):
    root = tmp_path / "data"
    for mirror in mirrors:
        damage(mirror / "t10k-images-idx3-ubyte.gz")
    reasons = r"t10k-images-idx3-ubyte.gz at .*: .*; t10k-images-idx3-ubyte.gz at .*: ."
    with pytest.raises(data.DataError, match=f"MNIST is not in .*data and cannot be downloaded: {reasons}"):
        data.load("mnist", root)
    assert data.load("auto", root).name == "digits"  # nothing is in the way
    assert not root.exists()


def test_what_killed_downloads_have_left_goes(mirrors, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    for name, age in ((".download.old", 2 * 86400), (".download.new", 60)):
        (raw / name).mkdir(parents=True)
        os.utime(raw / name, (time.time() - age,) * 2)
    data.load("mnist", tmp_path / "data", validation=10)
    assert [path.name for path in raw.glob(".*")] == [".download.new"]


def test_a_download_that_somebody_deletes_at_once_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_download, "download", lambda raw: None)
    with pytest.raises(data.DataError, match=f"MNIST was downloaded to {tmp_path}, and is there no more"):
        data.load("mnist", tmp_path)


def test_a_mirror_that_sends_without_end_is_left(tmp_path, monkeypatch):
    endless = contextlib.nullcontext(types.SimpleNamespace(read=bytes))  # n -> n zeros
    monkeypatch.setattr(mnist_download, "FILES", {"zeros": (1000, "")})
    monkeypatch.setattr(mnist_download.urllib.request, "urlopen", lambda url, timeout: endless)
    with pytest.raises(data.DataError, match=r"zeros at .*: is another file, or cut; zeros at "):
        mnist_download.download(tmp_path)


def test_the_originals_are_known():
    names = {f"{s}-{k}-ubyte.gz" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")}
    assert names == mnist_download.FILES.keys()
    assert all(
        urlsplit(mirror).scheme == "https" and mirror.endswith("/") for mirror in mnist_download.MIRRORS
    )


def test_images_and_labels_must_belong_together(mnist_folder):
    raw = mnist_folder / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(data.DataError, match="do not belong together"):
        data.load("mnist", mnist_folder)


def test_without_mnist_auto_says_why_it_takes_the_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_download, "MIRRORS", ["file:///nowhere/"])
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
    torch.set_default_dtype(torch.float64)
    try:
        assert (
            data.load("mnist", mnist_folder, validation=10, binarization="fixed").fingerprint()
            == fixed.fingerprint()
        )
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.load("cifar"), "name is 'cifar'; expected one of auto, mnist, .*, digits, or the path of a folder"),
        (lambda: data.load("digits", binarization="yes"), "binarization is 'yes'"),
        (lambda: data.load("digits", validation=1437), "validation is 1437; expected 0 to 1436"),
        (lambda: data.load("digits", validation=-1), "validation is -1"),
        (lambda: data.load("digits", validation=2.5), r"validation is 2.5 \(float\); expected a whole number"),
        (lambda: data.load("digits", validation=True), r"validation is True \(bool\); expected a whole number"),
        (lambda: data.load(7), "name is 7; expected one of auto, mnist, fashion-mnist"),
        (lambda: data.load(["digits"]), r"name is \['digits'\]"),
        (lambda: data.load("digits", binarization=None), "binarization is None"),
        (lambda: data.load("mnist", 7), r"root \(--data-dir\) is 7 \(int\); expected a path"),
        (lambda: data.load("mnist", "~nobody-of-this-name/x"), r"\(--data-dir\) is ~nobody-of-this-name/x; expected a path"),
        (lambda: data.binarize([[1, 2]]), r"images are .* \(list\); expected uint8 or float32 or float64"),
        (lambda: data.binarize(torch.zeros(2, 3, dtype=torch.int64)), r"images are int64 \[2, 3\] on cpu; expected uint8"),
        (lambda: data.binarize(torch.zeros(1, 3, dtype=torch.uint8), 5), r"generator is 5 \(int\)"),
        (lambda: data.binarize(torch.full((1, 2), 128.0)), r"images have values from 128 to 128; expected all in \[0, 1\]"),
        (lambda: data.binarize(torch.tensor([[0.5, -0.1]])), "images have values from -0.1 to 0.5"),
        (lambda: data.binarize(torch.tensor([[0.5, math.nan]])), "images have values from nan to nan"),
        (lambda: data.shuffled(3, 4, 0), "size is 4; expected at most 3"),
        (lambda: data.shuffled(0, 1, 0), "n is 0; expected at least 1"),
        (lambda: data.shuffled(5, 0, 0), "size is 0; expected at least 1"),
        (lambda: data.shuffled(5, 2.0, 0), r"size is 2.0 \(float\); expected a whole number"),
        (lambda: data.shuffled(5, 2, -1), "seed is -1; expected at least 0"),
        (lambda: data.shuffled(5, 2, 2**64), "seed is 18446744073709551616; expected at most"),
        (lambda: data.shuffled(5, 2, None), r"seed is None \(NoneType\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
