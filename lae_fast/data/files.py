"""Images of one's own: a folder of pictures, a file of NumPy arrays, or a file of torch tensors."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lae_fast.checks import first_line
from lae_fast.data import pictures
from lae_fast.data.decoding import decoded
from lae_fast.data.images import as_split, check_levels
from lae_fast.data.splits import DataError, Source, Split, parted
from lae_fast.data.torchvision_sets import EXTRA

PICTURES = (".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
            ".tiff", ".webp")  # fmt: skip
FOREIGN = {".dng", ".heic", ".heif", ".jxl", ".svg"}  # pictures that PIL does not know
# Formats that PIL knows beside those of pictures: of documents, films and measurements.
NO_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF"}
ARRAYS = (".npy", ".npz")
TENSORS = (".pt", ".pth")
# Words of which names of arrays and folders are made, as train_images, x_test, val.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
IMAGES = {"images", "image", "imgs", "x", "data"}
KINDS = {1: "grey", 3: "RGB"}  # by the number of channels
LABELS = {"labels", "label", "targets", "target", "y"}
# Words of splits that are not read, and what may stand beside the word of a split.
OTHER_SPLITS = {"dev", "eval", "evaluation", "holdout", "unlabeled", "unlabelled", "xdev", "xtest", "xval"}
BESIDE = {"data", "part", "set", "split"}


def read(path: Path, validation: int | None = None) -> Source:
    """The images in a folder or file.

    - A folder of pictures of one size, grey or RGB, of 8 bits, one in each file. Sub-folders are classes, numbered in the order of their names;
      sub-folders train, test and perhaps val hold these splits. A single sub-folder around all, as archives unpack, does not count.
    - `.npy`: an array of images; `.npz`: one array, or several by name: images and labels, or x_train, y_train, x_test, y_test,
      or train_images, ...
    - `.pt`, `.pth`: a tensor of images, a pair of images and labels, or a dictionary of tensors with names as above; nothing
      but tensors is read.

    Without test or validation images they are split off (`splits.parted`, which says what `validation` does).

    Raises:
        DataError: there is no such thing, it is damaged, or it holds no images, or ones of several sizes, or of formats or levels that
            are not read, or more than fit into memory.
    """
    try:
        if not path.exists():
            raise DataError(f"{path} is not there; expected a folder of pictures, or a file {_endings()}")
        if not path.is_dir() and path.suffix.lower() not in (*ARRAYS, *TENSORS):
            ending = path.suffix or "without ending"
            raise DataError(f"{path} is a file {ending}; expected a folder of pictures, or {_endings()}")
        splits, classes = _folder(path) if path.is_dir() else (_file(path), None)
        train = splits["train"]
        c, h, w = train.images.shape[1:]
        labels = "no labels" if train.labels is None else f"{len(train.labels.unique())} classes"
        if train.labels is not None and "validation" in splits and splits["validation"].labels is None:
            labels = "no labels, as the validation images have none"
        description = f"{path} ({KINDS[c]}, {h} x {w}, {labels})"
        return parted(description, **splits, n_validation=validation)._replace(classes=classes)
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory") from error
    except (OSError, RuntimeError) as error:  # of RuntimeErrors, torch's: it finds no memory, say
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error


def _endings() -> str:
    return ", ".join((*ARRAYS, *TENSORS))


# ---- files ----


def _file(path: Path) -> dict[str, Split]:
    """By name of the split, what a file holds."""
    try:
        content = _content(path)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds other things than tensors, or is damaged; expected tensors alone"
        ) from error
    except Exception as error:  # a parser of arbitrary bytes may raise anything
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error
    if isinstance(content, (list, tuple)) and len(content) in (1, 2):
        content = dict(zip(("images", "labels"), content, strict=False))
    if not isinstance(content, Mapping):
        return {"train": as_split(content)}
    found: dict[str, dict[str, Any]] = {}
    names: dict[tuple[str, str], Any] = {}  # by split and kind
    for name, value in content.items():
        if (place := _place(str(name))) is not None:
            split, kind = place
            if names.setdefault(place, name) != name:
                raise DataError(
                    f"{path} holds {names[place]} and {name}, both {split} {kind}; expected only one of them"
                )
            found.setdefault(split, {})[kind] = value
    if others := _others(content, found):
        raise DataError(
            f"{path} holds {', '.join(others)}, images of no split; expected train, test and perhaps val in each name; leave "
            "out, or rename, what are no images"
        )
    if not found and len(content) == 1:  # of whatever name
        found = {"train": {"images": next(iter(content.values()))}}
    if "train" not in found or not all("images" in split for split in found.values()):
        held = ", ".join(map(str, content)) or "nothing"
        raise DataError(
            f"{path} holds {held:.200}; expected images, and perhaps labels; or x_train, y_train, x_test, y_test"
        )
    return {name: as_split(**split) for name, split in found.items()}


def _content(path: Path) -> Any:
    """An array or tensor, or several, perhaps by name. Code is never run."""
    if path.suffix.lower() in TENSORS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign pickles, and refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix.lower() == ".npy":
        return np.asarray(np.lib.format.open_memmap(path, mode="c"))  # takes no more memory than the file has
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is no archive of arrays")
        return {name: _array(archive, name) for name in archive}


def _array(archive: Any, name: str) -> np.ndarray | None:
    """An array that may be one of images or labels; None: another one."""
    if _place(name) or len(archive) == 1:
        return archive[name]
    with contextlib.suppress(ValueError):  # strings that Python has pickled
        return archive[name] if _is_near(name) else None
    return None


def _others(content: Mapping[Any, Any], found: dict[str, dict[str, Any]]) -> list[str]:
    """The names of what may be further images, beside those that were found: by the names, and of the same form."""
    forms = [_form(split["images"]) for split in found.values() if "images" in split]
    names = [str(name) for name, value in content.items() if _form(value) in forms]
    return [name for name in names if _place(name) is None and _is_near(name)]


def _form(values: Any) -> tuple[int, ...] | None:
    """The shape of each of several values; None: they have none."""
    if isinstance(values, (list, tuple)):
        return tuple(getattr(values[0], "shape", ())) if values else None
    return tuple(values.shape[1:]) if getattr(values, "ndim", 0) else None


def _is_near(name: str) -> bool:
    """Whether a name is like one of images, or that of a split."""
    words = _words(name)
    return bool(words & IMAGES) or _is_split(words)


def _is_split(words: set[str]) -> bool:
    """Whether these words say no more than a split, also of those that are not read."""
    known = SPLITS.keys() | OTHER_SPLITS
    return bool(words & known) and words <= known | BESIDE


def _place(name: str) -> tuple[str, str] | None:
    """The split and kind, images or labels, of an array by its name; None: it is neither."""
    words = _words(name)
    splits = {SPLITS[word] for word in words & SPLITS.keys()} or {"train"}
    kinds = {"images"} if words & IMAGES else set()
    kinds |= {"labels"} if words & LABELS else set()
    if not kinds and words <= SPLITS.keys():
        kinds = {"images"}
    if words - SPLITS.keys() - IMAGES - LABELS or len(splits) > 1 or len(kinds) != 1:
        return None
    return splits.pop(), kinds.pop()


def _words(name: str) -> set[str]:
    """The words of x_test, x-test, testX, XTest."""
    parts = re.split(r"[\W_]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", name)
    return {part.lower() for part in parts if part}


# ---- folders of pictures ----


def _folder(folder: Path) -> tuple[dict[str, Split], tuple[str, ...] | None]:
    """By name of the split, what a folder holds; and the names of the classes, where there are several."""
    places = _places(_unpacked(folder))
    members = {name: _members(place) for name, place in places.items()}  # by split, by class
    classes = list(members["train"])
    for name, found in members.items():
        if unknown := found.keys() - set(classes):
            what = f"the classes {', '.join(sorted(unknown))}" if unknown != {""} else "pictures in no class"
            raise DataError(f"{places[name]} has {what}, and {places['train']} has not; expected the same")
    kind = _kind([path for found in members.values() for paths in found.values() for path in paths])
    splits = {name: _pictures(places[name], found, classes, *kind) for name, found in members.items()}
    return splits, tuple(classes) if len(classes) > 1 else None


def _unpacked(folder: Path) -> Path:
    """Where classes or splits begin: archives unpack into a folder within a folder. Such a one holds all pictures, and is no split."""
    while True:
        folders, loose = _inside(folder)
        holders = [path for path in folders if any(_walk(path))]
        if len(holders) != 1 or loose or holders[0].name.lower() in SPLITS:
            return folder
        folder = holders[0]


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the pictures that lie in a folder, not deeper, in the order of names."""
    _, names, files = next(os.walk(folder, onerror=_fail))
    folders = [folder / name for name in sorted(names) if not name.startswith(".")]
    return folders, _pictures_in(folder, files)


