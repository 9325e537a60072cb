"""Progress bars are seen in terminals and notebooks, and leave files and pipes alone."""

import io
import sys
import types
import warnings

import pytest

from lae_fast import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def notebook(monkeypatch):
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


def printed(stream, monkeypatch, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar(total=2, desc="walk", unit=" step", mininterval=0, **options) as bar:
        bar.update(2)
    return stream.getvalue()


def test_terminals_and_notebooks_have_bars_and_pipes_have_none(monkeypatch):
    assert "walk" in printed(Terminal(), monkeypatch)
    assert "2/2" in printed(Terminal(), monkeypatch)
    assert printed(io.StringIO(), monkeypatch) == ""
    notebook(monkeypatch)
    assert "2/2" in printed(io.StringIO(), monkeypatch)


def test_a_notebook_without_widgets_has_a_bar_of_text(monkeypatch):
    """And no warning of what is missing, which tqdm would give as it is imported."""
    notebook(monkeypatch)
    for name in [name for name in sys.modules if name.startswith(("tqdm.auto", "tqdm.notebook"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", types.SimpleNamespace())  # by which tqdm knows
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        assert "2/2" in printed(io.StringIO(), monkeypatch)
    assert not given


def test_not_shown_is_silent_everywhere(monkeypatch):
    assert printed(Terminal(), monkeypatch, shown=False) == ""
    notebook(monkeypatch)
    assert printed(io.StringIO(), monkeypatch, shown=False) == ""


@pytest.mark.parametrize("modules", [None, types.SimpleNamespace(get_ipython=lambda: None)])
def test_ipython_in_a_terminal_or_none_at_all_is_no_notebook(modules, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", modules)
    assert printed(io.StringIO(), monkeypatch) == ""


def test_without_stderr_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    with progress.bar(total=1, unit="step") as bar:
        bar.update()
        assert bar.disable
