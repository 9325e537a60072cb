"""The page of a run: what it shows, gathered from the run's folder, its model and test images, and put into the templates."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lae_fast import checkpoint, checks
from lae_fast.data import Dataset, Split
from lae_fast.models.autoencoder import Autoencoder, asks, like_of
from lae_fast.training import run_folder, runlog
from lae_fast.training.loop import is_finite
from lae_fast.view import records
from lae_fast.view.network import CannotRun, network
from lae_fast.view.pixels import Pixels, data_uri

TEMPLATES = Path(__file__).parent
SCRIPTS = ("decoder.js", "charts.js", "explorer.js")
NAME = "view.html"
N_SAMPLES, N_PAIRS = 64, 40
MOST_CODES = 500  # in the plane
BYTES_OF_ORIGINALS = 600_000  # of their test images, before compression
MOST_ROWS = 30_000  # of the picture that they make, one below the other: browsers draw no higher one
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def write(
    folder: str | Path,
    model: Autoencoder,
    test: Split | Dataset | Tensor,
    table: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> Path:
    """Write a run's page, `view.html`, into its folder.

    Args:
        folder: made if it is not there: a run's folder, with config.json and metrics.jsonl; results.json is shown where it is there and no epoch has been
            trained since. Or any other folder, of a model from a loop of your own: its page has no curves and no scores.
        model: the run's model, with the weights to show.
        test: test images [N, *shape]; a `Split`: images with labels; or a `Dataset`, whose test images are shown.
        table: a table that `lae_fast.score --output` wrote; None: one that lies in the folder.
        classes: names of the labels 0, 1, ..., as `Dataset.classes` holds them; None: those of the `Dataset`, or labels are shown as numbers.

    Returns:
        The page's path.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: test holds no images of a form that can be shown, or not one label for each of them; or the model's weights are
            not finite.
        CheckpointError: the run's records are damaged, or the table has no row of its weights of today, or several.
        OSError: the page cannot be written.

    Example:
        >>> import tempfile
        >>> from lae_fast import models, view
        >>> model = models.build(models.Architecture(shape=(1, 8, 8), nz=2, nh=8, depth=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = view.write(folder, model, torch.rand(4, 1, 8, 8))
        ...     page.name, "data:image/png" in page.read_text()
        ('view.html', True)
    """
    folder, table = checks.path("folder", folder), None if table is None else checks.path("table", table)
    if not isinstance(model, Autoencoder):
        raise TypeError(f"model is {checks.describe(model)}; expected one of lae_fast.models")
    is_list = isinstance(classes, (list, tuple))
    if not (classes is None or (is_list and all(isinstance(name, str) for name in classes))):
        raise TypeError(f"classes is {checks.describe(classes)}; expected a list of names, or None")
    if isinstance(test, Dataset):
        classes = classes or test.classes
        test = test.test
    if not isinstance(test, Split):
        test = Split(checks.tensor("test", test, dtypes=None))
    images = test.images
    if images.dim() < 2 or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise ValueError(
            f"test is {checks.describe(images)}; expected images [N, *shape], floating point or uint8"
        )
    if not len(images):
        raise ValueError("test holds no images; expected at least 1")
    if test.labels is not None:
        checks.tensor("test.labels", test.labels, str(len(images)), dtypes=WHOLE)
    if not is_finite(model):
        raise ValueError("the model's weights or its chain's state are not finite; expected finite ones")
    record: dict[str, Any] = {"options": {}}
    lines: records.Lines = []
    values: dict[str, Any] = {}
    epochs = 0
    found = checkpoint.read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if {"options", "data"} <= found.keys():  # and not what another library keeps under that name
        record = found | {"options": run_folder.read_options(folder)}
        lines = runlog.read(folder / "metrics.jsonl")
        results = folder / "results.json"
        values = checkpoint.read_json(results) if results.exists() else {}
        epochs = run_folder.epochs(folder, lines)
        expected = records.identity(record, epochs)
        if records.differences(values, expected):  # the run has been resumed since
            values = {}
        values |= records.row_of(folder, table, expected)
    pixels = Pixels.of(test.images, model.shape)
    z, samples = _samples(model)
    _, channels, height, width = pixels.pictures(test.images[:1]).shape
    n = max(N_PAIRS, min(MOST_CODES, BYTES_OF_ORIGINALS // (channels * height * width)))
    n = min(n, max(1, MOST_ROWS // height))
    originals, labels = pixels.pictures(test.images[:n]), test.labels
    codes, reconstructions = _codes(model, test.images[:n])
    try:
        decoder, problem = network(model), ""
    except CannotRun as error:
        decoder, problem = None, f"Decoding does not run in this page: {error}."
    data = {
        "shape": pixels.shape,
        "range": [pixels.low, pixels.high],
        "network": decoder,
        "samples": _rounded(z),
        "codes": _rounded(codes),
        "labels": None if labels is None else labels[:n].tolist(),
        "classes": classes,
        "originals": data_uri(originals.transpose(0, 1).flatten(1, 2)),  # one below the other
        "axes": _axes(codes),
        "curves": records.curves(record, lines),
    }
    pairs = zip(originals, pixels.pictures(reconstructions), strict=False)
    page = {
        "name": html.escape(folder.resolve().name),
        "summary": html.escape(records.summary(record, lines, model, epochs)),
        "scores": records.scores(model, record, values),
        "samples": "".join(map(_tile, pixels.pictures(samples))),
        "reconstructions": "".join(f"<span>{_tile(a)}{_tile(b)}</span>" for a, b in pairs),
        "problem": html.escape(problem),
        "training": "" if lines else "hidden",
        "epochs": records.epochs(lines),
        "making": records.making(record),
        "style": _template("style.css"),
        "script": "\n".join(map(_template, SCRIPTS)),
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),  # no tag may end it
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: page[found[1]], _template("page.html"))
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomically(folder / NAME, text.encode("utf-8", "backslashreplace"))
    return folder / NAME


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _tile(picture: Tensor) -> str:
    """A small picture [c, h, w] as an element of the page."""
    _, height, width = picture.shape
    return f'<img src="{data_uri(picture)}" width="{width}" height="{height}" alt="">'


@asks
def _samples(model: Autoencoder) -> tuple[Tensor, Tensor]:
    """Draws z [n, nz] of the prior, and their mean images: the same as in samples.png."""
    like = like_of(model)
    generator = torch.Generator(like.device).manual_seed(0)
    z = torch.randn(N_SAMPLES, model.nz, generator=generator, device=like.device, dtype=like.dtype)
    return z, model.decode(z)


@asks
def _codes(model: Autoencoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """The codes [n, nz] of images, on the CPU, and mean images of the first of them."""
    z = torch.cat([model.encode(x) for x in images.to(like_of(model).device).split(100)])
    return z.cpu(), model.decode(z[:N_PAIRS])


def _axes(codes: Tensor) -> list[dict[str, Any]]:
    """Directions that the plane can show, of codes [n, nz]: the latent dimensions; of more than two those by falling variance, and
    then two principal components."""
    codes = codes.double()
    named = [(f"z{i + 1}", e) for i, e in enumerate(torch.eye(codes.shape[1], dtype=torch.float64))]
    if len(named) > 2:
        named.sort(key=lambda axis: -_variance(codes @ axis[1]))
        vectors = torch.linalg.eigh(
            torch.cov(codes.T, correction=0)
        ).eigenvectors  # in columns, by rising variance
        signed = [v * v[v.abs().argmax()].sign() for v in (vectors[:, -1], vectors[:, -2])]
        named += [(f"principal component {k}", v) for k, v in enumerate(signed, 1)]
    return [{"name": n, "variance": _variance(codes @ v), "direction": v.tolist()} for n, v in named]


def _variance(t: Tensor) -> float:
    return t.var(correction=0).item()  # 0 of one code


def _rounded(t: Tensor) -> list[list[float]]:
    return [[round(v, 4) for v in row] for row in t.tolist()]
