"""Progress bars: in terminals and notebooks, and nowhere else."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs this code: what it prints is seen, though its stderr is no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


def bar(*, total: float, desc: str | None = None, unit: str, shown: bool = True, **options: Any) -> tqdm:
    """A bar of tqdm, a context manager; silent unless `shown` and somebody watches: a terminal or a notebook.

    Args:
        total: units in all.
        desc: what stands before the bar.
        unit: what is counted.
        shown: False: silent everywhere.
        options: tqdm's own, as `initial` or `bar_format`.
    """
    stream, in_notebook = options.get("file") or sys.stderr, _in_notebook()
    watched = in_notebook or (stream is not None and stream.isatty())
    # Imported here, as `import lae_fast` needs torch and numpy only.
    if in_notebook and shown:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that ipywidgets are missing: the bar is text then
            from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm(total=total, desc=desc, unit=unit, disable=not (shown and watched), **options)
