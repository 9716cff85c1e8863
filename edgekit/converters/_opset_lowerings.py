"""What changed form between opsets, rewritten for the older one: one small function an operator.

A lowering is ``(node, scope) -> reason``. It changes the node in place (it may become another operator) and may put nodes before it with
`Scope.add`; a reason refuses the node. `LOWERINGS` says below which opset each applies. Source: the operators' changelog in the ONNX
specification (``docs/Changelog.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["LOWERINGS", "Lowering", "Scope"]


class Scope:
    """One graph while its nodes are rewritten: types, shapes and constants by tensor name, the enclosing graphs' included."""

    def __init__(self, graph: onnx.GraphProto, parent: Scope | None, current: int, ceiling: int) -> None:
        self.graph = graph
        self.parent = parent
        self.current = current
        self.ceiling = ceiling
        self._nodes: list[onnx.NodeProto] = []
        self._types = {value.name: value.type for value in (*graph.value_info, *graph.output, *graph.input)}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        inputs = {value.name for value in graph.input}
        self._constants = {name: tensor for name, tensor in self._tensors.items() if name not in inputs}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._folded: dict[str, np.ndarray | None] = {}

    def add(self, node: onnx.NodeProto) -> None:
        """Put a node behind the ones that are there."""
        self._nodes.append(node)

    def write_back(self) -> None:
        """Replace the graph's nodes by the rewritten ones."""
        del self.graph.node[:]
        self.graph.node.extend(self._nodes)

    def constant(self, name: str) -> np.ndarray | None:
        """Value of an initializer, or of what small integer arithmetic makes of constants; None for anything else."""
        from onnx import numpy_helper

        if name in self._constants:
            value: np.ndarray = numpy_helper.to_array(self._constants[name])
            return value
        if name in self._producers:
            if name not in self._folded:
                self._folded[name] = None  # a cycle, which no valid graph has, would end here
                self._folded[name] = self._fold(self._producers[name], name)
            return self._folded[name]
        return self.parent.constant(name) if self.parent is not None else None

    def _fold(self, node: onnx.NodeProto, name: str) -> np.ndarray | None:
        """Evaluate one node with ONNX's reference implementation, as bodies of functions compute axes and sizes."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        if node.domain not in ("", "ai.onnx") or node.op_type not in _FOLDABLE:
            return None
        if node.op_type == "Shape":
            shape = self.shape_of(node.input[0])
            if shape is None or None in shape:
                return None
            return np.array(shape[slice(_attribute(node, "start", 0), _attribute(node, "end", None))], np.int64)
        inputs = {each: self.constant(each) for each in node.input if each}
        if any(value is None or value.size > _FOLD_LIMIT for value in inputs.values()):
            return None
        values = [onnx.helper.make_tensor_value_info(each, onnx.TensorProto.INT64, None) for each in inputs]
        results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)]
        graph = onnx.helper.make_graph([node], "fold", values, results)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.current)])
        return np.asarray(ReferenceEvaluator(model).run([name], inputs)[0])

    def add_constant(self, owner: onnx.NodeProto, hint: str, value: np.ndarray) -> str:
        """A new initializer, named after the node that needs it."""
        from onnx import numpy_helper

        name = self.fresh(f"{owner.output[0]}/{hint}")
        tensor = numpy_helper.from_array(value, name)
        self.graph.initializer.append(tensor)
        self._tensors[name] = self._constants[name] = tensor
        return name

    def fresh(self, name: str) -> str:
        """A tensor name that this graph does not use yet."""
        used = set(self._types) | set(self._tensors) | {output for node in self._nodes for output in node.output}
        while name in used:
            name += "_"
        return name

    def type_of(self, name: str) -> str:
        """``tensor(float)``, ``seq(tensor(int64))`` and so on; "" when it is not known."""
        if name in self._tensors:
            return _tensor_type(self._tensors[name].data_type)
        if name in self._types:
            return _type_string(self._types[name])
        return self.parent.type_of(name) if self.parent is not None and name else ""

    def shape_of(self, name: str) -> tuple[int | None, ...] | None:
        """Shape with None for what is not fixed; None when not even the rank is known."""
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        if name in self._types:
            kind = self._types[name]
            if not (kind.HasField("tensor_type") and kind.tensor_type.HasField("shape")):
                return None
            return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim)
        return self.parent.shape_of(name) if self.parent is not None else None


# Operators that shape arithmetic is made of, and how large its tensors get.
_FOLDABLE = {"Constant", "Shape", "Size", "Range", "Cast", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Identity"} | {
    *("Add", "Sub", "Mul", "Div", "Neg", "Expand", "ConstantOfShape")
}
_FOLD_LIMIT = 64
Lowering = Callable[["onnx.NodeProto", Scope], str]


def _tensor_type(elem_type: int) -> str:
    import onnx

    return f"tensor({onnx.TensorProto.DataType.Name(elem_type).lower()})"


def _type_string(kind: onnx.TypeProto) -> str:
    """A type as operator schemas write it."""
    if kind.HasField("tensor_type"):
        return _tensor_type(kind.tensor_type.elem_type) if kind.tensor_type.elem_type else ""
    for name, inner in (("seq", kind.sequence_type), ("optional", kind.optional_type)):
        if kind.HasField("sequence_type" if name == "seq" else "optional_type"):
            return f"{name}({_type_string(inner.elem_type)})"
    return ""


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    import onnx

    found = next((a for a in node.attribute if a.name == name), None)
    if found is None:
        return default
    value = onnx.helper.get_attribute_value(found)
    return value.decode() if isinstance(value, bytes) else value


def _remove(node: onnx.NodeProto, *names: str) -> None:
    for attribute in [a for a in node.attribute if a.name in names]:
        node.attribute.remove(attribute)


def _set(node: onnx.NodeProto, name: str, value: Any) -> None:
    import onnx

    _remove(node, name)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def _input(node: onnx.NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _set_inputs(node: onnx.NodeProto, *names: str) -> None:
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    del node.input[:]
    node.input.extend(kept)


def _become(node: onnx.NodeProto, op_type: str, *inputs: str) -> None:
    node.op_type = op_type
    del node.attribute[:]
    _set_inputs(node, *inputs)


def _axes_to_attribute(node: onnx.NodeProto, scope: Scope) -> str:
    """Reductions before 18 take their axes as an attribute and know no empty list that means "leave as it is"."""
    axes_name = _input(node, 1)
    axes = scope.constant(axes_name) if axes_name else np.empty(0, np.int64)
    if axes is None:
        return "its axes are computed"
    if axes.size == 0 and _attribute(node, "noop_with_empty_axes", 0):
        if node.op_type not in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"):
            return "reduces over no axis"
        _become(node, "Identity", node.input[0])
        return ""
    _remove(node, "noop_with_empty_axes")
    _set_inputs(node, node.input[0])
    if axes.size:
        _set(node, "axes", [int(axis) for axis in axes.ravel()])
    return ""


def _split_sizes(node: onnx.NodeProto, scope: Scope) -> str:
    """``num_outputs`` (18) splits into parts of the rounded-up size, the last one smaller; before, sizes are given."""
    count = _attribute(node, "num_outputs", 0)
    _remove(node, "num_outputs")
    if _input(node, 1) or not count:
        return ""
    shape = scope.shape_of(node.input[0])
    size = shape[_attribute(node, "axis", 0)] if shape is not None else None
    if size is None:
        return "the size of the split axis is not known"
    part = -(-size // count)
    sizes = [part] * (count - 1) + [size - part * (count - 1)]
    if sizes[-1] < 0:
        return f"{size} elements cannot be split into {count} parts of {part}"
    _set_inputs(node, node.input[0], scope.add_constant(node, "split", np.array(sizes, np.int64)))
    return ""


def _pad_axes(node: onnx.NodeProto, scope: Scope) -> str:
    """``axes`` (18) names the padded axes; before, ``pads`` covers all of them."""
    if not _input(node, 3):
        return ""
    shape, axes, pads = scope.shape_of(node.input[0]), scope.constant(node.input[3]), scope.constant(node.input[1])
    if shape is None or axes is None or pads is None:
        return "its axes or pads are computed"
    full = np.zeros((2, len(shape)), np.int64)
    full[:, [int(axis) % len(shape) for axis in axes]] = pads.reshape(2, -1)
    _set_inputs(node, node.input[0], scope.add_constant(node, "pads", full.ravel()), _input(node, 2))
    return ""


def _pad_wrap(node: onnx.NodeProto, _: Scope) -> str:
    return "mode wrap came with opset 19" if _attribute(node, "mode", "constant") == "wrap" else ""


def _resize_axes(node: onnx.NodeProto, scope: Scope) -> str:
    """``axes`` (18) names the resized axes; before, scales, sizes and roi cover all of them."""
    if _attribute(node, "antialias", 0):
        return "antialias came with opset 18"
    if _input(node, 3) and _attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "keep_aspect_ratio_policy came with opset 18"
    axes = _attribute(node, "axes", None)
    _remove(node, "antialias", "keep_aspect_ratio_policy", "axes")
    if axes is None:
        return ""
    shape = scope.shape_of(node.input[0])
    if shape is None:
        return "the rank of its input is not known"
    axes = [axis % len(shape) for axis in axes]
    inputs = [*node.input, *[""] * (4 - len(node.input))]
    for index, rest in ((2, np.ones(len(shape), np.float32)), (3, shape)):
        if not inputs[index] or scope.shape_of(inputs[index]) == (0,):
            continue
        given = scope.constant(inputs[index])
        if given is None or any(rest[axis] is None for axis in range(len(shape)) if axis not in axes):
            return "its axes need sizes that are not known"
        full = np.array([0 if value is None else value for value in rest], given.dtype)
        full[axes] = given
        inputs[index] = scope.add_constant(node, "scales" if index == 2 else "sizes", full)
    if inputs[1] and _attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "roi over chosen axes came with opset 18"
    _set_inputs(node, inputs[0], "", *inputs[2:])
    return ""


def _resize_symmetric(node: onnx.NodeProto, _: Scope) -> str:
    mode = _attribute(node, "coordinate_transformation_mode", "half_pixel")
    return "half_pixel_symmetric came with opset 19" if mode == "half_pixel_symmetric" else ""


def _shape_slice(node: onnx.NodeProto, scope: Scope) -> str:
    """``start`` and ``end`` (15) become a Slice behind the whole shape."""
    import onnx

    start, end = _attribute(node, "start", 0), _attribute(node, "end", None)
    _remove(node, "start", "end")
    if start == 0 and end is None:
        return ""
    whole = scope.fresh(f"{node.output[0]}/shape")
    scope.add(onnx.helper.make_node("Shape", [node.input[0]], [whole], name=whole))
    # Slice takes negative bounds and clamps them as Shape does; the largest int64 stands for "to the end".
    last = np.iinfo(np.int64).max if end is None else end
    bounds = [scope.add_constant(node, hint, np.array([value], np.int64)) for hint, value in (("start", start), ("end", last))]
    _become(node, "Slice", whole, *bounds)
    return ""


def _reshape_zero(node: onnx.NodeProto, scope: Scope) -> str:
    """``allowzero`` (14) matters only for a shape that holds a zero."""
    if _attribute(node, "allowzero", 0):
        shape = scope.constant(node.input[1])
        if shape is None or (shape == 0).any():
            return "allowzero came with opset 14"
    _remove(node, "allowzero")
    return ""


def _no_float8(node: onnx.NodeProto, scope: Scope) -> str:
    """``saturate`` (19) and ``round_mode`` (24) say how to convert to float8 only."""
    if any("float8" in scope.type_of(name) for name in (*node.input, *node.output)):
        return "float8 came with opset 19"
    _remove(node, "saturate", "round_mode")
    return ""


def _quantised_type(node: onnx.NodeProto, scope: Scope) -> str:
    """``output_dtype`` (21) without a zero point: before, the zero point's type says it."""
    from onnx import helper

    wanted = _attribute(node, "output_dtype", 0)
    _remove(node, "output_dtype")
    if wanted and not _input(node, 2):
        shape = scope.shape_of(node.input[1])
        if shape is None or None in shape:
            return "the shape of its scale is not known"
        zero = np.zeros([size or 0 for size in shape], helper.tensor_dtype_to_np_dtype(wanted))
        _set_inputs(node, node.input[0], node.input[1], scope.add_constant(node, "zero_point", zero))
    return ""


