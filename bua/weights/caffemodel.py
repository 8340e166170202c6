"""Reads the learned arrays from Caffe's model files (caffe/src/caffe/proto/caffe.proto)."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto

# For each message its fields: name, number, type (or name of a message), and whether the field repeats. Arrays of
# numbers are declared as bytes: packed numbers have the same encoding, and one call then converts the whole array.
_MESSAGES: dict[str, list[tuple[str, int, Any, bool]]] = {
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
    """Returns the class of Caffe's NetParameter message, with only the fields that lead to the learned arrays."""
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
    """Returns the learned arrays of a ``.caffemodel`` by name: ``<layer>.<number of the blob>``, as ``bn_conv1.2``.

    Raises:
        google.protobuf.message.DecodeError: The file is not a caffemodel, or is truncated.
        ValueError: The file has no learned arrays that can be read, or an array does not have its shape.
    """
    net = net_parameter()()
    net.ParseFromString(Path(path).read_bytes())
    arrays = {
        f"{layer.name}.{number}": _array(f"layer {layer.name}", blob)
        for layer in net.layer
        for number, blob in enumerate(layer.blobs)
    }
    if not arrays and net.old_layers:
        raise ValueError("was written by an old version of Caffe; convert it with Caffe's upgrade_net_proto_binary")
    if not arrays:
        raise ValueError("has no layers with weights")
    return arrays


def _array(layer: str, blob) -> np.ndarray:
    data, dtype = (blob.data, "<f4") if blob.data else (blob.double_data, "<f8")
    values = np.frombuffer(b"".join(data), dtype).astype(np.float32)
    if blob.HasField("shape"):
        shape = tuple(blob.shape.dim)
    else:
        # Blobs of older versions of Caffe always have four dimensions; leading dimensions of 1 are unused.
        shape = (blob.num, blob.channels, blob.height, blob.width)
        shape = shape[next((i for i, side in enumerate(shape) if side != 1), 3) :]
    if min(shape, default=1) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{layer} has {len(values)} values for the shape {shape}")
    return values.reshape(shape)
