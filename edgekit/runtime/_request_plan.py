"""How requests of one model are checked, put together and taken apart.

Requests can run as one only when the first axis of every input and output is a batch axis: what a row holds does not depend on the rows beside it. The
signature can only allow that (a dynamic first dimension everywhere, which may as well be a sequence's length), so it is proven with real requests before it is
used: `Proof` compares what a request gives alone and beside other rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from edgekit.bundle import Signature, TensorSpec
from edgekit.errors import EdgeKitError, RequestError
from edgekit.protocol import InferRequest
from edgekit.runtime._admission import Waiting
from edgekit.runtime._job import Job

__all__ = ["MAX_BATCH_BYTES", "Proof", "RequestPlan", "split", "stack"]

_log = logging.getLogger(__name__)
Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]

MAX_BATCH_BYTES = 32 << 20
"""Most bytes of inputs that are put together: activations are a multiple of that, and memory is what a device has least of."""
_TOLERANCE = {"fp32": 1e-3}
_COARSE_TOLERANCE = 1e-2  # fp16 and int8: one step of int8 is 0.8 % of the largest value
_ATTEMPTS = 8  # requests that tell nothing (all rows alike) before only every 64th is tried
_RARELY = 64
_PROOFS = 3  # comparisons that must agree


class RequestPlan:
    """Checks requests of one model and says which may run together. Safe from several threads.

    Attributes:
        max_rows: that may run together, by the signature and their bytes.

    Args:
        name: of the model, for the log.
        signature: of the model.
        max_batch: rows that may run together; 1 keeps requests apart.
        precision: of the artifact, for the proof's tolerance.
        golden: inputs of the bundle's golden samples, kept until the proof is done.
    """

    def __init__(
        self,
        name: str,
        signature: Signature,
        max_batch: int = 1,
        precision: str = "fp32",
        golden: Sequence[Arrays] = (),
    ) -> None:
        self._signature = signature
        self._outputs = [spec.name for spec in signature.outputs]
        self._texts = [spec.name for spec in signature.inputs if spec.dtype == "string"]
        self._rows_first = _has_batch_axis(signature)
        self.max_rows = _bounded(signature, max_batch) if self._rows_first else 1
        self._batched = self.max_rows > 1
        self._quick = _quick_specs(signature, self._rows_first)
        # One input with rows first is the usual model, and worth a path of its own: half a microsecond.
        self._only = None
        if self._quick is not None and len(self._quick) == 1 and self._rows_first:
            self._only = next((name, *spec) for name, spec in self._quick.items())
        self.proof = Proof(name, _TOLERANCE.get(precision, _COARSE_TOLERANCE), golden) if self._batched else None

    @property
    def together(self) -> bool:
        """Requests may run together, as far as is known."""
        return self.proof is not None and self.proof.state is not False

    def describe(self) -> str:
        """Whether requests run together, for the model's configuration."""
        if self.proof is None:
            return "off: no batch axis, or not wanted"
        if self.proof.state is None:
            return "on once it is proven that rows are independent"
        return "on" if self.proof.state else f"off: {self.proof.reason}"

    @property
    def outputs(self) -> list[str]:
        """Names of all outputs."""
        return self._outputs

    def prepare(self, job: Job) -> None:
        """Check a request and fill what the scheduler needs to know about it.

        Raises:
            RequestError: inputs that do not fit the signature, an unknown output, a priority that is none.
        """
        request = job.request
        if request.parameters:
            job.read_priority()
        if request.outputs:
            job.wanted = self._wanted(request)
        if not self._prepare_quickly(job, request):
            self._prepare_fully(job, request)
        proof = self.proof
        if proof is None or proof.state is False:
            job.key, job.rows = Waiting.ALONE, 1

    def _prepare_quickly(self, job: Job, request: InferRequest) -> bool:
        """The usual request, in a fraction of the full check's time; false means: ask the full check."""
        quick = self._quick
        tensors = request.inputs
        if quick is None or len(tensors) != len(quick):
            return False
        if self._only is not None:
            name, dtype, tail = self._only
            tensor = tensors[0]
            data = tensor.data
            shape = data.shape
            if tensor.name != name or data.dtype != dtype or shape[1:] != tail or not shape or not shape[0]:
                return False
            job.inputs = {name: data}
            if self._batched:
                job.rows = shape[0]
            return True
        inputs: dict[str, np.ndarray] = {}
        rows = -1
        for tensor in tensors:
            spec = quick.get(tensor.name)
            data = tensor.data
            if spec is None or data.dtype != spec[0]:
                return False
            shape = data.shape
            if self._rows_first:
                if shape[1:] != spec[1] or not shape or not shape[0] or rows not in (-1, shape[0]):
                    return False
                rows = shape[0]
            elif shape != spec[1]:
                return False
            inputs[tensor.name] = data
        if len(inputs) != len(quick):
            return False
        job.inputs = inputs
        if self._batched:
            job.rows = rows
        return True

    def _prepare_fully(self, job: Job, request: InferRequest) -> None:
        inputs = {tensor.name: tensor.data for tensor in request.inputs}
        self._signature.check(inputs)
        for name in self._texts:
            inputs[name] = _as_text(name, inputs[name])
        job.inputs = inputs
        if not self._batched:
            return
        rows = {array.shape[0] for array in inputs.values()}
        job.rows = max(1, *rows)
        small = sum(array.nbytes for array in inputs.values()) <= MAX_BATCH_BYTES // 2
        if len(rows) == 1 and job.rows == max(rows) and small:
            shapes = tuple(inputs[spec.name].shape[1:] for spec in self._signature.inputs)
            job.key = None if self._quick is not None else shapes
        else:
            job.key = Waiting.ALONE

    def _wanted(self, request: InferRequest) -> list[str]:
        for output in request.outputs:
            if output.name not in self._outputs:
                raise RequestError(f"output {output.name[:96]!r}", "no such output", f"outputs {', '.join(self._outputs)}")
        return [output.name for output in request.outputs]


