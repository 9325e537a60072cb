"""The CPU kernels under the compiler's sanitizers: no complaint as they are, and complaints about planted faults.

Each build takes a minute on a busy machine: set LAE_FAST_SANITIZE=1 to run these.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.skipif("LAE_FAST_SANITIZE" not in os.environ, reason="slow; LAE_FAST_SANITIZE=1 runs it"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def run(folder, sanitizer, csrc=ROOT / "csrc"):
    """The exit code and all output of bench/sanitize/cpu.sh."""
    command = ["bash", str(ROOT / "bench/sanitize/cpu.sh"), str(folder), sanitizer]
    environment = os.environ | {"CSRC": str(csrc), "LEVELS": "avx2"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_kernels_are_clean(tmp_path, sanitizer):
    code, output = run(tmp_path, sanitizer)
    assert code == 0, output
    assert "ok: digest" in output


@pytest.mark.parametrize(
    ("sanitizer", "right", "wrong", "complaint"),
    [
        ("address", "for (int64_t i = 0; i < d; ++i) {\n    const T normalized",
         "for (int64_t i = 0; i <= d; ++i) {\n    const T normalized", "heap-buffer-overflow"),
        ("undefined", "std::fill_n(a.sums, size, T(0))", "std::memset(a.sums, 0, size * sizeof(T))", "null pointer"),
        ("thread", "partial.data() + c * size;", "partial.data();", "data race"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(tmp_path, sanitizer, right, wrong, complaint):
    csrc = shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    dense = csrc / "cpu/dense.cpp"
    text = dense.read_text()
    assert right in text
    dense.write_text(text.replace(right, wrong))
    code, output = run(tmp_path, sanitizer, csrc)
    assert code == 1, output
    assert complaint in output
