"""Type checkers find nothing in a user's script (see tests/typed_user.py), and nothing new in the package itself."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SCRIPT = TESTS / "typed_user.py"
# The files in which `mypy --strict` still finds something; CONTRIBUTING.md says why. All others are clean.
OPEN = {
    *("hub.py", "score.py", "experiments/autoencoders.py"),
    *("models/coordinates.py", "models/decoder_pass.py", "models/lae.py", "models/mlp.py"),
    "models/with_chain.py",
    *("ops/energies.py", "ops/langevin.py", "ops/layer.py", "sampling/sample.py"),
    *("training/config.py", "training/config_file.py"),
}


def test_the_script_runs():
    runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(
    "checker", [["mypy", "--strict", "--follow-imports=silent"], ["pyright"]], ids=" ".join
)
def test_a_type_checker_finds_nothing_in_it(checker, tmp_path):
    """`.ci/run` installs mypy; pyright is asked where somebody has installed it."""
    pytest.importorskip(checker[0])
    command = [sys.executable, "-m", *checker, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_clean_file_stays_clean(tmp_path):
    """By the settings in pyproject.toml; a file that has become clean leaves `OPEN`."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, check=False)
    assert re.search(r"\(checked \d+ source files\)|no issues found", done.stdout), done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if ": error: " in line]
    new = [line for line in found if line.split(":")[0].removeprefix("lae_fast/") not in OPEN]
    assert not new, "\n".join(new)
