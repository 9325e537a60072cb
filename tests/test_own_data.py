"""Images of one's own, from folders, files and memory; and data sets by way of torchvision, which is planted or stubbed here:
none of them can be downloaded by a test."""

import hashlib
import json
import pickle
import random
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SMALL_RUN
from PIL import Image
from test_data import idx_bytes
from test_hostile import bytes_of
from torch.utils.data import IterableDataset, TensorDataset

import lae_fast
from lae_fast import data, train
from lae_fast.data import DataError, mnist_download
from lae_fast.training.config import Config, TrainingError
from lae_fast.training.trainer import Trainer

N = 40  # images; 10 of them become test images


def bytes_like(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def everything(dataset):
    """All images of a data set, and all labels, in a canonical order."""
    splits = (dataset.train, dataset.validation, dataset.test)
    images = torch.cat([s.images for s in splits])
    order = sorted(range(len(images)), key=lambda i: images[i].flatten().tolist())
    labels = None if splits[0].labels is None else torch.cat([s.labels for s in splits])[order]
    return images[order], labels


def holds(dataset, images, labels=None):
    """Whether it is these images [n, c, h, w] and labels, in whatever order, each image with its own label."""
    order = sorted(range(len(images)), key=lambda i: images[i].flatten().tolist())
    found, own = everything(dataset)
    return torch.equal(found, images[order]) and (
        own is None if labels is None else own.tolist() == [int(labels[i]) for i in order]
    )


def only(split):
    """A data set of this split alone."""
    none = split.at(slice(0))
    return data.Dataset("one split", "", split, none, none)


# ---- from memory ----


GREY, RGB = bytes_like(N, 1, 5, 4), bytes_like(N, 3, 5, 4)
SQUARES = bytes_like(N, 1, 4, 4)


class Pairs(torch.utils.data.Dataset):
    """Pictures and labels, as torchvision's data sets give them."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield from GREY


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (GREY, GREY),
        (GREY[:, 0], GREY),
        (RGB, RGB),
        (RGB.permute(0, 2, 3, 1), RGB),
        (RGB.permute(0, 2, 3, 1).numpy(), RGB),
        (SQUARES.flatten(1), SQUARES),
        (GREY > 127, (GREY > 127) * torch.tensor(255, dtype=torch.uint8)),
        ((GREY > 127).numpy(), (GREY > 127) * torch.tensor(255, dtype=torch.uint8)),
        (GREY.double() - 7.5, GREY.float() - 7.5),
        (GREY.numpy()[:, 0].astype(">f8"), GREY.float()),
        (GREY.numpy().astype(np.float16)[::-1], GREY.float()),
        (TensorDataset(RGB), RGB),
        (Stream(), GREY),
        ([image.numpy() for image in RGB], RGB),
        ([Image.fromarray(image[0].numpy()) for image in GREY], GREY),
        ([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in RGB], RGB),
        ([Image.fromarray(image.permute(1, 2, 0).numpy()).quantize(20) for image in RGB], RGB),  # a colour a pixel
        ([Image.fromarray(image.permute(1, 2, 0).numpy()).convert("RGBA") for image in RGB], RGB),
    ],
)  # fmt: skip
def test_images_in_any_layout(given, expected):
    dataset = data.from_images(given)
    assert dataset.shape == expected.shape[1:]
    assert holds(dataset, expected)
    assert [len(s.images) for s in (dataset.train, dataset.validation, dataset.test)] == [27, 3, 10]
    assert all(s.images.is_contiguous() and s.labels is None for s in dataset[2:5])


@pytest.mark.parametrize(
    "given",
    [
        (GREY, torch.arange(N)),
        (GREY, np.arange(N, dtype=np.uint8)[:, None]),
        (GREY, np.arange(N, dtype=">i8")),
        (GREY, np.arange(N, dtype=">u2")),
        (GREY, list(range(N))),
        (TensorDataset(GREY, torch.arange(N)),),
        (Pairs(GREY, range(N)),),
        (data.Split(GREY, torch.arange(N)),),
        (Pairs(GREY, torch.arange(N)),),
        (Pairs([Image.fromarray(image[0].numpy()) for image in GREY], np.arange(N)),),
    ],
)
def test_labels_stay_with_their_images(given):
    assert holds(data.from_images(*given), GREY, torch.arange(N))


@pytest.mark.parametrize(
    "label",
    [
        0.5,
        "cat",
        {"boxes": 1},
        [1, [2, 3]],
        torch.tensor(1.0, requires_grad=True),
        torch.tensor(1.0, dtype=torch.bfloat16),
        torch.tensor(1, device="meta"),
    ],
    ids=str,
)
def test_what_is_no_whole_number_is_no_label(label):
    assert holds(data.from_images([(image, label) for image in GREY]), GREY)


@pytest.mark.parametrize("w", [1, 3])
def test_narrow_images_are_grey_ones(w, tmp_path):
    """A width of 1 or 3 is none of channels where there is no doubt."""
    images = bytes_like(N, 1, 5, w)
    for given in (images[:, 0], images[..., None].squeeze(1)):
        assert holds(data.from_images(given), images)
    square = bytes_like(N, 1, w, w)
    assert holds(data.from_images(square.flatten(1)), square)
    for i, image in enumerate(images):
        save(image, tmp_path / f"{i}.png")
    assert holds(data.load(tmp_path), images)


def test_pictures_are_converted_by_their_mode():
    grey = Image.fromarray(np.arange(0, 200, 10, dtype=np.uint8).reshape(5, 4))
    found = data.from_images([grey.convert("RGB").convert("YCbCr")] * N).train.images[0]
    expected = torch.from_numpy(np.array(grey)).expand(3, 5, 4)  # grey in three channels
    assert (found.int() - expected).abs().max() <= 1


def test_labels_that_are_no_numbers_are_left_out():
    """CelebA's 40 attributes, say."""
    assert data.from_images(Pairs(GREY, torch.zeros(N, 40))).train.labels is None


def test_own_images_are_always_parted_in_the_same_way():
    """In an order of their own, as they may come by class, and whatever the number of validation images."""
    labels = torch.arange(200) // 100  # first all of one class, then all of the other
    first, again, fewer = (
        data.from_images(bytes_like(200, 4, 4), labels, validation=v) for v in (None, None, 5)
    )
    assert first.fingerprint() == again.fingerprint()
    assert [len(s.images) for s in first[2:5]] == [162, 18, 20]
    assert [len(s.images) for s in fewer[2:5]] == [175, 5, 20]
    assert torch.equal(first.test.images, fewer.test.images)
    assert all(0.2 < s.labels.float().mean() < 0.8 for s in first[2:5])


def test_own_test_images_come_in_an_order_that_does_not_follow_the_classes():
    """So that the first of them stand for all; the others stay in the order that they have without them."""
    images, classes = bytes_like(N, 1, 4, 4, seed=1), torch.arange(N) // (N // 4)
    own, again = (data.from_images(SQUARES, LABELS, test=images, test_labels=classes) for _ in range(2))
    assert [len(s.images) for s in own[2:5]] == [36, 4, N]
    assert own.fingerprint() == again.fingerprint()
    assert own.test.labels[: N // 4].unique().tolist() == [0, 1, 2, 3]
    order = [next(i for i in range(N) if torch.equal(images[i], image)) for image in own.test.images]
    assert sorted(order) == list(range(N))
    assert torch.equal(own.test.labels, classes[order])
    train = torch.cat((own.train.images, own.validation.images))
    assert torch.equal(train, SQUARES[torch.randperm(N, generator=torch.Generator().manual_seed(0))])


def test_fingerprints_tell_images_labels_and_shapes_apart():
    flat = bytes_like(N, 24)
    sets = [data.from_images(flat.view(N, *shape)) for shape in ((4, 6), (6, 4), (2, 12), (1, 24))]
    sets += [data.from_images(flat.view(N, 4, 6), torch.full((N,), k)) for k in (0, 1)]
    sets += [data.from_images(flat.view(N, 4, 6) / 255), data.from_images(255 - flat.view(N, 4, 6))]
    assert len({d.fingerprint() for d in sets}) == len(sets)


def test_fingerprints_of_old_runs_stay_what_they_were():
    digits = "76fe6a52f4a5e944252e77af4c272635b205b5b41095cf14bfa9d25e1fbab84d"
    assert data.load("digits").fingerprint() == digits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.from_images("photos"), r"images are 'photos' \(str\)"),
        (lambda: data.from_images(7), r"images are 7 \(int\); expected a tensor, an array, or a Dataset"),
        (lambda: data.from_images([]), "expected at least one"),
        (lambda: data.from_images(GREY.long()), r"images are int64 \[40, 1, 5, 4\] on cpu; expected uint8 in 0..255, bool or"),
        (lambda: data.from_images(GREY.numpy().astype(np.int32)), r"images are int32 \[40, 1, 5, 4\]; expected uint8"),
        (lambda: data.from_images(np.array(["x"] * N)), r"images are <U1 \[40\]; expected uint8"),
        (lambda: data.from_images(bytes_like(N, 2, 5, 5)), r"images are uint8 \[40, 2, 5, 5\] on cpu; expected .* one channel or"),
        (lambda: data.from_images(bytes_like(N, 3, 5, 3)), "the channels may be first or last"),
        (lambda: data.from_images(bytes_like(N, 24)), r"images are uint8 \[40, 24\] on cpu; expected .* flat grey squares"),
        (lambda: data.from_images(bytes_like(N)), r"images are uint8 \[40\]"),
        (lambda: data.from_images(bytes_like(0, 5, 5)), r"images are uint8 \[0, 5, 5\] on cpu; expected .* n >= 1"),
        (lambda: data.from_images(GREY.float().log()), "values of images go from -inf"),
        (lambda: data.from_images(GREY * torch.nan), "values of images go from nan to nan; expected finite"),
        (lambda: data.from_images(np.full((N, 2, 2), 1e300)), "values of images go from inf to inf"),
        (lambda: data.from_images([GREY[0], RGB[0]]), r"image 1 is uint8 \[3, 5, 4\] on cpu, image 0 uint8 \[1, 5, 4\] on cpu; expected one"),
        (lambda: data.from_images([GREY[0], GREY[0] / 255]), "image 1 is float32"),
        (lambda: data.from_images([Image.new("HSV", (4, 5))] * N), "image 0 has pixels of mode HSV; expected 8 bits, grey or RGB"),
        (lambda: data.from_images([Image.new("RGBA", (4, 5))] * N), "image 0 has transparent pixels; expected none"),
        (lambda: data.from_images(["a", "b"]), r"image 0 is 'a' \(str\)"),
        (lambda: data.from_images(GREY[:19]), "there are 19 training images; expected at least 20"),
        (lambda: data.from_images(GREY // 128), r"images are uint8 \[40, 1, 5, 4\] on cpu of 0 and 1; expected bytes from 0 to 255, or bool"),
        (lambda: data.from_images(data.Split(GREY // 128)), "images are uint8 .* of 0 and 1"),
        (lambda: data.from_images([image.numpy() // 128 for image in GREY]), "images are uint8 .* of 0 and 1"),
        (lambda: data.from_images(GREY, test=GREY // 128), "test images are uint8 .* of 0 and 1"),
        (lambda: data.from_images(GREY, torch.arange(3)), r"labels are int64 \[3\] on cpu; expected whole numbers \[40\]"),
        (lambda: data.from_images(GREY, torch.rand(N)), r"labels are float32 \[40\]"),
        (lambda: data.from_images(GREY, ["a"] * N), r"labels are \['a', .* expected whole numbers \[40\]"),
        (lambda: data.from_images(GREY, np.full(N, 2**63, np.uint64)), r"labels are uint64 \[40\] on cpu, from 2\^63 on; expected whole"),
        (lambda: data.from_images(GREY, test_labels=[1]), "test_labels are given without test images"),
        (lambda: data.from_images(GREY, test=RGB), r"training images are uint8 \[40, 1, 5, 4\] on cpu, others are uint8 \[40, 3, 5, 4\]"),
        (lambda: data.from_images(GREY, validation=30), "validation is 30; expected 0 to 29 for images"),
        (lambda: data.from_images(RGB, binarization="fixed"), "binarize is fixed, and images have 3 channels; expected grey"),
        (lambda: data.from_images(GREY * 2.0, binarization="dynamic"), r"binarize is dynamic, and images have values from 0 to 510"),
    ],
)  # fmt: skip
def test_bad_images_are_named(call, message):
    with pytest.raises((TypeError, ValueError, DataError), match=message):
        call()


def test_black_images_are_images():
    assert data.from_images(GREY * 0).train.images.max() == 0
    assert data.from_images(GREY // 64).train.images.max() == 3


def test_binary_images_are_the_same_in_each_form_that_is_taken():
    binary = GREY // 128
    bits, numbers, levels = (data.from_images(x) for x in (binary.bool(), binary.float(), binary * 255))
    assert torch.equal(bits.train.images, levels.train.images)
    assert torch.equal(data.pixels(bits.train.images), numbers.train.images)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "folder"])
def test_files_of_bytes_0_and_1_are_refused(name, tmp_path):
    """As dSprites and binarized MNIST have them."""
    images = GREY // 128
    write = {".npy": np.save, ".npz": lambda p, x: np.savez(p, imgs=x), ".pt": lambda p, x: torch.save(x, p)}
    if name == "folder":
        for i, image in enumerate(images):
            save(image, tmp_path / name / f"{i}.png")
    else:
        write[Path(name).suffix](tmp_path / name, images)
    with pytest.raises(
        DataError,
        match=rf"{name}: (images|pixels) are uint8 .* of 0 and 1; expected bytes from 0 to 255, .* multiply them by 255",
    ):
        data.load(tmp_path / name)


def small_model():
    encoder, decoder = torch.nn.Linear(16, 8), torch.nn.Linear(2, 16)
    return lae_fast.LAE(encoder, decoder, lae_fast.Bernoulli(), nx=16, nz=2)


def test_fit_refuses_bytes_0_and_1():
    with pytest.raises(ValueError, match=r"images are uint8 .* of 0 and 1; expected bytes from 0 to 255"):
        lae_fast.fit(small_model(), SQUARES.flatten(1) // 128, epochs=1, batch_size=20)


def test_torch_s_default_device_does_not_matter(tmp_path):
    np.savez(tmp_path / "a.npz", images=GREY, labels=LABELS)
    for i, image in enumerate(GREY):
        save(image, tmp_path / "folder" / "abc"[i % 3] / f"{i}.png")

    def read():
        own = [data.load(tmp_path / name, binarization="fixed") for name in ("a.npz", "folder")]
        memory = data.from_images(GREY.numpy(), list(range(N)), test=RGB[:, :1].numpy())
        pairs = data.from_images([(image.numpy(), i) for i, image in enumerate(GREY)])
        return [d.fingerprint() for d in (*own, memory, pairs, data.load("digits"))]

    model = small_model()
    expected, order = read(), list(data.shuffled(N, 10, seed=3))
    with torch.device("meta"):
        assert read() == expected
        assert all(map(torch.equal, data.shuffled(N, 10, seed=3), order))
        assert len(lae_fast.fit(model, SQUARES.flatten(1), epochs=1, batch_size=20)) == 1


def test_float_images_are_binarized_as_bytes_are():
    drawn = [data.from_images(x, binarization="fixed") for x in (GREY, GREY / 255)]
    assert drawn[1].train.images.dtype == torch.float32
    assert torch.equal(drawn[0].train.images / 255, drawn[1].train.images)


# ---- from files ----


LABELS = torch.arange(N) % 3
FILES = {
    "a.npy": lambda p: np.save(p, RGB.numpy()),
    "b.npz": lambda p: np.savez(p, RGB.numpy()),
    "c.npz": lambda p: np.savez_compressed(p, X=RGB.numpy(), y=LABELS.numpy(), names=np.array([{}], dtype=object)),
    "d.pt": lambda p: torch.save(RGB, p),
    "e.pth": lambda p: torch.save((RGB, LABELS), p),
    "f.pt": lambda p: torch.save({"images": RGB, "labels": LABELS}, p),
    "g.npz": lambda p: np.savez(p, x_train=RGB.numpy(), y_train=LABELS.numpy(), x_test=RGB.numpy(), y_test=LABELS.numpy()),
    "h.npz": lambda p: np.savez(p, **{f"{s}_{k}": v.numpy() for s in ("train", "val", "test")  # as MedMNIST's
                                      for k, v in (("images", RGB), ("labels", LABELS[:, None]))}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_of_arrays_and_tensors(name, tmp_path):
    FILES[name](tmp_path / name)
    dataset = data.load(tmp_path / name)
    assert (dataset.name, dataset.shape) == (name, (3, 5, 4))
    has_labels = name not in ("a.npy", "b.npz", "d.pt")
    assert dataset.source == f"{tmp_path / name} (RGB, 5 x 4, {'3 classes' if has_labels else 'no labels'})"
    sizes = [len(s.images) for s in dataset[2:5]]
    if name in ("g.npz", "h.npz"):
        assert sizes == ([36, 4, N] if name == "g.npz" else [N, N, N])
        assert holds(only(dataset.test), RGB, LABELS)
        dataset = dataset._replace(test=data.Split(RGB[:0], LABELS[:0]))
        dataset = dataset._replace(validation=dataset.test) if name == "h.npz" else dataset
    else:
        assert sizes == [27, 3, 10]
    assert holds(dataset, RGB, LABELS if has_labels else None)
    assert data.load(str(tmp_path / name)).fingerprint() == data.load(tmp_path / name).fingerprint()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_small_file_of_more_than_memory_is_named(dtype, tmp_path):
    torch.save(torch.zeros(1, dtype=dtype).expand(30, 1, 10**7, 10**7), tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt cannot be read: .*memory"):
        data.load(tmp_path / "a.pt")


def test_a_folder_of_more_than_memory_is_named(tmp_path, monkeypatch):
    folders_of_pictures(tmp_path, ".")

    def empty(*arguments):
        raise MemoryError

    monkeypatch.setattr("lae_fast.data.decoding.np", types.SimpleNamespace(empty=empty, uint8=np.uint8))
    with pytest.raises(DataError, match="does not fit into memory") as caught:
        data.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


class Malice:
    def __reduce__(self):
        return sys.exit, (99,)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"", "cannot be read"),
        ("a.npz", b"PK\3\4junk", "cannot be read"),
        ("a.pt", b"junk" * 99, "cannot be read"),
        ("a.pt", pickle.dumps(Malice()), "holds other things than tensors, or is damaged"),
        ("a.npy", pickle.dumps(Malice()), "cannot be read"),
        ("a.npz", b"\x93NUMPY\1\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 99999), }", "cannot be read"),
        ("a.csv", b"1,2", "is a file .csv; expected a folder of pictures, or .npy, .npz, .pt, .pth"),
        ("a", b"", "is a file without ending"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: np.savez(p, a=RGB.numpy(), b=RGB.numpy()), "a.npz holds a, b; expected images, and perhaps labels"),
        (lambda p: np.savez(p, y=LABELS.numpy(), x_test=RGB.numpy()), "a.npz holds y, x_test; expected images"),
        (lambda p: np.savez(p, x_test=RGB.numpy(), y_test=LABELS.numpy()), "expected images"),
        (lambda p: np.savez(p, images=RGB.numpy(), data=RGB.numpy()), "a.npz holds images and data, both train images; expected only one of them"),
        (lambda p: np.savez(p, x=RGB.numpy(), x_val=RGB.numpy(), x_valid=RGB.numpy()), "holds x_val and x_valid, both validation images"),
        (lambda p: np.savez(p), "a.npz holds nothing; expected images"),
        (lambda p: np.savez(p, x_train=RGB.numpy(), x_dev=RGB.numpy()), "a.npz holds x_dev, images of no split; expected train, test"),
        (lambda p: np.savez(p, x_dev=RGB.numpy(), x_train=RGB.numpy()), "a.npz holds x_dev, images of no split; expected train, test"),
        (lambda p: np.savez(p, x_dev=RGB.numpy(), x=RGB.numpy(), x_1=RGB.numpy()), "a.npz holds x_dev, x_1, images of no split"),
        (lambda p: np.savez(p, images=RGB.numpy().astype(int)), r"a.npz: images are int64 \[40, 3, 5, 4\]; expected uint8"),
        (lambda p: np.savez(p, x_train=RGB.numpy(), x_test=RGB.numpy()[:, :, 1:]), r"expected one shape and type"),
        (lambda p: np.savez(p, x=RGB.numpy(), y=LABELS.numpy()[:5]), r"a.npz: labels are int64 \[5\] on cpu; expected whole"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_named(write, message, tmp_path):
    write(tmp_path / "a.npz")
    with pytest.raises(DataError, match=message):
        data.load(tmp_path / "a.npz")


def save(image, path):
    """uint8 [c, h, w] as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)


def test_a_folder_of_pictures(tmp_path):
    for i, image in enumerate(GREY):
        save(image, tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._1.png").write_bytes(b"what a Macintosh leaves")
    dataset = data.load(tmp_path)
    assert holds(dataset, GREY)
    assert dataset.source == f"{tmp_path} (grey, 5 x 4, no labels)"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sub_folders_are_classes(mode, tmp_path):
    images = GREY if mode == "L" else RGB
    for i, image in enumerate(images):
        save(image, tmp_path / "abc"[i % 3] / "deeper" / f"{i}.bmp")
    named = data.load(tmp_path)
    assert holds(named, images, LABELS)
    assert named.classes == ("a", "b", "c")
    save(GREY[0], tmp_path / "a" / "grey.png")  # among others in colour it is one of them
    found = data.load(tmp_path)
    assert found.shape[0] == len(mode)
    assert len(everything(found)[0]) == N + 1


def test_sub_folders_may_be_splits(tmp_path):
    for i, image in enumerate(RGB):
        for split in ("train", "val", "test"):
            if split == "train" or i % 3:  # a class that only the training set has
                save(image, tmp_path / split / "abc"[i % 3] / f"{i}.png")
    dataset = data.load(tmp_path)
    assert [len(s.images) for s in dataset[2:5]] == [40, 26, 26]
    some = torch.arange(N) % 3 > 0
    for split in (dataset.validation, dataset.test):
        assert holds(only(split), RGB[some], LABELS[some])
    save(RGB[0], tmp_path / "test" / "d" / "x.png")
    with pytest.raises(DataError, match=r"test has the classes d, and .*train has not"):
        data.load(tmp_path)


@pytest.mark.parametrize("wrap", ["archive", "a/b"])
def test_a_single_folder_around_all_does_not_count(wrap, tmp_path):
    """As archives unpack: the splits, or the classes, lie deeper."""
    splits = ("train/a", "train/b", "test/a", "test/b")
    folders_of_pictures(tmp_path / "splits", *(f"{wrap}/{place}" for place in splits))
    folders_of_pictures(tmp_path / "classes", f"{wrap}/cats", f"{wrap}/dogs")
    (tmp_path / "splits" / "__MACOSX").mkdir()
    (tmp_path / "splits" / "readme.txt").write_text("no picture")
    found = data.load(tmp_path / "splits")
    assert (found.classes, [len(s.images) for s in found[2:5]]) == (("a", "b"), [38, 4, 42])
    assert found.fingerprint() == data.load(tmp_path / "splits" / wrap).fingerprint()
    assert data.load(tmp_path / "classes").classes == ("cats", "dogs")


def test_a_single_class_is_none(tmp_path):
    for i, image in enumerate(GREY):
        save(image, tmp_path / "cats" / f"{i}.png")
    found = data.load(tmp_path)
    assert holds(found, GREY)
    assert (found.classes, found.source) == (None, f"{tmp_path} (grey, 5 x 4, no labels)")


@pytest.mark.parametrize("inner", [".", "train"])
def test_a_single_split_is_no_folder_around_others(inner, tmp_path):
    folders_of_pictures(tmp_path, f"test/{inner}")
    with pytest.raises(DataError, match="holds test, and no train"):
        data.load(tmp_path)


@pytest.mark.parametrize("ending", ["jfif", "JPE", "apng", "mpo", "pbm", "pnm"])
def test_a_class_of_pictures_of_other_endings_is_read(ending, tmp_path):
    folders_of_pictures(tmp_path, "a", "b")
    kind = {"jfif": "JPEG", "jpe": "JPEG", "apng": "PNG", "mpo": "JPEG"}.get(ending.lower(), "PPM")
    for path in (tmp_path / "b").iterdir():
        picture = Image.open(path).convert("1" if ending == "pbm" else "L")
        path.unlink()
        picture.save(path.with_suffix(f".{ending}"), format=kind)
    found = data.load(tmp_path)
    assert found.classes == ("a", "b")
    assert len(everything(found)[0]) == 42


@pytest.mark.parametrize("place", ["b", "a/deeper", "."])
@pytest.mark.parametrize("ending", ["avif", "jp2", "TGA", "psd", "eps", "heic", "svg"])
def test_pictures_that_are_not_read_are_not_left_out(ending, place, tmp_path):
    folders_of_pictures(tmp_path, "a", "c")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    path = tmp_path / place / f"x.{ending}"
    path.write_bytes(b"some picture")
    with pytest.raises(DataError, match=rf"{path} is a picture .{ending}; expected .apng, .bmp, "):
        data.load(tmp_path)


def test_a_loose_picture_that_is_not_read_is_not_left_out_beside_splits(tmp_path):
    folders_of_pictures(tmp_path, "train", "test")
    (tmp_path / "x.avif").write_bytes(b"some picture")
    with pytest.raises(DataError, match=r"x.avif is a picture .avif"):
        data.load(tmp_path)


def test_documents_films_and_measurements_are_no_pictures(tmp_path):
    folders_of_pictures(tmp_path, "a", "b")
    for name in ("paper.pdf", "a/film.mpg", "b/boxes.h5", "b/labels.csv", "b/LICENSE", "b/._x.avif"):
        (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / "a" / "raw.psd").mkdir()
    assert data.load(tmp_path).classes == ("a", "b")


def write_png16(path, color_type):
    """A PNG of 4 x 5 pixels with 16 bits a channel, all white, which PIL does not write."""
    channels = {2: 3, 4: 2, 6: 4}[color_type]
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 4, 5, 16, color_type, 0, 0, 0),
        b"IDAT": zlib.compress((b"\0" + b"\xff" * 4 * channels * 2) * 5),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_tiff16(path):
    """A TIFF of 4 x 5 pixels with 16 bits a channel, one plane after the other, which PIL does not write."""
    # Where they are in the file, after 11 tags: name, type, count, value or place.
    lists, pixels = 8 + 2 + 11 * 12 + 4, 200
    tags = [(256, 3, 1, 4), (257, 3, 1, 5), (258, 3, 3, lists), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, lists + 8),
            (274, 3, 1, 1), (277, 3, 1, 3), (278, 3, 1, 5), (279, 4, 3, lists + 20), (284, 3, 1, 2)]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    found = struct.pack("<I4H6I", 0, 16, 16, 16, 0, pixels, pixels + 40, pixels + 80, 40, 40, 40)
    path.write_bytes((head + found).ljust(pixels, b"\0") + bytes(120))


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_pictures_are_turned_as_cameras_ask(ending, tmp_path):
    """EXIF's orientation 6: what is stored is to be turned by 90 degrees, clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, image in enumerate(RGB):
        stored = Image.fromarray(image.permute(1, 2, 0).numpy()).transpose(Image.Transpose.ROTATE_90)
        options = {"lossless": True} if ending == "webp" else {}
        stored.save(tmp_path / f"{i}.{ending}", exif=exif, **options)
    assert holds(data.load(tmp_path), RGB)


def test_a_picture_that_turns_after_its_pixels_is_told_so(tmp_path):
    """As a few programs write PNG: PIL knows of the turn when all is read."""
    for i, image in enumerate(RGB):
        save(image, tmp_path / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[:-12] + chunk + whole[-12:])
    with pytest.raises(
        DataError, match=r"3.png has 5 x 4 pixels, turned by EXIF data that stand behind them, and"
    ):
        data.load(tmp_path)


def test_a_path_that_may_not_be_looked_at_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DataError, match=f"{tmp_path}/a.npy cannot be read: .*Permission denied"):
        data.files.read(tmp_path / "a.npy")


def folders_of_pictures(folder, *places):
    """The same pictures in each of these sub-folders."""
    for place in places:
        for i, image in enumerate(GREY[:21]):
            save(image, folder / place / f"{i}.png")


def test_other_words_for_splits(tmp_path):
    """The layout of mnist_png."""
    folders_of_pictures(tmp_path, "training/0", "training/1", "Testing/0", "Testing/1")
    assert [len(s.images) for s in data.load(tmp_path)[2:5]] == [38, 4, 42]
    np.savez(tmp_path / "a.npz", training_images=GREY, testing_images=GREY)
    assert [len(s.images) for s in data.load(tmp_path / "a.npz")[2:5]] == [36, 4, N]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (("test", "val"), "holds test, val, and no train; expected train, test and perhaps val"),
        (("train", "val", "valid"), "val and .*valid both are validation images; expected only one of them"),
        (("train", "training"), "train and .*training both are train images"),
        (("train", "test", "."), "0.png lies beside .*train; expected all pictures in test, train"),
        (("training", "testing", "cats"), "holds cats, testing, training; expected train, test"),
        (
            ("train/cats", "train/dogs", "val/cats", "unlabeled"),
            "holds train, unlabeled, val; expected train, test",
        ),
        (
            ("train/cats", "train/dogs", "test"),
            "test has pictures in no class, and .*train has not; expected the same",
        ),
    ],
)
def test_pictures_whose_split_is_unclear_are_refused(places, message, tmp_path):
    folders_of_pictures(tmp_path, *places)
    with pytest.raises(DataError, match=message):
        data.load(tmp_path)


def test_folders_without_pictures_are_no_classes(tmp_path):
    folders_of_pictures(tmp_path, "train/a", "train/b", "val/a", "val/b")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "train" / "._0.png").write_bytes(b"what a Macintosh leaves")
    found = data.load(tmp_path)
    assert (found.classes, len(found.validation.images)) == (("a", "b"), 42)


def test_a_folder_has_one_name(tmp_path):
    folders_of_pictures(tmp_path, "real/deeper", "other")
    (tmp_path / "real" / "deeper" / "back").symlink_to(tmp_path)
    assert data.load(tmp_path).classes == ("other", "real")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    with pytest.raises(DataError, match=r"alias and .*real are one folder; expected one name for it"):
        data.load(tmp_path)


def test_a_class_may_be_called_as_a_split(tmp_path):
    folders_of_pictures(tmp_path, "plane", "train")
    assert data.load(tmp_path).source.endswith("2 classes)")


def save_several(path, **options):
    """A file of two pictures of 4 x 5 pixels."""
    first, second = (Image.new("RGB", (4, 5), colour) for colour in ("red", "blue"))
    first.save(path, save_all=True, append_images=[second], **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: save(bytes_like(3, 5, 5), p / "z.png"), r"z.png has 5 x 5 pixels, and .*0.png 4 x 5; expected pictures of one"),
        (lambda p: (p / "z.png").write_bytes(b"junk"), "z.png cannot be read"),
        (lambda p: (p / "z.png").write_bytes((p / "0.png").read_bytes()[:60]), "z.png cannot be read"),
        (lambda p: (p / "z.png").mkdir(), None),
        (lambda p: save(bytes_like(3, 5, 4), p / "inner" / "z.png"), "holds pictures beside folders of pictures"),
        (lambda p: Image.fromarray(np.zeros((5, 4), np.uint16)).save(p / "z.png"), "z.png has pixels of mode I;16; expected 8 bits"),
        (lambda p: write_png16(p / "z.png", color_type=2), "z.png has 16 bits a channel; expected 8 bits, grey or RGB"),
        (lambda p: write_png16(p / "z.png", color_type=4), "z.png has 16 bits a channel"),
        (lambda p: write_png16(p / "z.png", color_type=6), "z.png has 16 bits a channel"),
        (lambda p: write_tiff16(p / "z.tif"), "z.tif has 16 bits a channel; expected 8 bits"),
        (lambda p: (p / "z.ppm").write_bytes(b"P6 4 5 65535\n" + bytes(4 * 5 * 6)), "z.ppm has 16 bits a channel; expected 8 bits"),
        (lambda p: (p / "z.ppm").write_bytes(b"P3 4 5 1000\n" + b"999 " * 60), "z.ppm has 16 bits a channel"),
        (lambda p: (p / "z.ppm").write_bytes(b"P6 4 5 15\n" + bytes(4 * 5 * 3)), None),
        (lambda p: Image.new("RGBA", (4, 5), (1, 2, 3, 200)).save(p / "z.png"), "z.png has transparent pixels"),
        (lambda p: Image.new("RGBA", (4, 5), (1, 2, 3, 255)).save(p / "z.png"), None),
        (lambda p: [path.unlink() for path in p.iterdir()], "holds no pictures; expected files .apng, .bmp, .gif"),
        (lambda p: [path.unlink() for path in sorted(p.iterdir())[5:]], "there are 5 training images; expected at least 20"),
        (lambda p: (p / "loop").symlink_to(p), None),
        (lambda p: save_several(p / "z.png"), r"z.png holds 2 pictures; expected one in each file"),
        (lambda p: save_several(p / "z.gif"), r"z.gif holds 2 pictures; expected one in each file"),
        (lambda p: save_several(p / "z.tif"), r"z.tif holds 2 pictures; expected one in each file"),
        (lambda p: save_several(p / "z.webp"), r"z.webp holds 2 pictures; expected one in each file"),
        (lambda p: save_several(p / "z.jpg", format="MPO"), None),  # a photograph and its preview
    ],
)  # fmt: skip
def test_a_bad_folder_is_named(change, message, tmp_path):
    for i, image in enumerate(RGB[:21]):
        save(image, tmp_path / f"{i}.png")
    change(tmp_path)
    if message is None:
        assert data.load(tmp_path).shape == (3, 5, 4)
        return
    with pytest.raises(DataError, match=message) as caught:
        data.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", [*FILES, "folder"])
def test_changed_bytes_are_read_or_refused_in_words_that_name_them(name, tmp_path):
    target = path = tmp_path / name
    if name == "folder":
        for i, image in enumerate(RGB[:21]):
            save(image, path / f"{i}.png")
        target = path / "3.png"
    else:
        FILES[name](path)
    whole = target.read_bytes()
    for seed in range(8):
        target.write_bytes(bytes_of(random.Random(f"{name} {seed}"), whole))
        message = str(target)
        try:
            data.load(path)
        except DataError as error:
            message = str(error)
        assert str(target) in message


def test_a_folder_with_the_name_of_a_choice_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(GREY):
        save(image, Path("auto", f"{i}.png"))
        save(image, Path("digits", f"{i}.png"))
    monkeypatch.setattr(mnist_download, "MIRRORS", ["file:///nowhere/"])
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert [data.load(name, tmp_path).name for name in ("auto", "digits")] == ["digits", "digits"]
    assert data.load("./auto", tmp_path).name == "auto"


def test_paths_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "a.npy", GREY.numpy())
    assert holds(data.load("~/a.npy"), GREY)
    assert holds(data.load(Path("~/a.npy")), GREY)


def test_fewer_validation_images_than_there_are_leave_the_others_to_training(tmp_path):
    np.savez(tmp_path / "a.npz", x=GREY, x_val=255 - GREY, x_test=GREY)
    found = data.load(tmp_path / "a.npz", validation=10)
    assert torch.equal(found.validation.images, 255 - GREY[-10:])
    assert torch.equal(found.train.images[N:], 255 - GREY[:-10])


def test_labels_that_validation_images_lack_are_left_out_in_words(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=GREY, y_train=LABELS, x_val=GREY)
    found = data.load(tmp_path / "a.npz")
    assert found.train.labels is None
    assert found.source.endswith("(grey, 5 x 4, no labels, as the validation images have none)")


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"nowhere is not there; expected a folder of pictures, or a file \.npy"
    ):
        data.load(tmp_path / "nowhere")
    (tmp_path / "x" / "train").mkdir(parents=True)
    (tmp_path / "x" / "test").mkdir()
    with pytest.raises(DataError, match="x/test holds no pictures"):
        data.load(tmp_path / "x")
    save(RGB[0], tmp_path / "y" / "0.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        DataError, match=r"pictures take pillow: .*; pip install 'lae_fast\[data\]' torch==.* installs it"
    ):
        data.load(tmp_path / "y")


# ---- by torchvision ----


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


# ---- in training ----


@pytest.fixture
def grey_file(tmp_path):
    """Forty grey pictures, 5 x 5, in a file."""
    np.save(tmp_path / "own.npy", bytes_like(N, 5, 5).numpy())
    return tmp_path / "own.npy"


OWN_RUN = [option for option in SMALL_RUN if option not in ("--dataset", "digits")]


def test_a_run_on_own_images_records_them_and_resumes(grey_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [*OWN_RUN, "--data", "own.npy", "--epochs", "1", "--output-dir", str(tmp_path / "run")]
    assert train.main(options) == 0
    assert f"data      {grey_file} (grey, 5 x 5, no labels); 27 / 3 / 10 train" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["options"]["data"] == str(grey_file)
    assert record["options"]["dataset"] == "auto"
    assert record["data"] == f"{grey_file} (grey, 5 x 5, no labels)"
    assert record["fingerprint"] == data.load(grey_file).fingerprint()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    moved = grey_file.rename(tmp_path / "elsewhere" / "moved.npy")
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "3"]) == 2
    assert "own.npy is not there" in capsys.readouterr().err
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "3", "--data", "moved.npy"]) == 0
    np.save(moved, bytes_like(N, 5, 5, seed=1).numpy())
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "4"]) == 2
    assert "was trained on other data" in capsys.readouterr().err