def _places(folder: Path) -> dict[str, Path]:
    """By name of the split, where its pictures are: in sub-folders if all that hold pictures are named by splits, otherwise all
    are of training."""
    folders, loose = _inside(folder)
    folders = [path for path in folders if path.name.lower() in SPLITS or any(_walk(path))]
    splits = [SPLITS[path.name.lower()] for path in folders if path.name.lower() in SPLITS]
    names = ", ".join(path.name for path in folders)
    if len(splits) < len(folders) or not splits:
        others = [path.name for path in folders if path.name.lower() not in SPLITS]
        if len(set(splits)) > 1 or (splits and any(_is_split(_words(name)) for name in others)):
            raise DataError(f"{folder} holds {names}; expected train, test and perhaps val, or classes")
        return {"train": folder}
    places: dict[str, Path] = {}
    for split, path in zip(splits, folders, strict=True):
        if places.setdefault(split, path) != path:
            raise DataError(f"{places[split]} and {path} both are {split} images; expected only one of them")
    if "train" not in places:
        raise DataError(
            f"{folder} holds {names}, and no train; expected train, test and perhaps val, or classes"
        )
    if loose:
        raise DataError(f"{loose[0]} lies beside {places['train']}; expected all pictures in {names}")
    return places


def _pictures_in(folder: Path, names: Iterable[str]) -> list[Path]:
    """The pictures among a folder's files, in the order of names. Files that are none are left out.

    Raises:
        DataError: one is a picture that is not read, by its ending.
    """
    found = []
    for path in (folder / name for name in sorted(names) if not name.startswith(".")):
        if (ending := path.suffix.lower()) in PICTURES:
            found.append(path)
        elif ending in _unread():
            raise DataError(f"{path} is a picture {path.suffix}; expected {', '.join(PICTURES)}")
    return found


