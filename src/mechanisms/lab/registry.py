"""The papers that are installed: the entry-point group `mechanisms.papers`, ours and third parties' alike."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import io
import re
import tokenize
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path

from mechanisms._base.compiled import source_texts
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
    """Hash of the source a paper's results depend on, without comments, docstrings and blank lines.

    That is the recipe, its parts, all that they import of the recipe's package and of this one, and the C files that
    these name; the laboratory itself counts only with its data sets, its order of batches and its training loop.
    """
    point = next(p for p in importlib.metadata.entry_points(group=GROUP) if p.name == paper_slug)
    own = {point.module.partition(".")[0], "mechanisms"}
    parts = load_paper(paper_slug).parts
    digest, sources = hashlib.sha256(), dict[str, str]()
    todo, seen = [(module, True) for module in (point.module, *parts)], set[tuple[str, bool]]()
    while todo:
        module, whole = todo.pop()
        if (module, whole) in seen or module.partition(".")[0] not in own or _is_machinery(module):
            continue
        seen.add((module, whole))
        path = _source_file(module)
        if path is None:
            package, _, name = module.rpartition(".")
            if home := _homes(package).get(name):
                todo.append((home, True))
            elif module in parts:
                raise PaperError(f"paper {paper_slug!r} names the part {module!r}, which is not there")
            continue  # a name in a module, not a module
        if homes := _homes(module):  # a table of names: what it leads to counts, where it is taken whole
            todo += [(home, True) for home in homes.values() if whole]
            continue
        source = path.read_text(encoding="utf-8")
        sources[module] = _bare_source(source) + "".join(_kernels(source, path.parent))
        todo += _imports(source, module, package=path.name == "__init__.py")
    for module in sorted(sources):
        digest.update(f"{module}\n{sources[module]}\n".encode())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1)  # papers share most modules, and what is found in each is kept; its nodes are needed but then
def _nodes(source: str) -> list[ast.AST]:
    """All nodes of a source, from the top down."""
    return list(ast.walk(ast.parse(source)))


def _is_machinery(module: str) -> bool:
    """Whether a module runs and reports experiments but has no say in their numbers."""
    decides = module.startswith(("mechanisms.lab.data", "mechanisms.lab.batches", "mechanisms.lab.training"))
    return module == "mechanisms" or (module.startswith(("mechanisms.lab", "mechanisms.cli")) and not decides)


def _source_file(module: str) -> Path | None:
    """The file of a module, found without importing it; None for what is no module."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    if rest:
        place = path.parent.joinpath(*rest)
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return path if path.is_file() else None


@cache
def _homes(package: str) -> dict[str, str]:
    """The names that a package loads when they are used, each with its module: its table `_HOMES`, read as text."""
    path = _source_file(package) if package else None
    if path is None or path.name != "__init__.py":
        return {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "_HOMES" and isinstance(node, ast.Assign | ast.AnnAssign):
            table = ast.literal_eval(node.value) if node.value is not None else {}
            return {name: importlib.util.resolve_name(f".{home}", package) for name, home in table.items()}
    return {}


@cache
def _kernels(source: str, folder: Path) -> list[str]:
    """Texts of the C files beside a module that it names in a string, and of their headers."""
    named = {node.value for node in _nodes(source) if isinstance(node, ast.Constant)}
    files = [folder / name for name in named if isinstance(name, str) and re.fullmatch(r"\w+\.c", name)]
    return [text.decode() for file in sorted(files) if file.is_file() for text in source_texts(file)]


@cache
def _imports(source: str, module: str, *, package: bool) -> list[tuple[str, bool]]:
    """What a source imports, inside functions too, and whether all of it; imports for type checkers are left out.

    Of a package that is only asked for names, as in `data.digits`, these names count.
    """
    found: list[tuple[str, bool]] = []
    nodes = _nodes(source)
    names = Counter(node.id for node in nodes if isinstance(node, ast.Name))
    asked: dict[str, list[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            asked.setdefault(node.value.id, []).append(node.attr)
    todo = nodes[:1]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, True) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + package]
                base = ".".join([*parents, *([base] if base else [])])
            found.append((base, False))
            for alias in node.names:
                name, attributes = alias.asname or alias.name, asked.get(alias.asname or alias.name, [])
                if _homes(f"{base}.{alias.name}") and len(attributes) == names[name]:
                    found += [(f"{base}.{alias.name}.{attribute}", True) for attribute in attributes]
                else:
                    found.append((f"{base}.{alias.name}", True))
        todo += (child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))
    return found


@cache
def _bare_source(source: str) -> str:
    """Source without what cannot change a result; by positions, so that it is the same under every Python version."""
    lines = source.encode().splitlines()  # positions of `ast` count bytes
    texts: set[int] = set()  # rows within text over several lines, where blank ones count
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][: len(token.line[:column].encode())]
        elif token.start[0] != token.end[0]:
            texts |= set(range(row, token.end[0] + 1))
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in _nodes(source):
        if isinstance(node, holders) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            first, last = text.lineno, text.end_lineno or text.lineno
            rest = lines[last - 1][text.end_col_offset or 0 :]
            lines[first - 1] = lines[first - 1][: text.col_offset] + (rest if first == last else b"")
            for row in range(first + 1, last + 1):
                lines[row - 1] = rest if row == last else b""
            texts -= set(range(first, last + 1))
    kept = (line.rstrip() for row, line in enumerate(lines, start=1) if line.strip() or row in texts)
    return b"\n".join(kept).decode()
