"""The chain of a profile: which accelerators are tried in which order, and that stepping down is said everywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import EngineError
from edgekit.runtime import EngineOptions, Session
from edgekit.runtime._fallback import PassedOver, fallback_line, steps

Built = Callable[..., Bundle]


def with_accelerators(bundle: Bundle, listed: str, **manifest: object) -> Bundle:
    """The same bundle, as if its device's profile had named these accelerators."""
    artifact = msgspec.structs.replace(bundle.manifest.artifact, options={"accelerators": listed} if listed else {})
    return Bundle(bundle.path, bundle.directory, msgspec.structs.replace(bundle.manifest, artifact=artifact, **manifest), bundle.digest)


CHAINS = {
    "the profile's order": ("npu,gpu,cpu", EngineOptions(), False, ["openvino/npu", "openvino/gpu", "openvino/cpu"]),
    "nothing listed": ("", EngineOptions(), False, ["openvino"]),
    "then the fallback artifact": ("npu,cpu", EngineOptions(), True, ["openvino/npu", "openvino/cpu", "onnxruntime"]),
    "a named one is the only one": ("npu,cpu", EngineOptions(accelerator="gpu"), True, ["openvino/gpu", "onnxruntime"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CHAINS)
def test_chain(case: str, built: Built) -> None:
    listed, options, fallback, expected = CHAINS[case]
    second = built("onnxruntime", "mlp").manifest.artifact
    manifest = with_accelerators(built("openvino", "mlp"), listed, fallback=second if fallback else None).manifest
    assert [step.label for step in steps(manifest, options)] == expected


def test_core_ml_takes_its_units_in_one_step() -> None:
    from edgekit.runtime.engines import engine_class

    coreml = engine_class("coreml")
    assert coreml.accelerator_steps(["ane", "gpu", "cpu"]) == ("all",)
    assert coreml.accelerator_steps(["ane", "cpu"]) == ("ane",)
    assert coreml.accelerator_steps(["cpu"]) == ("cpu",)


def test_a_reason_that_repeats_is_said_once() -> None:
    assert (
        fallback_line([PassedOver("a/npu", "no"), PassedOver("a/gpu", "no"), PassedOver("a/cpu", "never")])
        == "a/npu, a/gpu: no; a/cpu: never"
    )
    assert fallback_line([]) == ""


def test_what_is_not_here_is_passed_over_and_said(built: Built, caplog: pytest.LogCaptureFixture) -> None:
    bundle = with_accelerators(built("openvino", "mlp"), "npu,cpu")
    sample = bundle.golden()[0]
    with caplog.at_level(logging.WARNING), Session(bundle) as session:
        facts = session.describe()
        answer = session.run(sample.inputs)
    np.testing.assert_allclose(answer["probabilities"], sample.outputs["probabilities"], rtol=1e-5)
    assert (session.accelerator, facts["accelerator"], facts["artifact"], session.fallback_reason) == ("cpu", "cpu", "primary", "")
    assert [step.label for step in session.passed_over] == ["openvino/npu"]
    assert "no device here for accelerator 'npu'" in facts["passed_over"]
    assert (facts["runs_on"], facts["wanted"]) == ("openvino/cpu", "openvino/npu")
    assert "runs on openvino/cpu instead of openvino/npu" in caplog.text
    assert (caplog.records[0].wanted, caplog.records[0].engine) == ("openvino/npu", "openvino/cpu")


def test_the_first_choice_is_not_talked_about(built: Built, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Session(with_accelerators(built("openvino", "mlp"), "cpu,gpu")) as session:
        assert session.passed_over == ()
        assert session.describe()["passed_over"] == ""
    assert caplog.text == ""


def test_when_nothing_goes_the_last_error_comes_through(built: Built) -> None:
    with pytest.raises(EngineError, match="'gpu'"):
        Session(with_accelerators(built("openvino", "mlp"), "npu,gpu"))


def test_a_named_accelerator_is_not_swapped_for_another_of_its_engine(built: Built) -> None:
    with pytest.raises(EngineError, match="'npu'"):
        Session(with_accelerators(built("openvino", "mlp"), "cpu"), EngineOptions(accelerator="npu"))


def test_the_manifest_says_what_the_profile_lists(tiny_mlp: Path, tmp_path: Path) -> None:
    from edgekit.converters import build

    made = build(tiny_mlp, device="intel-lunar-lake", precision="fp32", shapes={"x": (1, 8)}, output=tmp_path / "npu")
    assert made.manifest.artifact.options["accelerators"] == "npu,gpu,cpu"
    plain = build(tiny_mlp, device="generic-x86", shapes={"x": (1, 8)}, output=tmp_path / "cpu")
    assert plain.manifest.artifact.options == {}


def test_a_server_says_what_it_passed_over(built: Built, tmp_path: Path) -> None:
    from edgekit.bundle import write_bundle
    from edgekit.runtime import ModelRepository, RuntimeCore
    from edgekit.runtime._events import RepositoryEvent

    changed = with_accelerators(built("openvino", "mlp"), "npu,cpu")
    files = tmp_path / "files"
    files.mkdir()
    for path in changed.directory.glob("model.*"):
        (files / path.name).write_bytes(path.read_bytes())
    served = write_bundle(tmp_path / "served", msgspec.structs.replace(changed.manifest, files={}), files, changed.golden(), {})
    events: list[RepositoryEvent] = []
    core = RuntimeCore(repository := ModelRepository([served.path], on_event=events.append))
    try:
        repository.load_all()
        parameters = {key: value["string_value"] for key, value in core.model_config(served.manifest.name)["parameters"].items()}
    finally:
        core.close()
    fallback = next(event for event in events if event.kind == "fallback")
    assert "openvino/npu: engine openvino: no device here" in fallback.reason
    assert (fallback.runs_on, fallback.wanted) == ("openvino/cpu", "openvino/npu")
    assert parameters["running.passed_over"] == fallback.reason
    assert (parameters["running.engine"], parameters["running.accelerator"], parameters["running.device"]) == ("openvino", "cpu", "CPU")
