"""What goes over the wire is the protocol's, to the number; and the messages keep to a pool of their own."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from serving._pb import open_inference_pb2 as pb

ROOT = Path(__file__).parents[1]

OURS_ONLY = {"inference.ModelMetadataResponse.properties", "inference.ModelMetadataResponse.PropertiesEntry"}
SUBSETS = {"inference.ModelConfig", "inference.ModelInput", "inference.ModelOutput"}


def messages(found):
    for message in found:
        yield message
        yield from messages(message.nested_types)


OURS = [m for m in messages(pb.DESCRIPTOR.message_types_by_name.values()) if m.full_name not in OURS_ONLY]


def theirs(full_name: str) -> Descriptor:
    """Return the descriptor that an unmodified client brings along."""
    from tritonclient.grpc import service_pb2

    return service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(full_name)


def on_the_wire(field: FieldDescriptor) -> tuple[object, ...]:
    message = field.message_type.full_name if field.message_type else None
    enum = field.enum_type.full_name if field.enum_type else None
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.name, field.number, field.type, field.is_repeated, message, enum, oneof


def fields(message: Descriptor) -> set[tuple[object, ...]]:
    return {on_the_wire(field) for field in message.fields if field.full_name not in OURS_ONLY}


@pytest.mark.parametrize("message", OURS, ids=lambda message: message.full_name)
def test_every_message_has_the_clients_names_numbers_types_and_labels(message):
    expected = fields(theirs(message.full_name))
    assert fields(message) <= expected
    if message.full_name not in SUBSETS:
        assert fields(message) == expected


def test_every_rpc_has_the_clients_message_types_and_is_unary():
    from tritonclient.grpc import service_pb2

    client = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    ours = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert ours.full_name == "inference.GRPCInferenceService"
    assert len(ours.methods) == 11
    for method in ours.methods:
        twin = client[method.name]
        assert method.input_type.full_name == twin.input_type.full_name
        assert method.output_type.full_name == twin.output_type.full_name
        assert (twin.client_streaming, twin.server_streaming) == (False, False)


def test_the_enum_of_datatypes_is_the_clients():
    from tritonclient.grpc import model_config_pb2

    ours, client = pb.DESCRIPTOR.enum_types_by_name["DataType"], model_config_pb2.DataType.DESCRIPTOR
    assert {v.name: v.number for v in ours.values} == {v.name: v.number for v in client.values}


@pytest.mark.parametrize(
    "imports",
    ["from serving._pb import open_inference_pb2; import tritonclient.grpc", "import tritonclient.grpc, serving.codec"],
)
def test_a_process_can_hold_the_client_and_the_server_in_either_order(imports):
    done = subprocess.run(
        [sys.executable, "-c", imports], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_committed_descriptors_are_those_of_the_proto_file(tmp_path):
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    generate.generate(tmp_path)
    for name in ("open_inference.binpb", "open_inference_pb2.pyi"):
        assert (tmp_path / name).read_bytes() == (ROOT / "serving" / "_pb" / name).read_bytes(), "run make proto"
    assert len(list(tmp_path.iterdir())) == 2
