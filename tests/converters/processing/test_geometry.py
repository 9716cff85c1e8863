"""Sizes, bars and cuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import ImageInput
from edgekit.converters.processing._geometry import Placement, final_size, place

sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(sizes, sizes, st.sampled_from(["stretch", "letterbox", "cover"]))
def test_every_fit_ends_at_the_wanted_size(have: tuple[int, int], wanted: tuple[int, int], fit: str) -> None:
    image = ImageInput("x", given=have, resize=wanted, fit=fit)  # type: ignore[arg-type]
    steps = place(image, have)
    height, width = steps.resize or have
    height, width = height + steps.pads[0] + steps.pads[2], width + steps.pads[1] + steps.pads[3]
    if steps.cut is not None:
        top, left, rows, columns = steps.cut
        assert top >= 0 <= left
        assert top + rows <= height
        assert left + columns <= width
        height, width = rows, columns
    assert (height, width) == wanted == final_size(image)
    assert min(steps.pads) >= 0
    assert abs(steps.pads[0] - steps.pads[2]) <= 1
    if fit != "stretch" and min(have) > 20 and min(wanted) > 20:
        inner = steps.resize or have
        assert inner[0] / have[0] == pytest.approx(inner[1] / have[1], rel=0.05)


def test_what_changes_nothing_is_left_out() -> None:
    assert place(ImageInput("x", given=(8, 8), resize=(8, 8), crop=(8, 8)), (8, 8)) == Placement(None)
    assert place(ImageInput("x"), None) == Placement(None)
    assert place(ImageInput("x", resize=(8, 8)), None) == Placement((8, 8))
