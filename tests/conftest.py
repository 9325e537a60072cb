import os

import pytest
import torch


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


@pytest.fixture(scope="module")
def threads(one_thread):
    """At least two threads after all, for the kernels' own tests: `pytestmark = pytest.mark.usefixtures("threads")`."""
    torch.set_num_threads(max(2, os.cpu_count() or 2))


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", devices())


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
