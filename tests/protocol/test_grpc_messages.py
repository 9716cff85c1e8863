"""The gRPC messages: compiled from the committed text, equal to Triton's where both have them, and beside them in one process."""

import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from edgekit.protocol._grpc_messages import SERVICE, descriptor_path, message_classes, methods
from edgekit.protocol._grpc_reflection import standard_descriptor_path
from tests.protocol.compile_proto import compile_descriptor


def test_the_committed_descriptors_are_the_compiled_texts():
    for path in (descriptor_path(), standard_descriptor_path()):
        assert path.read_bytes() == compile_descriptor(path.name)


def ours():
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_path().read_bytes()).file
    assert len(files) == 1
    return files[0]


def tritons():
    found = []
    for module in (service_pb2, model_config_pb2):
        proto = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(proto)
        found.append(proto)
    return found


def facts(messages, prefix=""):
    """``{message: {field number: (name, type, label, type name, in a oneof)}}``, nested messages included."""
    table = {}
    for message in messages:
        name = prefix + message.name
        table[name] = {
            field.number: (field.name, field.type, field.label, field.type_name, field.HasField("oneof_index")) for field in message.field
        }
        table.update(facts(message.nested_type, name + "."))
    return table


def test_every_message_field_is_tritons():
    theirs = {}
    for proto in tritons():
        theirs |= facts(proto.message_type)
    mine = facts(ours().message_type)
    assert len(mine) > 60
    for message, fields in mine.items():
        for number, field in fields.items():
            assert theirs[message][number] == field, (message, number)


def test_every_enum_value_is_tritons():
    def enums(holder, prefix=""):
        found = {prefix + enum.name: {value.name: value.number for value in enum.value} for enum in holder.enum_type}
        for message in getattr(holder, "message_type", None) or getattr(holder, "nested_type", ()):
            found |= enums(message, prefix + message.name + ".")
        return found

    theirs = {}
    for proto in tritons():
        theirs |= enums(proto)
    mine = enums(ours())
    assert set(mine) == {"DataType", "ModelInstanceGroup.Kind"}
    for name, values in mine.items():
        assert values == theirs[name]


def test_every_rpc_is_tritons():
    def rpcs(proto):
        return {
            method.name: (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
            for service in proto.service
            for method in service.method
        }

    mine, theirs = rpcs(ours()), rpcs(tritons()[0])
    assert len(mine) == 17
    assert all(theirs[name] == rpc for name, rpc in mine.items())
    assert service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name == SERVICE
    assert methods()["ModelInfer"].path("ModelInfer") == "/inference.GRPCInferenceService/ModelInfer"


def test_both_sets_of_classes_live_in_one_process():
    tensor = tritonclient.grpc.InferInput("x", [2], "FP32")
    tensor.set_data_from_numpy(np.ones(2, np.float32))
    theirs = service_pb2.ModelInferRequest(model_name="m", inputs=[tensor._get_tensor()], raw_input_contents=[tensor._get_content()])
    mine = message_classes()["ModelInferRequest"].FromString(theirs.SerializeToString())
    assert type(mine) is not type(theirs)
    assert mine.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)
    with pytest.raises(TypeError):
        service_pb2.ModelInferRequest(inputs=[mine.inputs[0]])