class Proof:
    """Whether rows are independent, found out with a request that is there anyway.

    Args:
        name: of the model, for the log.
        tolerance: largest error of a float output, as a share of its largest value; others must be equal.
        golden: other rows, for requests whose own values say nothing.

    Attributes:
        state: ``None`` while nothing is known; true when rows are independent; false when they are not, or the engine takes no other number of rows.
        reason: why not.
    """

    def __init__(self, name: str, tolerance: float, golden: Sequence[Arrays] = ()) -> None:
        self.state: bool | None = None
        self.reason = ""
        self._name = name
        self._tolerance = tolerance
        self._golden = golden
        self._tries = self._passed = 0

    def attempt(self, run: Run, answered: Sequence[tuple[Arrays, Arrays]]) -> None:
        """Compare what requests gave alone with what they give beside other rows.

        Args:
            run: the engine.
            answered: inputs and outputs of requests of one shape that ran alone, at least one.
        """
        self._tries += 1
        if self._tries > _ATTEMPTS and self._tries % _RARELY:
            return
        inputs, outputs = answered[0]
        other = next((pair for pair in answered[1:] if _differ(pair[0], inputs)), None) or self._other_rows(run, inputs)
        if other is None:
            return
        try:
            both = run({name: np.concatenate([array, other[0][name]]) for name, array in inputs.items()})
            problem = self._difference(outputs, other[1], both)
        except (EdgeKitError, ValueError) as exc:
            problem = f"two requests at once fail: {exc}"
        self._passed += 1
        if problem:
            self.state, self.reason = False, problem
            _log.warning("model %s: requests are not run together: %s", self._name, problem)
        elif self._passed >= _PROOFS:
            self.state = True
        if self.state is not None:
            self._golden = ()

    def _other_rows(self, run: Run, inputs: Arrays) -> tuple[Arrays, Arrays] | None:
        """Rows of the same shape with other values, and what they give alone: a golden sample's, or the request's own back to front and, where they
        are no whole numbers, halved.
        """
        for sample in self._golden:
            if all(name in sample and sample[name].shape[1:] == array.shape[1:] for name, array in inputs.items()):
                first = {name: np.ascontiguousarray(sample[name][: max(1, len(array))]) for name, array in inputs.items()}
                if _differ(first, inputs):
                    return first, run(first)
        turned = {name: _turned(array) for name, array in inputs.items()}
        if not _differ(turned, inputs):
            return None
        try:
            return turned, run(turned)
        except EdgeKitError:
            return None  # values that the model does not take say nothing about others

    def _difference(self, outputs: Arrays, alone: Arrays, both: Arrays) -> str:
        for name, array in outputs.items():
            expected = np.concatenate([array, alone[name]])
            found = both[name]
            if found.shape != expected.shape:
                return f"output {name!r} has shape {list(found.shape)} where {list(expected.shape)} belongs"
            if not _close(found, expected, self._tolerance):
                return f"output {name!r} depends on the rows beside it"
        return ""


