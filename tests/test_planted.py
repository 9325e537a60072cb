"""Commands are run wherever people are: nothing that lies there is run, beyond what Python itself takes from there."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lae_fast"

# What the package may import: Python's own, and what pyproject.toml asks for, by the names of the modules.
MODULES = {"scikit-learn": "sklearn", "arviz-stats": "arviz_base", "pyyaml": "yaml", "pillow": "PIL"}
WITH_TORCH = {"filelock", "lae_fast"}


def test_the_package_imports_its_dependencies_and_nothing_from_beside_it():
    listed = re.findall(r'"([a-z_-]+)', (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1])
    allowed = {MODULES.get(name, name) for name in listed} | WITH_TORCH | set(sys.stdlib_module_names)
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        strangers = {name for name in names if name.split(".")[0] not in allowed}
        assert not strangers, f"{path} imports {strangers}, which may be anybody's"


@pytest.mark.parametrize(
    "command",
    [
        ["experiments", "figure1", "figure2", "--preset", "quick", "--dataset", "digits", "--workers", "1"],
        ["train", "--help"],
    ],
)
@pytest.mark.slow
def test_a_planted_file_is_not_run(command, tmp_path):
    """Every module of this repository's own bench, and the package's own folders, planted in the current folder."""
    planted = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n"
    names = [str(p.relative_to(ROOT / "bench")) for p in (ROOT / "bench").rglob("*.py")]
    assert "rivals/models.py" in names
    for name in [*names, *(f"bench/{n}" for n in names), "bench/rivals.py", "rivals.py", "subjects.py", "experiments.py",
                 "setup.py", "conftest.py", "sitecustomize.py.txt"]:  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(planted)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-m", f"lae_fast.{command[0]}", *command[1:]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.rglob("*.ran"))
