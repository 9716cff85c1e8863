"""``edgekit build --state`` as a script uses it."""

import onnx
import pytest

from tests.runtime.stateful_bundles import cell_model


@pytest.fixture
def cell(tmp_path):
    path = tmp_path / "cell.onnx"
    onnx.save(cell_model(rows=1), path)
    return path


def test_a_build_with_states_shows_them(edgekit, cell, tmp_path):
    path = tmp_path / "cell.edgekit"
    built = edgekit(
        "build", cell, "--device", "generic-x86", "-o", path, "--state", "s=s_next", "--state", "n=n_next", "--in-process", "--json"
    )
    assert built.status == 0, built.err
    assert any("sequence of 8 requests with s from s_next, n from n_next" in note for note in built.json["notes"])
    shown = edgekit("inspect", path).out
    assert "state  s from s_next: begins as zeros [1,3]" in shown
    assert edgekit("verify", path, "--json").json["ok"] is True


@pytest.mark.parametrize(
    ("flag", "message"),
    [("s", "expected NAME_IN=NAME_OUT"), ("s=nothing", "expected one of n_next, s_next, y"), ("n=s_next", "the same type")],
)
def test_a_wrong_state_is_one_line_and_nothing_written(edgekit, cell, tmp_path, flag, message):
    path = tmp_path / "cell.edgekit"
    done = edgekit("build", cell, "--device", "generic-x86", "-o", path, "--state", flag, "--in-process")
    assert done.status == 2
    assert message in done.error
    assert not path.exists()
