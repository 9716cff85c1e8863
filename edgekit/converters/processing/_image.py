"""Picture inputs: the operators that go between uint8 pixels and the source model's first one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle import Dim, ImageInput, Signature, TensorSpec
from edgekit.converters.processing._edit import Edit, rename
from edgekit.converters.processing._geometry import final_size, place
from edgekit.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = ["CHANNELS", "ModelInput", "add_image", "model_input"]

CHANNELS = (1, 3, 4)
"""Grey, colour, colour with alpha."""


@dataclass(frozen=True)
class ModelInput:
    """How the source model reads pictures.

    Attributes:
        spec: its own input.
        channels_last: [N,H,W,C] rather than [N,C,H,W].
        channels: how many.
        size: height and width of what it reads; a name where the model leaves one open and no step fixes it.
        given: the same of what callers give.
    """

    spec: TensorSpec
    channels_last: bool
    channels: int
    size: tuple[Dim, Dim]
    given: tuple[Dim, Dim]


def model_input(image: ImageInput, signature: Signature) -> ModelInput:
    """Check an image input against the source model.

    Raises:
        UnknownNameError: no such input.
        UsageError: it is no picture, it has another size, or a mean or std that does not fit its channels.
    """
    flag = f"--image-input {image.name}=…"
    spec = next((spec for spec in signature.inputs if spec.name == image.name), None)
    if spec is None:
        raise UnknownNameError(flag, image.name, [spec.name for spec in signature.inputs])
    wanted = "a float32 or float16 input [N,C,H,W] or [N,H,W,C] with 1, 3 or 4 channels"
    if spec.dtype not in ("float32", "float16") or len(spec.shape) != 4:
        raise UsageError(flag, f"the model's input is {spec.describe()}", wanted, "leave the flag out for this input")
    first, last = spec.shape[1] in CHANNELS, spec.shape[3] in CHANNELS
    if first == last:
        found = "either axis 1 or axis 3 could be the channels" if first else "neither axis 1 nor axis 3 has 1, 3 or 4 channels"
        raise UsageError(flag, f"the model's input is {spec.describe()}: {found}", wanted, "export the model with fixed channels")
    channels = spec.shape[1] if first else spec.shape[3]
    assert isinstance(channels, int)
    for key, values in (("mean", image.mean), ("std", image.std)):
        if len(values) not in (1, channels):
            raise UsageError(flag, f"{key} has {len(values)} values", f"1 or {channels}, as the input has channels")
    if image.colours and channels == 1:
        raise UsageError(flag, f"{image.colours} on one channel", "a colour input", "leave it out")
    own = (spec.shape[2], spec.shape[3]) if first else (spec.shape[1], spec.shape[2])
    size = _agreed(flag, image, own)
    plain = image.resize is None and image.crop is None
    names = (f"{image.name}_height", f"{image.name}_width")
    given: tuple[Dim, Dim] = image.given or (size if plain else names)
    return ModelInput(spec, not first, channels, size, given)


def _agreed(flag: str, image: ImageInput, own: tuple[Dim, Dim]) -> tuple[Dim, Dim]:
    """The size that the steps give, which must be the model's where that is fixed."""
    made = final_size(image)
    if made is None:
        return own
    if any(isinstance(have, int) and have != want for have, want in zip(own, made, strict=True)):
        raise UsageError(
            flag,
            f"its steps give {made[0]}x{made[1]} pixels",
            f"{own[0]}x{own[1]}, which the model fixes",
            "give resize=HxW or crop=HxW of that size",
        )
    return made


def add_image(model: onnx.ModelProto, image: ImageInput, found: ModelInput) -> bool:
    """Write the steps into the graph; the input keeps its name and becomes uint8.

    Returns:
        whether the last step's factors went into the weights of the first convolution.
    """
    edit = Edit(model, "pre")
    value = next(value for value in model.graph.input if value.name == image.name)
    # ``(x * scale - mean) / std`` as ``x * factor + offset``
    factor = np.full(found.channels, image.scale) / np.asarray(image.std)
    offset = -np.asarray(image.mean) / np.asarray(image.std) * np.ones(found.channels)
    ready = edit.fresh("ready")
    rename(model.graph, image.name, ready)
    x = _pixels(edit, image, found)
    folded = _fold(model, edit, ready, factor, offset, bool(image.colours)) if not found.channels_last else None
    if folded is not None:
        offset, swap, factor = folded, False, np.ones(found.channels)
    else:
        swap = bool(image.colours)
    if swap:
        x = edit.add("Gather", x, edit.constant(np.arange(found.channels)[::-1], "int64"), axis=1)
    shape = (1, found.channels, 1, 1)
    if np.any(factor != 1):
        x = edit.add("Mul", x, edit.constant(factor.reshape(shape), "float32"))
    if np.any(offset != 0):
        x = edit.add("Add", x, edit.constant(offset.reshape(shape), "float32"))
    if found.channels_last:
        x = edit.add("Transpose", x, perm=[0, 2, 3, 1])
    edit.cast(x, found.spec.dtype, ready) if found.spec.dtype != "float32" else edit.add("Identity", x, output=ready)
    edit.commit()
    if folded is not None:
        _drop_unused(model)
    _declare(value, image, found)
    return folded is not None


