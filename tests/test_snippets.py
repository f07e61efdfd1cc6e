"""Every Python snippet of the README and the docs runs, and every command they show exists with its options.

Fences marked `python` run one after the other, in one namespace per page and in an empty folder, as a reader would type
them; those that begin with `>>>` must also print what the page says. Commands stand in fences marked `console`.
Whatever cannot run in a test is marked `text`.
"""

import doctest
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from mechanisms.cli import _add_paper_commands, _spread, app
from mechanisms.lab.configuration import override
from mechanisms.lab.registry import load_paper, paper_names

ROOT = Path(__file__).parents[1]
DOCS = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^(?P<fence>```+)(?P<kind>\{?[\w-]*\}?)[^\n]*\n(?P<code>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
OTHER_KINDS = {"text", "toml", "bibtex", "bash", "sh", "shell", "markdown", "{toctree}", "{include}", "{eval-rst}"}
SHELL = {"bash", "sh", "shell", "console"}


def fences(page: Path) -> Iterator[tuple[str, str, int]]:
    """Kind, code and first line number of every fence."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        yield match["kind"], match["code"], text.count("\n", 0, match.start("code"))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_fences_say_what_they_are(page: Path) -> None:
    assert {kind for kind, _, _ in fences(page)} <= OTHER_KINDS | {"python", "console"}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_pages_python_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))
    # A module of its own, because typed classes look up the names of their module.
    module = ModuleType("__snippets__")
    monkeypatch.setitem(sys.modules, "__snippets__", module)
    for kind, code, line in fences(page):
        if kind == "python":
            run_snippet(code, module.__dict__, page, line)


def run_snippet(code: str, space: dict[str, Any], page: Path, line: int) -> None:
    """Run a fence in the page's namespace; one of a session is compared with what it shows."""
    if not code.lstrip().startswith(">>>"):
        exec(compile("\n" * line + code, str(page), "exec"), space)
        return
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    session = doctest.DocTestParser().get_doctest(code, space, page.name, str(page), line)
    session.globs = space  # not a copy: later fences see its names
    said: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=flags, verbose=False).run(session, out=said.append, clear_globs=False)
    assert outcome.failed == 0, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_pages_commands_exist_with_their_options(page: Path) -> None:
    for kind, code, _ in fences(page):
        if kind in SHELL:
            for line in code.replace("\\\n", " ").splitlines():
                if line.startswith("$ ") or kind != "console":
                    check_command(shlex.split(line.removeprefix("$ "), comments=True), page)


def check_command(words: list[str], page: Path) -> None:
    """`mech`, `make` and scripts of the repository are there; other programs are not ours to check."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if not words:
        return
    if "mechanisms.cli" in words:  # torchrun ... -m mechanisms.cli run ...
        words = ["mech", *words[words.index("mechanisms.cli") + 1 :]]
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(words[1:]) <= targets, f"{page.name}: {shlex.join(words)}"
    elif words[0] == "python" and words[1:] and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), f"{page.name}: there is no {words[1]}"
    elif words[0] == "mech" and words[1:] and not words[1].startswith("-"):
        check_mech(words[1], _spread(words[1:])[1:], page)


def check_mech(name: str, words: list[str], page: Path) -> None:
    """The command and its options exist; so do the papers, experiments and settings it names."""
    _add_paper_commands()
    command = typer.main.get_command(app).commands.get(name)  # type: ignore[attr-defined]
    assert command is not None, f"{page.name}: there is no command mech {name}"
    options = {option: parameter for parameter in command.params for option in parameter.opts}
    plain: list[str] = []
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            option, equals, _ = word.partition("=")
            assert option in options, f"{page.name}: mech {name} has no {option}"
            if not equals and not getattr(options[option], "is_flag", False):
                assert next(rest, None) is not None, f"{page.name}: {option} of mech {name} needs a value"
        else:
            plain.append(word)
    if name in ("run", "show", "ledger") and plain and not_of_the_page(plain[0], page):
        check_names(name, plain, words, page)


def not_of_the_page(slug: str, page: Path) -> bool:
    """Whether a paper is no example that the page itself builds."""
    return f'slug="{slug}"' not in page.read_text()


def check_names(name: str, plain: list[str], words: list[str], page: Path) -> None:
    """Papers, and for `mech run` experiments and settings, are there."""
    if name != "run":
        assert set(plain) <= set(paper_names()), f"{page.name}: mech {name} {plain}"
        return
    paper = load_paper(plain[0])
    chosen = [paper.experiment(word) for word in plain[1:] if "=" not in word] or paper.experiments
    scale = words[words.index("--scale") + 1] if "--scale" in words else "laptop"
    for experiment in chosen:
        if scale in experiment.scales or len(chosen) == 1:
            override(experiment.scales[scale], [word for word in plain if "=" in word])
    variants = [words[place + 1] for place, word in enumerate(words) if word == "--variant"]
    known = {variant for experiment in chosen for variant in experiment.variants}
    assert set(variants) <= known, f"{page.name}: {variants} of {plain[0]}"
