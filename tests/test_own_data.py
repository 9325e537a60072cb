"""Images of one's own: from memory, and in training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SMALL_RUN
from own_data import GREY, LABELS, RGB, SQUARES, N, bytes_like, holds, save
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

import lae_fast
from lae_fast import data, train
from lae_fast.data import DataError
from lae_fast.training.config import Config, TrainingError
from lae_fast.training.trainer import Trainer


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
        (lambda: data.from_images(RGB, binarization="fixed"), "binarization is fixed, and images have 3 channels; expected grey"),
        (lambda: data.from_images(GREY * 2.0, binarization="dynamic"), r"binarization is dynamic, and images have values from 0 to 510"),
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