def _pixels(edit: Edit, image: ImageInput, found: ModelInput) -> str:
    """float32 [N,C,H,W] after resize, bars and cuts.

    The cast comes first: TensorRT takes uint8 at the border of a network only, and sums of rounded pixels would not be those of the reference.
    """
    x = edit.cast(image.name, "float32")
    if image.layout == "HWC":
        x = edit.add("Transpose", x, perm=[0, 3, 1, 2])
    given = (found.given[0], found.given[1])
    height, width = given
    steps = place(image, (height, width) if isinstance(height, int) and isinstance(width, int) else None)
    if steps.resize is not None:
        x = _resize(edit, x, found, steps.resize)
    if any(steps.pads):
        top, left, bottom, right = steps.pads
        pads = edit.constant([0, 0, top, left, 0, 0, bottom, right], "int64")
        x = edit.add("Pad", x, pads, edit.constant(image.pad, "float32"), mode="constant")
    if steps.cut is not None:
        top, left, rows, columns = steps.cut
        x = edit.cut(edit.cut(x, 2, top, top + rows), 3, left, left + columns)
    return x


def _resize(edit: Edit, x: str, found: ModelInput, size: tuple[int, int]) -> str:
    batch = found.spec.shape[0]
    if isinstance(batch, int):
        sizes = edit.constant([batch, found.channels, *size], "int64")
    else:
        sizes = edit.add("Concat", edit.cut(edit.add("Shape", x), 0, 0, 1), edit.constant([found.channels, *size], "int64"), axis=0)
    none = edit.constant(np.zeros(0), "float32")  # roi and scales are inputs of no elements where sizes are given
    return str(edit.add("Resize", x, none, none, sizes, mode="linear", coordinate_transformation_mode="half_pixel"))


def _declare(value: onnx.ValueInfoProto, image: ImageInput, found: ModelInput) -> None:
    import onnx

    height, width = found.given
    batch = found.spec.shape[0]
    shape: list[Dim] = [batch, height, width, found.channels] if image.layout == "HWC" else [batch, found.channels, height, width]
    value.CopyFrom(onnx.helper.make_tensor_value_info(image.name, onnx.TensorProto.UINT8, shape))


# --- folding -------------------------------------------------------------------------------------------------------------------------------


def _fold(model: onnx.ModelProto, edit: Edit, ready: str, factor: np.ndarray, offset: np.ndarray, swap: bool) -> np.ndarray | None:
    """Move factors, and the order of channels, into the weights of the one convolution that reads ``ready``.

    A convolution pads with zeros, so only a factor passes through it unchanged: ``W * (f x + o) = (W f) * (x + o / f)``, and zero stays zero.
    So where it pads, the offset stays before it, divided by the factor; where it does not, the offset becomes part of the bias.

    Returns:
        offset per channel, in the callers' order of channels, to add before the convolution; None when nothing was folded.
    """
    from onnx import TensorProto, numpy_helper

    readers = [node for node in model.graph.node if ready in node.input]
    if len(readers) != 1 or readers[0].op_type != "Conv" or readers[0].input[0] != ready:
        return None
    node = readers[0]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    attributes = {item.name: item for item in node.attribute}
    if node.input[1] not in tensors or ("group" in attributes and attributes["group"].i != 1):
        return None
    if tensors[node.input[1]].data_location == TensorProto.EXTERNAL:
        return None
    kernel = numpy_helper.to_array(tensors[node.input[1]])
    if kernel.ndim != 4 or kernel.shape[1] != len(factor) or kernel.dtype != np.float32:
        return None
    turned = kernel.astype(np.float64) * factor.reshape(1, -1, 1, 1)
    shift: np.ndarray = offset / factor
    if swap:
        turned, shift = turned[:, ::-1], shift[::-1]
    node.input[1] = edit.constant(turned, "float32")
    old = node.input[2] if len(node.input) > 2 else ""
    automatic = attributes["auto_pad"].s if "auto_pad" in attributes else b"NOTSET"
    padded = automatic.startswith(b"SAME") or ("pads" in attributes and any(attributes["pads"].ints))
    if padded or not shift.any() or (old and old not in tensors):
        return shift
    bias = numpy_helper.to_array(tensors[old]).astype(np.float64) if old else np.zeros(len(turned))
    del node.input[2:]
    node.input.append(edit.constant(bias + (turned * shift.reshape(1, -1, 1, 1)).sum(axis=(1, 2, 3)), "float32"))
    return np.zeros_like(shift)


def _drop_unused(model: onnx.ModelProto) -> None:
    """Weights that nothing reads any more; inner graphs may read by name, so a model with them keeps all."""
    if any(item.HasField("g") or item.graphs for node in model.graph.node for item in node.attribute):
        return
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
