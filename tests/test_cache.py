"""The experiments' cache: damaged products are named, workers end with the command, results come before what is printed."""

import dataclasses
import multiprocessing
import random
import time
from pathlib import Path

import pytest
from test_experiments import TINY, Step, open_lab

from lae_fast import checkpoint
from lae_fast.experiments import __main__ as cli
from lae_fast.experiments import presets
from lae_fast.experiments.recipes import Product, Recipe
from lae_fast.experiments.runner import run


@dataclasses.dataclass(frozen=True)
class Sleep(Recipe):
    """Tells that it runs, and then takes longer than anybody waits."""

    told: str

    def cost(self):
        return 1.0

    def make(self, lab):
        open(self.told, "w").close()
        time.sleep(600)
        return Product({}, {})


@dataclasses.dataclass(frozen=True)
class Opening:
    """`open_lab` of a folder, for other processes."""

    folder: str

    def __call__(self):
        return open_lab(Path(self.folder))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return open_lab(tmp_path_factory.mktemp("lab"))


BAD_FACTS = [
    {"metrics": None},
    {"metrics": [1]},
    {"metrics": {"seconds": "1"}},
    {"metrics": {"number": 1.0}},
    {"metrics": {"seconds": None}},
    {"provenance": None},
    {"provenance": {}},
    {"provenance": {"commit": 1, "machine": "m", "versions": "v"}},
    {"provenance": {"machine": "m", "versions": "v"}},
]


@pytest.mark.parametrize("bad", BAD_FACTS)
def test_a_product_of_the_wrong_form_is_named_with_its_cure(bad, lab):
    recipe = Step(1)
    lab.get(recipe)
    path = lab.path(recipe)
    weights, facts = checkpoint.load_weights(path)
    try:
        checkpoint.save_weights(path, weights, facts | bad)
        with pytest.raises(
            checkpoint.CheckpointError, match=r"is damaged: .*Delete it to have it made anew"
        ) as caught:
            lab.get(recipe)
        assert str(path) in str(caught.value)
    finally:
        path.unlink()


@pytest.mark.slow
def test_a_damaged_product_is_named_by_the_command_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(presets.PRESETS, "quick", dataclasses.replace(TINY, n_train=128, n_test=32, epochs=1))
    arguments = ["figure3", "--preset", "quick", "--dataset", "digits", "--device", "cpu", "--workers", "1",
                 "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]  # fmt: skip
    assert cli.main(arguments) == 0
    products = sorted((tmp_path / "cache").iterdir())
    draw = random.Random(0)
    for _ in range(12):
        path = draw.choice(products)
        whole = path.read_bytes()
        i = draw.randrange(len(whole))
        path.write_bytes(draw.choice((whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :], whole[:i], b"")))
        capsys.readouterr()
        code = cli.main(arguments)
        err = capsys.readouterr().err
        assert code == 2
        assert err.startswith(f"error: {path}")
        assert err.count("\n") == 1
        path.write_bytes(whole)
    assert cli.main(arguments) == 0


@pytest.mark.slow
def test_a_signal_ends_the_workers_too(tmp_path):
    recipes = [Sleep(str(tmp_path / name)) for name in ("a", "b")]
    running = run([Step(1), *recipes], Opening(str(tmp_path)), 2)
    assert next(running) == (Step(1), None)
    while not any(tmp_path.glob("[ab]")):
        time.sleep(0.1)
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt)
    assert not multiprocessing.active_children()
