"""What users get wrong when they build, and the one line that each gets."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters import build
from edgekit.errors import EdgeKitError, ModelError, ShapeRequiredError, StorageError, UnsupportedOperatorsError, UsageError
from edgekit.errors import UnknownNameError as Unknown


def model(nodes: list[onnx.NodeProto], shape: list[int | str], opset: int = 17, domains: tuple[str, ...] = ()) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def truncated(folder: Path) -> Path:
    path = folder / "cut.onnx"
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    whole = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [1, 64])
    whole.graph.initializer.append(weights)
    data = whole.SerializeToString()
    path.write_bytes(data[: len(data) // 2])
    return path


def not_onnx(folder: Path) -> Path:
    path = folder / "picture.onnx"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    return path


def unsupported(folder: Path) -> Path:
    nodes = [
        helper.make_node("Magic", ["x"], ["a"], "first_magic", domain="com.example"),
        helper.make_node("Relu", ["a"], ["b"], "fine"),
        helper.make_node("Wand", ["b"], ["y"], "the_wand", domain="com.example"),
    ]
    path = folder / "ops.onnx"
    path.write_bytes(model(nodes, [1, 4], domains=("com.example",)).SerializeToString())
    return path


def open_shapes(folder: Path) -> Path:
    path = folder / "open.onnx"
    onnx.save(model([helper.make_node("Relu", ["x"], ["y"])], ["N", 3, "H", "W"]), path)
    return path


def without_data(folder: Path) -> Path:
    path = folder / "external.onnx"
    whole = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [1, 64])
    whole.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    onnx.save(whole, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "weights.bin").unlink()
    return path


MODELS: dict[str, tuple[Callable[[Path], Path], type[EdgeKitError], tuple[str, ...]]] = {
    "truncated": (truncated, ModelError, ("cut.onnx", "truncated")),
    "not ONNX": (not_onnx, ModelError, ("picture.onnx", "not an ONNX file")),
    "a folder": (lambda folder: folder, ModelError, ("is a directory",)),
    "nothing": (lambda folder: folder / "no.onnx", ModelError, ("no.onnx", "no such file")),
    "unsupported operators": (unsupported, UnsupportedOperatorsError, ("2 node(s)", "'first_magic'", "'the_wand'", "com.example.Wand")),
    "missing shapes": (open_shapes, ShapeRequiredError, ("--shape x=1,3,",)),
    "external data missing": (without_data, ModelError, ("external.onnx", "'weights.bin' is missing")),
}


@pytest.mark.parametrize("device", ["generic-x86", "raspberry-pi-5"])
@pytest.mark.parametrize("case", MODELS)
def test_a_bad_model_is_one_line_and_nothing_is_written(tmp_path: Path, case: str, device: str) -> None:
    make, kind, expected = MODELS[case]
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    path = make(source)
    with pytest.raises(kind) as caught:
        build(path, device=device, output=target / "b.edgekit")
    for part in expected:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(target.iterdir()) == []


ARGUMENTS = {
    "unknown device": ({"device": "raspberry-pi-55"}, Unknown, "raspberry-pi-5"),
    "unknown precision": ({"precision": "fp8"}, UsageError, "one of auto, fp32, fp16"),
    "int8": ({"precision": "int8"}, UsageError, "int8 needs real samples"),
    "a device that takes int8 only": ({"device": "coral-edgetpu"}, UsageError, "int8 needs real samples"),
    "shape of an unknown input": ({"shapes": {"z": (1, 8)}}, Unknown, "'z'"),
    "shape of another rank": ({"shapes": {"x": (1, 8, 1)}}, UsageError, "3 dimensions"),
    "shape that contradicts": ({"shapes": {"x": (1, 9)}}, UsageError, "dimension 1 is 9"),
    "calibration that is not there": ({"calibration": "/nowhere"}, UsageError, "no such file or directory"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_bad_argument_is_one_line_and_exit_code_2(tiny_mlp: Path, tmp_path: Path, case: str) -> None:
    changes, kind, expected = ARGUMENTS[case]
    with pytest.raises(kind) as caught:
        build(tiny_mlp, **{"device": "generic-x86", "output": tmp_path / "b.edgekit", **changes})
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_folder_without_samples(tiny_mlp: Path, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "notes.txt").write_text("none yet")
    with pytest.raises(UsageError, match=r"1 file\(s\) \(\.txt\), none usable; expected \.npz files with x float32\[N,8\]"):
        build(tiny_mlp, device="generic-x86", calibration=tmp_path / "samples", output=tmp_path / "b.edgekit")


@pytest.mark.parametrize("place", ["file/b.edgekit", "folder.edgekit", "photos"])
def test_an_output_that_cannot_be_is_refused_before_the_model_is_read(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.edgekit").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    said: list[str] = []
    with pytest.raises((StorageError, UsageError), match=place.replace(".", r"\.")):
        build(tmp_path / "is_not_even_there.onnx", device="generic-x86", output=tmp_path / place, progress=said.append)
    assert said == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_mlp: Path, tmp_path: Path) -> None:
    code = f"""
        import resource, signal, sys
        import edgekit
        from edgekit.converters import build
        from edgekit.errors import EdgeKitError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        try:
            build({str(tiny_mlp)!r}, device="generic-x86", output={str(tmp_path / "b.edgekit")!r})
        except EdgeKitError as exc:
            print(f"{{type(exc).__name__}}: {{exc}}")
            sys.exit(exc.exit_code)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("StorageError: ")
    assert len(done.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
