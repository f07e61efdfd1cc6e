import dataclasses
import html.parser
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from mechanisms.lab import ledger
from mechanisms.lab.claims import Claim, Outcome
from mechanisms.lab.report import Section, Table, build_report, page, rendering, site
from mechanisms.lab.report.intervals import interval_plot, region
from tests.lab import report_examples as examples


@pytest.fixture(autouse=True, scope="module")
def _known_code() -> Iterator[None]:
    """The papers here are installed by no package; their records were made by this code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "code_hash", lambda slug: examples.CODE)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, _known_code: None) -> Path:
    """A whole site, to read."""
    folder = tmp_path_factory.mktemp("site")
    return build_report(examples.PAPERS, examples.records(), folder, problems=["a <b>torn</b> record"]).parent


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """A whole site, to build upon."""
    return Path(shutil.copytree(built, tmp_path / "site"))


class Outline(html.parser.HTMLParser):
    """Tags, addresses and identifiers of a page; complains about what is opened and never closed."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "circle", "path", "rect", "line"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def outline(path: Path) -> Outline:
    return Outline(path.read_text())


def test_every_link_leads_to_a_page_and_a_place_that_exist(built: Path) -> None:
    pages = {path: outline(path) for path in built.rglob("*.html")}
    assert len(pages) == 1 + 2 + 3
    for path, content in pages.items():
        assert content.open == []
        assert len(content.ids) == len(set(content.ids))
        for link in content.links:
            assert not re.match(r"(https?:)?//", link), link
            address, _, place = link.partition("#")
            if link.startswith("data:"):
                continue
            target = (path.parent / address.partition("?")[0]).resolve() if address else path
            assert target.is_file(), link
            assert not place or place in pages[target].ids, link


def test_pages_are_semantic(built: Path) -> None:
    for path in built.rglob("*.html"):
        content = outline(path)
        assert {"title", "header", "nav", "main", "footer", "h1"} <= set(content.tags)
        assert content.tags.count("h1") == content.tags.count("main") == 1
        assert '<html lang="en">' in path.read_text()


def test_nothing_from_records_or_papers_becomes_html(built: Path) -> None:
    for path in built.rglob("*.html"):
        content = outline(path)
        assert "img" not in content.tags
        assert not {name for name in content.attributes if name.startswith("on")}
        text = path.read_text()
        assert "<script>" not in text
        assert examples.IMAGE not in text
    page_text = (built / "papers" / "xrm.coloured-digits.html").read_text()
    assert "&lt;script&gt;window.struck = 1&lt;/script&gt;" in page_text
    assert "a &lt;b&gt;torn&lt;/b&gt; record" in (built / "index.html").read_text()


def test_the_ledger_shows_each_claim_with_its_verdict_and_figures(built: Path) -> None:
    text = (built / "index.html").read_text()
    rows = ledger.rows(examples.PAPERS, examples.records())
    assert text.count("<tr data-verdict=") == len(rows)
    for shown in (
        "−0.026 [−0.064, −0.003], 10 seeds",
        "86.1 % vs 86.0 %",
        "provisional",
        "stale",
        "skewed",
        "cuda: NVIDIA H200",
    ):
        assert shown in text
    for verdict, count in site._counts(rows):
        assert f'data-verdict="{verdict}" aria-pressed="false"><span class="count">{count}</span>' in text
    # The verdict is a word, not a colour alone.
    assert re.search(r'class="badge undecided">.*?</svg>\s*undecided</span>', text, re.DOTALL)


def test_an_experiment_page_shows_settings_versions_times_and_records(built: Path) -> None:
    text = (built / "papers" / "xrm.waterbirds-like.html").read_text()
    for shown in ("10–19", "10, 11, 14", "584 MiB", "environments 10 min 42 s", "changed, laptop has 0.95", "2.13.0"):
        assert shown in text, shown
    assert "f1_at_8000: xrm &gt;= 0.7" in text
    assert text.count('<figure class="plot">') == 3 * 3
    assert "6 of older code" in text
    digits = (built / "papers" / "xrm.coloured-digits.html").read_text()
    assert "differs between runs" in digits
    assert "Not run yet" in digits
    assert "could not be drawn: KeyError" in digits


def test_metrics_are_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    base = examples.record(examples.XRM, examples.DIGITS, "laptop", "erm", 10)
    values = {10: 0.5, 11: 0.7, 12: None}
    records = [
        dataclasses.replace(base, seed=s, metrics={"accuracy": v, "hits": [True, False]}) for s, v in values.items()
    ]
    build_report([examples.XRM], records, tmp_path)
    text = (tmp_path / "papers" / "xrm.coloured-digits.html").read_text()
    assert '0.60 <span class="deviation">± 0.14</span> <span class="n">n 2, 1 NaN</span>' in text
    assert '0.500 <span class="deviation">± 0</span> <span class="n">n 3</span>' in text


def test_figures_are_data_that_parse_and_carry_no_template(built: Path) -> None:
    text = (built / "papers" / "xrm.waterbirds-like.html").read_text()
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert len(blocks) == 9
    for block in blocks:
        figure = json.loads(block)
        assert "template" not in figure["layout"]
        assert not set("<>&") & set(block)


def test_plotly_is_stored_once(built: Path) -> None:
    assert sorted(path.name for path in (built / "assets").iterdir()) == ["plotly.min.js", "report.css", "report.js"]
    assert sum(path.stat().st_size for path in built.rglob("*.html")) < 1_000_000


def test_records_of_no_installed_paper_are_named(tmp_path: Path) -> None:
    lost = dataclasses.replace(examples.records()[0], slug="gone")
    text = build_report([examples.XRM], [lost], tmp_path).read_text()
    assert "gone/waterbirds-like at laptop: 1 records are not shown" in text


