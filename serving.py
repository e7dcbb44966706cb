"""The graph of an exported model: its signatures, how it reads records, what it refuses."""

import os

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import files
from utils import InputError


def make_module(ensemble, data, top_k, class_names=None):
    """A `tf.Module` to be saved, with nothing but what its signatures use.

    Args:
        ensemble: `ensemble.Ensemble`.
        data: `run_config.DataConfig`.
        top_k: int. Classes that `serving_default` tells per video.
        class_names: str. Path of a file that travels along as an asset.

    Attributes:
        served: dict of the functions `serving_default` and `predict`.
        kept_variables: list of the `tf.Variable`s that they use.
    """
    parse = _parse_frames if data.frame_level else _parse_vectors
    top_k = min(top_k, data.num_classes)

    def predict(**inputs):
        inputs = _checked(inputs, data) if data.frame_level else inputs["features"]
        return {"predictions": tf.identity(ensemble(inputs), name="predictions")}

    predict = tf.function(predict, autograph=False).get_concrete_function(**_input_specs(data))

    def serve_records(example_bytes):
        video_ids, inputs = parse(example_bytes, data)
        scores, classes = tf.math.top_k(predict(**inputs)["predictions"], top_k)
        return {"video_id": video_ids, "class_indexes": classes, "predictions": scores}

    module = tf.Module()
    records = tf.TensorSpec([None], tf.string, name="example_bytes")
    module.served = {
        "serving_default": tf.function(serve_records, autograph=False).get_concrete_function(
            records
        ),
        "predict": predict,
    }
    used = {
        id(tensor) for function in module.served.values() for tensor in function.captured_inputs
    }
    module.kept_variables = [
        weight.value
        for model in ensemble.models
        for weight in model.weights
        if id(weight.value.handle) in used
    ]
    if class_names is not None:
        module.class_names = tf.saved_model.Asset(class_names)
    return module


def make_compact(export_dir):
    """Takes out of a SavedModel's graph what loading it would only hold in memory.

    That are the shapes of inner tensors, which are inferred again, and constants that occur twice.
    """
    path = os.path.join(export_dir, "saved_model.pb")
    saved = saved_model_pb2.SavedModel()
    with files.gfile.GFile(path, "rb") as file:
        saved.ParseFromString(file.read())
    for meta_graph in saved.meta_graphs:
        functions = meta_graph.graph_def.library.function
        for nodes in (meta_graph.graph_def.node, *(function.node_def for function in functions)):
            for node in nodes:
                node.attr.pop("_output_shapes", None)
        for function in functions:
            _merge_constants(function)
    with files.gfile.GFile(path, "wb") as file:
        file.write(saved.SerializeToString(deterministic=True))


def _merge_constants(function):
    """Leaves one of the equal constants of a FunctionDef."""
    nodes, kept, replaced = function.node_def, {}, {}
    for index in reversed(range(len(nodes))):
        if nodes[index].op == "Const" and not nodes[index].input:
            value = nodes[index].attr["value"].SerializeToString(deterministic=True)
            name = kept.setdefault(value, nodes[index].name)
            if name != nodes[index].name:
                replaced[nodes[index].name] = name
                del nodes[index]

    def renamed(tensor):
        mark = "^" if tensor.startswith("^") else ""
        name, *output = tensor.removeprefix(mark).split(":")
        return ":".join([mark + replaced.get(name, name), *output])

    for node in nodes:
        node.input[:] = [renamed(tensor) for tensor in node.input]
    for name, tensor in function.ret.items():
        function.ret[name] = renamed(tensor)


def write_frozen_graph(module, path):
    """Writes the signature `predict` as one GraphDef with constants for weights.

    Raises:
        InputError: if it is too large for one file.
    """
    size = sum(variable.numpy().nbytes for variable in module.kept_variables)
    if size >= 2**31:
        raise InputError(
            f"--frozen_graph cannot hold {size} bytes of weights: a GraphDef has at most 2 GiB. "
            "Choose --dtype=bfloat16, or use the SavedModel."
        )
    frozen = convert_variables_to_constants_v2(module.served["predict"])
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(frozen.graph.as_graph_def().SerializeToString())


