"""Verdicts on claims: the test, its correction, and what is not judged."""

import dataclasses
import math
import re

import pytest
from scipy import stats
from test_experiments import PLAIN, Step, open_lab

from lae_fast.experiments import render
from lae_fast.experiments.claims import Claim, Measurement, claims
from lae_fast.experiments.classifiers import Attacked
from lae_fast.experiments.design import PGD_STEP, PROTOCOLS, Design
from lae_fast.experiments.presets import CPU
from lae_fast.experiments.questions import questions
from lae_fast.experiments.verdicts import FAILS, HOLDS, NOISE, Row, holm, judge, p_value

DESIGN = Design(CPU)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize(
    ("differences", "sign", "margin", "verdict"),
    [
        ((1.0, 1.1, 0.9), 1, 0.0, HOLDS),
        ((1.0, 1.1, 0.9), -1, 0.0, FAILS),
        ((-1.0, -1.1, -0.9), -1, 0.0, HOLDS),
        ((1.0, -1.1, 0.4), 1, 0.0, NOISE),
        ((1.0, 3.0, 5.0), 1, 0.0, NOISE),  # beyond two standard errors, and yet p = 0.12
        ((2.0, 3.0, 4.0), 1, 0.0, HOLDS),  # p = 0.035
        ((-0.01, -0.02, -0.015), 1, 0.05, HOLDS),  # not lower by more than 0.05
        ((-0.08, -0.09, -0.1), 1, 0.05, FAILS),
        ((0.0, 0.0, 0.0), 1, 0.0, "not judged: the same difference at each seed"),
        ((1.0, 1.0, 1.0), 1, 0.02, "not judged: the same difference at each seed"),
        ((0.3 - 0.2, 0.2 - 0.1, 0.1), 1, 0.0, "not judged: the same difference at each seed"),
        ((1.0, 1.0), 1, 0.0, "not judged: fewer than 3 seeds"),
        ((), 1, 0.0, "not judged: fewer than 3 seeds"),
        ((1.0, math.nan, 1.0), 1, 0.0, "not judged: not finite"),
        ((1.0, math.inf, 1.0), 1, 0.0, "not judged: not finite"),
    ],
)
def test_a_row_alone(differences, sign, margin, verdict):
    (found,) = judge([Row(differences, sign, margin)])
    assert found.text == verdict
    assert found.p == found.corrected
    assert (found.p is None) == verdict.startswith("not judged")


def test_p_is_that_of_the_paired_t_test():
    a, b = (1.2, 0.7, 3.1, 2.2, 1.9), (0.4, 0.9, 1.3, 1.0, 2.0)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert p_value(differences) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)
    assert p_value(differences, -0.5) == pytest.approx(stats.ttest_1samp(differences, 0.5).pvalue, rel=1e-12)
    assert p_value((2.0, 3.0, 4.0)) == pytest.approx(1 - math.sqrt(27 / 29), rel=1e-12)  # t^2 = 27, by hand


def test_holm_s_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_row_holds_alone_and_not_among_many():
    row = Row((2.0, 3.0, 4.0))
    noise = Row((1.0, -1.1, 0.4))
    assert [v.text for v in judge([row])] == [HOLDS]
    assert [v.text for v in judge([row, noise])] == [NOISE, NOISE]
    kept = judge([row, row._replace(excluded="seen above"), Row(())])  # rows that are not judged do not count
    assert [v.text for v in kept] == [HOLDS, "not judged: seen above", "not judged: fewer than 3 seeds"]


def test_rows_that_are_not_judged_for_what_they_measured_count_in_the_correction():
    """Else the judged ones would be chosen by their outcome."""
    row = Row((2.0, 3.0, 4.0))  # p = 0.035
    for other in (Row((0.1, 0.2, 0.1), is_on_floor=True), Row((0.0,) * 3), Row((1.0, math.inf, 1.0))):
        found, unjudged = judge([row, other])
        assert unjudged.text.startswith("not judged")
        assert (found.text, found.corrected) == (NOISE, 2 * found.p)


def test_differences_are_taken_seed_by_seed():
    steps = tuple(Step(i) for i in range(6))
    values = {step: {"a": step.number**2, "b": 1.0} for step in steps}
    measurement = Measurement("", steps[3:], steps[:3], "a")
    assert measurement.differences(values.get) == {0: 9, 1: 15, 2: 21}
    assert measurement._replace(subtrahend_key="b").differences(values.get) == {0: 8, 1: 15, 2: 24}
    del values[steps[4]]
    assert measurement.differences(values.get) == {0: 9, 2: 21}


