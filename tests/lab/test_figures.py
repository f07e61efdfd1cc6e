import math

import pytest

from mechanisms.lab import figures
from mechanisms.lab.records import Cell, Curve, Record
from mechanisms.lab.statistics import student_interval


def record(variant: str, seed: int, metrics: dict | None = None, curves: dict | None = None) -> Record:
    return Record("toy", "line", "laptop", variant, seed, {}, metrics or {}, curves or {})


def cell(*records: Record) -> Cell:
    return Cell("toy", "line", "laptop", {}, records)


def texts(figure) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


def traces(figure, kind: str) -> list:
    return [trace for trace in figure.data if trace.type == kind]


def test_bars_show_mean_student_interval_and_every_seed() -> None:
    values = [0.8, 0.9, 0.85, 0.95]
    drawn = figures.bars("accuracy").draw(cell(*(record("xrm", 10 + i, {"accuracy": v}) for i, v in enumerate(values))))
    (bar,), (points,) = traces(drawn, "bar"), traces(drawn, "scatter")
    low, high = student_interval(values)
    assert bar.x[0] == pytest.approx(0.875)
    assert bar.error_x.array[0] == pytest.approx(float(high - low) / 2)
    assert list(points.x) == values
    assert "mean 0.875" in bar.text[0]
    assert "4 seeds" in bar.text[0]
    assert points.text[1] == "<b>xrm</b><br>seed 11: 0.9"
    # Each point lies on its bar.
    assert all(abs(y - bar.y[0]) < bar.width / 2 for y in points.y)


def test_one_seed_has_no_interval() -> None:
    (bar,) = traces(figures.bars("accuracy").draw(cell(record("xrm", 10, {"accuracy": 0.5}))), "bar")
    assert not bar.error_x.visible
    assert bar.text[0] == "<b>xrm</b><br>mean 0.5<br>1 seed"


def test_lists_count_with_their_mean_and_what_is_no_finite_number_does_not_count() -> None:
    members = [
        record("xrm", 10, {"hit": [True, False, True, True]}),
        record("xrm", 11, {"hit": None}),
        record("xrm", 12, {"hit": "n/a"}),
        record("xrm", 13, {"hit": []}),
        record("xrm", 14, {"hit": True}),
    ]
    (points,) = traces(figures.bars("hit").draw(cell(*members)), "scatter")
    assert list(points.x) == [0.75, 1.0]


def test_missing_variants_are_said_and_keep_their_place() -> None:
    drawn = figures.bars("accuracy", variants=("erm", "xrm")).draw(cell(record("xrm", 10, {"accuracy": 0.5})))
    assert texts(drawn) == ["no records yet"]
    assert list(drawn.layout.yaxis.ticktext) == ["erm", "xrm"]
    assert traces(drawn, "bar")[0].y[0] == 1


@pytest.mark.parametrize("figure", [figures.bars("a"), figures.bars("a", variants=("x",)), figures.curves("a")])
@pytest.mark.parametrize("records", [(), (record("x", 10),), (record("x", 10, {"a": "text"}),)])
def test_figures_without_numbers_say_so(figure, records) -> None:
    assert texts(figure.draw(cell(*records))) == ["no records yet"]


def test_only_variants_that_have_the_metric_are_drawn_unless_others_are_asked_for() -> None:
    members = [
        record("erm", 10, {"accuracy": 0.4}, {"accuracy": Curve([0, 1], [1, 2])}),
        record("xrm", 10, {"accuracy": 0.5, "recall": 0.9}, {"flip_rate": Curve([0, 1], [1, 2])}),
    ]
    assert list(figures.bars("recall").draw(cell(*members)).layout.yaxis.ticktext) == ["xrm"]
    assert [trace.name for trace in figures.curves("flip_rate").draw(cell(*members)).data] == ["xrm"]


def test_curves_show_mean_and_band_over_seeds() -> None:
    steps = [0.0, 1.0, 2.0]
    members = [record("xrm", s, curves={"loss": Curve(steps, [v, v + 1, v + 2])}) for s, v in ((10, 1.0), (11, 3.0))]
    band, line = figures.curves("loss").draw(cell(*members)).data
    assert list(line.x) == steps
    assert list(line.y) == [2.0, 3.0, 4.0]
    assert list(band.y)[:3] == pytest.approx([y + math.sqrt(2) for y in line.y])
    assert list(band.y)[3:] == pytest.approx([y - math.sqrt(2) for y in reversed(line.y)])
    assert line.text[0] == "<b>xrm</b> 2 ± 1.4 (2 seeds)"
    assert line.line.dash == "solid"


def test_curves_thinned_differently_are_joined_and_none_is_continued_past_its_end() -> None:
    full = Curve([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    thin = Curve([0, 2, 4], [10, 12, None])
    _, line = (
        figures.curves("loss")
        .draw(cell(record("x", 1, curves={"loss": full}), record("x", 2, curves={"loss": thin})))
        .data
    )
    assert list(line.y) == [5.0, 6.0, 7.0, 3.0, 4.0]
    assert line.text[3] == "<b>x</b> 3 (1 seed)"


def test_curves_name_variants_without_records() -> None:
    members = [record("xrm", 10, curves={"loss": Curve([0, 1], [1, 2])})]
    drawn = figures.curves("loss", variants=("erm", "xrm")).draw(cell(*members))
    assert [trace.name for trace in drawn.data] == ["erm (no records yet)", "xrm"]
    assert texts(drawn) == []


def test_variants_look_the_same_in_all_figures_and_differ_by_more_than_colour() -> None:
    members = [
        record(v, 10, {"accuracy": 0.5}, {"loss": Curve([0, 1], [1, 2])}) for v in ("erm", "oracle", "random", "xrm")
    ]
    lines = {trace.name: trace for trace in figures.curves("loss").draw(cell(*members)).data}
    assert len({trace.line.color for trace in lines.values()}) == len(lines)
    assert len({trace.line.dash for trace in lines.values()}) == len(lines)
    assert len({trace.marker.symbol for trace in lines.values()}) == len(lines)
    (points,) = traces(figures.bars("accuracy", variants=("xrm",)).draw(cell(*members)), "scatter")
    assert points.marker.color == lines["xrm"].line.color


def test_names_of_metrics_and_curves_are_shown_as_text() -> None:
    name = "<a href='https://example.invalid'>x</a>"
    members = [record("xrm", 10, {name: 0.5}, {name: Curve([0, 1], [1, 2])})]
    for figure in (figures.bars(name), figures.curves(name)):
        assert "<a" not in figure.draw(cell(*members)).to_json().replace("\\u003c", "<")


def test_captions_and_titles_can_be_given() -> None:
    assert figures.bars("worst_group_accuracy", "Worst group").name == "Worst group"
    assert figures.curves("flip_rate").name == "flip rate"
    assert "Student" in figures.bars("a").caption
    assert figures.curves("a", caption="See").caption == "See"


def linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4


def contrast(colour: str, page: str) -> float:
    """Contrast ratio of the web accessibility guidelines (WCAG 2.2)."""
    light = []
    for value in (colour, page):
        r, g, b = (linear(int(value[i : i + 2], 16) / 255) for i in (1, 3, 5))
        light.append(0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05)
    return max(light) / min(light)


def test_every_colour_is_visible_on_a_light_and_on_a_dark_page() -> None:
    for light, dark in (figures.INK, *figures.PALETTE):
        assert contrast(light, "#ffffff") >= 3, light
        assert contrast(dark, "#1a1e22") >= 3, dark