def stack(jobs: Sequence[Job]) -> dict[str, np.ndarray]:
    """Inputs of several requests as one, along the first axis.

    A new array each time: into one that is kept, ``numpy.concatenate`` took as long (12.6 and 12.8 us for 16 x 768 floats), and an engine that hands
    its input through would give that away.
    """
    first = jobs[0].inputs
    return {name: np.concatenate([job.inputs[name] for job in jobs]) for name in first}


def split(array: np.ndarray, jobs: Sequence[Job], rows: int) -> list[np.ndarray]:
    """Each request's rows of one output; views.

    Raises:
        ValueError: the output does not have ``rows`` rows.
    """
    if not array.ndim or array.shape[0] != rows:
        raise ValueError(f"{list(array.shape)} for {rows} rows")
    if rows == len(jobs):
        return list(array[:, None])  # a third of the time of as many slices
    edges = np.cumsum([0, *(job.rows for job in jobs)]).tolist()
    return [array[begin:end] for begin, end in pairwise(edges)]


def _has_batch_axis(signature: Signature) -> bool:
    """The first dimension of all tensors is dynamic, and of the inputs the same wherever it is named."""
    specs = (*signature.inputs, *signature.outputs)
    if not signature.inputs or any(not spec.shape or isinstance(spec.shape[0], int) or spec.dtype == "string" for spec in specs):
        return False
    first = {spec.shape[0] for spec in signature.inputs}
    elsewhere = {dim for spec in specs for dim in spec.shape[1:]}
    return len(first) == 1 and not first & elsewhere


def _bounded(signature: Signature, max_batch: int) -> int:
    """``max_batch``, or as many rows as `MAX_BATCH_BYTES` hold where the other dimensions are fixed."""
    row_bytes = 0
    for spec in signature.inputs:
        shape = _fixed(spec, 1)
        if shape is None:
            return max_batch
        row_bytes += math.prod(shape) * (2 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize)
    return max(1, min(max_batch, MAX_BATCH_BYTES // max(1, row_bytes)))


def _quick_specs(signature: Signature, rows_first: bool) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]] | None:
    """Dtype and fixed shape (without the batch axis) of each input; ``None`` when one has others than fixed dimensions or no NumPy dtype."""
    specs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for spec in signature.inputs:
        shape = _fixed(spec, 1 if rows_first else 0)
        if shape is None or spec.dtype in ("string", "bfloat16"):
            return None
        specs[spec.name] = (np.dtype(spec.dtype), shape)
    return specs


def _fixed(spec: TensorSpec, first: int) -> tuple[int, ...] | None:
    dims = spec.shape[first:]
    return tuple(dim for dim in dims if isinstance(dim, int)) if all(isinstance(dim, int) for dim in dims) else None


def _differ(one: Arrays, other: Arrays) -> bool:
    return any(not np.array_equal(one[name], array) for name, array in other.items())


def _turned(array: np.ndarray) -> np.ndarray:
    """Every row back to front, floats halved: other values of the same kind."""
    turned = np.ascontiguousarray(array.reshape(len(array), -1)[:, ::-1].reshape(array.shape))
    return turned * turned.dtype.type(0.5) if turned.dtype.kind == "f" else turned


def _close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    if expected.dtype.kind not in "fc":
        return np.array_equal(found, expected)
    limit = tolerance * max(float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))), 1e-6)
    return np.allclose(found.astype(np.float64), expected.astype(np.float64), rtol=0.0, atol=limit, equal_nan=True)


def _as_text(name: str, array: np.ndarray) -> np.ndarray:
    """BYTES as text, which is what engines take for string tensors."""
    text = np.empty(array.size, dtype=object)
    try:
        text[:] = [item if isinstance(item, str) else bytes(item).decode() for item in array.ravel().tolist()]
    except UnicodeDecodeError as exc:
        raise RequestError(f"input {name!r}", f"an element that is not UTF-8 ({exc.reason})", "text") from exc
    return text.reshape(array.shape)
