"""Where results are from: code and kernels count for what is kept, and every commit that had a part is named."""

import dataclasses
import importlib
import platform
import re
import subprocess
import sys

import pytest
import torch

from lae_fast import provenance
from lae_fast.experiments import __main__ as cli
from lae_fast.experiments import presets, recipes, sources
from lae_fast.experiments.recipes import Lab, Product, Recipe
from lae_fast.ops import library

# Models that have hardly learned, and few temperatures.
pytestmark = pytest.mark.filterwarnings("ignore:the weights of .* images have collapsed")


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
    for name in [m for m in sys.modules if m.split(".")[0] == "house"]:  # another test's
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    monkeypatch.setattr(sources, "PACKAGE", "house")
    sources.digest.cache_clear()
    yield folder
    sources.digest.cache_clear()
    sources._text.cache_clear()


def digest():
    sources.digest.cache_clear()
    sources._text.cache_clear()
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
    for line in (
        "import importlib; r = importlib.import_module('house.rule')",
        "r = __import__('house.rule')",
        "import house.rule",
    ):
        sources._text.cache_clear()
        (package / "model.py").write_text(line)
        assert set(sources.imports("house.model")) == {"house.rule"}
    sources._text.cache_clear()
    (package / "__init__.py").write_text("from house.rule import step\n")
    (package / "model.py").write_text(
        "from house import step\n"
    )  # a name of the package itself: all that it imports
    before = digest()
    (package / "rule.py").write_text("def step(x):\n    return 5 * x\n")
    assert digest() != before
    (package / "model.py").write_text("from .rule import step\n")
    with pytest.raises(ValueError, match="line 1 imports relative to its own file; expected a full name"):
        digest()


def test_other_packages_are_not_touched(package, tmp_path):
    """Looking for a module within a package imports that package, and torchvision may not even import."""
    broken = tmp_path / "broken_package"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('does not fit this torch')\n")
    (package / "model.py").write_text("def load():\n    from broken_package.datasets import MNIST\n")
    assert digest()


def test_what_runs_is_what_was_read_when_it_began(package):
    """Files that change under a running process do not change its keys."""
    before = digest()
    (package / "rule.py").write_text("def step(x):\n    return 7 * x\n")
    sources.digest.cache_clear()
    assert sources.digest("house.model") == before
    assert digest() != before


def test_every_kind_of_recipe_depends_on_the_kernels_and_not_on_its_label():
    for module in ("autoencoders", "classifiers", "planes"):
        closure = sources._closure(f"lae_fast.experiments.{module}")
        assert {"lae_fast.ops.langevin", "lae_fast.models.lae", "lae_fast.training.step"} <= set(closure)
        assert not sources.LABELS & set(closure)


@dataclasses.dataclass(frozen=True)
class Constant(Recipe):
    value: float

    def cost(self):
        return 1.0

    def make(self, lab):
        return Product({}, {"value": self.value})


def open_lab(folder):
    return Lab.open("digits", folder, "cpu", folder, 64, 16)


def test_a_product_is_kept_for_its_code_and_its_kernels(tmp_path, monkeypatch):
    lab = open_lab(tmp_path)
    before = lab.path(Constant(1.0))
    monkeypatch.setattr(recipes, "SCHEMA_VERSION", recipes.SCHEMA_VERSION + 1)
    assert lab.path(Constant(1.0)) != before or not library.is_compiled(lab.device)
    monkeypatch.undo()
    monkeypatch.setattr(sources, "digest", lambda module: "changed")
    assert lab.path(Constant(1.0)) != before
    monkeypatch.undo()
    other = not library.is_compiled(lab.device)
    monkeypatch.setattr(library, "is_compiled", lambda device: other)
    assert lab.path(Constant(1.0)) != before
    monkeypatch.undo()
    assert lab.path(Constant(1.0)) == before


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            "processor : 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: A CPU\n\nprocessor : 1\nmodel\t: 1\n",
            "A CPU (family 25, model 17)",
        ),
        ("model name : A CPU\n", "A CPU"),
        ("processor : 0\nCPU part : 0xd0c\n", platform.machine()),
    ],
)
def test_processors_that_are_called_alike_are_told_apart(cpuinfo, expected, monkeypatch):
    monkeypatch.setattr(provenance.Path, "read_text", lambda *_, **__: cpuinfo)
    assert provenance.processor() == expected


def test_a_product_says_where_it_is_from(tmp_path, monkeypatch):
    monkeypatch.setenv("LAE_FAST_COMMIT", "abc1234")
    product = open_lab(tmp_path).get(Constant(2.0))
    assert product.provenance["commit"] == "abc1234"
    assert torch.__version__ in product.provenance["versions"]
    assert provenance.processor() in product.provenance["machine"]
    assert product.provenance["kernels"]
    monkeypatch.setenv("LAE_FAST_COMMIT", "def5678")
    assert open_lab(tmp_path).get(Constant(2.0)).provenance["commit"] == "abc1234"  # kept: as it was made


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


def test_results_are_no_changes(tmp_path):
    """What measurements write while they run does not make them those of other code."""

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    for name in ("lae_fast/_version.py", "results/report.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    (tmp_path / "results/report.md").write_text("new")
    (tmp_path / "results/report.csv").write_text("new")
    assert re.fullmatch("[0-9a-f]{7,}", provenance.commit(tmp_path))
    (tmp_path / "lae_fast/_version.py").write_text("new")
    assert provenance.commit(tmp_path).endswith(" with changes")


def test_a_commit_without_a_repository_is_unknown(monkeypatch):
    monkeypatch.delenv("LAE_FAST_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "_git", lambda *_: "")
    assert provenance.commit() == "unknown"
    monkeypatch.setattr(provenance, "_git", lambda *words: "M file" if "status" in words else "1234567")
    assert provenance.commit() == "1234567 with changes"


def test_a_repository_around_the_package_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.delenv("LAE_FAST_COMMIT", raising=False)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        if subprocess.run([*git, *words], capture_output=True).returncode:
            pytest.skip("no git here")
    inner = tmp_path / "env" / "site-packages"
    inner.mkdir(parents=True)
    assert provenance.commit(inner) == "unknown"
