from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.converters.coreml_reference import Interpreter, run_package, supported_ops
from edgekit.converters.coreml_reference._blob import BlobFile
from edgekit.converters.coreml_reference._values import unpack_bits
from edgekit.errors import BundleError, EdgeKitError, EngineError, RequestError

F32, F16, I32 = np.float32, np.float16, np.int32


@pytest.fixture
def affine(writer, storage) -> Path:
    """``y = x @ weight.T + bias`` with the weight in the weights file."""
    weight = np.arange(6, dtype=F32).reshape(2, 3)
    blobs = storage._BlobStorageWriter(str(writer.weights))
    offset = blobs.write_float_data(weight.reshape(-1))
    del blobs
    writer.input("x", F32, (4, 3))
    writer.blob("w", F32, (2, 3), offset)
    writer.op("linear", "y", F32, (4, 2), x="x", weight="w", bias=np.array([1, -1], F32))
    writer.output("y", F32, (4, 2))
    return writer.save()


X = {"x": np.arange(12, dtype=F32).reshape(4, 3)}


def test_a_package_runs_again_and_again(affine):
    interpreter = Interpreter(affine)
    assert [(info.name, info.dtype, info.shape) for info in interpreter.inputs] == [("x", np.dtype(F32), (4, 3))]
    assert [(info.name, info.dtype, info.shape) for info in interpreter.outputs] == [("y", np.dtype(F32), (4, 2))]
    want = X["x"] @ np.arange(6, dtype=F32).reshape(2, 3).T + [1, -1]
    first, second = interpreter.run(X), interpreter.run({"x": 2 * X["x"]})
    np.testing.assert_array_equal(first["y"], want)
    np.testing.assert_array_equal(second["y"], 2 * want - [1, -1])
    np.testing.assert_array_equal(run_package(affine, X)["y"], want)


def test_importing_and_running_needs_no_coremltools_import(affine):
    code = (
        "import sys, numpy as np; from pathlib import Path; from edgekit.converters.coreml_reference import run_package; "
        "assert 'google.protobuf' not in sys.modules; "
        "run_package(Path(sys.argv[1]), {'x': np.ones((4, 3), np.float32)}); "
        "assert not {'coremltools', 'tensorflow', 'edgekit.converters.coreml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(affine)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("float", F32),
        ("fp16", np.uint16),
        ("int8", np.int8),
        ("uint8", np.uint8),
        ("int16", np.int16),
        ("uint16", np.uint16),
        ("int32", I32),
        ("uint32", np.uint32),
    ],
)
def test_weights_equal_apples_reader(storage, tmp_path, rng, method, dtype):
    path = tmp_path / "weight.bin"
    blobs = storage._BlobStorageWriter(str(path))
    written = [rng.integers(0, 100, size=size).astype(dtype) for size in (1, 17, 200)]
    offsets = [getattr(blobs, f"write_{method}_data")(array) for array in written]
    del blobs
    reader, ours = storage._BlobStorageReader(str(path)), BlobFile(path)
    assert ours.count == len(written)
    for offset, array in zip(offsets, written, strict=True):
        theirs = np.asarray(getattr(reader, f"read_{method}_data")(offset))
        mine = np.frombuffer(ours.read(offset).data, dtype)
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(mine, array)


@pytest.mark.parametrize(("name", "bits"), [("UINT1", 1), ("UINT2", 2), ("UINT3", 3), ("UINT4", 4), ("UINT6", 6), ("INT4", 4)])
def test_packed_weights_equal_apples_reader(storage, tmp_path, rng, name, bits):
    path = tmp_path / "weight.bin"
    signed = name == "INT4"
    values = rng.integers(-8 if signed else 0, 8 if signed else 1 << bits, size=37).astype(np.int8 if signed else np.uint8)
    blobs = storage._BlobStorageWriter(str(path))
    offset = getattr(blobs, f"write_{name.lower()}_data")(values)
    del blobs
    blob = BlobFile(path).read(offset)
    assert blob.type_name == name
    mine = unpack_bits(np.frombuffer(blob.data, np.uint8), bits, values.size, signed=signed)
    np.testing.assert_array_equal(mine, values)
    np.testing.assert_array_equal(mine, np.asarray(getattr(storage._BlobStorageReader(str(path)), f"read_{name.lower()}_data")(offset)))


