"""How a TensorRT engine moves its tensors, against the simulated TensorRT and driver: page-locked memory, recorded runs; no GPU is claimed."""

from __future__ import annotations

import contextlib
import ctypes

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.runtime import load
from edgekit.runtime.engines import open_engine
from tests.runtime.tensorrt.conftest import HostDriver


class RecordingDriver(HostDriver):
    """Page-locked memory, and streams that can be recorded: while recording, work is put down instead of done."""

    def __init__(self, *, pinned: bool = True, recordable: bool = True) -> None:
        super().__init__()
        self.pinned, self.recordable = pinned, recordable
        self.locked = {}
        self.recording = None
        self.graphs = {}
        self.launched = 0

    def later(self, work):
        if self.recording is None:
            work()
        else:
            self.recording.append(work)
        return 0

    def cuMemHostAlloc(self, address, size, flags):
        if not self.pinned:
            return 2
        buffer = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(buffer)
        self.locked[address._obj.value] = buffer
        return 0

    def cuMemFreeHost(self, address):
        return 0 if self.locked.pop(address.value, None) is not None else 1

    def cuMemcpyHtoDAsync_v2(self, target, source, size, stream):
        return self.later(lambda: ctypes.memmove(target.value, source.value, size.value))

    def cuMemcpyDtoHAsync_v2(self, target, source, size, stream):
        return self.later(lambda: ctypes.memmove(target.value, source.value, size.value))

    def cuStreamBeginCapture_v2(self, stream, mode):
        self.recording = []
        return 0

    def cuStreamEndCapture(self, stream, graph):
        work, self.recording = self.recording, None
        graph._obj.value = 100 + len(self.graphs)
        self.graphs[graph._obj.value] = work
        return 0 if self.recordable else 901  # CUDA_ERROR_STREAM_CAPTURE_INVALIDATED

    def cuGraphInstantiateWithFlags(self, ready, graph, flags):
        ready._obj.value = 1000 + graph.value
        self.graphs[ready._obj.value] = self.graphs[graph.value]
        return 0

    def cuGraphDestroy(self, graph):
        del self.graphs[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, graph, stream):
        self.launched += 1
        for work in self.graphs[graph.value]:
            work()
        return 0


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> RecordingDriver:
    return RecordingDriver(**getattr(request, "param", {}))


@pytest.fixture
def tensorrt(simulated, driver, monkeypatch):
    trt = simulated("10.3")
    run = trt.IExecutionContext.execute_async_v3
    monkeypatch.setattr(trt.IExecutionContext, "execute_async_v3", lambda self, stream: driver.later(lambda: run(self, stream)) == 0)
    return trt


def answers(session, requests):
    return [session.run({"image": image})["scores"] for image in requests]


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(5).standard_normal((5, 1, 3, 16, 16)).astype(np.float32))


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize("driver", [{}, {"pinned": False}], indirect=True, ids=["page-locked", "plain"])
def test_tensors_go_through_buffers_that_are_given_back(driver, jetson_bundle, pictures, tmp_path):
    with load(jetson_bundle, cache_dir=str(tmp_path)) as session:
        assert session.fallback_reason == ""
        got = answers(session, pictures)
        facts = session.describe()
        scores = np.zeros_like(got[0])
        assert session.run({"image": pictures[1]}, {"scores": scores})["scores"] is scores
    assert facts["pinned"] == ("yes" if driver.pinned else "no")
    assert facts["cuda_graph"] == "off"
    bundle = Bundle.open(jetson_bundle)
    reference = bundle.manifest.fallback
    with contextlib.closing(open_engine(bundle.artifact_path(reference), reference, bundle.signature)) as engine:
        want = [engine.run({"image": image})["scores"] for image in pictures]
    np.testing.assert_allclose(np.stack(got), np.stack(want), rtol=1e-2, atol=1e-3)
    np.testing.assert_array_equal(scores, got[1])
    assert driver.memory == {}
    assert driver.locked == {}


@pytest.mark.usefixtures("tensorrt")
def test_a_run_is_recorded_when_its_shapes_come_again_and_replayed(driver, jetson_bundle, pictures, tmp_path):
    with load(jetson_bundle, cache_dir=str(tmp_path)) as session:
        want = answers(session, pictures)
    with load(jetson_bundle, cache_dir=str(tmp_path), cuda_graphs=True) as session:
        assert session.describe()["cuda_graph"] == "waiting"
        got = answers(session, pictures)
        assert session.describe()["cuda_graph"] == "recorded"
        assert driver.launched == len(pictures) - 2  # the first runs plainly, so does the second, which is then recorded
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)
    assert driver.graphs == {}
    assert driver.locked == {}


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize("driver", [{"recordable": False}], indirect=True)
def test_what_cannot_be_recorded_runs_as_before(driver, jetson_bundle, pictures, tmp_path, caplog):
    with load(jetson_bundle, cache_dir=str(tmp_path), cuda_graphs=True) as session:
        got = answers(session, pictures)
        assert session.describe()["cuda_graph"] == "refused"
    assert "runs without a CUDA graph" in caplog.text
    assert driver.launched == 0
    sample = Bundle.open(jetson_bundle).golden()[0]
    assert got[0].shape == sample.outputs["scores"].shape
