"""``--state``: what names a state, what is refused, and the proof that a sequence gives the source model's numbers."""

import sys
import types

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import Bundle, Signature, StatePair, TensorSpec
from edgekit.converters import build
from edgekit.converters._emitters import EMITTER_MODULES
from edgekit.converters._onnxruntime import OnnxRuntimeEmitter
from edgekit.converters._states import STEPS, bind_states
from edgekit.errors import UnknownNameError, UsageError, VerificationError
from tests.runtime.stateful_bundles import cell_model, told_apart, values

SIGNATURE = Signature(
    (
        TensorSpec("x", "float32", (1, 4)),
        TensorSpec("s:0", "float32", (1, 8)),
        TensorSpec("c", "float32", ("N", "T", 8)),
        TensorSpec("i", "int64", (1,)),
    ),
    (
        TensorSpec("y", "float32", (1, 4)),
        TensorSpec("s_next:0", "float32", (1, 8)),
        TensorSpec("c_next", "float32", ("N", "U", 8)),
        TensorSpec("i_next", "int32", (1,)),
        TensorSpec("w", "float32", (1, 9)),
        TensorSpec("v", "float32", (8,)),
    ),
)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["s:0=s_next:0"], [StatePair("s:0", "s_next:0", (1, 8))]),
        (["s:0=s_next:0:1,8"], [StatePair("s:0", "s_next:0", (1, 8))]),
        (["c=c_next:1,0,8"], [StatePair("c", "c_next", (1, 0, 8))]),
        (["s:0=s_next:0", "c=c_next:1,2,8"], [StatePair("s:0", "s_next:0", (1, 8)), StatePair("c", "c_next", (1, 2, 8))]),
        ([], []),
    ],
)
def test_states_that_are_named_well(asked, expected):
    assert bind_states(SIGNATURE, asked) == tuple(expected)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (["s:0"], UsageError, "expected NAME_IN=NAME_OUT"),
        (["=y"], UsageError, "expected NAME_IN=NAME_OUT"),
        (["s:0="], UsageError, "expected NAME_IN=NAME_OUT"),
        (["t=y"], UnknownNameError, "input of --state: unknown name 't'"),
        (["s:0=s_nxt:0"], UnknownNameError, "expected one of s_next:0"),
        (["i=i_next"], UsageError, "the same type"),
        (["s:0=w"], UsageError, "the same sizes"),
        (["s:0=v"], UsageError, "the same sizes"),
        (["c=c_next"], UsageError, "has open sizes"),
        (["c=c_next:1,2"], UsageError, "what fits float32"),
        (["s:0=s_next:0:1,9"], UsageError, "what fits float32"),
        (["s:0=s_next:0", "s:0=s_next:0"], UsageError, "once"),
        (["c=c_next:1,1,8", "s:0=s_next:0", "x=y", "c=c_next:1,1,8"], UsageError, "once"),
    ],
)
def test_states_that_cannot_be(asked, error, message):
    with pytest.raises(error, match=message):
        bind_states(SIGNATURE, asked)


def test_an_input_must_be_left():
    signature = Signature((TensorSpec("s", "float32", (1, 8)),), (TensorSpec("t", "float32", (1, 8)),))
    with pytest.raises(UsageError, match="every input is a state"):
        bind_states(signature, ["s=t"])


@pytest.fixture
def cell(tmp_path):
    path = tmp_path / "cell.onnx"
    onnx.save(cell_model(), path)
    return path


def test_a_build_records_its_states_and_proves_them(cell, tmp_path):
    states = ["s=s_next:1,3", "n=n_next:1,1"]
    bundle = build(cell, device="generic-x86", precision="fp32", shapes={"x": (-1, 3)}, states=states, output=tmp_path / "b", isolate=False)
    assert bundle.signature.states == (StatePair("s", "s_next", (1, 3)), StatePair("n", "n_next", (1, 1)))
    assert any(f"sequence of {STEPS} requests" in note for note in bundle.manifest.verification.notes)
    assert bundle.report()["states"]["metrics"]["y"]["max_rel"] < 1e-5
    assert Bundle.open(bundle.path).signature == bundle.signature
    import edgekit

    xs = values(4)
    with edgekit.load(bundle) as session, session.stream() as stream:
        found = np.stack([stream.run({"x": x})["y"] for x in xs])
    np.testing.assert_allclose(found, told_apart(cell_model(), xs), rtol=1e-5, atol=1e-6)


def test_a_bundle_without_states_says_nothing_of_them(cell, tmp_path):
    bundle = build(cell, device="generic-x86", precision="fp32", shapes={"x": (1, 3)}, output=tmp_path / "b", isolate=False)
    assert b'"states"' not in (bundle.directory / "bundle.json").read_bytes()


class _WrongLater(OnnxRuntimeEmitter):
    """An emitter whose artifact is right but for the fourth request of a sequence."""

    def emit(self, job):
        emitted = super().emit(job)
        path = job.directory / "model.onnx"
        model = onnx.load(path)
        nodes = [
            helper.make_node("Equal", ["n", "edgekit_three"], ["edgekit_at"]),
            helper.make_node("Cast", ["edgekit_at"], ["edgekit_error"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["edgekit_y", "edgekit_error"], ["y"]),
        ]
        for node in model.graph.node:
            node.output[:] = ["edgekit_y" if name == "y" else name for name in node.output]
        model.graph.node.extend(nodes)
        model.graph.initializer.append(numpy_helper.from_array(np.array([[3]], np.int64), "edgekit_three"))
        onnx.save(model, path)
        return emitted


def test_an_artifact_that_is_wrong_in_a_sequence_only_fails_the_build(cell, tmp_path, monkeypatch):
    module = types.ModuleType("emitter_of_this_test")
    module.EMITTERS = {"onnxruntime": _WrongLater()}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(EMITTER_MODULES, "onnxruntime", module.__name__)
    options = {"device": "generic-x86", "precision": "fp32", "shapes": {"x": (1, 3)}, "isolate": False, "reproducer": False}
    build(cell, output=tmp_path / "taken", **options)  # single samples do not tell
    with pytest.raises(VerificationError, match=r"a sequence of 8 requests with its state handed on.*output 'y'"):
        build(cell, states=["s=s_next", "n=n_next"], output=tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
