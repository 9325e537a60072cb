"""Images of one's own, from folders and files."""

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
from own_data import GREY, LABELS, RGB, SQUARES, Malice, N, bytes_like, everything, holds, only, save
from PIL import Image
from test_hostile import bytes_of

from lae_fast import data
from lae_fast.data import DataError, mnist_download

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
        (lambda p: np.savez(p, x_train=RGB.numpy(), xtest=RGB.numpy()), "a.npz holds xtest, images of no split; expected"),
        (lambda p: np.savez(p, x=RGB.numpy(), holdout=RGB.numpy()), "a.npz holds holdout, images of no split"),
        (lambda p: np.savez(p, x=SQUARES.flatten(1).numpy(), xval=SQUARES.flatten(1).numpy()), "holds xval, images of no split"),
        (lambda p: np.savez(p, images=RGB.numpy().astype(int)), r"a.npz: images are int64 \[40, 3, 5, 4\]; expected uint8"),
        (lambda p: np.savez(p, x_train=RGB.numpy(), x_test=RGB.numpy()[:, :, 1:]), r"expected one shape and type"),
        (lambda p: np.savez(p, x=RGB.numpy(), y=LABELS.numpy()[:5]), r"a.npz: labels are int64 \[5\] on cpu; expected whole"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_named(write, message, tmp_path):
    write(tmp_path / "a.npz")
    with pytest.raises(DataError, match=message):
        data.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("train", "test"),
    [("x-train", "x-test"), ("train_images", "testImages"), ("XTrain", "X.test"), ("images", "Test Images")],
)
def test_names_of_arrays_are_words_however_they_are_joined(train, test, tmp_path):
    np.savez(tmp_path / "a.npz", **{train: RGB[:30].numpy(), test: RGB[30:].numpy()})
    dataset = data.load(tmp_path / "a.npz")
    assert [len(s.images) for s in dataset[2:5]] == [27, 3, 10]
    assert holds(only(dataset.test), RGB[30:])


def test_arrays_of_other_things_are_left_out(tmp_path):
    beside = {
        "image_ids": np.arange(N),
        "latents_values": np.zeros((N, 6)),
        "values": RGB.numpy(),
        "train_masks": RGB.numpy(),
        "test_masks": RGB.numpy(),
        "y_test_onehot": np.zeros((N, 10)),
        "test_boxes": np.zeros((N, 2, 4)),
        "image_size": np.array([5, 4]),
        "val_names": np.array([{}], dtype=object),  # which takes code to read
        "best_val_loss": np.array(0.1),
    }
    np.savez(tmp_path / "a.npz", images=RGB.numpy(), labels=LABELS.numpy(), **beside)
    torch.save(
        {"images": RGB, "labels": LABELS, "image_ids": list(range(N)), "best_val": "x"}, tmp_path / "a.pt"
    )
    for name in ("a.npz", "a.pt"):
        assert holds(data.load(tmp_path / name), RGB, LABELS)
    torch.save({"images": RGB, "x_dev": [*RGB]}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a.pt holds x_dev, images of no split"):
        data.load(tmp_path / "a.pt")


def test_some_of_own_validation_images_stand_for_all(tmp_path):
    """They lie in the order of classes; which of them are taken does not change, and all or none are taken in that order."""
    for i, image in enumerate(RGB):
        for split in ("train", "val"):
            save(image, tmp_path / split / "ab"[i // 20] / f"{i:02d}.png")
    few, again, whole, none, more = (
        data.load(tmp_path, validation=n, binarization="none") for n in (10, 10, N, 0, N + 2)
    )
    assert few.validation.labels.unique().tolist() == [0, 1]
    assert few.fingerprint() == again.fingerprint()
    assert [len(s.images) for s in few[2:5]] == [30 + 30, 10, 10]
    every = data.Split(RGB, torch.arange(N) // 20)
    assert torch.equal(whole.validation.images, every.images)
    assert whole.fingerprint() == data.load(tmp_path).fingerprint()
    assert torch.equal(none.train.images[-N:], every.images)
    assert torch.equal(more.validation.images[2:], every.images)
    together = torch.cat((few.train.images[30:], few.validation.images))
    assert holds(only(data.Split(together)), RGB)


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
        (("train", "dev"), "holds dev, train; expected train, test and perhaps val, or classes"),
        (("train", "evaluation"), "holds evaluation, train; expected train, test"),
        (("Training", "Test_set"), "holds Test_set, Training; expected train, test"),
        (("train", "unlabelled", "car"), "holds car, train, unlabelled; expected train, test"),
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


@pytest.mark.parametrize("others", [("plane",), ("valve", "car"), ("test tube", "contest"), ("medieval",)])
def test_a_class_may_be_called_as_a_split(others, tmp_path):
    folders_of_pictures(tmp_path, *others, "train")
    assert data.load(tmp_path).source.endswith(f"{1 + len(others)} classes)")


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
    assert [len(s.images) for s in found[2:5]] == [N + 30, 10, N]
    together = torch.cat((found.train.images[N:], found.validation.images))
    assert holds(only(data.Split(together)), 255 - GREY)


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
