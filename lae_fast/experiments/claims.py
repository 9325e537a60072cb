"""The report's claims (its sections 6 and 7), each with its measurements, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lae_fast.experiments.design import PROTOCOLS, Design
from lae_fast.experiments.recipes import Recipe

HOLDS, FAILS, NOISE = "holds", "does not hold", "within noise"
LEAST_SEEDS = 3
PERCENT = ("accuracy", "test_accuracy", "confusion", "confidence")  # metrics shown in percentage points


class Measurement(NamedTuple):
    """The difference of a metric between two kinds of model or training: minuend minus subtrahend."""

    what: str
    minuend: tuple[Recipe, ...]  # one for each seed
    subtrahend: tuple[Recipe, ...]
    key: str  # name of the metric
    sign: int = 1  # sign of the difference if the claim is true
    margin: float = 0.0  # tolerance of the difference: "not much worse" instead of "better"
    subtrahend_key: str | None = None  # name of the subtrahend's metric; None: `key`

    @property
    def factor(self) -> float:
        """The factor of the differences in the report: 100 for percentage points."""
        return 100.0 if self.key.startswith(PERCENT) else 1.0

    def differences(self, metrics: Callable[[Recipe], dict[str, float]]) -> tuple[float, ...]:
        """One difference for each seed that both sides have; `metrics` returns the metrics of a recipe."""
        pairs = zip(self.minuend, self.subtrahend, strict=False)
        return tuple(metrics(a)[self.key] - metrics(b)[self.subtrahend_key or self.key] for a, b in pairs)


class Claim(NamedTuple):
    section: str
    text: str  # the report's text, shortened
    measurements: tuple[Measurement, ...]


def judge(differences: tuple[float, ...], sign: int = 1, margin: float = 0.0) -> str:
    """The verdict: the mean is beyond two standard errors in the claimed direction, in the other, or in neither.

    A verdict needs at least 3 seeds. With 3 seeds, noise alone passes for a finding in one of the two directions in
    about one case of five (Student's t, 2 degrees of freedom, beyond 2).
    """
    if len(differences) < LEAST_SEEDS:
        return f"not judged: {len(differences)} of {LEAST_SEEDS} seeds"
    if not all(map(math.isfinite, differences)):
        return "not judged: not finite"
    towards = [sign * d + margin for d in differences]
    middle, error = statistics.mean(towards), statistics.stdev(towards) / math.sqrt(len(towards))
    if abs(middle) <= 2 * error:
        return NOISE
    return HOLDS if middle > 0 else FAILS


RULES = {"report's code": "report's code", "adapted": "adapted step"}  # name here -> name in the design


def _dimension(d: Design) -> Iterator[Measurement]:
    models = {"VAE": d.vae} | {name: lambda nz, rule=rule: d.lae(rule, nz) for name, rule in RULES.items()}
    for few, many in ((2, 8), (8, 16)):
        for name, of in models.items():
            what = f"{name}: reconstruction, nz {many} - {few}, nats"
            yield Measurement(what, d.quality(of(many)), d.quality(of(few)), "reconstruction", -1)


def _better(d: Design) -> Iterator[Measurement]:
    for nz in (2, 8, 16):
        vae = d.quality(d.vae(nz))
        report, adapted = (d.quality(d.lae(rule, nz)) for rule in RULES.values())
        for what, lae, key in (
            ('report\'s code: its "BCE", which is two quantities, nats', report, "report_bce"),
            ("report's code: MSE per pixel", report, "mse"),
            ("report's code: -log p(x), nats", report, "ais"),
            ("adapted: -log p(x), nats", adapted, "ais"),
        ):
            yield Measurement(f"nz {nz}, {what}, LAE - VAE", lae, vae, key, -1)


def _decisions(d: Design) -> Iterator[Measurement]:
    for rule in ("report's code", "fixed step"):
        with_mh, without = (d.quality(d.lae(rule, 2, mh=mh)) for mh in (True, False))
        yield Measurement(f"{rule}: reconstruction, MH - none, nats", with_mh, without, "reconstruction")


def _steps(d: Design, few: int, many: int, sign: int) -> Iterator[Measurement]:
    epochs = d.preset.epochs_longest
    for name, rule in RULES.items():
        more, less = (d.quality(d.lae(rule, 2, t, epochs=epochs)) for t in (many, few))
        what = f"{name}: reconstruction, T {many} - {few}, {epochs} epochs, nats"
        yield Measurement(what, more, less, "reconstruction", sign)


def _steps_of_codes(d: Design, few: int, many: int, sign: int) -> Iterator[Measurement]:
    epochs = d.preset.epochs_longest
    for name, rule in RULES.items():
        more, less = (d.codes(d.lae(rule, 2, t, epochs=epochs)) for t in (many, few))
        what = f"{name}: accuracy on codes, T {many} - {few}, {epochs} epochs, points"
        yield Measurement(what, more, less, "test_accuracy", sign)


def _overlap(d: Design) -> Iterator[Measurement]:
    models = {"VAE": d.vae(2)} | {name: d.lae(rule, 2) for name, rule in RULES.items()}
    for name, trained in models.items():
        planes, what = d.planes(trained), f"{name}: confusion of 4 and 9 - of the next pair, points"
        yield Measurement(what, planes, planes, "confusion_4_9", subtrahend_key="confusion_next")


def _scatter(d: Design) -> Iterator[Measurement]:
    vae = d.quality(d.vae(2))
    for name, rule in RULES.items():
        lae = d.quality(d.lae(rule, 2))
        yield Measurement(f"nz 2, {name}: r.m.s. of codes, LAE - VAE", lae, vae, "code_rms")
        what = f"nz 2, {name}: divergence of all codes from the prior, LAE - VAE, nats"
        yield Measurement(what, lae, vae, "aggregate_kl")


def _dimension_of_codes(d: Design) -> Iterator[Measurement]:
    models = {"VAE": d.vae} | {name: lambda nz, rule=rule: d.lae(rule, nz) for name, rule in RULES.items()}
    for few, many in ((2, 8), (8, 16)):
        for name, of in models.items():
            what = f"{name}: accuracy on codes, nz {many} - {few}, points"
            yield Measurement(what, d.codes(of(many)), d.codes(of(few)), "test_accuracy")


def _decisions_on_codes(d: Design) -> Iterator[Measurement]:
    for rule in ("report's code", "fixed step"):
        with_mh, without = (d.codes(d.lae(rule, 2, mh=mh)) for mh in (True, False))
        yield Measurement(f"{rule}: accuracy on codes, MH - none, points", with_mh, without, "test_accuracy")


def _variations(d: Design, sign: int, margin: float, counts: tuple[int, ...]) -> Iterator[Measurement]:
    """Accuracy with variations minus accuracy without, after the same number of epochs."""
    epochs = d.preset.classifier_epochs
    for n in counts:
        plain = d.classifiers(None, 0, epochs=epochs[n])
        for model in ("lae", "vae"):
            what = f"{model.upper()}, N = {n}: accuracy with - without, {epochs[n]} epochs, points"
            if margin:
                what += f"; more than {-100 * margin:g}"
            yield Measurement(what, d.classifiers(model, n), plain, "accuracy", sign, margin)


def _attacked(d: Design, metric: str, unit: str, sign: int, eps: tuple[float, ...]) -> Iterator[Measurement]:
    """N = 2 under each protocol, N = 5 under the strongest.

    Protocol c takes only the last eps: its 3 steps reach the same images at every eps beyond 0.03.
    """
    for protocol, n, radii in (("a", 2, eps), ("a", 5, eps), ("b", 2, eps), ("c", 2, eps[-1:])):
        n_steps, _ = PROTOCOLS[protocol]
        plain = d.classifiers(None, 0, epochs=d.preset.classifier_epochs[n])
        for radius in radii:
            for model in ("lae", "vae"):
                what = f"{model.upper()}, N = {n}, ε {radius}, attack {protocol} ({n_steps} steps): {metric} with - without, {unit}"
                with_them, without = (d.attacked(c, protocol) for c in (d.classifiers(model, n), plain))
                yield Measurement(what, with_them, without, f"{metric}_{radius}", sign)


def _interpolation(d: Design) -> Iterator[Measurement]:
    vae = d.vae(2)
    for name, rule in RULES.items():
        lae = d.lae(rule, 2)
        what = f"figure 5, {name}: change from image to image, LAE - VAE"
        yield Measurement(what, d.planes(lae), d.planes(vae), "roughness")
        what = f"figure 5, {name}: how sure a classifier is of the images, LAE - VAE, points"
        yield Measurement(what, d.recognised(lae), d.recognised(vae), "confidence", -1)


def claims(d: Design) -> list[Claim]:
    """All claims, in the report's order."""
    robust = "Training with variations is more robust"
    listed = (
        ("6.1", "A larger latent dimension lowers the reconstruction loss", _dimension(d)),
        ("6.1, 7", "The LAE consistently outperforms the VAE", _better(d)),
        ("6.1", "More Langevin steps first lower the reconstruction loss", _steps(d, 2, 10, -1)),
        ("6.1", "Still more raise it", _steps(d, 10, 50, 1)),
        ("6.1", "Metropolis-Hastings makes the loss worse, by very little", _decisions(d)),
        ("6.2", "4 and 9 overlap most in the latent plane", _overlap(d)),
        ("6.2, 7", "The VAE's latent space is more constrained, the LAE's scattered", _scatter(d)),
        ("6.3", "A larger latent dimension improves representations", _dimension_of_codes(d)),
        ("6.3", "More Langevin steps first improve representations", _steps_of_codes(d, 2, 10, 1)),
        ("6.3", "Still more worsen them", _steps_of_codes(d, 10, 50, -1)),
        ("6.3", "Metropolis-Hastings improves representations", _decisions_on_codes(d)),
        ("6.4", "Variations do not lower the accuracy by much", _variations(d, 1, 0.05, (2, 5))),
        ("6.4", "With them, training needs more epochs", _variations(d, -1, 0.0, (2,))),
        ("6.5, 7", f"{robust} than without (abstract)", _attacked(d, "accuracy", "points", 1, (0.1,))),
        ("6.5, 7", f"{robust} at higher ε", _attacked(d, "accuracy", "points", 1, (0.2, 0.3))),
        ("6.5", "It lowers the loss under attack at higher ε", _attacked(d, "loss", "nats", -1, (0.2, 0.3))),
        ("6.6", "The VAE interpolates better and more smoothly", _interpolation(d)),
    )
    return [Claim(section, text, tuple(measurements)) for section, text, measurements in listed]
