"""OpenVINO's own matters: how many runs go side by side."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.bundle import Bundle
from edgekit.runtime import EngineOptions, ModelRepository, Session
from edgekit.runtime.engines import _openvino
from edgekit.runtime.engines._base import usable_cpus

Built = Callable[..., Bundle]

# threads of a run, runs the caller wants at once, CPUs -> runs that OpenVINO prepares for
STREAMS = {"a caller of its own": (1, 1, 4, "1"), "a server": (1, 4, 2, "2"), "wide runs": (2, 4, 2, "1"), "one CPU": (1, 4, 1, "1")}


@pytest.mark.parametrize("case", STREAMS)
def test_runs_side_by_side_as_there_are_cpus_for(case: str, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, wanted, cpus, expected = STREAMS[case]
    if int(expected) * threads > usable_cpus():
        pytest.skip(f"OpenVINO makes no more streams than the {usable_cpus()} CPUs here")
    monkeypatch.setattr(_openvino, "usable_cpus", lambda: cpus)
    with Session(built("openvino", "mlp"), EngineOptions(threads=threads, side_by_side=wanted)) as session:
        facts = session.describe()
    assert (facts["requests"], facts["threads"]) == (expected, str(threads))


def test_a_served_model_runs_on_all_cpus(built: Built) -> None:
    models = ModelRepository([built("openvino", "mlp").path], options=EngineOptions(threads=1), instances=0)
    models.load_all()
    try:
        assert models.get("tiny_mlp").running["requests"] == str(usable_cpus())
    finally:
        models.close()
