"""The messages of open_inference.proto, as classes in a descriptor pool of their own.

A pool of its own, because other packages claim the same names in the default pool: this way clients of any of them
can live in one process with the server. What is here is listed, with types, in open_inference_pb2.pyi.
"""

from importlib import resources

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass


def _load():
    content = resources.files(__package__).joinpath("open_inference.binpb").read_bytes()
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(content).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName("open_inference.proto")


DESCRIPTOR = _load()

globals().update({name: GetMessageClass(d) for name, d in DESCRIPTOR.message_types_by_name.items()})
globals().update({name: EnumTypeWrapper(d) for name, d in DESCRIPTOR.enum_types_by_name.items()})
globals().update({v.name: v.number for d in DESCRIPTOR.enum_types_by_name.values() for v in d.values})
