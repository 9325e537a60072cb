"""The examples in public docstrings run, and show what they say they show."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import lae_fast

ROOMS = ("models", "sampling", "evaluation", "training", "data", "attacks", "ops", "view", "hub", "sharing")

# Public functions and classes without an example, as they leave nothing to see or need the Hub. One that has an example is wrong here, too.
WITHOUT = "training.TrainingError training.keep_freed_memory view.main hub.push_to_hub hub.save_pretrained"


def public_names():
    """The public functions and classes, by the shortest name that leads to them from `lae_fast`."""
    found = {}
    for room in ("", *ROOMS):
        module = importlib.import_module(f"lae_fast.{room}" if room else "lae_fast")
        own = [
            name
            for name, thing in vars(module).items()
            if getattr(thing, "__module__", "") == module.__name__
        ]
        for name in getattr(module, "__all__", own):
            thing = getattr(module, name)
            is_ours = inspect.isfunction(thing) or inspect.isclass(thing)
            if is_ours and not name.startswith("_") and thing not in found.values():
                found[f"{room}.{name}" if room else name] = thing
    return found


NAMES = public_names()


def examples_of(name):
    """The examples in the docstring of a function, or in those of a class and its methods."""
    finder = doctest.DocTestFinder(recurse=inspect.isclass(NAMES[name]))
    found = finder.find(NAMES[name], name, globs={"lae_fast": lae_fast, "torch": torch})
    return [test for test in found if test.examples]


@pytest.mark.parametrize("test", [t for name in NAMES for t in examples_of(name)], ids=lambda test: test.name)
def test_an_example_shows_what_it_says(test):
    torch.manual_seed(0)
    said = []
    assert not doctest.DocTestRunner().run(test, out=said.append).failed, "".join(said)


def test_every_public_name_has_an_example():
    assert {name for name in NAMES if not examples_of(name)} == set(WITHOUT.split())


def test_every_public_name_is_in_the_reference():
    pages = (Path(__file__).parent.parent / "docs" / "reference").glob("*.md")
    shown = set(
        re.findall(
            r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)$", "\n".join(p.read_text() for p in pages), re.MULTILINE
        )
    )
    assert {name for name in NAMES if name.split(".")[-1] not in shown} == set()
