"""What a failed build leaves: one small ONNX file that fails the same way, and the command for it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters import _reproducer, build
from edgekit.converters._embedded import KEY, embed_samples, extract_samples
from edgekit.converters._emitters import EMITTER_MODULES
from edgekit.converters._reduction import Cut, cut, reduce_model
from edgekit.converters._reproducer import command
from edgekit.errors import BuildError, ModelError, VerificationError

pytestmark = pytest.mark.slow

# An OpenVINO emitter with faults that depend on the graph. It is imported in the toolchain's process too, so it is a file.
EMITTER = """
import ctypes, time
import onnx
from onnx import numpy_helper
from dataclasses import replace
from edgekit.converters._openvino import OpenVinoEmitter

FAULT = {fault!r}

class Faulty(OpenVinoEmitter):
    def emit(self, job):
        kinds = [node.op_type for node in job.source.model.graph.node]
        if FAULT == "crash" and {{"Tanh", "Relu"}} <= set(kinds):
            ctypes.string_at(0)
        if FAULT == "refuse" and "Tanh" in kinds:
            raise RuntimeError(f"cannot take node {{kinds.index('Tanh')}} of 'graph'")
        if FAULT == "hang" and "Tanh" in kinds:
            time.sleep(600)
        if FAULT == "always":
            raise RuntimeError("no licence")
        if FAULT == "numbers":
            changed = onnx.ModelProto()
            changed.CopyFrom(job.source.model)
            for node in changed.graph.node:
                if node.op_type == "Tanh":
                    node.op_type = "Sigmoid"
            job = replace(job, source=replace(job.source, model=changed))
        return super().emit(job)

