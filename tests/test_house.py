"""The house: every paper has its five files and says what the ledger says; every public name shows an example."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mechanisms.lab
from mechanisms.lab.ledger import papers_to_markdown, to_markdown
from mechanisms.lab.progress import Silent
from mechanisms.lab.records import read_records
from mechanisms.lab.registry import load_paper, paper_names
from mechanisms.lab.session import Request, execute, ledger

ROOT = Path(__file__).parents[1]
OWN = [name for name in paper_names() if (ROOT / f"src/mechanisms/papers/{name.replace('-', '_')}.py").exists()]
TOPICS = (
    "dynamics",
    "recurrent",
    "equilibrium",
    "sequences",
    "robust",
    "memory",
    "causal",
    "planning",
    "worlds",
    "symbolic",
)


def modules() -> list[str]:
    found = pkgutil.walk_packages(mechanisms.__path__, "mechanisms.")
    return sorted(module.name for module in found if not module.name.split(".")[-1].startswith("_"))


@pytest.mark.parametrize("slug", OWN)
def test_every_paper_has_recipe_test_benchmark_and_page_under_its_slug(slug: str) -> None:
    name = slug.replace("-", "_")
    for path in (f"tests/papers/test_{name}.py", f"benchmarks/bench_{name}.py", f"docs/papers/{slug}.md"):
        assert (ROOT / path).is_file(), f"{slug} lacks {path}"
    paper = load_paper(slug)
    assert paper.parts, f"{slug} names no parts"
    for part in paper.parts:
        importlib.import_module(part)
    assert paper.topic in TOPICS
    assert all(claim.published or claim.note for experiment in paper.experiments for claim in experiment.claims)


@pytest.mark.parametrize("slug", OWN)
def test_every_paper_runs_at_smoke(slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHANISMS_CACHE", str(tmp_path / "cache"))
    paper = load_paper(slug)
    request = Request(work=[(paper, paper.experiments)], scale="smoke", results=tmp_path, device="cpu")
    summary = execute(request, Silent())
    assert summary.failed == []
    if summary.missing:
        pytest.skip("; ".join(summary.missing))
    assert summary.done == sum(len(experiment.variants) for experiment in paper.experiments)
    assert execute(request, Silent()).done == 0


@pytest.mark.parametrize("slug", OWN)
def test_the_page_says_what_the_ledger_says(slug: str) -> None:
    found, problems = ledger([load_paper(slug)], [ROOT / "results"])
    assert problems == []
    marked = between(f"docs/papers/{slug}.md", f"<!-- ledger {slug} -->")
    assert marked == to_markdown(found), f"put the output of `mech ledger {slug} --markdown` between the markers"


def test_the_readme_lists_the_papers_and_their_verdicts() -> None:
    papers = [load_paper(slug) for slug in OWN]
    found, _ = ledger(papers, [ROOT / "results"])
    marked = between("README.md", "<!-- papers -->")
    assert marked == papers_to_markdown(papers, found), "put the output of `mech list --markdown` between the markers"
    for slug in OWN:
        assert f"[{slug}]: docs/papers/{slug}.md" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("bench_*.py")), ids=lambda path: path.stem)
def test_benchmarks_load_and_what_they_compare_agrees(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    bench = importlib.import_module(path.stem)
    if hasattr(bench, "check_agreement"):
        bench.check_agreement()


def between(file: str, marker: str) -> str:
    """What stands in a file between a marker and the next end."""
    return (ROOT / file).read_text().split(marker)[1].split("<!-- end -->")[0].strip()


def test_committed_records_are_small_and_of_installed_papers() -> None:
    records, problems = read_records([ROOT / "results"])
    assert problems == []
    assert max(path.stat().st_size for path in (ROOT / "results").rglob("*.json")) <= 20_000
    assert {record.slug for record in records} <= set(paper_names())


@pytest.mark.parametrize("name", modules())
def test_every_public_name_has_a_docstring_and_its_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    public = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    }
    for key, value in public.items():
        assert value.__doc__, f"{name}.{key} has no docstring"
        borrowed = name.split(".")[1] in TOPICS or (name.split(".")[1] == "lab" and key in mechanisms.lab.__all__)
        if borrowed and not _is_exception(value):
            assert ">>>" in value.__doc__, f"{name}.{key} shows no example"
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def _is_exception(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Exception)


def test_the_layers_import_one_way() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout
