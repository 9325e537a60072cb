"""Where results are from: code and kernels count for what is kept, and every commit that had a part is named."""

import dataclasses
import re

import pytest
import torch

from lae_fast import provenance
from lae_fast.experiments import __main__ as cli
from lae_fast.experiments import presets, recipes, sources
from lae_fast.experiments.recipes import Lab, Product, Recipe


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Two modules of a package of their own, one of which imports the other."""
    folder = tmp_path / "house"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "rule.py").write_text("def step(x):\n    return 2 * x\n")
    (folder / "model.py").write_text(
        "from house.rule import step\n\ndef train(x):\n    return step(step(x))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "PACKAGE", "house")
    sources.digest.cache_clear()
    yield folder
    sources.digest.cache_clear()


def digest():
    sources.digest.cache_clear()
    return sources.digest("house.model")


def test_code_counts_and_what_only_people_read_does_not(package):
    before = digest()
    (package / "rule.py").write_text(
        '"""Doubles."""\n\n\ndef step(x):  # of any type\n    """2 x."""\n    return (2 * x)\n'
    )
    assert digest() == before
    (package / "rule.py").write_text("def step(x):\n    return 3 * x\n")
    assert digest() != before
    (package / "other.py").write_text("unused = 1\n")
    assert digest() == sources.digest("house.model")


def test_imports_are_found_wherever_they_stand(package):
    (package / "model.py").write_text(
        "def train(x):\n    from house import rule\n    import house.rule as r, math\n    return r\n"
    )
    assert set(sources.imports("house.model")) == {"house.rule"}


@dataclasses.dataclass(frozen=True)
class Constant(Recipe):
    value: float

    def cost(self):
        return 1.0

    def make(self, lab):
        return Product({}, {"value": self.value})


@pytest.fixture
def lab(tmp_path):
    return Lab.open("digits", tmp_path, "cpu", tmp_path, 64, 16)


def test_a_product_is_kept_for_its_code_and_its_kernels(lab, monkeypatch):
    before = lab.path(Constant(1.0))
    monkeypatch.setattr(recipes, "SCHEMA_VERSION", recipes.SCHEMA_VERSION + 1)
    assert lab.path(Constant(1.0)) != before
    monkeypatch.undo()
    monkeypatch.setattr(sources, "digest", lambda module: "changed")
    assert lab.path(Constant(1.0)) != before
    monkeypatch.undo()
    assert lab.path(Constant(1.0)) == before


def test_a_product_says_where_it_is_from(lab, monkeypatch):
    monkeypatch.setenv("LAE_FAST_COMMIT", "abc1234")
    product = lab.get(Constant(2.0))
    assert product.provenance["commit"] == "abc1234"
    assert torch.__version__ in product.provenance["versions"]
    assert provenance.processor() in product.provenance["machine"]
    monkeypatch.setenv("LAE_FAST_COMMIT", "def5678")
    assert lab.get(Constant(2.0)).provenance["commit"] == "abc1234"  # kept: as it was made


def test_the_report_names_every_commit_that_had_a_part(tmp_path, monkeypatch):
    tiny = dataclasses.replace(
        presets.QUICK,
        n_train=128,
        n_test=32,
        nh=8,
        epochs=1,
        likelihood_images=2,
        n_temperatures=2,
        latent_epochs=1,
    )
    monkeypatch.setitem(presets.PRESETS, "quick", tiny)
    options = ["--preset", "quick", "--dataset", "digits", "--workers", "1"]
    options += ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path)]
    for table, commit in (
        ("table3", "aaa1111"),
        ("table6", "bbb2222"),
    ):  # table 6 needs the models of table 3
        monkeypatch.setenv("LAE_FAST_COMMIT", commit)
        assert cli.main([table, *options]) == 0
    (line,) = re.findall(r"^- Commit: (.*)$", (tmp_path / "report.md").read_text(), re.M)
    counts = {name: int(n) for name, n in re.findall(r"(\w+) \((\d+) of \d+\)", line)}
    assert counts.keys() == {"aaa1111", "bbb2222"}
    assert counts["aaa1111"] > counts["bbb2222"] > 0


def test_a_commit_without_a_repository_is_unknown(monkeypatch):
    monkeypatch.delenv("LAE_FAST_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "_git", lambda *_: "")
    assert provenance.commit() == "unknown"
    monkeypatch.setattr(provenance, "_git", lambda *words: "M file" if "status" in words else "1234567")
    assert provenance.commit() == "1234567 with changes"
