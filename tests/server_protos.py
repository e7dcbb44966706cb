"""Messages of TensorFlow Serving and Triton, as far as the tests need them.

The names, numbers and types of the fields are those that the servers publish:
https://github.com/tensorflow/serving, tensorflow_serving/apis/{prediction_log,predict,model}.proto;
https://github.com/triton-inference-server/common, protobuf/model_config.proto.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow.core.framework import tensor_pb2

_SERVING = {
    "PredictionLog": {"predict_log": (6, "PredictLog")},
    "PredictLog": {"request": (1, "PredictRequest")},
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "map of TensorProto")},
    "ModelSpec": {"name": (1, "string"), "signature_name": (3, "string")},
}
_TRITON = {
    "ModelConfig": {
        "backend": (17, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "list of ModelInput"),
        "output": (6, "list of ModelOutput"),
        "dynamic_batching": (11, "ModelDynamicBatching"),
    },
    "ModelInput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (4, "list of int64"),
        "reshape": (5, "ModelTensorReshape"),
    },
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, "list of int64"),
    },
    "ModelTensorReshape": {"shape": (1, "list of int64")},
    "ModelDynamicBatching": {},
}
# Only the types that models here have; TYPE_INVALID is the default.
_TRITON_TYPES = {
    "TYPE_INVALID": 0,
    "TYPE_UINT8": 2,
    "TYPE_INT32": 8,
    "TYPE_FP16": 10,
    "TYPE_FP32": 11,
}
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}


def serving(name):
    """Returns the class of a message of TensorFlow Serving."""
    return _message_class("tensorflow.serving", _SERVING, {}, name)


def triton(name):
    """Returns the class of a message of Triton."""
    return _message_class("inference", _TRITON, {"DataType": _TRITON_TYPES}, name)


def _message_class(package, messages, enums, name):
    pool = descriptor_pool.DescriptorPool()
    _add_with_dependencies(pool, tensor_pb2.DESCRIPTOR)
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package)
    file.syntax = "proto3"
    file.dependency.append(tensor_pb2.DESCRIPTOR.name)
    for enum, values in enums.items():
        described = file.enum_type.add(name=enum)
        for value, number in values.items():
            described.value.add(name=value, number=number)
    for message, fields in messages.items():
        described = file.message_type.add(name=message)
        for field, (number, kind) in fields.items():
            _add_field(described, field, number, kind, enums, package)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))


def _add_with_dependencies(pool, file):
    for dependency in file.dependencies:
        _add_with_dependencies(pool, dependency)
    described = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(described)
    pool.Add(described)


def _add_field(message, name, number, kind, enums, package):
    container, _, kind = kind.rpartition(" of ")
    if container == "map":
        entry = message.nested_type.add(name="InputsEntry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string", enums, package)
        _add_field(entry, "value", 2, kind, enums, package)
        kind = f"{message.name}.InputsEntry"
    field = message.field.add(name=name, number=number)
    field.label = _Field.LABEL_REPEATED if container else _Field.LABEL_OPTIONAL
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    field.type = _Field.TYPE_ENUM if kind in enums else _Field.TYPE_MESSAGE
    field.type_name = ".tensorflow.TensorProto" if kind == "TensorProto" else f".{package}.{kind}"