EMITTERS = {{"openvino": Faulty()}}
"""


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a faulty emitter in the place of OpenVINO's."""

    def use(kind: str) -> None:
        folder = tmp_path / "emitter"
        folder.mkdir()
        (folder / f"faulty_{kind}.py").write_text(EMITTER.format(fault=kind))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setitem(EMITTER_MODULES, "openvino", f"faulty_{kind}")

    return use


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Twelve nodes, ``x`` float32 [N,6] to ``y`` [N,6]; the eighth is the only Tanh, the ninth the only Relu."""
    operators = ["MatMul", "Abs", "MatMul", "Neg", "Exp", "MatMul", "Sigmoid", "Tanh", "Relu", "MatMul", "Softplus", "Mul"]
    random = np.random.default_rng(7)
    weights, nodes, value = [], [], "x"
    for index, operator in enumerate(operators):
        inputs, result = [value], "y" if index == len(operators) - 1 else f"t{index}"
        if operator in ("MatMul", "Mul"):
            weights.append(
                numpy_helper.from_array(random.normal(0, 0.4, (6, 6) if operator == "MatMul" else 6).astype(np.float32), f"w{index}")
            )
            inputs.append(f"w{index}")
        nodes.append(helper.make_node(operator, inputs, [result], f"node{index}"))
        value = result
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        weights,
    )
    path = tmp_path / "chain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def failure(path: Path, folder: Path, **options: object) -> BuildError:
    with pytest.raises(BuildError) as caught:
        build(path, device="intel-nuc", precision="fp32", output=folder / "out" / "b.edgekit", **options)  # type: ignore[arg-type]
    return caught.value


def words(error: BuildError) -> list[str]:
    """The command at the end of the message."""
    return shlex.split(str(error).rpartition(" with: ")[2])


@pytest.mark.parametrize(
    ("kind", "left"),
    [pytest.param("crash", ["Tanh", "Relu"], marks=pytest.mark.slow), ("refuse", ["Tanh"]), ("numbers", ["Tanh"])],
    ids=["crash", "refusal", "wrong numbers"],
)
def test_the_smallest_part_that_fails_is_left(
    fault: Callable[[str], None], chain: Path, tmp_path: Path, kind: str, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(kind)
    said: list[str] = []
    error = failure(chain, tmp_path, progress=said.append)
    file = tmp_path / "out" / "b-reproducer.onnx"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    model = onnx.load(file)
    assert [node.op_type for node in model.graph.node] == left
    assert words(error) == ["edgekit", "build", str(file), "--device", "intel-nuc", "--precision", "fp32"]
    assert f"reproduce it ({len(left)} of 12 nodes)" in str(error)
    assert isinstance(error, VerificationError) == (kind == "numbers")
    assert any("smallest part" in line for line in said)
    # The one file fails again, in the same way, with nothing else given.
    again = failure(file, tmp_path / "again", reproducer=False)
    assert type(again) is type(error)
    assert again.found.split(";")[0][:35] == error.found.split(";")[0][:35]
    # And it is a model that a toolchain without the fault builds: by the command itself.
    monkeypatch.undo()
    bundle = tmp_path / "right.edgekit"
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *words(error)[1:], "-o", str(bundle)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "calibration samples" in done.stdout


def test_a_hang_is_not_tried_again_and_again(
    fault: Callable[[str], None], chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault("hang")
    monkeypatch.setattr(_reproducer, "REDUCE_S", 0.5)
    error = failure(chain, tmp_path, time_limit_s=4.0)
    assert "did not end within 4 s" in str(error)
    assert "12 of 12 nodes, not tried again because one try takes too long" in str(error)
    assert words(error)[-2:] == ["--time-limit", "4.0"]
    assert len(onnx.load(tmp_path / "out" / "b-reproducer.onnx").graph.node) == 12


def test_a_failure_that_needs_no_node_is_left_as_one(fault: Callable[[str], None], chain: Path, tmp_path: Path) -> None:
    fault("always")
    failure(chain, tmp_path, reproducer=tmp_path / "elsewhere")
    assert len(onnx.load(tmp_path / "elsewhere" / "b-reproducer.onnx").graph.node) == 1
    assert not (tmp_path / "out").exists()


def test_none_is_left_when_none_is_wanted(fault: Callable[[str], None], chain: Path, tmp_path: Path) -> None:
    fault("refuse")
    error = failure(chain, tmp_path, reproducer=False)
    assert "reproduce" not in str(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("nodes", [(7,), (2, 3, 4), (0, 1, 5, 11), tuple(range(12))])
def test_a_cut_computes_what_the_whole_does(chain: Path, nodes: tuple[int, ...]) -> None:
    model = onnx.load(chain)
    sample = {"x": np.random.default_rng(8).standard_normal((2, 6)).astype(np.float32)}
    part = cut(model, nodes, [sample])
    assert part is not None
    onnx.checker.check_model(part.model, full_check=True)
    session = onnxruntime.InferenceSession(part.model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in part.model.graph.output]
    found = dict(zip(names, session.run(names, dict(part.samples[0])), strict=True))
    whole = onnx.load(chain)
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name != "y")
    expected = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"]).run(names, sample)
    for name, want in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=1e-6)


def test_a_cut_without_inputs_is_none(chain: Path) -> None:
    model = onnx.load(chain)
    model.graph.node.append(helper.make_node("Neg", ["w0"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [6, 6]))
    assert cut(model, [12], [{"x": np.zeros((1, 6), np.float32)}]) is None


@pytest.mark.parametrize("needed", [{3}, {0, 11}, {4, 5, 6}, set(range(12))])
def test_reduction_keeps_what_the_failure_needs(chain: Path, needed: set[int]) -> None:
    model, tries = onnx.load(chain), 0

    def fails(part: Cut) -> bool:
        nonlocal tries
        tries += 1
        return needed <= set(part.nodes)

    sample = {"x": np.ones((1, 6), np.float32)}
    found = reduce_model(model, [sample], -1, fails, lambda: True)
    assert found is not None
    assert set(found.nodes) == needed
    assert tries < 40
    assert reduce_model(model, [sample], -1, lambda _: False, lambda: True) is None
    assert reduce_model(model, [sample], 3, fails, lambda: False) is None


def test_samples_travel_inside_the_model(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    samples = [
        {"a/b": random.standard_normal((2, 3)), "file": np.array([True])},
        {"a/b": random.standard_normal((2, 3)), "file": np.array(3)},
    ]
    model = onnx.ModelProto()
    assert not extract_samples(model, tmp_path)
    embed_samples(model, samples[:1])
    embed_samples(model, samples)
    assert [entry.key for entry in model.metadata_props] == [KEY]
    assert extract_samples(model, tmp_path)
    for index, sample in enumerate(samples):
        with np.load(tmp_path / f"{index}.npz") as archive:
            assert sorted(archive.files) == sorted(sample)
            for name, array in sample.items():
                np.testing.assert_array_equal(archive[name], array)
    model.metadata_props[0].value = "not base64"
    with pytest.raises(ModelError, match=f"metadata {KEY}: cannot be read"):
        extract_samples(model, tmp_path)


def test_the_command_repeats_the_options() -> None:
    options = {
        "precision": "fp16",
        "time_limit_s": 4.0,
        "compress": ["a b", "c"],
        "exact": True,
        "off": False,
        "left_out": None,
        "method": "auto",
    }
    assert command(Path("/x y/m.onnx"), "pi", options) == (
        "edgekit build '/x y/m.onnx' --device pi --compress 'a b' --compress c --exact --precision fp16 --time-limit 4.0"
    )


NEGATED = """
from dataclasses import replace
import numpy as np
import onnx
from onnx import numpy_helper
from edgekit.converters.{module} import {emitter}