def _input_specs(data):
    size = sum(data.feature_sizes)
    if not data.frame_level:
        return {"features": tf.TensorSpec([None, size], tf.float32, name="features")}
    return {
        "frames": tf.TensorSpec([None, None, size], tf.uint8, name="frames"),
        "num_frames": tf.TensorSpec([None], tf.int32, name="num_frames"),
    }


def _checked(inputs, data):
    frames, num_frames = inputs["frames"], inputs["num_frames"]
    size = sum(data.feature_sizes)
    shapes = [
        # TensorFlow takes the last axis for granted, and does not look when it is called.
        tf.debugging.assert_equal(
            tf.size(frames),
            tf.reduce_prod(tf.shape(frames)[:2]) * size,
            f"frames must have {size} entries each",
        ),
        # The whole shape of num_frames, as it may have more axes than it should.
        tf.debugging.assert_equal(
            tf.shape(frames)[:1],
            tf.shape(num_frames),
            "frames and num_frames must be of as many videos",
        ),
    ]
    with tf.control_dependencies(shapes):
        num_frames = tf.identity(num_frames)
    numbers = [
        tf.debugging.assert_positive(num_frames, "num_frames must be at least 1"),
        tf.debugging.assert_less_equal(
            num_frames, tf.shape(frames)[1], "num_frames must be at most the frames given"
        ),
    ]
    with tf.control_dependencies(numbers):
        return {name: tf.identity(tensor) for name, tensor in inputs.items()}


def _parse_frames(records, data):
    """Ids and padded frames of SequenceExamples, as the reader of training gives them."""
    context, sequences, lengths = tf.io.parse_sequence_example(
        records,
        context_features=_ID_FEATURES,
        sequence_features={
            name: tf.io.FixedLenSequenceFeature([], tf.string) for name in data.feature_names
        },
    )
    num_frames = tf.cast(lengths[data.feature_names[0]], tf.int32)
    features = []
    for name, size in zip(data.feature_names, data.feature_sizes, strict=True):
        # Shorter videos are padded by empty frames.
        strings = sequences[name]
        sizes = tf.strings.length(strings)
        real = tf.sequence_mask(lengths[name], tf.shape(strings)[1])
        with tf.control_dependencies(
            [
                tf.debugging.assert_equal(
                    tf.cast(lengths[name], tf.int32),
                    num_frames,
                    f"every feature of a video must have as many frames; {name} has not",
                ),
                tf.debugging.assert_equal(
                    sizes,
                    tf.where(real, size, 0),
                    f"every frame of {name} must have {size} bytes",
                ),
            ]
        ):
            strings = tf.identity(strings)[:, : data.max_frames]
        features.append(tf.io.decode_raw(strings, tf.uint8, fixed_length=size))
    inputs = {
        "frames": tf.concat(features, axis=-1),
        "num_frames": tf.minimum(num_frames, data.max_frames),
    }
    return _video_ids(context), inputs


def _parse_vectors(records, data):
    """Ids and features side by side of Examples."""
    parsed = tf.io.parse_example(
        records,
        {
            **_ID_FEATURES,
            **{
                name: tf.io.FixedLenFeature([size], tf.float32)
                for name, size in zip(data.feature_names, data.feature_sizes, strict=True)
            },
        },
    )
    features = tf.concat([parsed[name] for name in data.feature_names], axis=-1)
    return _video_ids(parsed), {"features": features}


# Older files call it video_id.
_ID_FEATURES = {name: tf.io.FixedLenFeature([], tf.string, "") for name in ("id", "video_id")}


def _video_ids(parsed):
    return tf.where(parsed["id"] != "", parsed["id"], parsed["video_id"])
