import json
import os
import signal
import subprocess
import sys

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def devices():
    """Every device the ops are tested on; the CUDA ones only run where there is one."""
    return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """PyTorch on one thread: most problems here are too small to share, and threads that wait for each other on busy cores
    make them tens of times as slow. Runs on one thread also agree bit for bit."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def threads():
    """Two threads after all, for the tests of the kernels, which share out the work themselves."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


LEVELS = """
import json, test_dense, test_likelihood, test_ops
from lae_fast.ops import library
modules = test_dense, test_likelihood, test_ops
print(json.dumps([library.simd_level(), {m.__name__: m.fingerprint() for m in modules}]))
"""


@pytest.fixture(scope="session")
def fingerprints():
    """By SIMD level that this processor has, by test module: what its `fingerprint` returns in a process of that level."""
    here = os.path.dirname(__file__)
    processes = []
    for level in ("sse2", "avx2", "avx512"):  # the next best where the processor has no such
        paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"LAE_FAST_KERNELS": level, "PYTHONPATH": paths}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", LEVELS],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    results = [process.communicate(timeout=120) for process in processes]
    for process, (_, error) in zip(processes, results, strict=True):
        assert process.returncode == 0, error
    found = dict(json.loads(out) for out, _ in results)
    assert "sse2" in found
    assert len(found) > 1
    return found


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", devices())


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n`, a file stays with one worker: what its tests share is then made once."""
    from xdist.scheduler import LoadFileScheduling, LoadGroupScheduling

    return {"loadgroup": LoadGroupScheduling}.get(config.getvalue("dist"), LoadFileScheduling)(config, log)
