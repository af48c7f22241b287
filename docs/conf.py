"""How the site is built: `make docs`; strictly, in tests/test_site.py. Nothing on a page comes from elsewhere."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent / "src")]

import thalweg  # noqa: E402

project = "Thalweg"
author = "the Thalweg authors"
copyright = author  # noqa: A001 (Sphinx's own name)
release = version = thalweg.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "commands",
    "docstrings",
    "gallery",
    "links",
    "mathml",
    "results",
]
exclude_patterns = ["_extensions", "figures", "generated/commands.md"]
nitpicky = True

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
smartquotes_action = "qe"  # quotes and ellipses; -- stays what it is, as options begin with it

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype, napoleon_use_ivar = False, True

# The names of other packages become links where THALWEG_DOCS_ONLINE is set, as in the workflow that publishes the site:
# without a network there is nothing to ask for them. Whatever is called thalweg must be found in either case.
ONLINE = {
    "python": "https://docs.python.org/3",
    "torch": "https://docs.pytorch.org/docs/stable",
    "numpy": "https://numpy.org/doc/stable",
    "jax": "https://docs.jax.dev/en/latest",
    "optax": "https://optax.readthedocs.io/en/latest",
}
intersphinx_mapping = {name: (url, None) for name, url in ONLINE.items() if os.environ.get("THALWEG_DOCS_ONLINE")}
nitpick_ignore_regex = [(r"py:.*", r"(torch|numpy|np|jax|jnp|optax|collections|typing|pathlib|matplotlib|io)(\..*)?")]

html_theme = "furo"
html_title = "Thalweg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"
