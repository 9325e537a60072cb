"""Installation: the kernels serve from every folder, imports stay light, and absence is explained."""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lae_fast._version import SCHEMA_VERSION
from lae_fast.ops import library

ROOT = Path(__file__).parent.parent
IS_BUILT = importlib.util.find_spec("_lae_fast_cpu") is not None


def python(code, cwd, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, timeout=120
    )


def info(cwd, **environment):
    command = [sys.executable, "-m", "lae_fast.info"]
    out = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, timeout=120
    )
    assert out.returncode == 0, out.stderr
    return {line[:15].strip(): line[16:].strip() for line in out.stdout.splitlines()}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """What info says in a folder of no meaning."""
    return info(tmp_path_factory.mktemp("anywhere"))


@pytest.mark.skipif(not IS_BUILT, reason="installed without compiled kernels")
def test_the_kernels_serve_from_the_checkout_and_from_anywhere(facts):
    at_root = info(ROOT)
    for found in (at_root, facts):
        assert found["cpu"].startswith("compiled kernels, SIMD level"), found
    assert str(ROOT) in at_root["lae_fast"]  # from the checkout, python -m imports the checkout's package


def test_info_tells_what_a_bug_report_needs(facts):
    needed = {"lae_fast", "python", "torch", "numpy", "torchvision", "gpu", "schema version", "cpu", "cuda"}
    assert needed <= set(facts)
    assert facts["schema version"] == str(SCHEMA_VERSION)
    if IS_BUILT:
        assert "stable ABI of 2.11" in facts["built against"]
        assert "built for CUDA" in facts
    if not facts["cuda"].startswith("compiled"):
        assert re.search("install|reinstall|asked for", facts["cuda"])


def test_importing_the_package_imports_torch_and_numpy_only(tmp_path):
    heavy = ["torchvision", "tyro", "tqdm", "tensorboard", "safetensors", "matplotlib", "sklearn", "scipy"]
    code = f"import torch, sys; before = set(sys.modules); import lae_fast; print([m for m in {heavy} if m in set(sys.modules) - before])"
    assert python(code, tmp_path).stdout.strip() == "[]"


STEP = "import torch, lae_fast; torch.manual_seed(0); print(lae_fast.ald_step(lambda p: (p**2).sum(), torch.ones(3), 0.1)[0].phi)"


def test_the_reference_serves_on_request_and_agrees(tmp_path):
    code = STEP + "; from lae_fast import info; print(info.report()['cpu'])"
    reference = python(code, tmp_path, LAE_FAST_KERNELS="reference")
    assert reference.stderr == ""
    step, serving = reference.stdout.splitlines()
    assert "LAE_FAST_KERNELS=reference" in serving
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()) as out:
        exec(STEP)
    assert out.getvalue() == step + "\n"


def test_an_unknown_kernel_choice_is_an_error(tmp_path):
    assert "LAE_FAST_KERNELS='mmx'; expected one of" in python(STEP, tmp_path, LAE_FAST_KERNELS="mmx").stderr


@pytest.mark.skipif(not IS_BUILT, reason="installed without compiled kernels")
def test_a_stale_library_is_refused_and_explained_once(tmp_path):
    (tmp_path / "_lae_fast_build.py").write_text("schema_version = 0")  # found before the installed one
    result = python(STEP + "; " + STEP, tmp_path)
    assert "tensor(" in result.stdout
    assert (
        f"was built for schema 0, this package has schema {SCHEMA_VERSION}; run `pip install .` again"
        in result.stderr
    )
    assert result.stderr.count("plain PyTorch serves cpu") == 1


@pytest.mark.skipif(not IS_BUILT, reason="installed without compiled kernels")
def test_a_library_that_does_not_load_is_explained(tmp_path):
    (tmp_path / Path(library.backends["cpu"].path).name).write_bytes(b"not a library")
    result = python(STEP, tmp_path)
    assert "tensor(" in result.stdout
    assert "does not load" in result.stderr
    assert (
        "invalid ELF header" in result.stderr
        or "file too short" in result.stderr
        or "dlopen" in result.stderr
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LAE_FAST_BUILD": "fpga"}, "LAE_FAST_BUILD='fpga'; expected auto, cpu, cuda or none"),
        (
            {"LAE_FAST_BUILD": "cuda", "PATH": "", "CUDA_HOME": "/nonexistent"},
            "but the cpu kernels cannot be built: no C",
        ),
        (
            {"LAE_FAST_BUILD": "cpu", "PATH": "", "CUDA_HOME": "/nonexistent"},
            "no C++ compiler was found; install g++",
        ),
        (
            {"LAE_FAST_BUILD": "cuda", "CUDA_HOME": "/nonexistent"},
            "nvcc was not found; install the CUDA toolkit",
        ),
    ],
)
def test_a_build_that_cannot_be_had_fails_loudly(environment, message):
    pytest.importorskip("setuptools")
    if sys.platform != "linux":
        pytest.skip("compilers are looked up as on Linux")
    command = [sys.executable, "setup.py", "--version"]
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDA_PATH")} | environment
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert result.returncode != 0
    assert message in result.stderr


def test_an_automatic_build_says_what_it_leaves_out():
    pytest.importorskip("setuptools")
    environment = os.environ | {"PATH": "", "CUDA_HOME": "/nonexistent", "LAE_FAST_BUILD": "auto", "CXX": ""}
    command = [sys.executable, "setup.py", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    for name in ("cpu", "cuda"):
        assert (
            f"the {name} kernels are left out, plain PyTorch serves instead: no C++ compiler was found"
            in result.stderr
        )