@functools.cache
def _unread() -> set[str]:
    """Endings of pictures that are not read."""
    try:
        from PIL import Image
    except ImportError:
        return FOREIGN
    known = Image.registered_extensions()
    return FOREIGN | {ending for ending, kind in known.items() if kind not in NO_PICTURES} - {*PICTURES}


def _members(folder: Path) -> dict[str, list[Path]]:
    """The pictures in a folder by class, in the order of names; of the class "" where there are no sub-folders."""
    found: dict[str, list[Path]] = {}
    for place, paths in _walk(folder):
        inner = place.relative_to(folder).parts
        found.setdefault(inner[0] if inner else "", []).extend(paths)
    if not found:
        raise DataError(
            f"{folder} holds no pictures; expected files {', '.join(PICTURES)}, or sub-folders with them"
        )
    if "" in found and len(found) > 1:
        raise DataError(
            f"{folder} holds pictures beside folders of pictures; expected only one of them: sub-folders are classes"
        )
    return dict(sorted(found.items()))


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """This folder and those within that hold pictures, and the pictures, in the order of names.

    Raises:
        DataError: one cannot be read, or has two names, of which one may be a class and the other not; or a picture is not read.
    """
    seen: dict[Path, Path] = {}
    for name, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        place, folders[:] = Path(name), sorted(inner for inner in folders if not inner.startswith("."))
        real = place.resolve()
        if place != folder and place.parent.resolve().is_relative_to(real):  # a link that leads back
            folders.clear()
            continue
        if seen.setdefault(real, place) != place:
            raise DataError(f"{seen[real]} and {place} are one folder; expected one name for it")
        if paths := _pictures_in(place, names):
            yield place, paths


