"""What model servers want beside an exported model: TensorFlow Serving and NVIDIA Triton.

TensorFlow Serving runs the requests in assets.extra/tf_serving_warmup_requests before it reports a
model as available. Triton reads config.pbtxt. Neither needs a package of the server.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import files
import record_writer
import serving
from run_config import DataConfig

WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
TRITON_FILE = "config.pbtxt"
# Frames of the video in a warm-up request. Kernels and weights do not depend on their number.
_NUM_FRAMES = 8
# Videos in one call, which Triton makes of simultaneous requests.
_MAX_BATCH = 64
# Triton's names of types of tensors.
_TRITON_TYPES = {
    "uint8": "TYPE_UINT8",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "int32": "TYPE_INT32",
}


# --- TensorFlow Serving ---------------------------------------------------------------------------


def write_warm_up(served: Mapping[str, Any], data: DataConfig, export_dir: str) -> None:
    """Writes one request with one video for each signature of a SavedModel.

    Args:
        served: functions by the name of their signature.
        data: data that they take.
        export_dir: directory of the SavedModel.
    """
    path = os.path.join(export_dir, WARM_UP_FILE)
    files.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for name, function in served.items():
            specs = tf.nest.flatten(function.structured_input_signature)
            inputs = {spec.name: _example(spec, data) for spec in specs}
            writer.write(_prediction_log(name, inputs))


def _example(spec, data):
    """Returns an input of a signature, for one video whose numbers are all 0."""
    if spec.dtype == tf.string:
        return [_example_record(data)]
    shape = [size or length for size, length in zip(spec.shape, (1, _NUM_FRAMES), strict=False)]
    shape += spec.shape[2:]
    fill = _NUM_FRAMES if spec.name == "num_frames" else 0
    return np.full(shape, fill, spec.dtype.as_numpy_dtype)


def _example_record(data):
    """Returns the serialized record of a video."""
    described = list(zip(data.feature_names, data.feature_sizes, data.storages, strict=True))
    if not data.frame_level:
        example = tf.train.Example()
        record_writer.set_context(example.features, "warm-up", [])
        for name, size, _ in described:
            example.features.feature[name].float_list.value.extend([0.0] * size)
        return example.SerializeToString(deterministic=True)
    sequence = tf.train.SequenceExample()
    record_writer.set_context(sequence.context, "warm-up", [])
    for name, size, storage in described:
        for _ in range(_NUM_FRAMES):
            feature = sequence.feature_lists.feature_list[name].feature.add()
            if storage.dtype == "float_list":
                feature.float_list.value.extend([0.0] * size)
            else:
                feature.bytes_list.value.append(bytes(size * storage.type.itemsize))
    return sequence.SerializeToString(deterministic=True)


def _prediction_log(signature, inputs):
    """Returns a serialized `tensorflow.serving.PredictionLog` of a request.

    It is nested as follows, with the numbers of fields from tensorflow_serving/apis:

        PredictionLog.predict_log (6) > PredictLog.request (1) > PredictRequest:
            model_spec (1) > ModelSpec.signature_name (3)
            inputs (2), one entry for each name (1) and TensorProto (2)
    """
    request = _field(1, _field(3, signature.encode()))
    for name, values in sorted(inputs.items()):
        tensor = tf.make_tensor_proto(values).SerializeToString(deterministic=True)
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))
    return _field(6, _field(1, request))


def _field(number, content):
    """Returns a field of a protocol buffer whose content has a length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value):
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


# --- Triton ---------------------------------------------------------------------------------------


def write_triton_config(data: DataConfig, export_dir: str) -> None:
    """Writes the model configuration of an ONNX file.

    Args:
        data: data that the model takes.
        export_dir: directory of the file.
    """
    inputs = ",\n".join(
        _triton_tensor(name, spec.dtype.name, spec.shape[1:])
        for name, spec in serving.input_specs(data).items()
    )
    output = _triton_tensor("predictions", "float32", [data.num_classes])
    text = (
        f'backend: "onnxruntime"\nmax_batch_size: {_MAX_BATCH}\n'
        f"input [\n{inputs}\n]\noutput [\n{output}\n]\ndynamic_batching {{ }}\n"
    )
    with files.atomic_write(os.path.join(export_dir, TRITON_FILE)) as file:
        file.write(text)


def _triton_tensor(name, dtype, shape):
    """Describes a tensor; its shape is without the batch. A scalar is a vector for Triton."""
    dims = ", ".join(str(size or -1) for size in shape) or "1"
    reshape = "" if len(shape) else " reshape: { shape: [ ] }"
    return f'  {{ name: "{name}" data_type: {_TRITON_TYPES[dtype]} dims: [ {dims} ]{reshape} }}'