def test_data_beside_a_data_set_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"--data own.npy beside --dataset digits; expected only one of them"
    ):
        Config(data=Path("own.npy"), dataset="digits")


def test_values_that_a_likelihood_does_not_know_are_refused(tmp_path):
    images = bytes_like(N, 4, 4) / 127.5 - 1
    for likelihood, given, message in (
        ("bernoulli", images, r"values from -1 to 1; expected all in \[0, 1\] under --likelihood bernoulli"),
        ("logistic", images, "expected uint8 under --likelihood logistic, which knows 256 levels"),
        ("logistic", images.abs(), "expected uint8"),
        ("gaussian", images, None),
        ("bernoulli", images.abs(), None),
    ):
        config = Config(data=tmp_path, nh=16, depth=1, device="cpu", likelihood=likelihood)
        arguments = config, data.from_images(given), tmp_path, torch.device("cpu")
        if message:
            with pytest.raises(TrainingError, match=message):
                Trainer(*arguments)
        else:
            trainer = Trainer(*arguments)
            index = next(iter(trainer.batches()))
            x = trainer.images(index)
            assert x.dtype == torch.float32
            assert x.min() < 0 or likelihood == "bernoulli"
            assert torch.isfinite(trainer.training_step(index))


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (55_000, (256, 30, 10)),  # MNIST: as it has always been
        (2048, (256, 125, 42)),
        (1237, (128, 112, 38)),  # the digits
        (9, (9, 1000, 334)),
    ],
)
def test_few_images_have_small_minibatches_and_enough_of_them(n, expected):
    assert Config().for_images(n) == expected
    assert Config(batch_size=7, epochs=3, patience=5).for_images(n) == (7, 3, 5)