class Negating({emitter}):
    def emit(self, job):
        changed = onnx.ModelProto()
        changed.CopyFrom(job.source.model)
        for tensor in changed.graph.initializer:
            if tensor.name == {weights!r}:
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        return super().emit(replace(job, source=replace(job.source, model=changed)))

EMITTERS = {{{engine!r}: Negating()}}
"""
REAL = {
    "tflite": ("raspberry-pi-5", "tflite", "TfliteEmitter"),
    "coreml": ("iphone-15", "coreml", "CoreMLEmitter"),
    "openvino": ("intel-nuc", "_openvino", "OpenVinoEmitter"),
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", REAL)
def test_one_wrong_convolution_of_a_real_model_is_what_is_left(
    real_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    device, module, emitter = REAL[engine]
    source = onnx.load(real_model("ppocr-cls"))
    weights = [node.input[1] for node in source.graph.node if node.op_type == "Conv"][14]
    (tmp_path / f"negating_{engine}.py").write_text(NEGATED.format(module=module, emitter=emitter, weights=weights, engine=engine))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EMITTER_MODULES, engine, f"negating_{engine}")
    with pytest.raises(VerificationError) as caught:
        build(
            real_model("ppocr-cls"),
            device=device,
            precision="fp32",
            shapes={"x": (1, 3, 48, 192)},
            output=tmp_path / "out" / "b.edgekit",
        )
    left = onnx.load(tmp_path / "out" / "b-reproducer.onnx")
    assert weights in [tensor.name for tensor in left.graph.initializer]
    assert len(left.graph.node) <= 3
    assert "it diverged first at tensor" in str(caught.value)


def test_int8_is_repeated_on_the_samples_in_the_file(
    fault: Callable[[str], None], chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault("refuse")
    np.save(tmp_path / "samples.npy", np.random.default_rng(11).standard_normal((2, 6)).astype(np.float32))
    with pytest.raises(BuildError) as caught:
        build(chain, device="intel-nuc", precision="int8", calibration=tmp_path / "samples.npy", output=tmp_path / "out" / "b.edgekit")
    file = tmp_path / "out" / "b-reproducer.onnx"
    assert words(caught.value) == ["edgekit", "build", str(file), "--device", "intel-nuc", "--precision", "int8"]
    monkeypatch.undo()
    right = build(file, device="intel-nuc", precision="int8", output=tmp_path / "right.edgekit")
    assert right.manifest.precision == "int8"
    np.testing.assert_array_equal(right.golden()[0].inputs["t6"].shape, (2, 6))
