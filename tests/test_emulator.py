"""Every CUDA kernel without a GPU: bench/sanitize/emulator runs its threads, and watches barriers and memory.

The programs of bench/sanitize compare the kernels with loops in float64, on ragged sizes. What the emulator must report
is tested, too: its own faults, every barrier of the kernels deleted, wrong indices.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parent.parent
CUDA = ROOT / "csrc/cuda"
FAULTS = Path("bench/sanitize/emulator/faults.cu")
PRODUCTS = Path("bench/sanitize/emulator/products.cu")
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the emulator needs Linux"),
    pytest.mark.skipif(COMPILER is None, reason="needs g++ or clang++"),
]

ORDERS = {"forward": {}, "reversed": {"EMULATOR_REVERSED": "1"}}
PROGRAMS = ("adam", "dense", "energy", "langevin", "layer", "layer_gradients")
# Whose kernels need a file's barriers. (Adam has none. A block of the energies serves one row: its sums follow no others.)
PROGRAM_OF = {
    "chain.h": "langevin",
    "dense.cu": "dense",
    "layer.cu": "layer",
    "layer_gradients.cu": "layer_gradients",
    "reduce.h": "langevin",
    "transition.h": "langevin",
}
BARRIER = re.compile(r"__syncthreads\(|__syncwarp\(|\.sync\(|__threadfence\(")
BARRIERS = [
    f"{path.name}:{number}"
    for path in sorted(CUDA.iterdir())
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if BARRIER.search(line.split("//")[0])
]

WRONG_INDICES = {  # of a program: in one file of csrc/cuda only
    "adam": ("left >= kEach && ", "", "FAULT: beyond an array"),
    "dense": ("y_sum += a.y_grad[i]", "y_sum += a.y_grad[i + 1]", "FAULT: beyond an array"),
    "energy": ("a.x + r % a.n_images * n", "a.x + r * n", "FAULT: beyond an array"),
    "langevin": (
        "sums + shares[c * gridDim.x + b].*part",
        "sums + shares[c * gridDim.x].*part",
        "WRONG: transition",
    ),
    "layer": ("n - first < kRows ?", "n - first + 1 < kRows ?", "FAULT: beyond an array"),
    "layer_gradients": ("min(column, a.k - 4)", "min(column, a.k)", "FAULT: beyond an array"),
}

# Kernels of emulator/faults.cu, and what must be said of them.
COMPLAINTS = {
    "some_wait_for_the_block": r"deadlock: .*32 wait for lanes of their warp at .*, 32 wait for their block",
    "two_barriers": r"divergence: in block .* waits at faults.cu:\d+ and thread \d+ at faults.cu:\d+",
    "a_lane_has_returned": r"deadlock: .*31 exchange values .*, 33 have returned",
    "a_lane_that_is_not_named": "takes a value from lane .*, which is not among the lanes 0x55555555",
    "a_lane_that_does_not_multiply": r"deadlock: .*31 exchange values .*, 33 have returned",
    "a_grid_that_is_not_resident": "a barrier of the grid at .*, in a launch that is not cooperative",
    "between_warps": "what nobody has written: .* reads 4 bytes of shared memory|race with .*wrote",
    "between_lanes": "race with .*of device memory",
    "between_blocks": "race with .*which wrote",
    "before_a_write": "race with .*which (read|wrote)",
    "without_a_fence_before": "race with .*which wrote",
    "without_a_fence_after": "race with .*which wrote",
    "a_fence_before_the_writes": "race with .*which wrote",
    "beyond_the_end": r"beyond an array: .* writes 4 bytes of device memory \(byte 1024 of an array of 1024",
    "unwritten_memory": "what nobody has written: .* of device memory",
    "unwritten_shared_memory": "what nobody has written: .* of dynamic shared memory",
    "beyond_shared_memory": "beyond an array: .* of dynamic shared memory",
    "misaligned": "a misaligned address",
    "memory_of_the_host": "an address that is not the device's",
    "too_much_shared_memory": "FAILED: .*too_much_shared_memory  of this size takes  232449 .* GPU has  232448",
    "too_many_threads": "FAILED: .*too_many_threads.*invalid launch",
}  # fmt: skip


def build(root, folder, *programs):
    """Compile programs, paths from `root`, or all of bench/sanitize."""
    command = [
        "bash",
        str(root / "bench/sanitize/emulate.sh"),
        str(folder),
        *(str(root / p) for p in programs),
    ]
    environment = os.environ | {"CXX": COMPILER}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr  # no warnings either


def run(program, *arguments, **environment):
    """The exit code and the output of one run."""
    command = [str(program), *arguments]
    result = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The folder of the programs, which are built once, also where several processes test."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "emulated"
    with FileLock(f"{folder}.lock"):
        if not (folder / "faults").exists():
            sources = [f"bench/sanitize/{name}.cu" for name in PROGRAMS]
            build(ROOT, folder, *sources, PRODUCTS, FAULTS)
    return folder


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_kernels_agree_with_float64(programs, program, order):
    code, output = run(programs / program, "quick", **ORDERS[order])
    assert code == 0, output
    assert re.fullmatch(rf"{program}: [1-9]\d+ values compared, 0 wrong\n", output), output


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_kernels_agree_with_float64_at_all_sizes(programs, program, order):
    code, output = run(programs / program, **ORDERS[order])
    assert code == 0, output


def test_every_kernel_has_a_program():
    assert {path.stem for path in CUDA.glob("*.cu")} == set(PROGRAMS)
    assert {place.split(":")[0] for place in BARRIERS} == set(PROGRAM_OF)
    assert not re.search("<<<[^>]", "".join(path.read_text() for path in CUDA.iterdir()))


@pytest.mark.parametrize("place", BARRIERS)
def test_a_deleted_barrier_is_seen(programs, place):
    code, output = run(programs / PROGRAM_OF[place.split(":")[0]], "quick", EMULATOR_WITHOUT=place)
    assert code == 1, output
    assert "FAULT: " in output, output


def test_a_place_without_a_barrier_is_an_error(programs):
    code, output = run(programs / "dense", "quick", EMULATOR_WITHOUT="dense.cu:1")
    assert code == 2, output
    assert "FAILED: EMULATOR_WITHOUT=dense.cu:1, where" in output, output


def test_the_example_of_the_page_deletes_a_barrier():
    (place,) = re.findall(r"EMULATOR_WITHOUT=([\w.:]+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert place in BARRIERS


@pytest.fixture(scope="session")
def wrong_programs(tmp_path_factory):
    """The folder of programs with one wrong index each."""
    copy = tmp_path_factory.mktemp("wrong")
    for folder in ("csrc", "bench/sanitize"):
        shutil.copytree(ROOT / folder, copy / folder)
    for name, (right, wrong, _) in WRONG_INDICES.items():
        (source,) = (path for path in (copy / "csrc/cuda").iterdir() if right in path.read_text())
        assert source.read_text().count(right) == 1, name
        source.write_text(source.read_text().replace(right, wrong))
    build(copy, copy / "built")
    return copy / "built"


@pytest.mark.slow  # builds everything once more
@pytest.mark.parametrize("program", WRONG_INDICES)
def test_a_wrong_index_is_seen(wrong_programs, program):
    code, output = run(wrong_programs / program, "quick")
    assert code == 1
    assert WRONG_INDICES[program][2] in output, output


@pytest.mark.parametrize("order", ORDERS)
def test_tensor_cores_multiply_as_the_manual_says(programs, order):
    code, output = run(programs / "products", **ORDERS[order])
    assert code == 0, output


@pytest.mark.parametrize("order", ORDERS)
def test_a_sound_kernel_is_not_reported(programs, order):
    code, output = run(programs / "faults", "sound", **ORDERS[order])
    assert code == 0, output


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", COMPLAINTS)
def test_a_fault_is_reported(programs, fault, order):
    code, output = run(programs / "faults", fault, **ORDERS[order])
    assert code == 1, output
    assert re.search(COMPLAINTS[fault], output), output
