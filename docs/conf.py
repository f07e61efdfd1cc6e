"""Sphinx's settings: the build needs no network, and a warning is an error (`make docs`)."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import mechanisms  # noqa: E402

project = "mechanisms"
author = "The mechanisms authors"
project_copyright = "The mechanisms authors, Apache-2.0"
release = version = mechanisms.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.extlinks", "mathml", "docstrings"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings write code in single back-ticks

# --- other projects' pages: a table of base addresses, so that nothing is fetched -----------------------------------

extlinks = {
    "torch": ("https://docs.pytorch.org/docs/stable/generated/%s.html", "%s"),
    "torch-page": ("https://docs.pytorch.org/docs/stable/%s.html", "torch: %s"),
    "numpy": ("https://numpy.org/doc/stable/reference/generated/%s.html", "%s"),
    "sklearn": ("https://scikit-learn.org/stable/modules/generated/%s.html", "%s"),
    "arxiv": ("https://arxiv.org/abs/%s", "arXiv %s"),
}
if os.environ.get("MECHANISMS_INTERSPHINX") == "1":  # full cross-references, for those who are online
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

# --- text and API ---------------------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
add_module_names = False
napoleon_custom_sections = [("Source", "notes_style")]
napoleon_use_ivar = True  # an attribute that is described in two places is described once

# --- looks ----------------------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = f"mechanisms {release}"
html_static_path = ["_static"]
html_css_files = ["mechanisms.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 1,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"index": [], "tour": [], "changelog": []}