def _fail(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def _kind(paths: list[Path]) -> tuple[str, tuple[int, int]]:
    """What all pictures can be read as: mode L or RGB, and their size, width and height. Reads headers only.

    Raises:
        DataError: they differ in size, one cannot be read, or a file holds several.
    """
    modes: set[str] = set()
    sizes: list[tuple[int, int]] = []
    for path in paths:
        with _opened(path) as picture:
            _check_is_one(picture, path)
            modes.add(pictures.mode(picture, str(path)))
            sizes.append(_upright_size(picture))
        (w, h), (w0, h0) = sizes[-1], sizes[0]
        if (w, h) != (w0, h0):
            raise DataError(
                f"{path} has {w} x {h} pixels, and {paths[0]} {w0} x {h0}; expected pictures of one size"
            )
    return "L" if modes == {"L"} else "RGB", sizes[0]


def _check_is_one(picture: Any, path: Path) -> None:
    """Raise a ValueError for an animation, or a stack of pages. What MPO holds beside a photograph are previews of it."""
    n = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    if n > 1:
        raise ValueError(f"{path} holds {n} pictures; expected one in each file")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Within: a picture of which the header has been read.

    Raises:
        DataError: it cannot be read, by the header or what is done within.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"pictures take pillow: {error}; {EXTRA} installs it") from error
    try:
        with Image.open(path) as picture:
            yield picture
    except Exception as error:  # a decoder of arbitrary bytes may raise anything
        reason = first_line(error)
        raise DataError(
            reason if reason.startswith(str(path)) else f"{path} cannot be read: {reason}"
        ) from error


ORIENTATION = 0x0112  # EXIF's tag; from 5 to 8 rows are stored as columns


def _upright_size(picture: Any) -> tuple[int, int]:
    """Width and height of a picture as a camera meant it to be seen."""
    w, h = picture.size
    if picture.format == "TIFF" or not {"exif", "xmp"} & picture.info.keys():  # PIL has turned TIFF's itself
        return w, h
    return (h, w) if picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (w, h)


def _pictures(
    folder: Path, members: dict[str, list[Path]], classes: list[str], mode: str, size: tuple[int, int]
) -> Split:
    """The pictures [N, c, h, w], and their classes' numbers where there is more than one class."""
    paths = [path for found in members.values() for path in found]

    def read(i: int) -> np.ndarray:
        from PIL import ImageOps

        with _opened(paths[i]) as picture:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            if picture.size != size:
                w, h = picture.size
                raise ValueError(
                    f"{paths[i]} has {w} x {h} pixels, turned by EXIF data that stand behind them, and the others "
                    f"{size[0]} x {size[1]}; expected EXIF data in front of the pixels, or none"
                )
            pixels = pictures.pixels(picture, mode, str(paths[i]))
        return pixels.reshape(size[1], size[0], -1).transpose(2, 0, 1)

    images = torch.from_numpy(decoded(folder.name, len(paths), (len(mode), size[1], size[0]), read))
    check_levels("pixels", images)
    numbers = np.repeat([classes.index(name) for name in members], [len(found) for found in members.values()])
    return Split(images, torch.from_numpy(numbers) if len(classes) > 1 else None)
