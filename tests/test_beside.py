"""What runs in which stream, and who waits for whom: on a machine without a GPU, told by streams that only take notes."""

import contextlib
import gc
import weakref

import pytest
import torch
from test_dense import images, model

from lae_fast import beside, graphs
from lae_fast.beside import Beside
from lae_fast.training import SideBySide, TrainingStep, adam, side_by_side

GPU = torch.device("cuda", 0)


class Stream:
    """A stream that notes down what waits for what."""

    def __init__(self, notes, name):
        self.notes, self.name, self.device = notes, name, GPU

    def wait_stream(self, other):
        if other is not self:
            self.notes.append(f"{self.name} waits for {other.name}")


class Result:
    """A tensor of which only its streams matter."""

    def __init__(self, notes):
        self.notes = notes

    def record_stream(self, stream):
        self.notes.append(f"{stream.name} reads it")


@pytest.fixture
def notes(monkeypatch):
    """What the streams have noted; `notes.within(stream)` makes a stream current."""

    class Notes(list):
        within = staticmethod(lambda stream: torch.cuda.stream(stream))

    found = Notes()
    current = [Stream(found, "main")]

    @contextlib.contextmanager
    def stream(s):
        current.append(s)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(found, f"beside {current[-1].name}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    beside._beside.cache_clear()
    yield found
    beside._beside.cache_clear()


def work(notes):
    def run():
        notes.append(f"work in {torch.cuda.current_stream().name}")
        return (Result(notes), None)

    return run


def test_work_begins_after_what_came_before_and_is_waited_for_once(notes):
    started = Beside(work(notes), GPU)
    notes.append("main goes on")
    first, again = started(), started()
    assert first is again
    assert notes == [
        "beside main waits for main",
        "work in beside main",
        "main goes on",
        "main waits for beside main",
        "main reads it",
    ]


def test_every_stream_has_one_beside_it_of_its_own(notes):
    """As two steps that are captured, or replayed, at the same time have: else one's products wrote over the other's."""
    Beside(work(notes), GPU)()
    del notes[:]
    with notes.within(Stream(notes, "other")):
        Beside(work(notes), GPU)()
    assert notes[:2] == ["beside other waits for other", "work in beside other"]
    del notes[:]
    Beside(work(notes), GPU)()
    assert notes[:2] == ["beside main waits for main", "work in beside main"]


def test_what_the_work_reads_is_kept_until_it_is_asked_for(notes):
    class Reader:
        def read(self):
            return ()

    reader = Reader()
    is_alive = weakref.ref(reader)
    started = Beside(reader.read, GPU)
    del reader
    assert is_alive()
    started()
    assert not is_alive()


@pytest.mark.parametrize("place", [None, torch.device("cpu"), torch.device("meta")])
def test_elsewhere_the_work_is_done_at_once(notes, place):
    started = Beside(work(notes), place)
    assert notes == ["work in main"]
    assert started()[1] is None
    assert len(notes) == 1


def test_a_backward_pass_that_fails_leaves_the_chain_kept(monkeypatch):
    """Nobody then reads phi while a stream beside is still writing it, and a capture can end."""
    asked = []
    monkeypatch.setattr(Beside, "__call__", lambda self: asked.append(self._result) or self._result)
    m, x = model(True), images()

    def fail(grad):
        raise ArithmeticError("no gradient today")

    m.encoder[0].weight.register_hook(fail)
    before = m.phi.clone()
    with pytest.raises(ArithmeticError, match="no gradient today"):
        m.add_gradients(x)
    assert asked[-1] == ()
    assert not torch.equal(m.phi, before)


@pytest.mark.parametrize("registers", [False, True])
def test_a_graph_is_told_of_generators_where_it_does_not_find_them(registers, monkeypatch):
    """From torch 2.14 on it does, and would warn."""
    monkeypatch.setattr(graphs, "REGISTERS", registers)
    told = []

    class Graph:
        register_generator_state = staticmethod(told.append)

    replayed = graphs.Replayed.__new__(graphs.Replayed)
    replayed.generators = ["one", "another"]
    replayed._register_generators(Graph())
    assert told == (["one", "another"] if registers else [])


def test_models_side_by_side_have_a_stream_each_between_one_beginning_and_one_end(notes, monkeypatch):
    """And the same streams whenever so many are trained: PyTorch has 32 in all, which would come round to others' soon."""
    numbers = iter(range(99))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(notes, f"stream {next(numbers)}"))
    side_by_side._stream.cache_clear()
    models = [model(True), model(True)]
    steps = SideBySide([TrainingStep(m, adam(m, 1e-3), capture=False) for m in models])
    steps.device = GPU
    for k in range(2):
        steps.steps[k].read = lambda x, k=k: (
            notes.append(f"step {k} in {torch.cuda.current_stream().name}") or x
        )
    x = images()[None].expand(2, -1, -1)
    for _ in range(2):
        del notes[:]
        assert steps(x).shape == (2,)
        assert notes == [
            "stream 0 waits for main",
            "stream 1 waits for main",
            "step 0 in stream 0",
            "step 1 in stream 1",
            "main waits for stream 0",
            "main waits for stream 1",
        ]
        steps = SideBySide(steps.steps)
        steps.device = GPU
    side_by_side._stream.cache_clear()


class BrokenCapture:
    """`torch.cuda.graph` of a capture that something in it has ended: leaving it is the second error."""

    def __init__(self, graph, pool, stream, capture_error_mode):
        pass

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        if error is not None:
            raise RuntimeError("operation failed due to a previous error during capture")


class Graph:
    def __init__(self, calls):
        self.reset = lambda: calls.append("reset")


@pytest.mark.parametrize("is_over", [False, True])  # newer versions of torch end a failed capture by `reset`
@pytest.mark.parametrize(
    "first", [RuntimeError("cannot wait in a capture\nmore"), ValueError("no such image")]
)
def test_a_failed_capture_names_the_first_error_and_gives_its_memory_back(monkeypatch, first, is_over):
    calls = []

    def end(device, pool):
        calls.append(("end", device, pool))
        if is_over:
            raise RuntimeError("not currently recording to mempool_id")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(calls))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "graph", BrokenCapture)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_releasePool", lambda *a: calls.append(("release", *a)), raising=False
    )
    monkeypatch.setattr(graphs.Replayed, "_free_generators", lambda self: calls.append("generators"))

    def call():
        raise first

    try:
        raise KeyError("what a caller mends")  # who tries smaller minibatches, say
    except KeyError:
        match = r"in a CUDA graph \((cannot wait in a capture|no such image)\)"
        with pytest.raises(RuntimeError, match=match):
            graphs.Replayed(call, GPU)._captured()
    wanted = ["reset", ("end", 1, (0, 7)), ("release", 1, (0, 7)), "generators"]
    assert calls == [c for c in wanted if not (is_over and c[0] == "release")]
    assert gc.isenabled()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_no_garbage_is_collected_within_a_capture(is_enabled):
    class Older:
        """Only the collector finds it."""

        def __init__(self):
            self.itself = self

    was_enabled, threshold = gc.isenabled(), gc.get_threshold()
    gc.set_threshold(1)
    try:
        (gc.enable if is_enabled else gc.disable)()
        with graphs.no_garbage():
            is_alive = weakref.ref(Older())
            kept = [[] for _ in range(100)]
            assert is_alive()
        assert gc.isenabled() == is_enabled
    finally:
        gc.set_threshold(*threshold)
        (gc.enable if was_enabled else gc.disable)()
    del kept
    gc.collect()
    assert not is_alive()
