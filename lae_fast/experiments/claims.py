"""The report's claims (its sections 6 and 7), each with its measurements, seed by seed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lae_fast.experiments.autoencoders import TrainedAutoencoder
from lae_fast.experiments.design import (
    JUDGED,
    PGD_STEP,
    PROTOCOLS,
    VARIED,
    Design,
    training_name,
)
from lae_fast.experiments.recipes import Recipe
from lae_fast.experiments.verdicts import FLOOR, Row, Verdict, judge

PERCENT = (
    "accuracy",
    "test_accuracy",
    "recall",
    "confusion",
    "confidence",
)  # metrics shown in percentage points
EPS = (0.1, 0.2, 0.3)  # of the attacks that claims are about
Metrics = Callable[[Recipe], dict[str, float] | None]  # of a recipe; None: not run yet


class Measurement(NamedTuple):
    """The difference of a metric between two kinds of model or training: minuend minus subtrahend."""

    what: str
    minuend: tuple[Recipe, ...]  # one for each seed
    subtrahend: tuple[Recipe, ...]
    key: str  # name of the metric
    sign: int = 1  # sign of the difference if the claim is true
    margin: float = 0.0  # tolerance of the difference: "not much worse" instead of "better"
    subtrahend_key: str | None = None  # name of the subtrahend's metric; None: `key`
    excluded: str = ""  # why it is not judged, whatever it measures
    same: str = ""  # a metric in which both sides agree if they have measured the same trained model; else they are no pair

    @property
    def factor(self) -> float:
        """The factor of the differences in the report: 100 for percentage points."""
        return 100.0 if self.key.startswith(PERCENT) else 1.0

    def pairs(self, metrics: Metrics) -> dict[int, tuple[float, float]]:
        """Seed -> the metric of both sides, for the seeds for which both are known."""
        found = {}
        for seed, recipes in enumerate(zip(self.minuend, self.subtrahend, strict=True)):
            first, second = (metrics(recipe) or {} for recipe in recipes)
            a, b = first.get(self.key), second.get(self.subtrahend_key or self.key)
            if a is not None and b is not None and first.get(self.same) == second.get(self.same):
                found[seed] = a, b
        return found

    def differences(self, metrics: Metrics) -> dict[int, float]:
        """Seed -> difference."""
        return {seed: a - b for seed, (a, b) in self.pairs(metrics).items()}

    def row(self, metrics: Metrics) -> Row:
        """What can be judged; accuracies and recalls on the floor cannot."""
        pairs, is_share = self.pairs(metrics).values(), self.key.startswith(("accuracy", "recall"))
        means = map(statistics.fmean, zip(*pairs, strict=True))
        is_on_floor = is_share and max(means, default=1.0) < FLOOR
        return Row(tuple(a - b for a, b in pairs), self.sign, self.margin, self.excluded, is_on_floor)


class Claim(NamedTuple):
    section: str  # of the report; of a question beyond it, how classifiers were trained
    text: str  # the report's text, shortened
    measurements: tuple[Measurement, ...]

    def recipes(self) -> Iterator[Recipe]:
        """All recipes that are compared."""
        for m in self.measurements:
            yield from (*m.minuend, *m.subtrahend)

    def verdicts(self, metrics: Metrics) -> list[Verdict]:
        """One verdict for each measurement, corrected for all of them."""
        return judge([m.row(metrics) for m in self.measurements])


class Measure(NamedTuple):
    """A metric of models, or of classifiers on their codes."""

    of: Callable[[Design, tuple[TrainedAutoencoder, ...]], tuple[Recipe, ...]]
    what: str
    unit: str
    key: str
    better: int  # the sign of an improvement


LOSS = Measure(Design.quality, "reconstruction", "nats", "reconstruction", -1)
CODES = Measure(Design.codes, "accuracy on codes", "points", "test_accuracy", 1)


def _dimension(d: Design, m: Measure) -> Iterator[Measurement]:
    """More latent dimensions improve it."""
    models = {"VAE": d.vae} | {rule: lambda nz, rule=rule: d.lae(rule, nz) for rule in JUDGED}
    for few, many in ((2, 8), (8, 16)):
        for name, of in models.items():
            what = f"{name}: {m.what}, nz {many} - {few}, {m.unit}"
            yield Measurement(what, m.of(d, of(many)), m.of(d, of(few)), m.key, m.better)


def _decisions(d: Design, m: Measure, sign: int) -> Iterator[Measurement]:
    """Metropolis-Hastings changes it with this sign."""
    for rule in ("report's code", "Algorithm 2"):
        with_mh, without = (m.of(d, d.lae(rule, 2, mh=mh)) for mh in (True, False))
        yield Measurement(f"{rule}: {m.what}, MH - none, {m.unit}", with_mh, without, m.key, sign)


def _steps(d: Design, m: Measure, few: int, many: int, sign: int) -> Iterator[Measurement]:
    """More steps of the chain change it with this sign."""
    epochs = d.preset.epochs_longest
    for rule in JUDGED:
        more, less = (m.of(d, d.lae(rule, 2, t, epochs=epochs)) for t in (many, few))
        what = f"{rule}: {m.what}, T {many} - {few}, {epochs} epochs, {m.unit}"
        yield Measurement(what, more, less, m.key, sign)


def _better(d: Design) -> Iterator[Measurement]:
    likelihood = ("-log p(x), upper bounds, nats", "ais")
    as_reported = (('its "BCE", which is two quantities, nats', "report_bce"), ("MSE per pixel", "mse"))
    for nz in (2, 8, 16):
        vae = d.quality(d.vae(nz))
        for rule in JUDGED:
            lae = d.quality(d.lae(rule, nz))
            for what, key in (*(as_reported if rule == "report's code" else ()), likelihood):
                yield Measurement(f"nz {nz}, {rule}: {what}, LAE - VAE", lae, vae, key, -1)


def _overlap(d: Design) -> Iterator[Measurement]:
    models = {"VAE": d.vae(2)} | {rule: d.lae(rule, 2) for rule in JUDGED}
    for name, trained in models.items():
        planes, what = d.planes(trained), f"{name}: confusion of 4 and 9 - of the next pair, points"
        yield Measurement(what, planes, planes, "confusion_4_9", subtrahend_key="confusion_next")


def _scatter(d: Design) -> Iterator[Measurement]:
    vae = d.quality(d.vae(2))
    for rule in JUDGED:
        lae = d.quality(d.lae(rule, 2))
        yield Measurement(f"nz 2, {rule}: r.m.s. of codes, LAE - VAE", lae, vae, "code_rms")
        what = f"nz 2, {rule}: divergence of all codes from the prior, LAE - VAE, nats"
        yield Measurement(what, lae, vae, "aggregate_kl")


def _variations(d: Design) -> Iterator[Measurement]:
    """Accuracy with variations minus accuracy without, after the same number of epochs."""
    margin = 0.05
    for source, n in VARIED:
        epochs = d.preset.classifier_epochs[n]
        what = f"{training_name(source, n)}: accuracy with - without, {epochs} epochs, points; more than {-100 * margin:g}"
        with_them, without = d.classifiers(source, n), d.classifiers(None, 0, epochs=epochs)
        yield Measurement(what, with_them, without, "accuracy", 1, margin)


def _convergence(d: Design) -> Iterator[Measurement]:
    """Epochs with variations minus epochs without, each to the accuracy that training without them ends with."""
    for source, n in VARIED:
        epochs = d.preset.classifier_epochs[n]
        what = f"{training_name(source, n)}: epochs to the accuracy of N = 0 after {epochs}, with - without"
        yield Measurement(what, d.convergence(source, n), d.convergence(None, n), "epochs_to_goal")


def _attacked(d: Design, metric: str, unit: str, sign: int, eps: tuple[float, ...]) -> Iterator[Measurement]:
    """Each training under each protocol. Steps that go no further than the smallest ε are no attack at a higher one."""
    for (protocol, (n_steps, _)), (source, n) in itertools.product(PROTOCOLS.items(), VARIED):
        reach, excluded = n_steps * PGD_STEP, ""
        if reach <= EPS[0] < min(eps):
            excluded = f"no attack of a higher ε: {n_steps} steps go no further than {reach:g}"
        plain = d.classifiers(None, 0, epochs=d.preset.classifier_epochs[n])
        with_them, without = (d.attacked(c, protocol) for c in (d.classifiers(source, n), plain))
        for radius in eps[-1:] if excluded else eps:
            name = f"{training_name(source, n)}, ε {radius:g}, attack {protocol} ({n_steps} steps)"
            what = f"{name}: {metric} with - without, {unit}"
            yield Measurement(what, with_them, without, f"{metric}_{radius:g}", sign, excluded=excluded)


def _interpolation(d: Design) -> Iterator[Measurement]:
    vae = d.vae(2)
    for rule in JUDGED:
        lae = d.lae(rule, 2)
        what = f"across one s.d. of the codes, {rule}: change from image to image, LAE - VAE"
        yield Measurement(what, d.planes(lae), d.planes(vae), "roughness")
        what = (
            f"across one s.d. of the codes, {rule}: how sure a classifier is of the images, LAE - VAE, points"
        )
        yield Measurement(what, d.recognised(lae), d.recognised(vae), "confidence", -1)


def claims(d: Design) -> list[Claim]:
    """All claims, in the report's order."""
    robust = "Training with variations is more robust"
    listed = (
        ("6.1", "A larger latent dimension lowers the reconstruction loss", _dimension(d, LOSS)),
        ("6.1, 7", "The LAE consistently outperforms the VAE", _better(d)),
        ("6.1", "More Langevin steps first lower the reconstruction loss", _steps(d, LOSS, 2, 10, -1)),
        ("6.1", "Still more raise it", _steps(d, LOSS, 10, 50, 1)),
        ("6.1", "Metropolis-Hastings makes the loss worse, by very little", _decisions(d, LOSS, 1)),
        ("6.2", "4 and 9 overlap most in the latent plane", _overlap(d)),
        ("6.2, 7", "The VAE's latent space is more constrained, the LAE's scattered", _scatter(d)),
        ("6.3", "A larger latent dimension improves representations", _dimension(d, CODES)),
        ("6.3", "More Langevin steps first improve representations", _steps(d, CODES, 2, 10, 1)),
        ("6.3", "Still more worsen them", _steps(d, CODES, 10, 50, -1)),
        ("6.3", "Metropolis-Hastings improves representations", _decisions(d, CODES, 1)),
        ("6.4", "Variations do not lower the accuracy by much", _variations(d)),
        ("6.4", "With them, training needs more epochs", _convergence(d)),
        ("6.5, 7", f"{robust} than without (abstract)", _attacked(d, "accuracy", "points", 1, EPS[:1])),
        ("6.5, 7", f"{robust} at higher ε", _attacked(d, "accuracy", "points", 1, EPS[1:])),
        ("6.5", "It lowers the loss under attack at higher ε", _attacked(d, "loss", "nats", -1, EPS[1:])),
        ("6.6", "The VAE interpolates better and more smoothly", _interpolation(d)),
    )
    return [Claim(section, text, tuple(measurements)) for section, text, measurements in listed]
