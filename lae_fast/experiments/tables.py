"""The report's tables 1-9, and tables for its future work: rows of recipes, and columns of their metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from lae_fast.experiments import published
from lae_fast.experiments.design import (
    BEYOND,
    BEYOND_FEW,
    DRAWN,
    FEW,
    PROTOCOLS,
    RULES,
    TRAININGS,
    Design,
    training_name,
    varied_name,
)
from lae_fast.experiments.recipes import Recipe
from lae_fast.experiments.strongest import LIBRARY

AS_PUBLISHED = "as published"


class Column(NamedTuple):
    heading: str
    key: str  # name of the metric in a product
    digits: int = 2
    factor: float = 1.0  # 100 for percent


@dataclasses.dataclass(frozen=True)
class Row:
    labels: tuple[str, ...]
    recipes: tuple[Recipe, ...] = ()  # one for each seed
    published: dict[str, float] = dataclasses.field(default_factory=dict)  # by the columns' keys

    def printed(self, column: Column) -> tuple[float | None, bool]:
        """The published number in the column's unit, or None, and whether the report has divided it."""
        key = column.key + published.DIVIDED
        is_divided = key in self.published
        value = self.published.get(key if is_divided else column.key)
        return None if value is None else column.factor * value, is_divided


@dataclasses.dataclass(frozen=True)
class Table:
    name: str
    title: str
    headings: tuple[str, ...]  # headings of the labels' columns
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str  # explanation of the numbers

    @property
    def is_beyond(self) -> bool:
        """Whether the table is not one of the report's own."""
        return self.name.startswith("beyond")

    def recipes(self) -> Iterator[Recipe]:
        for row in self.rows:
            yield from row.recipes


QUALITY = (
    Column('"BCE"', "report_bce"),
    Column("MSE", "mse", 4),
    Column("reconstruction", "reconstruction"),
    Column("rate", "rate"),
    Column("negative ELBO", "negative_elbo"),
    Column("-log p(x)", "ais"),
    Column("acceptance", "acceptance"),
)
QUALITY_NOTE = """\
"BCE" is what the report calls so: for the VAE the whole negative ELBO, for the LAE the reconstruction alone, at
z ~ N(f(x), 0.05² I): two quantities in one row. The other columns are one quantity each, the same for all models: nats per
test image, with q(z|x) the model's own or, for joint decisions, which train none, N(f(x), diag(s²)) with the s that is best on
training images; -log p(x) by annealed importance sampling (an upper bound) over the first {likelihood_images} images. Grey pixels under a Bernoulli
likelihood are no density: compare these numbers with each other only. MSE is per pixel; † as published, some 5,000 times
smaller: the report does not say what it is divided by. Acceptance is that of the last epoch; without MH every proposal counts, by the report's code with MH
its (wrong) ratio decides."""

CODES = (
    Column("train loss", "train_loss", 3),
    Column("train accuracy, %", "train_accuracy", 1, 100),
    Column("validation loss", "test_loss", 3),
    Column("validation accuracy, %", "test_accuracy", 1, 100),
)
CODES_NOTE = """\
ReLU and a linear layer on codes drawn from the encoder's q(z|x), as the report encodes: the VAE's own, or N(f(x), 0.05² I); Adam 1e-2,
{latent_epochs} epochs. Losses in nats per image. Validation is on the test images, as in the report. † As published, divided by
about a batch size: times 1,000 these numbers are of the size of those measured here."""


Measure = Callable[[tuple[Any, ...]], tuple[Recipe, ...]]
Numbers = dict[tuple[Any, ...], dict[str, float]]


def _lae_rows(
    design: Design,
    measure: Measure,
    label: str,
    nz: int,
    n_steps: int = 2,
    *,
    mh: bool = False,
    rules: Iterable[str] = RULES,
    epochs: int | None = None,
) -> Iterator[Row]:
    """One row for each rule of an LAE; an adapted step always takes MH."""
    for rule in rules:
        has_mh = mh or "mh" in RULES[rule]
        models = design.lae(rule, nz, n_steps, epochs=epochs, mh=has_mh)
        name = f"LAE, {rule}{', MH' if has_mh else ''}"
        yield Row((label, name), measure(models))


def _by_dimension(design: Design, measure: Measure, numbers: Numbers) -> Iterator[Row]:
    for nz in (2, 8, 16):
        yield Row((str(nz), f"VAE, {AS_PUBLISHED}"), published=numbers["vae", nz, 2, False])
        yield Row((str(nz), "VAE"), measure(design.vae(nz)))
        yield Row((str(nz), f"LAE, {AS_PUBLISHED}"), published=numbers["lae", nz, 2, False])
        yield from _lae_rows(design, measure, str(nz), nz)


