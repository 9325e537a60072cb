"""The site: `sphinx-build -W -c docs . SITE`, from the root of the repository.

The root is the source folder, so that a page links to results/, README.md and CONTRIBUTING.md by the same paths on the site and
on a code host, and nothing is copied.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lae_fast import __version__

project = "lae_fast"
copyright = "the authors of lae_fast"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
    "docstrings",
    "mathml",
]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "results/**.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "runs", "csrc", "lae_fast", "tests", "bench"]
html_extra_path = ["root"]  # index.html, which leads to docs/index.html

nitpicky = True  # a reference to a name of ours that does not exist is an error
nitpick_ignore_regex = [
    # Other libraries are documented elsewhere.
    ("py:.*", r"(torch|nn|np|collections|pathlib|typing|argparse)\..*"),
    ("py:class", r"Tensor|Path|Any|Callable|Iterator|Sequence|Generator|Literal|ClassVar|Model|P|.*\.[RMT]"),
    ("py:obj", ".*"),  # `x` in a docstring is a name: a link if we document it, else code
]
default_role = "py:obj"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

myst_enable_extensions = ["dollarmath", "amsmath", "html_image", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell, also on a busy machine
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # bars

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "lae_fast"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
