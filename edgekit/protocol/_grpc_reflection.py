"""Server reflection: what grpcurl and the like ask to learn the server's methods and messages. Pure.

Reference: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md. The versions v1 and v1alpha have the same messages.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.protocol._grpc_messages import descriptor_path
from edgekit.protocol._grpc_service import parse_message
from edgekit.protocol._grpc_wire import status_number
from edgekit.protocol._tensors import shorten

__all__ = ["REFLECTION_METHODS", "reflect", "standard_descriptor_path"]

REFLECTION_METHODS = frozenset(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha"))
_MESSAGES = "grpc.reflection.v1."


def standard_descriptor_path() -> Path:
    """Where the compiled ``FileDescriptorSet`` of the standard services lies."""
    return Path(__file__).with_name("standard.binpb")


class _Known(NamedTuple):
    """What can be told.

    Attributes:
        pool: all descriptors.
        files: name to serialized ``FileDescriptorProto``.
        services: full names.
        request, response: message classes.
    """

    pool: Any
    files: dict[str, bytes]
    services: list[str]
    request: Any
    response: Any


@functools.cache
def _known() -> _Known:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    files: dict[str, bytes] = {}
    services: list[str] = []
    for path in (descriptor_path(), standard_descriptor_path()):
        for file in descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file:
            pool.Add(file)
            files[file.name] = file.SerializeToString()
            services += [f"{file.package}.{service.name}" for service in file.service]
    request, response = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_MESSAGES}ServerReflection{side}"))
        for side in ("Request", "Response")
    )
    return _Known(pool, files, sorted(services), request, response)


def reflect(raw: bytes | memoryview) -> bytes:
    """The ``ServerReflectionResponse`` for the bytes of a ``ServerReflectionRequest``; what is not known is an error in it.

    Raises:
        RequestError: no such message.
    """
    known = _known()
    asked = parse_message("ServerReflectionInfo", known.request, raw)
    reply = known.response(valid_host=asked.host, original_request=asked)
    choice = asked.WhichOneof("message_request")
    if choice == "list_services":
        for name in known.services:
            reply.list_services_response.service.add(name=name)
    elif choice == "file_by_filename":
        _give_file(reply, asked.file_by_filename, asked.file_by_filename)
    elif choice == "file_containing_symbol":
        _give_file(reply, _file_of(asked.file_containing_symbol), asked.file_containing_symbol)
    elif choice == "all_extension_numbers_of_type" and _file_of(asked.all_extension_numbers_of_type):
        reply.all_extension_numbers_response.base_type_name = asked.all_extension_numbers_of_type  # proto3 has no extensions
    elif choice is None:
        reply.error_response.error_code = status_number("INVALID_ARGUMENT")
        reply.error_response.error_message = "nothing was asked"
    else:
        extension = asked.file_containing_extension
        _refuse(reply, asked.all_extension_numbers_of_type or f"extension {extension.extension_number} of {extension.containing_type}")
    answer: bytes = reply.SerializeToString()
    return answer


def _file_of(symbol: str) -> str:
    """Name of the file that defines a symbol; empty for none."""
    pool = _known().pool
    try:
        found: str = pool.FindFileContainingSymbol(symbol).name
    except KeyError:
        try:
            found = pool.FindMethodByName(symbol).containing_service.file.name  # methods, which the look-up above leaves out
        except KeyError:
            return ""
    return found


def _give_file(reply: Any, file: str, asked: str) -> None:
    data = _known().files.get(file)
    if data is None:
        _refuse(reply, asked)
    else:
        reply.file_descriptor_response.file_descriptor_proto.append(data)


def _refuse(reply: Any, asked: str) -> None:
    reply.error_response.error_code = status_number("NOT_FOUND")
    reply.error_response.error_message = f"{shorten(asked)}: not defined here"