def test_attacks_of_one_classifier_that_was_trained_twice_are_no_pair():
    """Trainings on two processors differ in their last digits, and an attack then by some images."""
    steps = tuple(Step(i) for i in range(6))
    values = {step: {"accuracy_0.3": 0.8 + step.number / 100, "loss": step.number % 3} for step in steps}
    found = Measurement("", steps[3:], steps[:3], "accuracy_0.3", same="loss")
    assert found.differences(values.get).keys() == {0, 1, 2}
    values[steps[4]]["loss"] += 1e-9
    assert found.differences(values.get).keys() == {0, 2}
    claims = questions(DESIGN)
    asked = [m for c in claims for m in c.measurements if "under AutoAttack" in m.what]
    assert asked
    assert all(m.same == "loss" for m in asked)


def lines(claim, metrics):
    found = [line for line in render.claims([claim], metrics) if "---" not in line][1:]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in found]


@pytest.mark.parametrize("key", ["accuracy_0.3", "recall_9"])
def test_accuracies_on_the_floor_are_not_judged(key):
    steps = tuple(Step(i) for i in range(6))
    metrics = {s: {key: 0.001 + 0.002 * (s.number < 3) + 1e-5 * s.number**2} for s in steps}
    measurement = Measurement("ε 0.3", steps[:3], steps[3:], key)
    ((*_, seeds, p, corrected, verdict),) = lines(Claim("", "", (measurement,)), metrics.get)
    assert (seeds, p, corrected) == ("3", "", "")
    assert verdict == "not judged: on the floor, both below 1%"
    for step in steps[:3]:
        metrics[step][key] += 0.01
    assert lines(Claim("", "", (measurement,)), metrics.get)[0][-1] == HOLDS


def test_each_line_has_its_p_values():
    steps = tuple(Step(i) for i in range(12))
    values = dict(zip(steps, (2, 3, 4, 1, -1.1, 0.4, *[0] * 6), strict=True))
    pairs = [Measurement("", steps[i : i + 3], steps[6:9], "a") for i in (0, 3)]
    unknown = Measurement("", steps[9:], steps[6:9], "b")
    found = lines(Claim("", "", (*pairs, unknown)), lambda step: {"a": values[step]})
    assert found[0][3:] == ["+3.0 ± 1.0", "3", "0.035", "0.070", NOISE]
    assert found[1][-1] == NOISE
    assert found[2][3:] == ["", "", "", "", render.NOT_YET]


def test_a_claim_of_which_nothing_has_run_takes_one_line():
    steps = tuple(Step(i) for i in range(6))
    pair = Measurement("", steps[:3], steps[3:], "a")
    assert lines(Claim("6.1", "it helps", (pair, pair)), lambda step: None) == [
        ["6.1", "it helps", "", "", "", "", "", render.NOT_YET]
    ]


def test_every_training_is_judged_under_every_attack_that_is_another_one():
    by_text = {claim.text: claim.measurements for claim in claims(DESIGN)}
    near, far = (by_text[f"Training with variations is more robust {t}"] for t in ("than without (abstract)", "at higher ε"))  # fmt: skip
    trainings = {f"{model}, N = {n}" for model in ("LAE", "VAE") for n in (2, 5)}
    for rows, radii in ((near, ("0.1",)), (far, ("0.2", "0.3"))):
        judged = {
            (m.what[:10], *re.search(r"ε ([\d.]+), attack (\w)", m.what).groups())
            for m in rows
            if not m.excluded
        }
        protocols = [p for p, (n, _) in PROTOCOLS.items() if n * PGD_STEP > 0.1 or radii == ("0.1",)]
        assert judged == {(t, eps, p) for t in trainings for eps in radii for p in protocols}
    again = [m for m in far if m.excluded]
    assert {m.what[:10] for m in again} == trainings
    assert all("attack c" in m.what and "no further than 0.03" in m.excluded for m in again)


def test_attacks_that_are_judged_once_are_the_same_attack(lab):
    """What `excluded` says: three steps of 0.01 do the same to images within 0.1, 0.2 and 0.3."""
    metrics = lab.get(Attacked(PLAIN, 3, False, n_images=8)).metrics
    assert metrics["loss_0.1"] == metrics["loss_0.2"] == metrics["loss_0.3"] != metrics["loss_0.01"]


def test_training_without_and_with_variations_are_compared_over_the_same_epochs():
    (claim,) = (c for c in claims(DESIGN) if c.text == "With them, training needs more epochs")
    assert len(claim.measurements) == 4
    for m in claim.measurements:
        for with_them, without in zip(m.minuend, m.subtrahend, strict=True):
            assert with_them.goal == without.goal == without.classifier
            assert with_them.classifier.n
            assert with_them.classifier.epochs == with_them.goal.epochs
            assert with_them.classifier == dataclasses.replace(
                with_them.goal, n=with_them.classifier.n, autoencoder=with_them.classifier.autoencoder
            )
