"""Every Python snippet of the README and the docs runs, and every `mech` command they show is one that exists."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mechanisms.cli import app
from mechanisms.lab.registry import load_paper, paper_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<kind>\{?[\w-]+\}?)[^\n]*\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def snippets(page: Path, *kinds: str) -> list[str]:
    return [match["code"] for match in FENCE.finditer(page.read_text()) if match["kind"] in kinds]


@pytest.mark.parametrize("page", [page for page in PAGES if "_build" not in page.parts], ids=lambda page: page.name)
def test_the_pages_python_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))
    space: dict = {"__name__": "__snippet__"}
    for code in snippets(page, "python"):  # one after the other, as a reader would type them
        exec(compile(code, str(page), "exec"), space)


@pytest.mark.parametrize("page", [page for page in PAGES if "_build" not in page.parts], ids=lambda page: page.name)
def test_the_pages_commands_exist_and_their_papers_and_options_too(page: Path) -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    for slug in paper_names():
        names |= set(load_paper(slug).commands)
    for block in snippets(page, "console", "bash", "shell"):
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] != ["mech"] or len(words) < 2 or words[1].startswith("-"):
                continue
            assert words[1] in names, f"{page.name}: mech {words[1]}"
            if words[1] in {command.name or command.callback.__name__ for command in app.registered_commands}:
                helped = CliRunner().invoke(app, [words[1], "--help"]).output
                for word in words[2:]:
                    if word.startswith("--"):
                        assert word.split("=")[0] in helped, f"{page.name}: {word} of mech {words[1]}"