def test_what_was_not_run_says_why_and_is_not_marked(tmp_path: Path) -> None:
    why = Outcome("not run", "accuracy: xrm >= 0.5", marks=("no records of xrm",), provisional=True)
    claim = Claim("It works", examples.Given(why))
    paper = dataclasses.replace(examples.XRM, experiments=(dataclasses.replace(examples.DIGITS, claims=(claim,)),))
    text = build_report([paper], examples.records()[-3:-1], tmp_path).read_text()
    assert '<span class="none">no records of xrm</span>' in text
    assert 'class="marks"' not in text


def test_a_year_is_cited_once(built: Path, tmp_path: Path) -> None:
    assert "ICML, 2024" in (built / "papers" / "xrm.html").read_text()
    build_report([dataclasses.replace(examples.XRM, venue="ICML 2024")], [], tmp_path)
    assert "ICML 2024, arXiv" in (tmp_path / "papers" / "xrm.html").read_text()


def test_a_report_without_papers_or_records_still_opens(tmp_path: Path) -> None:
    assert "No paper that is installed makes a claim." in build_report([], [], tmp_path / "empty").read_text()
    build_report(examples.PAPERS, [], tmp_path / "unrun")
    text = (tmp_path / "unrun" / "papers" / "xrm.waterbirds-like.html").read_text()
    assert "mech run xrm waterbirds-like --scale laptop" in text


def test_an_interrupted_build_leaves_the_old_site(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (own / "index.html").read_bytes()
    real, calls = site.write_atomic, []

    def full_disk(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(site, "write_atomic", full_disk)
    with pytest.raises(OSError, match="No space"):
        build_report(examples.PAPERS[:1], [], own)
    assert (own / "index.html").read_bytes() == before
    assert len(list(own.rglob("*.html"))) == 6
    assert not list(own.rglob("*.part"))


def test_pages_that_are_no_longer_needed_go_and_others_stay(own: Path) -> None:
    foreign = own / "papers" / "mine.html"
    foreign.write_text("<p>not ours</p>")
    build_report(examples.PAPERS[:1], examples.records(), own)
    assert {path.name for path in (own / "papers").iterdir()} == {
        "mine.html", "xrm.html", "xrm.coloured-digits.html", "xrm.waterbirds-like.html",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("accuracy: xrm - oracle >= -0.03", (-0.03, float("inf"))),
        ("loss: xrm - erm < 0", (-float("inf"), 0.0)),
        ("accuracy: |xrm - oracle| <= 0.03", (-0.03, 0.03)),
        ("accuracy: |xrm - 0.5| <= 0.25", (0.25, 0.75)),
        ("error: free = 0 ± 1e-06", (-1e-6, 1e-6)),
        ("share of units >= 0.9", (0.9, float("inf"))),
        ("it converges", None),
    ],
)
def test_the_region_of_a_claim_is_read_from_its_statement(statement: str, expected: tuple[float, float] | None) -> None:
    assert region(statement) == expected


@pytest.mark.parametrize("estimate", [None, float("nan")])
def test_there_is_no_picture_of_what_was_not_measured(estimate: float | None) -> None:
    assert interval_plot(Outcome("undecided", "a >= 0", estimate)) == ""


def test_interval_plots_stay_inside_their_frame() -> None:
    for low, high in [(-1e9, 1e9), (0.0, 0.0), (0.3, 0.30001), (-float("inf"), 1.0)]:
        picture = interval_plot(
            Outcome("holds", "a: xrm >= 0.5", (low + high) / 2 if low > -1e99 else 0.4, (low, high), seeds=10)
        )
        for name in ("x1", "x2", "cx", "x"):
            for value in re.findall(rf' {name}="([^"]*)"', picture):
                assert 0 <= float(value) <= 168


def test_one_page_holds_everything_it_needs(tmp_path: Path) -> None:
    frame = pd.DataFrame({"<b>column</b>": ["age", examples.SCRIPT], "auc": [0.93, None], "rows": [10, 20000]})
    figure = go.Figure(go.Bar(x=["age", "income"], y=[1, 2]))
    sections = [
        Section("Found <b>here</b>", [examples.IMAGE, frame]),
        Section("Counts", Table(["class", "n"], [["cat", 12]], "Rows by class")),
        Section("Picture", figure, "What to see"),
    ]
    path = page("Environments </title>", sections, tmp_path / "deep" / "page.html", lead="One line.")
    text = path.read_text()
    content = Outline(text)
    assert content.open == []
    assert content.links == ["data:,"]
    assert "img" not in content.tags
    assert "b" not in content.tags
    assert 'data-value="NaN">–</td>' in text
    assert 'data-value="20000.0">20 000</td>' in text
    assert "Rows by class" in text
    assert len(text) > 4_000_000
    plain = page("No picture", sections[:2], tmp_path / "plain.html")
    assert plain.stat().st_size < 100_000


def test_tables_and_sections_refuse_what_they_cannot_show(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 values where the table has 2 columns"):
        Table(["a", "b"], [[1]])
    with pytest.raises(TypeError, match="a section holds a set"):
        page("wrong", [Section("", {1})], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_page_and_the_policy_agree_on_its_scripts(tmp_path: Path) -> None:
    text = page("t", [Section("", go.Figure(go.Bar(y=[1])))], tmp_path / "page.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert rendering.script_hash(script) in text


def test_a_page_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(FileExistsError, match="somebody else"):
        build_report([], [], tmp_path)
    assert (tmp_path / "index.html").read_text() == "<h1>mine</h1>"
