"""PyTorch modules and torch.export archives as ONNX, through `torch.onnx.export`, compared with PyTorch before anything is built from it.

Names. An input has the name of its argument in ``forward``. An output has its key where the model returns a dict, else what the exporter calls it.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters.sources._judge import first_line
from edgekit.converters.sources._onnx_file import LARGE_BYTES
from edgekit.converters.sources._runnable import open_session
from edgekit.errors import BuildError, EnvironmentMissingError, ModelError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = ["EXPORT_OPSET", "export_archive", "export_module", "is_module"]

EXPORT_OPSET = 18
"""What torch's exporter writes without a conversion of its own (torch 2.13: ``torch/onnx/_internal/exporter``)."""


@dataclass(frozen=True)
class _Example:
    """Arguments that a model was exported with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def is_module(model: object) -> bool:
    """Whether a model is a ``torch.nn.Module`` or an exported program; imports nothing: who has one has imported torch."""
    return any(kind.__module__.split(".")[0] == "torch" for kind in type(model).__mro__)


def export_archive(tell: Callable[[str], None], path: str) -> bytes:
    """Serialized ONNX of a ``.pt2`` file. Made to run in a process of its own.

    Raises:
        EnvironmentMissingError: torch or onnxscript is not installed.
        ModelError: torch cannot read it, or it carries no example inputs. BuildError: torch cannot export it, or the export gives other numbers.
    """
    torch = _import_torch()
    tell("loading the PyTorch program")
    try:
        with _quiet():
            program = torch.export.load(path)
    except Exception as exc:
        raise ModelError(
            path, f"torch {torch.__version__} cannot read it: {first_line(exc)}", "a torch.export archive", "save it again"
        ) from exc
    if program.example_inputs is None:
        raise ModelError(path, "it carries no example inputs to compare with", "them, as torch.export.save writes them", "save it again")
    args, kwargs = program.example_inputs
    example = _Example(tuple(args), dict(kwargs))
    return _export(tell, path, program, program.module(), example, None)


def export_module(tell: Callable[[str], None], module: Any, example_inputs: object, dynamic_shapes: object = None) -> bytes:
    """Serialized ONNX of a module in evaluation mode; the module's own mode is restored.

    Args:
        tell: progress, in words.
        module: ``torch.nn.Module``, or a ``torch.export.ExportedProgram``, which brings its own example inputs.
        example_inputs: one tensor or array, a sequence of them, or a dict by argument name.
        dynamic_shapes: as `torch.onnx.export` takes it; every dimension is fixed without.

    Raises:
        EnvironmentMissingError: torch or onnxscript is not installed.
        UsageError: no example inputs. BuildError: see `export_archive`.
    """
    torch = _import_torch()
    name = type(module).__name__
    if isinstance(module, torch.export.ExportedProgram):
        given = module.example_inputs if example_inputs is None else None
        example = _Example(tuple(given[0]), dict(given[1])) if given else _example(torch, name, example_inputs)
        return _export(tell, name, module, module.module(), example, None)
    example = _example(torch, name, example_inputs)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        return _export(tell, name, module, module, example, dynamic_shapes)
    finally:
        for part, training in modes:
            part.training = training


def _example(torch: Any, name: str, given: object) -> _Example:
    def tensor(value: object) -> Any:
        return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value

    if given is None:
        raise UsageError(f"module {name}", "no example inputs", "tensors that forward takes", "give example_inputs=…")
    if isinstance(given, Mapping):
        return _Example((), {str(key): tensor(value) for key, value in given.items()})
    if isinstance(given, np.ndarray | torch.Tensor):
        return _Example((tensor(given),), {})
    if isinstance(given, Sequence):
        return _Example(tuple(tensor(value) for value in given), {})
    raise UsageError(f"module {name}", f"example inputs of type {type(given).__name__}", "a tensor, a sequence or a dict of them", "")


def _import_torch() -> Any:
    for package in ("torch", "onnxscript"):  # onnxscript is what torch's exporter is made of
        try:
            with _quiet():
                __import__(package)
        except ImportError as exc:
            raise EnvironmentMissingError.for_extra("reading PyTorch models", package, "torch") from exc
    import torch

    return torch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice about optional packages and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# --- the export ----------------------------------------------------------------------------------------------------------------------------


def _export(tell: Callable[[str], None], thing: str, model: Any, runs: Any, example: _Example, dynamic_shapes: object) -> bytes:
    """Export ``model``, and compare with what ``runs`` answers on the example."""
    import torch

    size = sum(tensor.numel() * tensor.element_size() for tensor in runs.state_dict().values() if isinstance(tensor, torch.Tensor))
    if size >= LARGE_BYTES:
        raise ModelError(
            thing, f"it has {size / 2**30:.1f} GiB of weights", "less than 2 GiB",
            "write it with torch.onnx.export(…, external_data=True) and give that file",
        )  # fmt: skip
    tell("running the PyTorch model")
    with torch.no_grad():
        try:
            answered = runs(*example.args, **example.kwargs)
        except Exception as exc:
            raise ModelError(thing, f"it does not run on its example inputs: {first_line(exc)}", "", "give other example inputs") from exc
    tell("exporting it to ONNX")
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                example.args,
                kwargs=example.kwargs or None,
                dynamic_shapes=dynamic_shapes,
                opset_version=EXPORT_OPSET,
                dynamo=True,
                verbose=False,
            )
            proto = program.model_proto
    except Exception as exc:
        cause = first_line(exc.__cause__ or exc)
        raise BuildError(thing, f"torch.onnx.export failed: {cause}", "", "change the module as torch.export needs it") from exc
    tell("comparing the export with PyTorch")
    _name_outputs(proto, answered)
    _agree(torch, thing, proto, example, answered)
    return bytes(proto.SerializeToString(deterministic=True))


def _name_outputs(model: onnx.ModelProto, answered: Any) -> None:
    """Give the outputs of a model that returns a dict its keys."""
    if not isinstance(answered, Mapping) or len(answered) != len(model.graph.output):
        return
    renames = {value.name: str(key) for value, key in zip(model.graph.output, answered, strict=True)}
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} | {value.name for value in model.graph.input}
    if set(renames.values()) & (taken - set(renames)) or len(renames) != len(answered):
        return  # a key that is another tensor's name: the exporter's names stay
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renames.get(name, name)
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = renames.get(value.name, value.name)


def _agree(torch: Any, thing: str, model: onnx.ModelProto, example: _Example, answered: Any) -> None:
    """Compare the export with PyTorch's own answer.

    Raises:
        BuildError: it does not run, or gives other numbers.
    """
    from edgekit.converters._normalise import _compare

    leaves = torch.utils._pytree.tree_leaves
    tensors = [value for value in leaves((example.args, example.kwargs)) if isinstance(value, torch.Tensor)]
    inputs = {value.name: tensor.numpy(force=True) for value, tensor in zip(model.graph.input, tensors, strict=False)}
    wanted = [value.numpy(force=True) for value in leaves(answered) if isinstance(value, torch.Tensor)]
    try:
        got = open_session(model).run(None, inputs)
    except Exception as exc:
        raise BuildError(thing, f"ONNX Runtime cannot run what torch wrote: {first_line(exc)}", "", "report this model") from exc
    for value, want, have in zip(model.graph.output, wanted, got, strict=False):
        if difference := _compare(want, have):
            raise BuildError(thing, f"what torch wrote is another model: output {value.name!r} {difference}", "", "report this model")
    if len(wanted) != len(got):
        raise BuildError(thing, f"what torch wrote has {len(got)} outputs", f"{len(wanted)}, as the module", "report this model")
