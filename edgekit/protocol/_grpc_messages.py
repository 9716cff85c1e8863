"""Message classes of ``inference.GRPCInferenceService``, from ``open_inference.binpb`` (compiled from ``open_inference.proto``).

They live in a descriptor pool of their own: protobuf's default pool takes each full name once in a process, and `tritonclient` registers the same names
there. protobuf is imported in the first call.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.errors import EnvironmentMissingError

__all__ = ["SERVICE", "Method", "descriptor_path", "grpc_module", "message_classes", "methods"]

SERVICE = "inference.GRPCInferenceService"


class Method(NamedTuple):
    """One RPC: message classes and which sides stream."""

    request: Any
    response: Any
    streaming: bool

    def path(self, name: str) -> str:
        """The HTTP/2 path of the RPC."""
        return f"/{SERVICE}/{name}"


def descriptor_path() -> Path:
    """Where the compiled ``FileDescriptorSet`` lies."""
    return Path(__file__).with_name("open_inference.binpb")


def grpc_module(thing: str) -> Any:
    """The package `grpc`.

    Raises:
        EnvironmentMissingError: grpcio or protobuf is not installed; ``thing`` is what needs it.
    """
    try:
        import google.protobuf
        import grpc
    except ImportError as exc:
        raise EnvironmentMissingError.for_extra(thing, "grpcio", "server") from exc
    del google
    return grpc


@functools.cache
def _pool() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool

    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_path().read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


@functools.cache
def message_classes() -> Mapping[str, Any]:
    """Message classes by name inside the package (``ModelInferRequest``)."""
    from google.protobuf import message_factory

    service = _pool().FindServiceByName(SERVICE)
    return {name: message_factory.GetMessageClass(found) for name, found in service.file.message_types_by_name.items()}


@functools.cache
def methods() -> Mapping[str, Method]:
    """The RPCs of the service by name."""
    classes = message_classes()
    service = _pool().FindServiceByName(SERVICE)
    return {
        method.name: Method(classes[method.input_type.name], classes[method.output_type.name], method.server_streaming)
        for method in service.methods
    }
