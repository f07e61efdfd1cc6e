"""From values to HTML: the templates, the site's assets, and Plotly figures as data that no browser runs as script."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechanisms import __version__
from mechanisms._base.extras import require
from mechanisms.lab.figures import INK, PALETTE
from mechanisms.lab.outcomes import describe
from mechanisms.lab.paper import Experiment, Paper
from mechanisms.lab.report import intervals, texts

if TYPE_CHECKING:
    import jinja2
    import markupsafe

HERE = Path(__file__).parent
# Every page carries this, so that a later build knows which pages are its own to remove.
GENERATOR = '<meta name="generator" content="mechanisms report">'


@cache
def environment() -> jinja2.Environment:
    """The templates; everything that is put into them is escaped."""
    jinja2 = require("jinja2", "lab")
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        texts.number,
        texts.setting,
        texts.duration,
        texts.memory,
        texts.seed_ranges,
        texts.mean_and_deviation,
    ):
        found.filters[function.__name__] = function
    found.filters["describe"] = describe
    found.filters["interval_plot"] = intervals.interval_plot
    found.globals["generator"] = safe(GENERATOR)
    found.globals["version"] = __version__
    found.globals["assets"] = asset_tags()
    found.globals["page_name"] = page_name
    found.globals["theme"] = data({"pairs": [INK, *PALETTE]})
    return found


def render(template: str, **values: Any) -> bytes:
    """A template filled in, as the bytes of a page."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment().get_template(template).render(built=now, **values).encode()


def page_name(paper: Paper, experiment: Experiment | None = None) -> str:
    """File name of a paper's or an experiment's page; slugs and names have no dots, so no two are alike."""
    return f"{paper.slug}.{experiment.name}.html" if experiment else f"{paper.slug}.html"


def safe(text: str) -> markupsafe.Markup:
    """HTML of our own, which is not escaped again."""
    from markupsafe import Markup

    return Markup(text)


def data(value: Any) -> markupsafe.Markup:
    """A value as JSON for a `<script type="application/json">`; nothing in it can end that element.

    >>> data("</script>")
    Markup('"\\\\u003c/script\\\\u003e"')
    """
    return _inert(json.dumps(value))


def figure_data(figure: Any) -> markupsafe.Markup:
    """A Plotly figure as JSON, without its template: the page gives it the colours of its light or dark side."""
    layout = figure.layout.template
    figure.layout.template = None
    try:
        return _inert(figure.to_json())
    finally:
        figure.layout.template = layout


def _inert(text: str) -> markupsafe.Markup:
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return safe(text)


@cache
def assets() -> dict[str, bytes]:
    """The files that all pages of a site share: style, script, and plotly.js as the plotly package brings it."""
    return {
        "report.css": (HERE / "assets" / "report.css").read_bytes(),
        "report.js": (HERE / "assets" / "report.js").read_bytes(),
        "plotly.min.js": require("plotly.offline", "lab").get_plotlyjs().encode(),
    }


def asset_tags() -> dict[str, str]:
    """Addresses of the assets below `assets/`, with a mark that changes with their content."""
    return {name: f"{name}?{hashlib.sha256(content).hexdigest()[:10]}" for name, content in assets().items()}


def script_hash(content: str) -> str:
    """What a content security policy calls an inline script, so that this one may run and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