# What the program declares -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "shape", "found"),
    [
        (F32, (2, 3), r"computed float32\[2,4\]"),
        (F32, (2, 4, 1), r"computed float32\[2,4\]"),
        (F16, (2, 4), r"computed float32\[2,4\]"),
        (I32, (2, 4), r"computed float32\[2,4\]"),
    ],
)
def test_a_wrong_declared_type_is_caught(writer, dtype, shape, found):
    writer.input("x", F32, (2, 4))
    writer.op("relu", "y", dtype, shape, x="x")
    writer.output("y", dtype, shape)
    with pytest.raises(EngineError, match=rf"relu 'y': {found}; expected .* as the program declares"):
        run_package(writer.save(), {"x": np.zeros((2, 4), F32)})


def test_an_unknown_dimension_is_not_held_against_a_result(writer):
    writer.input("x", F32, (2, 4))
    writer.op("non_zero", "n", I32, (None, 2), x="x")
    writer.output("n", I32, ())
    x = np.zeros((2, 4), F32)
    x[1, 3] = x[0, 2] = 5
    assert run_package(writer.save(), {"x": x})["n"].tolist() == [[0, 2], [1, 3]]


def test_mixed_types_in_one_op_are_refused(writer):
    writer.input("x", F32, (2,))
    writer.op("add", "y", F32, (2,), x="x", y=np.ones(2, F16))
    writer.output("y", F32, (2,))
    with pytest.raises(EngineError, match="inputs of types float16, float32; expected one type"):
        run_package(writer.save(), {"x": np.zeros(2, F32)})


def test_all_unknown_ops_are_named_at_once(writer):
    writer.input("x", F32, (2,))
    writer.op("warp", "a", F32, (2,), x="x")
    writer.op("weft", "b", F32, (2,), x="a")
    writer.output("b", F32, (2,))
    with pytest.raises(EngineError, match=r"unknown op warp \(first at 'a'\), weft \(first at 'b'\)"):
        Interpreter(writer.save())
    assert "conv" in supported_ops()
    assert "const" in supported_ops()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": "x", "alpha": np.float32(1)}, "unknown input alpha"),
        ({}, "no input x"),
        ({"x": "ghost"}, "'ghost', which nothing computed"),
        ({"x": ["x", "x"]}, "2 values"),
    ],
)
def test_a_wrong_op_is_refused_when_the_package_is_opened(writer, inputs, message):
    writer.input("x", F32, (2,))
    writer.op("relu", "y", F32, (2,), **inputs)
    writer.output("y", F32, (2,))
    with pytest.raises(EngineError, match=message):
        Interpreter(writer.save())


def test_description_and_program_must_agree(writer):
    writer.input("x", F32, (2,))
    writer.op("relu", "y", F32, (2,), x="x")
    writer.output("y", F32, (2,))
    writer.spec.description.input[0].type.multiArrayType.shape[0] = 3
    with pytest.raises(EngineError, match=r"input 'x': described as float32\[3\]; expected float32\[2\]"):
        Interpreter(writer.save())
    writer.spec.description.input[0].type.multiArrayType.shape[0] = 2
    writer.spec.description.output[0].type.multiArrayType.dataType = 65552
    with pytest.raises(EngineError, match=r"output 'y': computed float32\[2\]; expected float16"):
        run_package(writer.save(), {"x": np.zeros(2, F32)})
    writer.spec.description.output[0].name = "z"
    with pytest.raises(EngineError, match=r"outputs: \['z'\]; expected \['y'\]"):
        Interpreter(writer.save())


