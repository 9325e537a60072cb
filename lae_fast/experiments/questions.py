"""What is asked beyond the report, of variations and of robustness, and judged as its claims are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from lae_fast.experiments.claims import EPS, Claim, Measurement
from lae_fast.experiments.classifiers import TrainedClassifier
from lae_fast.experiments.design import (
    ADVERSARIAL,
    BEYOND,
    BEYOND_FEW,
    DRAWN,
    FEW,
    M2,
    NAMES,
    RARE,
    Design,
    varied_name,
)

Trained = Callable[..., tuple[TrainedClassifier, ...]]  # `model` and `variations` -> a recipe for each seed
Kinds = Sequence[tuple[str | None, str]]  # sources, and what they draw; the first draws nothing
CONTROL = "affine"  # the best that knows no model


def _asked(
    training: str, where: str, trained: Trained, metric: str, key: str, kinds: Kinds = BEYOND
) -> Iterator[Claim]:
    """Whether variations help, each beside none; and whether those of a model help more than the best control."""
    none, control = (trained(model=None, variations=kind) for kind in ("report", CONTROL))
    helping, better = [], []
    for model, kind in kinds[1:]:
        recipes, name = trained(model=model, variations=kind), f"{varied_name(model, kind)}: {metric}"
        helping.append(Measurement(f"{name}, with - without, points", recipes, none, key))
        if model is not None:
            better.append(Measurement(f"{name}, minus {CONTROL}, points", recipes, control, key))
    yield Claim(training, f"{where}: variations help", tuple(helping))
    yield Claim(training, f"{where}: those of a model help more than {CONTROL}", tuple(better))


def _decoded_or_real(d: Design) -> Iterator[Measurement]:
    """Images that a model decodes from new codes of a class, beside real ones of which it tells the class."""
    for k, model in itertools.product(FEW, ("lae", M2)):
        decoded, real = (d.few_labels(model, k, f"{kind}+affine") for kind in ("new codes", "found"))
        what = f"{k} images a class, {NAMES[model]}: accuracy, decoded - real, points"
        yield Measurement(what, decoded, real, "accuracy")


def _on_top(d: Design) -> Iterator[Measurement]:
    """Adversarial training with variations minus without, under our strongest attack."""
    without, *varied = [(v, c) for (training, v), c in d.hardened().items() if training == ADVERSARIAL]
    for (variations, with_them), radius in itertools.product(varied, EPS):
        what = f"{variations}, ε {radius:g}, APGD: accuracy with - without, points"
        yield Measurement(what, d.worst_case(with_them), d.worst_case(without[1]), f"accuracy_{radius:g}")


def _beside_autoattack(d: Design) -> Iterator[Measurement]:
    margin = 0.02
    for (labels, trained), radius in itertools.product(d.hardened().items(), EPS):
        what = f"{', '.join(labels)}, ε {radius:g}: accuracy under AutoAttack - under APGD, points; more than {-100 * margin:g}"
        sides = d.beside_autoattack(trained)
        yield Measurement(
            what, *sides, f"accuracy_{radius:g}", 1, margin, same="loss"
        )  # the classifier's own


def questions(d: Design) -> list[Claim]:
    """All questions, in the order of the tables."""
    found: list[Claim] = []
    for k in FEW:
        trained: Trained = partial(d.few_labels, per_class=k)
        found += _asked("few labels", f"{k} images a class", trained, "accuracy", "accuracy", BEYOND_FEW)
    text = "Images decoded from new codes help more than real ones without labels"
    found.append(Claim("few labels", text, tuple(_decoded_or_real(d))))
    for is_balanced, drawn in DRAWN.items():
        trained = partial(d.imbalanced, is_balanced=is_balanced)
        for metric, key in ((f"recall of {RARE}", f"recall_{RARE}"), ("accuracy", "accuracy")):
            found += _asked(
                "class imbalance", f"{metric}, {RARE} at 1 %, drawn {drawn}", trained, metric, key
            )
    found.append(Claim("adversarial", "Variations make adversarial training more robust", tuple(_on_top(d))))
    text = "Our strongest attack finds what AutoAttack finds"
    return [*found, Claim("all", text, tuple(_beside_autoattack(d)))]
