"""Outputs as classes: against a plain sort, and what cannot be classified."""

import numpy as np
import onnx
import pytest
import tritonclient.grpc
import tritonclient.http
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

import edgekit
from edgekit.errors import RequestError
from edgekit.protocol import InferRequest, InferResponse, RequestedOutput, Tensor
from edgekit.protocol._classification import class_count, classify, classify_response
from edgekit.runtime import serve_bundles
from tests.protocol.triton_clients import an_input


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.int64, np.uint64]),
        arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    ),
    st.integers(1, 7),
)
def test_classes_are_the_best_first(scores, count):
    found = classify("output 'y'", scores, count)
    rows = [scores.tolist()] if scores.ndim == 1 else [np.ravel(row).tolist() for row in scores]
    width = len(scores) if scores.ndim == 1 else int(np.prod(scores.shape[1:]))
    assert found.shape == (() if scores.ndim == 1 else (len(rows),)) + (min(count, width),)
    for row, texts in zip(rows, [found.tolist()] if scores.ndim == 1 else found.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda i: (-row[i] if row[i] == row[i] else np.inf, i))[:count]
        assert [int(text.split(b":")[1]) for text in texts] == ranked
        for text, index in zip(texts, ranked, strict=True):
            value = text.split(b":")[0].decode()
            assert value == (str(row[index]) if isinstance(row[index], int) else f"{row[index]:.6f}")


def test_only_what_was_asked_for_is_classified():
    scores = np.array([[0.25, 0.5], [1, 0]], np.float32)
    response = InferResponse("m", "1", [Tensor("y", scores), Tensor("z", scores)])
    assert classify_response(response, InferRequest("m", [])) is response
    assert classify_response(response, InferRequest("m", [], outputs=[RequestedOutput("y", {"classification": 0})])) is response
    got = classify_response(response, InferRequest("m", [], outputs=[RequestedOutput("y", {"classification": 1})]))
    assert got.outputs[0].data.tolist() == [[b"0.500000:1"], [b"1.000000:0"]]
    assert got.outputs[1].data is scores


@pytest.mark.parametrize("count", [-1, True, 1.5, "2"])
def test_bad_counts(count):
    with pytest.raises(RequestError, match="output 'y': classification"):
        class_count("output 'y'", {"classification": count})


@pytest.mark.parametrize("scores", [np.array([b"a"], dtype=object), np.array([True]), np.float32(1).reshape(())])
def test_what_has_no_classes(scores):
    with pytest.raises(RequestError, match="classification of"):
        classify("output 'y'", scores, 1)


def test_labels_are_given_where_each_class_has_one():
    scores = np.array([[0.25, 0.5, 0], [1, 0, 2]], np.float32)
    assert classify("output 'y'", scores, 2, ("a", "b:c", "œ")).tolist() == [
        [b"0.500000:1:b:c", b"0.250000:0:a"],
        ["2.000000:2:œ".encode(), b"1.000000:0:a"],
    ]
    assert classify("output 'y'", scores.astype(int), 1, ("a", "b", "c")).tolist() == [[b"0:0:a"], [b"2:2:c"]]
    assert classify("output 'y'", scores, 1, ("a", "b")).tolist() == [[b"0.500000:1"], [b"2.000000:2"]]
    response = InferResponse("m", "7", [Tensor("y", scores)])
    asked = []
    request = InferRequest("m", [], outputs=[RequestedOutput("y", {"classification": 1})])

    def labels_of(name, version):
        asked.append((name, version))
        return ("a", "b", "c")

    assert classify_response(response, request, labels_of).outputs[0].data.tolist() == [[b"0.500000:1:b"], [b"2.000000:2:c"]]
    assert asked == [("m", "7")]  # of the version that answered
    assert classify_response(response, InferRequest("m", []), labels_of) is response
    assert len(asked) == 1


@pytest.mark.slow
def test_a_bundles_labels_reach_tritons_clients(tmp_path):
    nodes = [helper.make_node("Add", ["x", "zero"], ["scores"])]
    graph = helper.make_graph(
        nodes,
        "rank",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "rank.onnx")
    (tmp_path / "names.txt").write_text("cat\ndog\nœuf\n", encoding="utf-8")
    names = tmp_path / "names.txt"
    bundle = edgekit.build(tmp_path / "rank.onnx", device="generic-x86", precision="fp32", classes=names, top_k=0, output=tmp_path / "b")
    scores = np.array([[1, 3, 2]], np.float32)
    with serve_bundles([bundle.path], ("127.0.0.1", 0), ("127.0.0.1", 0)) as server:
        for package, port in ((tritonclient.http, server.http_port), (tritonclient.grpc, server.grpc_port)):
            with package.InferenceServerClient(f"127.0.0.1:{port}") as client:
                outputs = [package.InferRequestedOutput("scores", class_count=2)]
                result = client.infer("rank", [an_input(package, scores)], outputs=outputs)
                assert [item.decode() for item in result.as_numpy("scores")[0]] == ["3.000000:1:dog", "2.000000:2:œuf"]
