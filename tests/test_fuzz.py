"""Bad arguments by chance: every public function names what it cannot take. The machinery: fuzz.py."""

import pytest
from fuzz import attack
from fuzz_calls import CALLS


@pytest.mark.parametrize("name", CALLS)
def test_bad_arguments_are_named(name):
    complaints = attack(name, CALLS[name])
    assert not complaints, "\n".join(complaints)
