"""What the experiments compute: recipes, whose products are kept under the hash of everything they depend on.

That is the recipe's fields, the data, the kind of device, the code of the recipe and of all in this package that it
imports, and the version of the compiled kernels, or that plain PyTorch served. Versions of torch and levels of SIMD do not
count: they change numbers by rounding at most. Each product says which commit, versions, machine and kernels it is from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lae_fast import checkpoint, data, provenance
from lae_fast._version import SCHEMA_VERSION
from lae_fast.checkpoint import CheckpointError
from lae_fast.data import Dataset, Split
from lae_fast.experiments import sources
from lae_fast.ops import library

SIDE = 28
CURE = "Delete it to have it made anew"


class Labelled(NamedTuple):
    """Images with their labels, all of them."""

    images: Tensor  # [N, nx] uint8
    labels: Tensor  # [N] int64


class Product(NamedTuple):
    weights: dict[str, Tensor]  # those of what was trained, if anything was
    metrics: dict[str, float]  # what was measured; `seconds` is how long it took
    provenance: dict[str, str] | None = None  # commit, machine and versions; None: not kept yet


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A computation that its fields and its code, the data and the kind of device decide. Fields may be recipes themselves."""

    def needs(self) -> Iterator[Recipe]:
        """The recipes that this one takes the products of."""
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), Recipe):
                yield value

    def cost(self) -> float:
        """About how long `make` takes on one core, in seconds: for the progress bar."""
        raise NotImplementedError

    def obstacle(self) -> str:
        """Why this machine cannot make the product, as a library that is not installed; nothing if it can."""
        return ""

    def company(self) -> Hashable:
        """Recipes of one kind whose answers are equal can be made side by side, by `make_all`; None: this one is made alone."""
        return None

    def make(self, lab: Lab) -> Product:
        """Compute the product, seeded by the fields alone."""
        raise NotImplementedError

    @classmethod
    def make_all(
        cls, recipes: Sequence[Recipe], lab: Lab
    ) -> Iterator[tuple[Recipe, Product | ArithmeticError]]:
        """Compute the products of recipes of this kind with one `company`; each is yielded as soon as it is there, or why it is not."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Kind and fields as plain values."""
        fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {"kind": type(self).__name__} | {
            name: value.describe() if isinstance(value, Recipe) else value for name, value in fields
        }


def enlarged(images: Tensor) -> Tensor:
    """uint8 [n, 1, h, w] -> flat [n, 784], for the report's networks take 28 x 28 pixels; those that have them stay as they are."""
    if images.shape[2:] == (SIDE, SIDE):
        return images.flatten(1)
    large = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", align_corners=False)
    return large.round().to(torch.uint8).flatten(1)


def _labelled(name: str, split: Split) -> Labelled:
    if split.labels is None:
        raise ValueError(f"{name} has no labels; expected a data set of classes, for classifiers to learn")
    return Labelled(enlarged(split.images), split.labels)


class Lab:
    """Data, device and kept products.

    Args:
        dataset: a data set of `lae_fast.data`.
        device: where everything runs.
        folder: where products are kept: one file each, whole or not there at all.
        n_train, n_test: how many images are used, the first ones; None: all.
        at_once: how many models are trained side by side, where several are asked for.

    Raises:
        ValueError: the data set has no labels.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        folder: Path,
        n_train: int | None = None,
        n_test: int | None = None,
        at_once: int = 1,
    ) -> None:
        self.device, self.folder, self.source, self.at_once = device, folder, dataset.source, at_once
        sources.read_all()  # before anything is computed: files may change while this runs
        backend = library.backends[device.type]
        self.provenance = provenance.record(device) | {
            "kernels": "compiled" if backend.is_compiled else backend.reason
        }
        parts = zip((dataset.train, dataset.validation, dataset.test), (n_train, n_test, n_test), strict=True)
        splits = [_labelled(dataset.name, split.at(slice(n))) for split, n in parts]
        self.digest = hashlib.sha256(b"".join(s.images.numpy().tobytes() for s in splits)).hexdigest()
        self.train, self.validation, self.test = (
            Labelled(images.to(device), labels.to(device)) for images, labels in splits
        )
        self.nx = self.train.images.shape[1]

    @classmethod
    def open(
        cls,
        dataset: str,
        root: Path,
        device: str,
        folder: Path,
        n_train: int | None,
        n_test: int | None,
        at_once: int = 1,
    ) -> Lab:
        """A lab with the data set of that name: see `lae_fast.data.load`, and above."""
        return cls(data.load(dataset, root), torch.device(device), folder, n_train, n_test, at_once)

    def path(self, recipe: Recipe) -> Path:
        """Where the recipe's product is kept."""
        code = sorted({sources.digest(type(r).__module__) for r in ordered([recipe])})
        kernels = SCHEMA_VERSION if library.is_compiled(self.device) else None
        facts = [recipe.describe(), code, self.digest, self.device.type, kernels]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{type(recipe).__name__}-{key[:20]}.safetensors"

    def has(self, recipe: Recipe) -> bool:
        return self.path(recipe).exists()

    def get(self, recipe: Recipe) -> Product:
        """The kept product, or a new one, kept from now on.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self.path(recipe)
        if not path.exists():
            start = time.perf_counter()
            cards = [self.device] if self.device.type == "cuda" else []
            # The caller's random state does not change, and does not decide anything here.
            with torch.random.fork_rng(cards), torch.enable_grad():
                product = recipe.make(self)
            self._keep(recipe, product, time.perf_counter() - start)
        weights, facts = checkpoint.load_weights(path)
        for name, kind in (("metrics", (int, float)), ("provenance", str)):
            values = facts.get(name)
            if not isinstance(values, dict) or not all(isinstance(v, kind) for v in values.values()):
                raise CheckpointError(f"{path} is damaged: {name} is {values!r:.80}. {CURE}")
        if (
            "seconds" not in facts["metrics"]
            or not self.provenance.keys() - {"kernels"} <= facts["provenance"].keys()
        ):
            raise CheckpointError(f"{path} is damaged: it lacks seconds or its origin. {CURE}")
        return Product(weights, facts["metrics"], facts["provenance"])

    def make_all(self, recipes: Sequence[Recipe]) -> Iterator[tuple[Recipe, ArithmeticError | None]]:
        """Make recipes of one `company` side by side, and keep each product as soon as it is there; with the reason where it is not."""
        for recipe, product in type(recipes[0]).make_all(recipes, self):
            if isinstance(product, Product):
                self._keep(recipe, product)
                yield recipe, None
            else:
                yield recipe, product

    def _keep(self, recipe: Recipe, product: Product, seconds: float = 0.0) -> None:
        facts = {
            "recipe": recipe.describe(),
            "metrics": {"seconds": seconds} | product.metrics,
            "provenance": self.provenance,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_weights(self.path(recipe), product.weights, facts)


def ordered(recipes: Iterable[Recipe]) -> list[Recipe]:
    """The recipes and all they need, each once, after what it needs."""
    found: dict[Recipe, None] = {}

    def add(recipe: Recipe) -> None:
        for other in recipe.needs():
            add(other)
        found.setdefault(recipe)

    for recipe in recipes:
        add(recipe)
    return list(found)
