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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('def f(): "doc"; return 1\n', 'def f(): "doc"; return 2\n'),
        ('a = """x\n\ny"""\n', 'a = """x\ny"""\n'),
        ("name = 'ü'  # why\nb = 1\n", "name = 'ü'  # why\nb = 2\n"),
    ],
)
def test_the_code_hash_sees_what_stands_beside_docstrings_and_in_texts(one: str, other: str) -> None:
    assert registry._bare_source(one) != registry._bare_source(other)


def test_the_code_hash_follows_imports_to_what_decides_numbers_but_not_into_the_machinery(tmp_path: Path) -> None:
    source = "from mechanisms._base.seeds import stream_seed\nif TYPE_CHECKING:\n    import mechanisms.robust.xrm\n"
    source += "def f():\n    from mechanisms.lab.data import digits\n    from . import near\n"
    found = registry._imports(source, "pack.part", package=False)
    assert {("mechanisms._base.seeds", False), ("mechanisms.lab.data.digits", True), ("pack.near", True)} <= set(found)
    assert not any(name == "mechanisms.robust.xrm" for name, _ in found)
    assert registry._is_machinery("mechanisms.lab.running")
    assert not registry._is_machinery("mechanisms.lab.data.images")


def test_a_name_from_a_lazy_package_counts_with_its_home_and_with_no_other() -> None:
    data, robust = registry._homes("mechanisms.lab.data"), registry._homes("mechanisms.robust")
    assert data["digits"] == "mechanisms.lab.data.images"
    assert data["read_table"] == "mechanisms.lab.table_files"
    assert robust["discover_environments"] == "mechanisms.robust.xrm"
    assert registry._homes("mechanisms.papers") == registry._homes("mechanisms.lab.data.images") == {}


def test_of_a_package_that_is_asked_for_names_these_count_and_of_one_that_is_passed_on_all() -> None:
    asked = "from mechanisms.lab import data\nfound = data.digits(), data.two_moons()\n"
    found = registry._imports(asked, "pack.part", package=False)
    assert {name for name, _ in found} == {
        "mechanisms.lab",
        "mechanisms.lab.data.digits",
        "mechanisms.lab.data.two_moons",
    }
    passed = registry._imports(asked + "look(data)\n", "pack.part", package=False)
    assert ("mechanisms.lab.data", True) in passed


def test_c_files_that_a_module_names_count_with_their_headers(tmp_path: Path) -> None:
    (tmp_path / "one.h").write_text("int one;")
    (tmp_path / "two.c").write_text('#include "one.h"')
    assert registry._kernels('SOURCE = "two.c"\nOTHER = "three.c"\n', tmp_path) == ["int one;", '#include "one.h"']


def test_a_change_in_what_a_recipe_imports_changes_its_hash(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.code_hash.cache_clear()
    before = code_hash("toy")
    registry.code_hash.cache_clear()
    real = registry._bare_source
    monkeypatch.setattr(registry, "_bare_source", lambda source: real(source) + "x" * ("def run(" in source))
    assert code_hash("toy") != before
    registry.code_hash.cache_clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Line One"}, "lower-case"),
        ({"variants": ()}, "at least one"),
        ({"variants": ("a", "a")}, "distinct"),
        ({"variants": ("a/b",)}, "lower-case"),
        ({"scales": {"laptop": None}}, "'smoke'"),
        ({"run_seeds": lambda config, variant, benches: [], "first_seed": 12}, "must begin a block"),
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
