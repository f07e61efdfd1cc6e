"""The report in a browser, from disk: links, plots, filter, both colour schemes, and strings that try to be HTML."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import plotly.graph_objects as go
import pytest

from mechanisms.lab import ledger
from mechanisms.lab.report import Section, Table, build_report, page
from tests.lab import report_examples as examples

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if not Path(CHROMIUM).exists():
        pytest.skip("no Chromium: install Debian's package with `apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "code_hash", lambda slug: examples.CODE)
        return build_report(examples.PAPERS, examples.records(), tmp_path_factory.mktemp("site"))


class Tab:
    """A page and what went wrong on it: console messages, errors, and requests for anything but files."""

    def __init__(self, browser, **options) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("request", self._request)

    def _request(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(f"request: {request.url}")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Until a condition in JavaScript holds. Playwright's own waiting evaluates text, which the page forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"waited in vain for {condition}"
            self.page.wait_for_timeout(50)

    def open(self, path: Path) -> None:
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")


@pytest.fixture
def tab(browser) -> Iterator:
    opened: list[Tab] = []

    def new(**options) -> Tab:
        opened.append(Tab(browser, **options))
        return opened[-1]

    yield new
    for one in opened:
        assert one.faults == []
        one.context.close()


def test_from_the_ledger_to_an_experiment_to_a_value_in_a_plot(index: Path, tab) -> None:
    one = tab(color_scheme="light")
    one.open(index)
    assert one.page.title() == "The ledger – mechanisms"
    one.page.get_by_role("link", name="Environments from XRM are worth as much as the true ones").first.click()
    one.page.wait_for_load_state("load")
    assert one.page.locator("h1").inner_text() == "waterbirds-like"
    plot = one.page.locator("figure.plot").first
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .point").first
    point.hover(force=True)
    one.page.wait_for_selector(".hoverlayer .hovertext")
    said = plot.locator(".hoverlayer").text_content()
    assert "erm" in said
    assert "seed 10: 0." in said
    buttons = plot.locator(".modebar-btn").evaluate_all("all => all.map(button => button.dataset.title)")
    assert "Zoom" in buttons
    assert not [title for title in buttons if "Share" in title or "loud" in title]  # nothing offers to upload data
    curve = one.page.locator("figure.plot").nth(1).locator(".nsewdrag").first
    curve.scroll_into_view_if_needed()
    box = curve.bounding_box()
    one.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    one.wait(
        "document.querySelectorAll('figure.plot')[1].querySelector('.hoverlayer').textContent.includes('10 seeds')"
    )


def test_strings_that_look_like_html_are_shown_as_text(index: Path, tab) -> None:
    one = tab()
    one.open(index.parent / "papers" / "xrm.coloured-digits.html")
    shown = one.page.locator("main").inner_text()
    assert shown.count(examples.SCRIPT) >= 4
    assert shown.count(examples.IMAGE) >= 4
    assert "seed 10: <b>age</b>, zip" in shown
    assert one.page.locator("main img").count() == 0
    # In the plot's own labels too.
    assert one.page.locator(".xtitle").first.text_content() == examples.SCRIPT.replace("_", " ")
    assert one.page.evaluate("window.struck") is None
    one.open(index)
    assert examples.SCRIPT in one.page.locator("main").inner_text()
    assert one.page.evaluate("window.struck") is None


def test_even_html_that_got_in_would_not_run(index: Path, tab) -> None:
    one = tab()
    one.open(index)
    one.page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.struck = 3\">')"
    )
    one.page.wait_for_timeout(200)
    assert one.page.evaluate("window.struck") is None
    assert any("Content Security Policy" in fault for fault in one.faults)
    one.faults.clear()


def test_the_filter_narrows_the_ledger_by_verdict_topic_and_text(index: Path, tab) -> None:
    one = tab()
    one.open(index)
    rows = one.page.locator("table.ledger tbody tr")
    visible = one.page.locator("table.ledger tbody tr:visible")
    everything = rows.count()
    one.page.locator("button.tile.fails").click()
    assert 0 < visible.count() < everything
    assert set(visible.locator(".badge").all_inner_texts()) == {"fails"}
    assert one.page.locator("output.shown").inner_text() == f"{visible.count()} of {everything} claims"
    one.page.locator("button.tile.fails").click()
    one.page.select_option("select[name=topic]", "equilibrium")
    assert visible.count() == 2
    one.page.fill("input[name=text]", "symmetric")
    assert visible.count() == 1
    one.page.fill("input[name=text]", "nothing like it")
    assert visible.count() == 0
    one.page.get_by_role("button", name="Show all").click()
    assert visible.count() == everything


def test_tables_sort_as_numbers_and_by_keyboard(index: Path, tab) -> None:
    one = tab()
    one.open(index)
    one.page.get_by_role("button", name="Seeds").focus()
    one.page.keyboard.press("Enter")
    seeds = [int(text.replace("–", "0")) for text in one.page.locator("table.ledger td.num").all_inner_texts()]
    assert seeds == sorted(seeds)
    assert seeds[0] < 4 < seeds[-1]
    one.page.keyboard.press("Enter")
    assert one.page.locator("th[aria-sort=descending]").inner_text() == "Seeds"


def test_dark_and_light_differ_in_page_and_plots_and_follow_a_change(index: Path, tab) -> None:
    one = tab(color_scheme="light")
    one.open(index.parent / "papers" / "xrm.waterbirds-like.html")
    background = "getComputedStyle(document.body).backgroundColor"
    line = "document.querySelector('.scatterlayer .js-line').style.stroke"
    text = "document.querySelector('.xtick text').style.fill"
    look = f"[{background}, {line}, {text}]"
    light = one.page.evaluate(look)
    one.page.emulate_media(color_scheme="dark")
    one.wait(f"{line} !== '{light[1]}'")
    dark = one.page.evaluate(look)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    two = tab(color_scheme="dark")
    two.open(index.parent / "papers" / "xrm.waterbirds-like.html")
    assert two.page.evaluate(look) == dark


@pytest.mark.parametrize("width", [360, 820, 1280])
def test_nothing_is_wider_than_the_window(index: Path, tab, width: int) -> None:
    one = tab(viewport={"width": width, "height": 800})
    for path in sorted(index.parent.rglob("*.html")):
        one.open(path)
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width, path.name


def test_printing_is_light_and_on_paper_width(index: Path, tab) -> None:
    one = tab(color_scheme="dark")
    one.open(index.parent / "papers" / "xrm.waterbirds-like.html")
    one.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    one.page.emulate_media(media="print", color_scheme="dark")  # tells of a change of scheme, after the event
    one.page.wait_for_timeout(200)
    assert one.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert one.page.evaluate("document.querySelector('.main-svg').getBoundingClientRect().width") == 660
    one.page.emulate_media(media="screen", color_scheme="dark")
    one.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert one.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 24)"


def test_without_scripts_the_ledger_still_reads(index: Path, tab) -> None:
    one = tab(java_script_enabled=False)
    one.open(index)
    assert one.page.locator("table.ledger tbody tr").first.is_visible()
    assert not one.page.locator("form.filters").is_visible()


def test_a_page_on_its_own_draws_and_sorts_and_runs_nothing_else(tmp_path: Path, tab) -> None:
    table = Table(["name", "auc"], [["age", 0.51], [examples.IMAGE, 0.93], ["income", None]])
    figure = go.Figure(go.Bar(x=["age", "income"], y=[1, 2]))
    path = page(
        "Environments", [Section("Found", [examples.SCRIPT, table]), Section("Columns", figure)], tmp_path / "a.html"
    )
    one = tab()
    one.open(path)
    shown = one.page.locator("main").inner_text()
    assert examples.SCRIPT in shown
    assert examples.IMAGE in shown
    assert one.page.evaluate("window.struck") is None
    assert one.page.locator(".barlayer .point").count() == 2
    one.page.get_by_role("button", name="auc").click()
    assert one.page.locator("td.num").all_inner_texts() == ["0.510", "0.930", "–"]
    one.page.get_by_role("button", name="auc").click()
    assert one.page.locator("td.num").all_inner_texts() == ["0.930", "0.510", "–"]
