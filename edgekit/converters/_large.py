"""Models beyond protobuf's 2 GB: their large weights never go through protobuf, from the source's files into the bundle's.

ONNX Runtime reads such a model with its weights in a file beside it, OpenVINO reads the same and writes its own pair of files. TFLite's and Core ML's
formats end at 2 GB as well, and TensorRT's parser is given one file.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgekit.bundle import Artifact
from edgekit.converters._emitter import EmitJob, Emitted, NormalisedModel
from edgekit.converters._onnxruntime import plain_bindings
from edgekit.converters._openvino_rules import may_be_bad
from edgekit.errors import BuildError, EnvironmentMissingError, UsageError
from edgekit.runtime.engines import one_line

if TYPE_CHECKING:
    import onnx

__all__ = ["emit_large", "refuse_large"]

_TAKEN = {"onnxruntime": ("fp32",), "openvino": ("fp32", "fp16")}
_DATA = "model.onnx.data"
_ALIGNMENT = 4096  # a page: ONNX Runtime maps such tensors in place of reading them
_BLOCK = 1 << 24


def refuse_large(model: NormalisedModel, engine: str, precision: str) -> None:
    """Say at once where a model's size stands in the way; does nothing for one within 2 GB.

    Raises:
        UsageError: the target, or the precision, does not take it.
    """
    if model.weights is None or precision in _TAKEN.get(engine, ()):
        return
    size = sum(_extent(tensor)[2] for tensor in _outside(model.model)) / 2**30
    if engine in _TAKEN:
        found, step = f"{precision} rewrites weights, and the model has {size:.1f} GiB of them", "build with --precision fp32"
    else:
        found, step = f"the model has {size:.1f} GiB of weights", "build for onnxruntime or openvino"
    raise UsageError(f"target {engine}", found, "less than 2 GiB, which protobuf and this format hold", step)


def emit_large(engine: str, job: EmitJob) -> Emitted:
    """Write ``model.onnx`` with ``model.onnx.data``, or an OpenVINO IR.

    Raises:
        UsageError: see `refuse_large`.
        BuildError: OpenVINO cannot convert it. EnvironmentMissingError: it is not installed.
    """
    refuse_large(job.source, engine, job.precision)
    return _openvino(job) if engine == "openvino" else _onnxruntime(job)


def _onnxruntime(job: EmitJob) -> Emitted:
    import onnx

    from edgekit.converters._opset import ir_version_for
    from edgekit.converters._version_cap import MAX_OPSET

    ceiling = job.claim.opset_max or MAX_OPSET
    if job.source.opset > ceiling:
        raise BuildError(
            "target onnxruntime", f"the model has opset {job.source.opset}", f"{ceiling} or older on {job.profile.id}", "export it so"
        )
    written = onnx.ModelProto()
    written.CopyFrom(job.source.model)
    written.ir_version = min(written.ir_version, ir_version_for(ceiling))
    _write(job.source, written, job.directory / "model.onnx")
    options = {"threads": str(job.profile.threads)} if job.profile.threads else {}
    artifact = Artifact("onnxruntime", "model.onnx", job.precision, *plain_bindings(job.source.signature), options)
    return Emitted(artifact, tools={"onnx": onnx.__version__}, report={"opset": job.source.opset, "external_data": _DATA}, notes=_NOTES)


_NOTES = ("the model is beyond protobuf's 2 GB: it was not simplified, and its weights lie in a file of their own",)


def _openvino(job: EmitJob) -> Emitted:
    try:
        import openvino
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("target openvino", "openvino", "openvino") from exc
    if may_be_bad(node.op_type for node in job.source.model.graph.node):
        raise BuildError(
            "target openvino", "it has operators that must be lowered for OpenVINO, which takes a model within 2 GB", "", "try onnxruntime"
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-large-", dir=job.directory.parent) as folder:
        path = Path(folder) / "model.onnx"
        _write(job.source, job.source.model, path)
        try:
            model = openvino.Core().read_model(str(path))
            names = {name for node in job.source.model.graph.node for name in (node.name, *node.output)}
            names |= {tensor.name for tensor in job.source.model.graph.initializer} | {value.name for value in job.source.model.graph.input}
            for index, operation in enumerate(model.get_ordered_ops()):
                if operation.get_friendly_name() not in names:
                    operation.set_friendly_name(f"{operation.get_type_name()}_at_{index}")
            openvino.save_model(model, str(job.directory / "model.xml"), compress_to_fp16=job.precision == "fp16")
        except Exception as exc:
            raise BuildError("target openvino", f"OpenVINO cannot convert the model: {one_line(exc)}", "", "try onnxruntime") from exc
        operations = len(model.get_ordered_ops())
        del model  # it maps the weights
    options = {"threads": str(job.profile.threads)} if job.profile.threads else {}
    artifact = Artifact("openvino", "model.xml", job.precision, *plain_bindings(job.source.signature), options)
    return Emitted(artifact, tools={"openvino": importlib.metadata.version("openvino")}, report={"operations": operations}, notes=_NOTES)


# --- weights -------------------------------------------------------------------------------------------------------------------------------


def _outside(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    import onnx

    return [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]


def _extent(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """File, offset and length of a tensor's external data."""
    from edgekit.converters.sources._onnx_file import bytes_of

    fields = {entry.key: entry.value for entry in tensor.external_data}
    return fields["location"], int(fields.get("offset", 0)), bytes_of(tensor)


def _write(source: NormalisedModel, model: onnx.ModelProto, path: Path) -> None:
    """Write a model to ``path``, and all its large weights into one file beside it."""
    import onnx

    assert source.weights is not None  # `emit_large` is for these
    written = onnx.ModelProto()
    written.CopyFrom(model)
    with open(path.with_name(_DATA), "wb") as out:
        for tensor in _outside(written):
            location, offset, length = _extent(tensor)
            out.write(bytes(-out.tell() % _ALIGNMENT))
            start = out.tell()
            with open(source.weights / location, "rb") as data:
                data.seek(offset)
                _copy(data, out, length)
            del tensor.external_data[:]
            for key, value in (("location", _DATA), ("offset", start), ("length", length)):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)
    path.write_bytes(written.SerializeToString(deterministic=True))


def _copy(data: BinaryIO, out: BinaryIO, length: int) -> None:
    while length:
        block = data.read(min(length, _BLOCK))
        if not block:
            raise OSError("the weights became shorter while they were read")
        out.write(block)
        length -= len(block)
