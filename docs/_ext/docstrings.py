"""Docstrings are written to be read in the source; here they come out the same on the page."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

BAR = re.compile(r"`[^`]*`|\|")  # code, which stays as it is, or a bar, which would begin a substitution


def as_written(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Make equations literal (indented, after a blank line that follows a line at the margin), and bars plain."""
    kept: list[str] = []
    margin, literal, session = False, False, False
    for line in lines:
        indented = line.startswith("    ")
        if indented and kept and not kept[-1].strip() and margin and not literal:
            kept += ["::", ""]
            literal = True
        if line.strip():
            margin = not indented
            literal = literal and indented
        session = bool(line.strip()) and (session or line.lstrip().startswith(">>>"))
        kept.append(line if literal or session else BAR.sub(_escape, line))
    lines[:] = kept


def _escape(found: re.Match[str]) -> str:
    return r"\|" if found[0] == "|" else found[0]


def setup(app: Sphinx) -> dict[str, Any]:
    """Run before the sections of the docstrings are read (napoleon runs at 500)."""
    app.connect("autodoc-process-docstring", as_written, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
