"""The two ways in which LiteRT runs a file: its interpreter (CPU, external delegates) and its compiled model (GPU, NPU, a cache of packed weights)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgekit.errors import EngineError, EnvironmentMissingError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COMPILED_DTYPES", "CompiledRunner", "InterpreterRunner", "Runner", "count_delegated", "pick_signature"]

COMPILED_DTYPES = frozenset({"float32", "int8", "uint8", "int32", "int64", "bool"})
"""What a compiled model's buffers take from NumPy and are tested with here (ai-edge-litert 2.3)."""

Indices = dict[str, int]


class Runner(Protocol):
    """One loaded file. Names are those of its signature, or of its tensors where it has none. Runs one request at a time."""

    inputs: list[str]
    outputs: list[str]

    def run(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], skipped: frozenset[str]) -> dict[str, np.ndarray]:
        """Outputs by name, without those ``skipped``; those of ``targets`` are written to them."""

    def facts(self) -> dict[str, str]:
        """For `Engine.describe`."""


class InterpreterRunner:
    """An ``Interpreter`` with XNNPACK, or with the external delegate of a library.

    Args:
        package: the module ``ai_edge_litert.interpreter``.
        path: the file.
        threads: CPU threads.
        signature: name of the signature; empty for the only one.
        delegate: path or name of a delegate's shared library; empty for none.

    Raises:
        EngineError: the library does not load, or its delegate takes no operator of the graph.
    """

    def __init__(self, package: Any, path: str, threads: int, signature: str, delegate: str = "") -> None:
        delegates = [_load_delegate(package, delegate)] if delegate else None
        interpreter = package.Interpreter(model_path=path, num_threads=threads, experimental_delegates=delegates)
        self._interpreter = interpreter
        self._delegate = delegate
        # Counted before the tensors are allocated: XNNPACK then takes what is left, and would pass for the delegate.
        self._taken = self._delegated() if delegate else None
        if self._taken is not None and not self._taken[0]:
            found = f"delegate {delegate} takes none of {self._taken[1]} operators of {os.path.basename(path)}"
            raise EngineError("engine tflite", found, "at least one", "choose cpu, or build the model for that accelerator")
        interpreter.allocate_tensors()
        self._inputs, self._outputs = _indices(interpreter, path, signature)
        self.inputs, self.outputs = list(self._inputs), list(self._outputs)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for inputs of these shapes."""
        for name, shape in shapes.items():
            self._interpreter.resize_tensor_input(self._inputs[name], shape, strict=True)
        self._interpreter.allocate_tensors()

    def run(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], skipped: frozenset[str]) -> dict[str, np.ndarray]:
        interpreter = self._interpreter
        for name, array in inputs.items():
            if array.size:  # LiteRT refuses to set or get a tensor without elements
                interpreter.set_tensor(self._inputs[name], array)
        interpreter.invoke()
        found = {}
        for name, index in self._outputs.items():
            if name in skipped:
                continue
            if name in targets:
                found[name] = targets[name]
                np.copyto(found[name], interpreter.tensor(index)())  # one copy, out of LiteRT's own memory; no view of it is kept
            else:
                found[name] = interpreter.get_tensor(index)
        return found

    def facts(self) -> dict[str, str]:
        taken, total = self._taken or self._delegated()
        name = os.path.basename(self._delegate) or "XNNPACK"
        return {"runner": "interpreter", "delegate": name if taken else "none", "delegated": f"{taken} of {total} operators"}

    def _delegated(self) -> tuple[int, int]:
        details = getattr(self._interpreter, "_get_ops_details", None)
        return count_delegated(details()) if details is not None else (0, 0)


class CompiledRunner:
    """A ``CompiledModel``: fixed shapes, buffers made once.

    Args:
        package: the module ``ai_edge_litert.compiled_model``.
        path: the file.
        threads: CPU threads.
        signature: as for `InterpreterRunner`.
        accelerator: ``CPU``, ``GPU`` or ``NPU``, and nothing else runs a part of the graph: what GPU or NPU cannot take is refused.
        weights: file of packed weights, read when it is there, else written; ``None`` for none.

    Raises:
        EngineError: the accelerator did not take the whole graph. Exceptions of LiteRT pass.
    """

    def __init__(self, package: Any, path: str, threads: int, signature: str, accelerator: str, weights: Path | None = None) -> None:
        cpu = package.CpuOptions(num_threads=threads, xnnpack_weight_cache_path=str(weights) if weights is not None else "")
        units = getattr(package.HardwareAccelerator, accelerator)
        options = package.Options(hardware_accelerators=units, cpu_options=cpu)
        self._model = package.CompiledModel.from_file(path, options=options)
        self._whole = bool(self._model.is_fully_accelerated())
        if accelerator != "CPU" and not self._whole:
            raise EngineError(
                "engine tflite", f"{accelerator} does not take the whole graph of {os.path.basename(path)}", "all of it", "choose cpu"
            )
        signatures = self._model.get_signature_list()
        chosen = pick_signature(list(signatures), signature, path)
        self._accelerator = accelerator
        self._place = self._model.get_signature_index(chosen)
        self.inputs: list[str] = list(signatures[chosen]["inputs"])
        self.outputs: list[str] = list(signatures[chosen]["outputs"])
        details = self._model.get_output_tensor_details(chosen)
        self._shapes = {name: (tuple(details[name]["shape"]), np.dtype(details[name]["dtype"])) for name in self.outputs}
        self._in = dict(zip(self.inputs, self._model.create_input_buffers(self._place), strict=True))
        self._out = dict(zip(self.outputs, self._model.create_output_buffers(self._place), strict=True))
        self._buffers = list(self._in.values()), list(self._out.values())

    def run(self, inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], skipped: frozenset[str]) -> dict[str, np.ndarray]:
        del targets  # LiteRT has no way to read a buffer into an array of ours; the caller copies
        for name, array in inputs.items():
            self._in[name].write(array)
        self._model.run_by_index(self._place, *self._buffers)
        found = {}
        for name in self.outputs:
            if name not in skipped:
                shape, dtype = self._shapes[name]
                found[name] = self._out[name].read(int(np.prod(shape, dtype=np.int64)), dtype).reshape(shape)
        return found

    def facts(self) -> dict[str, str]:
        """In LiteRT's own words; it counts no operators here. What XNNPACK leaves, LiteRT's plain kernels run."""
        delegate = "XNNPACK" if self._accelerator == "CPU" else self._accelerator
        return {"runner": "compiled model", "delegate": delegate, "delegated": "all operators" if self._whole else "not all operators"}


def count_delegated(operators: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many of a graph's own operators run inside of delegates, and how many it has.

    LiteRT keeps the operators that a delegate replaced in its list and adds one named ``DELEGATE`` with the tensors at its borders: an operator is inside when
    a delegate's outputs lead back to it without crossing that delegate's inputs.

    Args:
        operators: ``index``, ``op_name``, ``inputs`` and ``outputs`` (tensor numbers) of each.
    """
    own = [operator for operator in operators if operator["op_name"] != "DELEGATE"]
    makers = {int(tensor): operator for operator in own for tensor in operator["outputs"]}
    inside: set[int] = set()
    for delegate in (operator for operator in operators if operator["op_name"] == "DELEGATE"):
        border = {int(tensor) for tensor in delegate["inputs"]}
        open_ends = [int(tensor) for tensor in delegate["outputs"]]
        while open_ends:
            maker = makers.get(open_ends.pop())
            if maker is not None and maker["index"] not in inside:
                inside.add(maker["index"])
                open_ends.extend(int(tensor) for tensor in maker["inputs"] if int(tensor) not in border)
    return len(inside), len(own)


