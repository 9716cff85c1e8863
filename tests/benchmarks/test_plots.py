"""Bar charts: well-formed, true to scale, the same for the same figures."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks._plots import Bar, Mark, axis, bars, number
from benchmarks._results import Spread

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [
    Bar("ours & <more>", Spread(200.0, 150.0, 250.0), ours=True),
    Bar("other", Spread(100.0, 100.0, 100.0)),
    Bar("none", Spread(0.0, 0.0, 0.0)),
]


def widths(text):
    return [float(rect.get("width")) for rect in ET.fromstring(text).iter(f"{SVG}rect") if rect.get("class") in {"bar", "ours"}]


def test_lengths_are_in_proportion_from_zero():
    ours, other, none = widths(bars("a title", "a unit", ROWS))
    assert ours == pytest.approx(2 * other, abs=0.2)
    assert none == 1.0  # a hair, so that it is seen to be there


def test_texts_are_escaped_and_all_there():
    texts = [each.text for each in ET.fromstring(bars('a "title" & more', "a unit", ROWS, Mark("aim <", 220.0))).iter(f"{SVG}text")]
    assert {'a "title" & more', "a unit", "ours & <more>", "aim <", "200", "100"} <= set(texts)


def test_the_mark_stands_at_its_value():
    root = ET.fromstring(bars("a title", "a unit", ROWS, Mark("aim", 100.0)))
    line = next(each for each in root.iter(f"{SVG}line") if each.get("class") == "mark")
    other = next(rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "bar")
    assert float(line.get("x1")) == pytest.approx(float(other.get("x")) + float(other.get("width")), abs=0.2)


def test_a_mark_beyond_all_bars_is_inside_the_picture():
    root = ET.fromstring(bars("a title", "a unit", ROWS, Mark("aim", 5000.0)))
    assert all(0 <= float(line.get("x1")) <= float(root.get("width")) for line in root.iter(f"{SVG}line"))


def test_equal_rounds_have_no_whisker():
    paths = list(ET.fromstring(bars("a title", "a unit", ROWS)).iter(f"{SVG}path"))
    assert len(paths) == 1


def test_the_same_figures_give_the_same_picture():
    assert bars("a title", "a unit", ROWS) == bars("a title", "a unit", list(ROWS))


@given(st.floats(1e-6, 1e9))
def test_an_axis_holds_the_most_in_few_round_steps(most):
    ticks = axis(most)
    assert ticks[0] == 0.0
    assert ticks[-1] >= most * (1 - 1e-6)
    assert ticks[-2] < most
    assert 4 <= len(ticks) <= 7


def test_an_axis_of_nothing_has_a_length():
    assert axis(0.0) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (100.4, "100"), (99.94, "99.9"), (1.234, "1.23"), (0.01234, "0.0123"), (-8.76, "-8.76"), (0.0, "0")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_long_labels_have_room():
    label = "a label of thirty-six characters now"
    root = ET.fromstring(bars("a title", "a unit", [*ROWS, Bar(label, Spread(1.0, 1.0, 1.0))]))
    place = next(float(each.get("x")) for each in root.iter(f"{SVG}text") if each.text == label)
    assert place > 7 * len(label)  # it ends there
