"""A user's script is clean for type checkers: see tests/typed_user.py."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "typed_user.py"


def test_the_script_runs():
    runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(
    "checker", [["mypy", "--strict", "--follow-imports=silent"], ["pyright"]], ids=" ".join
)
def test_a_type_checker_finds_nothing_in_it(checker, tmp_path):
    """`.ci/run` installs them."""
    pytest.importorskip(checker[0])
    command = [sys.executable, "-m", *checker, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
