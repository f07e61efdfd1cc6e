"""Formulas as MathML, which browsers draw themselves: no script, no font, no network, no LaTeX installation."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def to_mathml(tex: str, *, block: bool, node: nodes.Node) -> str:
    """A formula as a MathML element; a command that the converter does not know is a warning."""
    if block and "\\\\" in tex and "\\begin" not in tex:
        tex = f"\\begin{{align*}}{tex}\\end{{align*}}"
    # Its author's line breaks are no part of a formula.
    element = convert(" ".join(tex.split()), display="block" if block else "inline")
    if "\\" in element:
        logger.warning("formula with a command that cannot be drawn: %s", tex, location=node)
    return element


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(to_mathml(node.astext(), block=False, node=node))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    self.body.append(f'<div class="math">{to_mathml(node.astext(), block=True, node=node)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer `html_math_renderer = "mathml"`."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
