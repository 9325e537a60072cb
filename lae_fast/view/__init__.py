"""A trained run as one page for a browser, with nothing beside it: `python -m lae_fast.view RUN`, or `write` from Python.

Python gathers what the page shows (page.py) and puts it into the templates in this folder; the decoder's weights go with it
(network.py), so that the page decodes by itself (decoder.js). No server, no network, no library of plots.
"""

from lae_fast.view.command import main
from lae_fast.view.page import write

__all__ = ["main", "write"]
