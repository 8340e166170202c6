"""Caffe's model files (caffe/src/caffe/proto/caffe.proto), of which the learned arrays are read."""

import math
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto

# Message: field name, number, type, and whether it repeats. The values are declared as bytes: on the wire, packed
# numbers are just that, and one call then gives the whole array.
_MESSAGES = {
    "BlobShape": [("dim", 1, _FIELD.TYPE_INT64, True)],
    "BlobProto": [
        ("num", 1, _FIELD.TYPE_INT32, False),
        ("channels", 2, _FIELD.TYPE_INT32, False),
        ("height", 3, _FIELD.TYPE_INT32, False),
        ("width", 4, _FIELD.TYPE_INT32, False),
        ("data", 5, _FIELD.TYPE_BYTES, True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, _FIELD.TYPE_BYTES, True),
    ],
    "LayerParameter": [
        ("name", 1, _FIELD.TYPE_STRING, False),
        ("type", 2, _FIELD.TYPE_STRING, False),
        ("blobs", 7, "BlobProto", True),
    ],
    "NetParameter": [
        ("name", 1, _FIELD.TYPE_STRING, False),
        ("old_layers", 2, _FIELD.TYPE_BYTES, True),
        ("layer", 100, "LayerParameter", True),
    ],
}


def net_parameter():
    """The class of Caffe's NetParameter message, with the fields that hold the learned arrays and no others."""
    file = descriptor_pb2.FileDescriptorProto(name="bua/caffemodel.proto", package="bua", syntax="proto2")
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            field = declared.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".bua.{kind}"
            else:
                field.type = kind
                field.options.packed = kind == _FIELD.TYPE_INT64
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bua.NetParameter"))


def read_caffemodel(path: str | Path) -> dict[str, np.ndarray]:
    """The learned arrays of a ``.caffemodel``, each named ``<layer>.<number of the blob>``, such as ``bn_conv1.2``.

    Raises:
        google.protobuf.message.DecodeError: not such a file, or a truncated one.
        ValueError: says what it lacks.
    """
    net = net_parameter()()
    net.ParseFromString(Path(path).read_bytes())
    arrays = {
        f"{layer.name}.{number}": _array(f"layer {layer.name}", blob)
        for layer in net.layer
        for number, blob in enumerate(layer.blobs)
    }
    if not arrays and net.old_layers:
        raise ValueError("is of an old version of Caffe; its upgrade_net_proto_binary makes a readable one")
    if not arrays:
        raise ValueError("has no layers with weights")
    return arrays


def _array(where: str, blob) -> np.ndarray:
    data, dtype = (blob.data, "<f4") if blob.data else (blob.double_data, "<f8")
    values = np.frombuffer(b"".join(data), dtype).astype(np.float32)
    if blob.HasField("shape"):
        shape = tuple(blob.shape.dim)
    else:
        # Before Caffe's blobs had shapes they had four sides, the first of them 1 where there was no use for them.
        shape = (blob.num, blob.channels, blob.height, blob.width)
        shape = shape[next((i for i, side in enumerate(shape) if side != 1), 3) :]
    if min(shape, default=1) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{where} has {len(values)} values for the shape {shape}")
    return values.reshape(shape)