def _by_steps(design: Design, measure: Measure, numbers: Numbers) -> Iterator[Row]:
    for t in (2, 10, 50):
        yield Row((str(t), f"LAE, {AS_PUBLISHED}"), published=numbers["lae", 2, t, False])
        yield from _lae_rows(design, measure, str(t), 2, t)
    short = design.preset.epochs_longest
    if short != design.preset.epochs:  # rows to compare with T = 50
        for t in (2, 10):
            yield from _lae_rows(design, measure, f"{t}, as short as 50", 2, t, epochs=short)


def _by_decision(design: Design, measure: Measure, numbers: Numbers) -> Iterator[Row]:
    for mh, label in ((False, "off"), (True, "on")):
        rules = [rule for rule in RULES if mh or "mh" not in RULES[rule]]
        yield Row((label, f"LAE, {AS_PUBLISHED}"), published=numbers["lae", 2, 2, mh])
        yield from _lae_rows(design, measure, label, 2, mh=mh, rules=rules)


def _classifiers(design: Design) -> Table:
    rows = []
    for model, n in TRAININGS:
        if (model, n) in published.CLASSIFIERS:
            rows.append(
                Row((training_name(model, n), AS_PUBLISHED), published=published.CLASSIFIERS[model, n])
            )
        rows.append(Row((training_name(model, n), "measured"), design.classifiers(model, n)))
    rows += _controls(design, lambda trained: trained)
    return Table(
        "table7",
        "Algorithm 3: training with samples of a latent variable model",
        ("variations", ""),
        (Column("validation loss", "loss", 4), Column("validation accuracy, %", "accuracy", 2, 100)),
        tuple(rows),
        "The report's classifier, Adam 1e-4, batch 128 and N times as many variations, drawn as the report's code draws them: nz 8, of "
        "the VAE's q(z|x), or of N(f(x), 0.05² I) around the codes of an LAE (datapoint decisions; joint ones with an adapted step). Validation is on the test images. † As "
        "published, divided by about the batch size.",
    )


def _controls(design: Design, measure: Measure) -> Iterator[Row]:
    """Training without variations for the epochs of N = 5, if they differ from the epochs of N = 0."""
    epochs = design.preset.classifier_epochs
    if epochs[5] != epochs[0]:
        trained = design.classifiers(None, 0, epochs=epochs[5])
        yield Row((f"none, N = 0, {epochs[5]} epochs", "measured, control for N = 5"), measure(trained))


def _attacked(design: Design, name: str, key: str, unit: str, digits: int, factor: float) -> Table:
    columns = tuple(
        Column(f"{'clean' if eps == '0' else f'ε = {eps}'}, {unit}", f"{key}_{eps}", digits, factor)
        for eps in ("0", "0.01", "0.1", "0.2", "0.3")
    )
    rows = []
    for model, n in TRAININGS:
        label = training_name(model, n)
        if (model, n) in published.ATTACKED:
            rows.append(Row((label, AS_PUBLISHED), published=published.ATTACKED[model, n]))
        for protocol in PROTOCOLS:
            rows.append(Row((label, protocol), design.attacked(design.classifiers(model, n), protocol)))
    for protocol in PROTOCOLS:
        for row in _controls(design, partial(design.attacked, protocol=protocol)):
            rows.append(dataclasses.replace(row, labels=(row.labels[0], protocol)))
    title = f"{key.capitalize()} under attack"
    return Table(name, title, ("variations", "attack"), columns, tuple(rows), ATTACK_NOTE)


ATTACK_NOTE = """\
Table 7's classifiers under PGD, L-inf, on the first {attacked_images} test images, or all where there are fewer: (a) 40 steps of 0.01 with random start, (b) 40 steps without
it, the report's function, (c) 3 steps, its command's default, which move no pixel by more than 0.03: one attack in its last three
columns. The report does not say which it took. Losses are per image."""
KINDS_NOTE = (
    "Two variations of each image, by models with nz 8 or, where it says so, 16. Residual: clip(x + decode(z + s eps) - decode(z)), s half of the codes' standard deviation. "
    "New codes: decode(z), z ~ p(z|y), the normal distribution of the codes of a class, fitted by EM to the codes of all training images with the "
    "labels that are left. Found: real training images, whatever their label, the half of each class that the same distributions are surest of. "
    "Principal components: normal noise of half their standard deviation. Affine: shifts of up to 2 pixels, turns of up to 10 degrees, sizes divided by 0.9 to 1.1."
)


