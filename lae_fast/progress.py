"""Progress bars: in terminals and notebooks, and nowhere else."""

from __future__ import annotations

import sys
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
    from tqdm.auto import tqdm  # here, as `import lae_fast` needs torch and numpy only

    stream = options.get("file") or sys.stderr
    watched = _in_notebook() or (stream is not None and stream.isatty())
    return tqdm(total=total, desc=desc, unit=unit, disable=not (shown and watched), **options)
