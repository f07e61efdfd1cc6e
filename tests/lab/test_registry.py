import inspect
from pathlib import Path

import pytest

from mechanisms.lab import registry
from mechanisms.lab.paper import Experiment, Paper
from mechanisms.lab.registry import PaperError, code_hash, load_paper, paper_names


def test_a_third_partys_package_brings_its_paper_through_the_entry_point(toy: Path) -> None:
    assert "toy" in paper_names()
    assert load_paper("toy").summary == "Larger steps go further."


def test_an_unknown_paper_is_told_with_those_there_are() -> None:
    with pytest.raises(PaperError, match=r"no paper 'xrn'.*xrm"):
        load_paper("xrn")


def test_the_code_hash_forgets_comments_docstrings_and_blank_lines_only() -> None:
    plain = "def f(x):\n    return x + 1\n\nname = '# no comment'\n"
    dressed = (
        '"""Says what."""\n\n\ndef f(x):\n    """Add."""\n    # why\n    return x + 1  # so\n'
        "\n\nname = '# no comment'\n"
    )
    assert registry._bare_source(plain) == registry._bare_source(dressed)
    assert registry._bare_source(plain) != registry._bare_source(plain.replace("+ 1", "+ 2"))


def test_the_code_hash_covers_the_recipe_and_its_parts() -> None:
    assert len(code_hash("xrm")) == 12
    assert all(part.startswith("mechanisms.robust") for part in load_paper("xrm").parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Line One"}, "lower-case"),
        ({"variants": ()}, "at least one"),
        ({"variants": ("a", "a")}, "distinct"),
        ({"variants": ("a/b",)}, "lower-case"),
        ({"scales": {"laptop": None}}, "'smoke'"),
    ],
)
def test_an_experiment_that_cannot_work_is_refused_when_it_is_made(changes: dict, message: str) -> None:
    values = {"name": "line", "run": lambda config, variant, bench: {}, "variants": ("a",), "scales": {"smoke": None}}
    with pytest.raises(ValueError, match=message):
        Experiment(**(values | changes))


def test_a_paper_needs_a_slug_and_distinct_experiments() -> None:
    values = {"title": "", "authors": "", "year": 2026, "topic": "", "summary": ""}
    with pytest.raises(ValueError, match="slug"):
        Paper(slug="Not A Slug", experiments=[], **values)
    one = Experiment(name="one", run=lambda config, variant, bench: {}, variants=("a",), scales={"smoke": None})
    with pytest.raises(ValueError, match="share a name"):
        Paper(slug="two", experiments=[one, one], **values)


def test_recipes_are_light() -> None:
    source = inspect.getsource(__import__("mechanisms.papers.xrm", fromlist=["paper"]))
    top = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not any("torch" in line or "robust" in line for line in top)