def _dequantised_type(node: onnx.NodeProto, scope: Scope) -> str:
    """``output_dtype`` (23) can differ from the scale's type; before, it cannot."""
    import onnx

    wanted = _attribute(node, "output_dtype", 0)
    _remove(node, "output_dtype")
    kinds = {"", scope.type_of(node.input[1])}
    return "" if not wanted or f"tensor({onnx.TensorProto.DataType.Name(wanted).lower()})" in kinds else "output_dtype came with opset 23"


def _scatter_reduction(node: onnx.NodeProto, _: Scope) -> str:
    mode = _attribute(node, "reduction", "none")
    return f"reduction {mode} came with opset 18" if mode in ("max", "min") else ""


def _grid_names(node: onnx.NodeProto, scope: Scope) -> str:
    """20 renamed the modes and took volumes."""
    if len(scope.shape_of(node.input[0]) or ()) != 4:
        return "only images (rank 4) before opset 20"
    mode = _attribute(node, "mode", "linear")
    _set(node, "mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))
    return ""


def _pool_dilations(node: onnx.NodeProto, _: Scope) -> str:
    if any(step != 1 for step in _attribute(node, "dilations", ())):
        return "dilations are too new"
    _remove(node, "dilations")
    return ""


def _roi_mode(node: onnx.NodeProto, _: Scope) -> str:
    """16 changed the default; what was there before is now called output_half_pixel."""
    if _attribute(node, "coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
        return "half_pixel came with opset 16"
    _remove(node, "coordinate_transformation_mode")
    return ""


def _mod_sign(node: onnx.NodeProto, scope: Scope) -> str:
    """28 lets floats follow the divisor's sign; before, floats need ``fmod``."""
    floats = any(kind in scope.type_of(node.input[0]) for kind in ("float", "double"))
    return "floats that follow the divisor's sign came with opset 28" if floats and not _attribute(node, "fmod", 0) else ""


def _dft_axis(node: onnx.NodeProto, scope: Scope) -> str:
    """20 made the axis an input, with another default."""
    shape = scope.shape_of(node.input[0])
    axis = scope.constant(_input(node, 2)) if _input(node, 2) else np.array(-2)
    if shape is None or axis is None:
        return "its axis or rank is computed"
    _set_inputs(node, node.input[0], _input(node, 1))
    _set(node, "axis", int(axis.item()) % len(shape))
    return ""


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
# operator -> (below which opset, lowering), newest first.
LOWERINGS: dict[str, tuple[tuple[int, Lowering], ...]] = {
    **{f"Reduce{name}": ((18, _axes_to_attribute),) for name in _REDUCTIONS},
    "Split": ((18, _split_sizes),),
    "Pad": ((19, _pad_wrap), (18, _pad_axes)),
    "Resize": ((19, _resize_symmetric), (18, _resize_axes)),
    "Shape": ((15, _shape_slice),),
    "Reshape": ((14, _reshape_zero),),
    "Cast": ((24, _no_float8), (19, _no_float8)),
    "CastLike": ((24, _no_float8), (19, _no_float8)),
    "QuantizeLinear": ((21, _quantised_type), (19, _no_float8)),
    "DequantizeLinear": ((23, _dequantised_type),),
    "ScatterND": ((18, _scatter_reduction),),
    "ScatterElements": ((18, _scatter_reduction),),
    "GridSample": ((20, _grid_names),),
    "AveragePool": ((19, _pool_dilations),),
    "LpPool": ((18, _pool_dilations),),
    "RoiAlign": ((16, _roi_mode),),
    "Mod": ((28, _mod_sign),),
    "DFT": ((20, _dft_axis),),
}
