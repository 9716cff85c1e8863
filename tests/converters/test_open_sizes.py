"""Open dimensions: which they are, at what sizes a model is looked at, what sizes follow from them, and engines that take them as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import Signature, TensorSpec
from edgekit.converters import build
from edgekit.converters._open_sizes import Settings, at_sizes, bounds, find_settings, open_symbols, sized
from edgekit.converters._size_rules import Seen, Size, express
from edgekit.errors import ModelError, ShapeRequiredError
from edgekit.runtime import load
from tests.converters.open_size_models import attention, network_of_four

IMAGE = Signature((TensorSpec("x", "float32", ("N", 3, "H", "W")), TensorSpec("k", "int64", ("T",))), ())


def test_open_is_what_the_user_says_and_nothing_else() -> None:
    assert open_symbols(IMAGE, {"x": (-1, 3, "H", 64)}) == ("N", "H")
    assert open_symbols(IMAGE, {"x": (1, 3, -1, -1), "k": (-1,)}) == ("H", "W", "T")
    assert open_symbols(IMAGE, {}) == ()
    assert open_symbols(IMAGE, {"unknown": (-1,), "x": (-1,)}) == ("N",), "wrong ranks and names are refused elsewhere"


def test_sizes_go_where_something_is_open() -> None:
    assert at_sizes(IMAGE, {"x": (1, 3, -1, "W")}, {"H": 32, "W": 64}) == {"x": (1, 3, 32, 64)}
    assert at_sizes(IMAGE, {"x": (1, 3, 480, -1)}, {"H": 32, "W": 64}) == {"x": (1, 3, 480, 64)}
    assert [spec.shape for spec in sized(IMAGE, {"H": 32, "W": 64}).inputs] == [("N", 3, 32, 64), ("T",)]


def test_a_batch_needs_two_settings_and_nothing_to_be_tried() -> None:
    def never(_: Signature) -> bool:
        raise AssertionError

    assert find_settings(IMAGE, ["N"], (5, 7, 11), never) == Settings(({"N": 5}, {"N": 7}))


@pytest.mark.parametrize("step", [1, 2, 8, 32])
def test_the_smallest_step_that_the_model_takes_is_found(step: int) -> None:
    def takes(signature: Signature) -> bool:
        return all(int(size) % step == 0 for size in signature.inputs[0].shape[2:])

    settings = find_settings(IMAGE, ["N", "H", "W"], (5, 7, 11), takes)
    assert settings.step == step
    assert [sizes["N"] for sizes in settings.probes] == [5, 7, 11]
    assert len({sizes["H"] for sizes in settings.probes}) == 3
    assert [sizes["H"] for sizes in settings.probes] != [sizes["W"] for sizes in settings.probes]
    both = {(sizes["H"], sizes["W"]) for sizes in settings.probes} & {(sizes["H"], sizes["W"]) for sizes in settings.proofs}
    assert not both, "an artifact is proven at sizes that it was not made from"
    assert all("N" not in sizes for sizes in settings.proofs)


def test_a_model_that_runs_at_no_size_is_refused() -> None:
    with pytest.raises(ModelError, match="runs at none of the sizes tried for H, W"):
        find_settings(IMAGE, ["H", "W"], (1, 2, 3), lambda _: False)


def test_bounds_hold_what_was_tried_and_what_samples_have() -> None:
    settings = Settings(({"H": 64}, {"H": 96}), ({"H": 64},), 32)
    assert bounds(settings, "H", []) == (32, 1024)
    assert bounds(settings, "H", [16, 1600]) == (16, 1600)


# --- what follows from open sizes ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(20, 200), min_size=3, max_size=3, unique=True), st.integers(1, 8), st.integers(-15, 15))
def test_a_multiple_with_something_added_is_recognised(lengths: list[int], slope: int, base: int) -> None:
    seen = Seen("x", 2, tuple(lengths))
    size = express(tuple(slope * length + base for length in lengths), [], [seen])
    assert size == Size(base, slope, seen)


def test_what_the_operator_reads_comes_first() -> None:
    own, given_, other = (Seen(name, 1, (4, 6, 8)) for name in ("own", "input", "other"))
    assert express((4, 6, 8), [own], [given_], [other]) == Size(0, 1, own)
    assert express((4, 6, 8), [], [given_], [other]) == Size(0, 1, given_)
    assert express((4, 6, 8), [], [], [other]) == Size(0, 1, other)
    assert express((8, 12, 16), [own], [Seen("input", 3, (8, 12, 16))]) == Size(0, 1, Seen("input", 3, (8, 12, 16)))


def test_a_constant_is_one_and_what_nothing_shows_is_not_guessed() -> None:
    seen = Seen("x", 2, (37, 74, 131))
    assert express((3, 3, 3), [seen], []) == Size(3)
    assert express((19, 37, 66), [seen], [], [seen]) is None, "rounding is no line"
    assert express((37 * 59, 74 * 106, 131 * 45), [seen, Seen("x", 3, (59, 106, 45))], []) is None


# --- engines that take open sizes as they are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["generic-x86", "intel-nuc"])
def test_open_sizes_stay_open_and_are_proven_at_several(device: str, tmp_path: Path) -> None:
    path = network_of_four(tmp_path / "net.onnx")
    bundle = build(path, device=device, shapes={"x": (1, 3, -1, -1)}, precision="fp32", output=tmp_path / "bundle", isolate=False)
    assert bundle.manifest.signature.inputs[0].shape == (1, 3, "H", "W")
    assert len({sample.inputs["x"].shape for sample in bundle.golden()}) == 3
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with load(bundle.path) as ours:
        for height, width in ((8, 12), (64, 32), (100, 4)):
            x = np.random.default_rng(1).standard_normal((1, 3, height, width)).astype(np.float32)
            np.testing.assert_allclose(ours.run({"x": x})["y"], session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_sizes_that_nobody_speaks_of_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ShapeRequiredError, match=r"give --shape x=1,3,\?,\? with numbers, or -1 to leave them open, or --calibration"):
        build(attention(tmp_path / "net.onnx"), device="generic-x86", output=tmp_path / "bundle", isolate=False)