def pick_signature(known: Sequence[str], wanted: str, path: str) -> str:
    """The signature to run: the wanted one, the only one, or ``serving_default``. Empty when the file has none.

    Raises:
        EngineError: no such signature, or several to choose from.
    """
    if wanted and wanted not in known:
        raise EngineError("engine tflite", f"{os.path.basename(path)} has no signature {wanted!r}", f"one of {', '.join(known) or 'none'}")
    if wanted or not known:
        return wanted
    if len(known) == 1:
        return known[0]
    if "serving_default" in known:
        return "serving_default"
    raise EngineError(
        "engine tflite", f"{os.path.basename(path)} has several signatures", f"one of {', '.join(known)} in the artifact's options"
    )


def _indices(interpreter: Any, path: str, signature: str) -> tuple[Indices, Indices]:
    """Tensor indices by signature name, or by tensor name where the file has no signature."""
    chosen = pick_signature(list(interpreter.get_signature_list()), signature, path)
    if not chosen:
        return (
            {detail["name"]: detail["index"] for detail in interpreter.get_input_details()},
            {detail["name"]: detail["index"] for detail in interpreter.get_output_details()},
        )
    runner = interpreter.get_signature_runner(chosen)  # must be gone before the first run: LiteRT counts who holds its memory
    if getattr(runner, "_subgraph_index", 0) != 0:
        raise EngineError(
            "engine tflite", f"signature {chosen!r} of {os.path.basename(path)} is not its main graph", "the signature of the main graph"
        )
    return (
        {name: detail["index"] for name, detail in runner.get_input_details().items()},
        {name: detail["index"] for name, detail in runner.get_output_details().items()},
    )


def _load_delegate(package: Any, library: str) -> Any:
    import ctypes

    try:
        ctypes.CDLL(library)  # LiteRT's own failure leaves half an object behind, whose end is an exception that nobody can catch
        return package.load_delegate(library)
    except (ValueError, OSError, RuntimeError) as exc:
        found = f"delegate library {library} does not load: {' '.join(str(exc).split())[:200]}"
        raise EnvironmentMissingError("engine tflite", found, "", "install the accelerator's runtime, or choose cpu") from exc
