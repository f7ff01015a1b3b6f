"""Drawing: places on logarithmic axes, numbers of ticks, bytes that do not change."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chart import MARKS_MAX, Axis, Chart, Line, LinearAxis, Point, Target, short

SVG = "{http://www.w3.org/2000/svg}"


def line(label: str, *values: tuple[float, float]) -> Line:
    return Line(label, "#000000", [Point(x, y, y / 2, y * 2) for x, y in values])


def test_a_chart_is_the_same_each_time_and_well_formed() -> None:
    chart = Chart(
        "Start <1 s",
        "messages",
        "seconds",
        [line("qlog", (10, 0.5), (1e6, 1.0)), line("nothing")],
        [Target("2 s", 2)],
    )
    assert chart.svg() == chart.svg()
    root = ElementTree.fromstring(chart.svg())
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"Start <1 s", "messages", "seconds", "qlog", "2 s", "1 M"} <= set(texts)
    assert "nothing" not in texts
    assert len(list(root.iter(f"{SVG}circle"))) == 2


def test_a_chart_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        Chart("Start", "x", "y", [line("qlog")]).svg()


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=9))
def test_values_and_ticks_lie_on_their_axis_in_order(values: list[float]) -> None:
    for axis in (Axis.around(values, 100, 500), LinearAxis.around(values, 100, 500)):
        for some in (sorted(values), axis.ticks()):
            places = [axis.place(value) for value in some]
            assert places == sorted(places)
            assert all(99.9 <= place <= 500.1 for place in places)
        assert 1 <= len(axis.ticks()) <= 16


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 20], [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        ([0, 3.3], [0, 0.5, 1, 1.5, 2, 2.5, 3]),
        ([7], [7, 7.1, 7.2, 7.3, 7.4, 7.5, 7.6, 7.7, 7.8, 7.9, 8]),
    ],
)
def test_a_linear_axis_has_round_ticks(values: list[float], ticks: list[float]) -> None:
    assert LinearAxis.around(values, 0, 1).ticks() == pytest.approx(ticks)


def test_a_time_begins_at_nothing_and_its_many_points_have_no_marks() -> None:
    values = [(float(minute), 5.0) for minute in range(MARKS_MAX + 1)]
    svg = Chart("Memory", "minutes", "MiB", [line("qlog", *values)], linear=True).svg()
    assert not list(ElementTree.fromstring(svg).iter(f"{SVG}circle"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "0.05"), (2, "2"), (5000, "5000"), (10_000, "10 k"), (5e6, "5 M")],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert short(value) == text