def test_flexible_inputs_take_what_the_description_allows(writer):
    entry = writer.function.inputs.add(name="x")
    writer._type(entry.type, F32, (None, 2))
    array = writer.spec.description.input.add(name="x").type.multiArrayType
    array.dataType = 65568
    for low, high in ((1, 3), (2, 2)):
        array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
    writer.op("relu", "y", F32, (None, 2), x="x")
    writer.output("y", F32, ())
    interpreter = Interpreter(writer.save())
    assert interpreter.inputs[0].ranges == ((1, 3), (2, 2))
    assert interpreter.run({"x": np.full((3, 2), -1, F32)})["y"].tolist() == [[0, 0]] * 3
    with pytest.raises(RequestError, match="input 'x'"):
        interpreter.run({"x": np.zeros((4, 2), F32)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"inputs: \[\]; expected \['x'\]"),
        ({"z": X["x"]}, r"inputs: \['z'\]"),
        ({**X, "z": X["x"]}, r"inputs: \['x', 'z'\]"),
        ({"x": X["x"][:3]}, r"float32\[3,3\]; expected float32\[4,3\]"),
        ({"x": X["x"].astype(np.float64)}, r"float64\[4,3\]; expected float32\[4,3\]"),
    ],
)
def test_wrong_inputs_are_refused(affine, inputs, message):
    with pytest.raises(RequestError, match=message):
        run_package(affine, inputs)


# Damage --------------------------------------------------------------------------------------------------------------------------------------


def model_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def weight_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def test_missing_parts_are_one_clear_line(affine, tmp_path):
    with pytest.raises(BundleError, match="no such package"):
        Interpreter(tmp_path / "none.mlpackage")
    with pytest.raises(BundleError, match="is a file"):
        Interpreter(model_file(affine))
    manifest = affine / "Manifest.json"
    for text, message in [
        ("{", "names no root model"),
        ("[]", "names no root model"),
        (json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../x"}}}), "path inside the package"),
        (json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "x"}}}), "no such file"),
    ]:
        manifest.write_text(text)
        with pytest.raises(BundleError, match=message):
            Interpreter(affine)
    manifest.unlink()
    with pytest.raises(BundleError, match=r"no Manifest\.json"):
        Interpreter(affine)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:40], "header of 64 bytes"),
        (lambda data: data[:140], "data inside the file"),
        (lambda data: b"\x01\0\0\0\x09" + data[5:], "storage version 9"),
        (lambda data: data[:64] + b"\0" + data[65:], "sentinel"),
        (lambda data: data[:68] + b"\x63" + data[69:], "blob data type 99"),
        (lambda data: data[:68] + b"\x04" + data[69:], "INT8 in the weights file; expected FLOAT32"),
        (lambda data: data[:72] + b"\x14" + data[73:], "20 bytes; expected 24"),
        (lambda data: data[:80] + b"\xff" + data[81:], "data inside the file"),
    ],
)
def test_damaged_weights_are_one_clear_line(affine, damage, message):
    path = weight_file(affine)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=message) as caught:
        Interpreter(affine)
    assert "\n" not in str(caught.value)


def test_missing_weights_and_paths_outside_the_package(affine, writer):
    weight_file(affine).unlink()
    with pytest.raises(BundleError, match=r"weight\.bin: no such file"):
        Interpreter(affine)
    for name in ("@model_path/../../../secret", "/etc/passwd"):
        writer.block.operations[0].attributes["val"].blobFileValue.fileName = name
        with pytest.raises(BundleError, match="outside the package"):
            Interpreter(writer.save())


def test_other_model_types_are_refused(affine, writer):
    writer.spec.neuralNetwork.SetInParent()
    with pytest.raises(EngineError, match="model type neuralNetwork"):
        Interpreter(writer.save())


def test_any_flipped_or_missing_byte_of_the_model_runs_or_is_one_clear_line(affine, rng):
    """What a flip changes may be harmless (a name that nothing needs); nothing else than our errors may come out."""
    path = model_file(affine)
    whole = path.read_bytes()
    flips = [whole[:index] + bytes([whole[index] ^ (1 << int(rng.integers(8)))]) + whole[index + 1 :] for index in range(len(whole))]
    refusals = []
    for data in [*flips, *(whole[:length] for length in range(len(whole)))]:
        path.write_bytes(data)
        try:
            outputs = run_package(affine, X)
        except EdgeKitError as error:
            refusals.append(str(error))
        else:
            assert outputs
    assert len(refusals) > len(whole)
    assert not any("\n" in line for line in refusals)
