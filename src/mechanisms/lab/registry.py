"""The papers that are installed: the entry-point group `mechanisms.papers`, ours and third parties' alike."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import io
import tokenize
from functools import cache
from pathlib import Path

from mechanisms.lab.paper import Paper

GROUP = "mechanisms.papers"


class PaperError(ValueError):
    """A paper is unknown or its recipe cannot be loaded; the message says which and why, in one line."""


def paper_names() -> list[str]:
    """The slugs of all installed papers; nothing is imported."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)})


def load_paper(slug: str) -> Paper:
    """Import one paper's recipe.

    Raises:
        PaperError: no such paper, or its recipe is broken.
    """
    points = [point for point in importlib.metadata.entry_points(group=GROUP) if point.name == slug]
    if not points:
        raise PaperError(f"there is no paper {slug!r}; there are: {', '.join(paper_names()) or 'none'}")
    if len({point.value for point in points}) > 1:
        raise PaperError(f"paper {slug!r} is brought by several packages: {', '.join(p.value for p in points)}")
    try:
        paper = points[0].load()
    except Exception as error:
        raise PaperError(f"paper {slug!r} ({points[0].value}) does not load: {error!r}") from error
    if not isinstance(paper, Paper) or paper.slug != slug:
        raise PaperError(f"paper {slug!r} ({points[0].value}) is not a Paper with that slug")
    return paper


@cache
def code_hash(paper_slug: str) -> str:
    """Hash of the source of a paper's recipe, parts and other sources, without comments, docstrings and blank lines."""
    point = next(p for p in importlib.metadata.entry_points(group=GROUP) if p.name == paper_slug)
    digest = hashlib.sha256()
    paper = load_paper(paper_slug)
    for module in (point.module, *paper.parts, *paper.sources):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise PaperError(f"paper {paper_slug!r} names the part {module!r}, which is not there")
        digest.update(_bare_source(Path(spec.origin).read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:12]


def _bare_source(source: str) -> str:
    """Source without what cannot change a result; by positions, so that it is the same under every Python version."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, holders) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            for row in range(text.lineno, (text.end_lineno or text.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