def _few_labels(design: Design) -> Table:
    rows = [
        Row((str(k), varied_name(m, kind)), design.few_labels(m, k, kind))
        for k in FEW
        for m, kind in BEYOND_FEW
    ]
    return Table(
        "beyond-few-labels",
        "Few labels",
        ("images per class", "variations"),
        (Column("loss", "loss", 3), Column("accuracy, %", "accuracy", 2, 100)),
        tuple(rows),
        "{few_label_updates} minibatches of at most 128 labelled images, Adam 1e-3, test images. The models that the variations come "
        f"from have seen all training images, all but M2 without labels. {KINDS_NOTE} M2, of Kingma et al. (2014), is a VAE whose decoder gets the label, too; it is trained with the labels that are left, its q(y|x) on affine variations of their images: "
        "new codes are z ~ N(0, I), and found images those of which its q(y|x) is surest.",
    )


def _imbalanced(design: Design) -> Table:
    rows = [
        Row(
            (DRAWN[is_balanced], varied_name(m, kind)),
            design.imbalanced(m, is_balanced, kind),
        )
        for is_balanced in (False, True)
        for m, kind in BEYOND
    ]
    return Table(
        "beyond-imbalance",
        "Class imbalance: one class at 1 %",
        ("drawn", "variations"),
        (Column("accuracy, %", "accuracy", 2, 100), Column("recall of 9, %", "recall_9", 2, 100)),
        tuple(rows),
        "Only every hundredth training image of a 9, which the report finds hard to tell from a 4, is left; Adam 1e-3, test images. The "
        f"models that the variations come from have seen all training images, without labels: each image without a label is a 9. {KINDS_NOTE}",
    )


def _hardened(design: Design) -> Table:
    columns = [
        Column("clean, %", "accuracy_0", 2, 100),
        *(Column(f"ε = {e}, %", f"accuracy_{e}", 2, 100) for e in ("0.1", "0.2", "0.3")),
    ]
    p = design.preset
    attacks: dict[str, Measure] = {
        f"PGD, {p.attacked_images:,} images": partial(design.attacked, protocol="a"),
        f"APGD, {p.strongest_images:,} images": design.worst_case,
        f"AutoAttack, {p.autoattack_images:,} images": lambda trained: design.beside_autoattack(trained)[0],
        f"APGD, the same {p.autoattack_images:,} images": lambda trained: design.beside_autoattack(trained)[
            1
        ],
    }
    as_published = ("PGD, 100 steps", f"adversarial, {AS_PUBLISHED} by Madry et al.", "none, N = 0")
    rows = [
        Row((attack, *labels), measure(trained))
        for attack, measure in attacks.items()
        for labels, trained in design.hardened().items()
    ]
    return Table(
        "beyond-adversarial",
        "Adversarial training, with and without variations",
        ("attack", "training", "variations"),
        tuple(columns),
        (*rows, Row(as_published, published=published.MADRY)),
        "Plain: {adversarial_epochs} epochs of ordinary training, batch 128, Adam 1e-3, with dropout. Adversarial: trained on what {adversarial_steps} steps of PGD make of the images and their variations, {adversarial_updates} minibatches of 64 images, "
        "without dropout; the radius grows to 0.3 in the first 40 % of them, and the learning rate of Adam takes one cycle up to 5e-3. "
        "Attacked within ε, L-inf: PGD is (a) of table 8; APGD is our strongest attack, 100 steps on the cross-entropy, then on the images that these leave "
        f"100 steps of targeted DLR at each of the nine wrong classes; AutoAttack is the standard version of its authors' package {LIBRARY} (APGD on the cross-entropy, by "
        "targeted DLR, FAB, Square), and takes seconds an image.",
    )


def tables(design: Design) -> dict[str, Table]:
    """All tables by name, in order."""
    found = []
    for i, (title, heading, rows) in enumerate(
        (
            ("VAE and LAE by latent dimension, T = 2", "nz", _by_dimension),
            ("LAE by Langevin steps T, nz 2", "T", _by_steps),
            ("LAE without and with Metropolis-Hastings, nz 2, T = 2", "MH", _by_decision),
        )
    ):
        for number, name, columns, measure, numbers, note in (
            (1 + i, title, QUALITY, design.quality, published.AUTOENCODERS, QUALITY_NOTE),
            (4 + i, f"Classification of codes: {title}", CODES, design.codes, published.CODES, CODES_NOTE),
        ):
            cells = tuple(rows(design, measure, numbers))
            found.append(Table(f"table{number}", name, (heading, "model"), columns, cells, note))
    found.append(_classifiers(design))
    found.append(_attacked(design, "table8", "accuracy", "%", 2, 100))
    found.append(_attacked(design, "table9", "loss", "nats", 4, 1))
    found += [_few_labels(design), _imbalanced(design), _hardened(design)]
    sizes = {k: f"{v:,}" if isinstance(v, int) else v for k, v in dataclasses.asdict(design.preset).items()}
    found = [dataclasses.replace(t, note=t.note.replace("\n", " ").format(**sizes)) for t in found]
    return {t.name: t for t in sorted(found, key=lambda t: (t.is_beyond, t.name))}
