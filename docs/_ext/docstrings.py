"""Docstrings are written to be read in the source; here their indented equations keep their lines on the page too."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def keep_equations(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Mark what is set apart by a blank line and an indentation, after a line at the margin, as literal."""
    kept: list[str] = []
    margin, literal = False, False
    for line in lines:
        indented = line.startswith("    ")
        if indented and kept and not kept[-1].strip() and margin and not literal:
            kept += ["::", ""]
            literal = True
        if line.strip():
            margin = not indented
            literal = literal and indented
        kept.append(line)
    lines[:] = kept


def setup(app: Sphinx) -> dict[str, Any]:
    """Run before the sections of the docstrings are read (napoleon runs at 500)."""
    app.connect("autodoc-process-docstring", keep_equations, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
