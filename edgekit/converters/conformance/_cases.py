"""ONNX's own backend tests as small models with one live input.

A case of ``onnx.backend.test`` (node, simple, pytorch-converted, pytorch-operator) is a model with recorded inputs and outputs. Deployed models
carry weights, so the first input stays an input and all others become initializers with their recorded values.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import EnvironmentMissingError

if TYPE_CHECKING:
    import onnx

__all__ = ["ATOL", "KINDS", "RTOL", "Case", "in_scope", "load_cases", "mismatch", "passes_onnxruntime", "scope"]

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
"""Suites of ``onnx.backend.test`` that hold models of one or a few operators."""

RTOL, ATOL = 1e-3, 1e-7
"""The suite's own tolerances (onnx/backend/test/loader: rtol 1e-3, atol 1e-7); a case may ask for others."""

_NUMERIC = "fiub"


@dataclass(frozen=True)
class Case:
    """One test: a model, what to feed and what must come out.

    Attributes:
        name: the suite's name (``test_conv_with_strides_padding``).
        kind: one of `KINDS`.
        model: with one live input, named as in the suite; every other is an initializer.
        inputs: the recorded value of the live input by name; empty for a model without inputs.
        outputs: recorded outputs by name, in order.
        rtol, atol: limits ``|got - want| <= atol + rtol * |want|``.
    """

    name: str
    kind: str
    model: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    rtol: float
    atol: float

    @property
    def operator(self) -> str:
        """The operator under test, as far as one can be named: the single node's, else the suite's kind."""
        nodes = [node for node in self.model.graph.node if node.op_type != "Constant"]
        return nodes[0].op_type if len(nodes) == 1 else f"({self.kind} graph)"


def load_cases() -> Iterator[Case]:
    """Every dense case of the installed onnx, in the suite's order.

    Raises:
        EnvironmentMissingError: onnx is not installed.
    """
    for kind in KINDS:
        for test in _tests(kind):
            found = _case(test, kind)
            if found is not None:
                yield found


def in_scope(case: Case) -> bool:
    """Dense numeric or bool tensors and the default domain only."""
    arrays = (*case.inputs.values(), *case.outputs.values())
    return (
        bool(case.inputs)
        and all(array.dtype.kind in _NUMERIC for array in arrays)
        and all(node.domain in ("", "ai.onnx") for node in case.model.graph.node)
        and not case.model.functions
    )


def passes_onnxruntime(case: Case) -> bool:
    """Whether ONNX Runtime itself loads the case at a version it knows and answers within the limits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(_capped(case.model).SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs = session.run(list(case.outputs), case.inputs)
    except Exception:  # noqa: BLE001 - what it cannot do is out of scope, for whatever reason
        return False
    return not mismatch(case, dict(zip(case.outputs, outputs, strict=True)))


def scope() -> list[Case]:
    """The cases that every target is measured by."""
    return [case for case in load_cases() if in_scope(case) and passes_onnxruntime(case)]


def mismatch(case: Case, outputs: dict[str, np.ndarray]) -> str:
    """How outputs differ from the recorded ones; "" when dtype, shape and values agree."""
    for name, want in case.outputs.items():
        got = np.asarray(outputs[name])
        if got.dtype != want.dtype or got.shape != want.shape:
            return f"output {name!r} is {got.dtype}{list(got.shape)}; expected {want.dtype}{list(want.shape)}"
        if want.dtype.kind == "f":
            wanted, found = want.astype(np.float64), got.astype(np.float64)
            if not np.allclose(found, wanted, rtol=case.rtol, atol=case.atol, equal_nan=True):
                worst = np.nanmax(np.abs(found - wanted), initial=0.0)
                return f"output {name!r} differs by {worst:.3g}"
        elif not np.array_equal(got, want):
            return f"output {name!r} differs in {np.count_nonzero(got != want)} of {want.size} values"
    return ""


# --- reading the suite ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def _tests(kind: str) -> list[Any]:
    try:
        from onnx.backend.test import loader
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra("conformance", "onnx", "convert") from exc
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the suite overflows and divides by zero on purpose
        tests: list[Any] = loader.load_model_tests(kind=kind)
    return tests


def _case(test: Any, kind: str) -> Case | None:
    import onnx

    model = test.model if test.model is not None else onnx.load(Path(test.model_dir) / "model.onnx")
    recorded = test.data_sets[0] if test.model is not None and test.data_sets else _recorded(test, model)
    if recorded is None:
        return None
    inputs, outputs = recorded
    initializers = {tensor.name for tensor in model.graph.initializer}
    fed = [value.name for value in model.graph.input if value.name not in initializers]
    wanted = [value.name for value in model.graph.output]
    if not all(isinstance(value, np.ndarray | np.generic) for value in (*inputs, *outputs)):
        return None
    if len(inputs) < len(fed) or len(outputs) != len(wanted):
        # A graph may list its initializers as inputs and record values for all.
        return None
    values = {name: np.asarray(value) for name, value in zip(fed, inputs, strict=False)}
    live = dict(list(values.items())[:1])
    return Case(
        test.name,
        kind,
        _frozen(model, {name: value for name, value in values.items() if name not in live}),
        live,
        {name: np.asarray(value) for name, value in zip(wanted, outputs, strict=True)},
        test.rtol or RTOL,
        test.atol or ATOL,
    )


def _recorded(test: Any, model: onnx.ModelProto) -> tuple[list[Any], list[Any]] | None:
    import onnx
    from onnx import numpy_helper

    folder = Path(test.model_dir or "") / "test_data_set_0"
    found: list[list[Any]] = []
    for role, values in (("input", model.graph.input), ("output", model.graph.output)):
        arrays: list[Any] = []
        for index, value in enumerate(values):
            path = folder / f"{role}_{index}.pb"
            if not path.is_file():
                break
            if not value.type.HasField("tensor_type"):
                return None
            arrays.append(numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())))
        found.append(arrays)
    return found[0], found[1]


def _frozen(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    import onnx
    from onnx import numpy_helper

    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    known = {tensor.name for tensor in frozen.graph.initializer}
    kept = [value for value in frozen.graph.input if value.name not in values and value.name not in known]
    del frozen.graph.input[:]
    frozen.graph.input.extend(kept)
    frozen.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return frozen


def _capped(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy at versions that the installed ONNX Runtime loads; only where that changes no operator's meaning."""
    import onnx

    from edgekit.converters._normalise import MAX_IR_VERSION, MAX_OPSET

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, MAX_IR_VERSION)
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > MAX_OPSET:
            newest = (onnx.defs.get_schema(node.op_type, entry.version).since_version for node in copy.graph.node)
            if max(newest, default=0) <= MAX_OPSET:
                entry.version = MAX_OPSET
    return copy
