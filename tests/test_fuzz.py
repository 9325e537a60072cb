"""Bad arguments by chance: every public function names what it cannot take. The machinery: fuzz.py; the table: fuzz_calls.py."""

import time

import fuzz
import pytest
import torch
from fuzz_calls import CALLS


@pytest.mark.parametrize("name", CALLS)
def test_bad_arguments_are_named(name):
    complaints = fuzz.attack(name, CALLS[name])
    assert not complaints, "\n".join(complaints)


def checks_nothing(x):
    return x.exp().sum()


def checks_without_a_name(x):
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise ValueError("wrong")
    return torch.zeros(())


def checks_all_but_values(x):
    if (
        not isinstance(x, torch.Tensor)
        or x.dtype != torch.float32
        or x.layout != torch.strided
        or x.is_nested
    ):
        raise TypeError("x is wrong")
    return x * 2


def waits_for_ever(x):
    while not isinstance(x, torch.Tensor) or x.shape != (2, 3):
        time.sleep(0.01)
    return torch.zeros(())


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (checks_nothing, "AttributeError"),
        (checks_without_a_name, "a message that names none of x: ValueError: wrong"),
        (checks_all_but_values, "a result that is not finite"),
        (waits_for_ever, "TimeoutError: no answer within 1 s"),
    ],
)
def test_the_fuzzer_finds_what_is_wrong(function, complaint, monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    call = fuzz.Call(lambda: (function, {"x": torch.ones(2, 3)}))
    found = fuzz.attack("x", call, tries=4 if function is waits_for_ever else 200)
    assert any(complaint in text for text in found), found


def test_a_failure_is_the_same_in_every_run():
    call = fuzz.Call(lambda: (checks_without_a_name, {"x": torch.ones(2, 3)}))
    assert fuzz.attack("same", call) == fuzz.attack("same", call)
