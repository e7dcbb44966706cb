"""Exported models for other runtimes than TensorFlow: ONNX Runtime and LiteRT.

The graph uses every frame once, holds the whole batch at once and checks nothing. Both converters
may write a file that does not load, or predicts something else, so every file is run and compared
with TensorFlow before it is kept.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import function_pb2, node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2

import files
import model_servers
import serving
import vocabulary
from ensemble import Ensemble
from run_config import DataConfig
from utils import InputError, import_optional

# Name of the signature in a LiteRT file, as in the SavedModel.
SIGNATURE = "predict"
# ONNX Runtime 1.14, of 2023, and later run it.
_ONNX_OPSET = 18
# Protocol buffers and flat buffers have 32-bit offsets; 1 MiB is for the graph.
_MAX_BYTES = 2**31 - 2**20
# Rounding differs by a few 1e-7, where a wrong graph differs by 0.1.
_TOLERANCE = 1e-4

Predict = Callable[[dict[str, np.ndarray]], np.ndarray]


class OtherRuntime(NamedTuple):
    """A runtime and its kind of file.

    Attributes:
        name: name of the runtime, for messages.
        file_name: name of the file in an exported model's directory.
        modules: modules of the packages that writing and checking the file need.
        write: function of an ensemble, its `DataConfig`, a path, and texts to save in the file.
        load: function from a path to a function of a dict of arrays, `frames` and `num_frames` or
            `features`, which returns probabilities, float32 `[B, C]`.
    """

    name: str
    file_name: str
    modules: tuple[str, ...]
    write: Callable[[Ensemble, DataConfig, str, Mapping[str, str]], None]
    load: Callable[[str], Predict]


def check_requirements(format_name: str) -> None:
    """Checks that the packages which a format needs are installed.

    Raises:
        InputError: if one is missing.
    """
    for module in RUNTIMES[format_name].modules:
        import_optional(module, f"--format={format_name} needs more packages", format_name)


def write(
    format_name: str,
    ensemble: Ensemble,
    data: DataConfig,
    folder: str,
    class_names: str | None = None,
) -> None:
    """Writes models as one file for another runtime, and compares its predictions.

    Args:
        format_name: one of `RUNTIMES`.
        ensemble: models with float32 weights.
        data: data that they take.
        folder: directory to write into.
        class_names: path of a vocabulary to copy there. An ONNX file also has its names.

    Raises:
        InputError: if a model draws samplings, the file would be too large, the format lacks an
            operation of the models, or the runtime predicts something else than TensorFlow.
    """
    runtime = RUNTIMES[format_name]
    _check(format_name, ensemble)
    texts = {"data": json.dumps(dataclasses.asdict(data))}
    if class_names:
        names = vocabulary.read_class_names(class_names, data.num_classes)
        every_name = [names.get(number, "") for number in range(data.num_classes)]
        texts["class_names"] = json.dumps(every_name)
        files.copy(class_names, os.path.join(folder, vocabulary.FILE))
    # The libraries write local files only.
    with tempfile.TemporaryDirectory() as local:
        path = os.path.join(local, runtime.file_name)
        try:
            runtime.write(ensemble, data, path, texts)
            difference = _difference(runtime.load(path), ensemble, data)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # Converters and runtimes raise errors of many types.
            reason, *_ = str(error).splitlines() or [type(error).__name__]
            raise InputError(
                f"{runtime.name} does not run this model: {reason}. Use --format=saved_model."
            ) from error
        if not difference < _TOLERANCE:
            raise InputError(
                f"a probability of {runtime.name} differs from TensorFlow's by {difference:.2g}, "
                "so the file is not kept. Use --format=saved_model."
            )
        files.copy(path, os.path.join(folder, runtime.file_name))
    if format_name == "onnx":
        model_servers.write_triton_config(data, folder)


def _check(format_name, ensemble):
    if any(ensemble.num_samplings):
        raise InputError(
            f"--format={format_name} is for models that use every frame once, but these average "
            "over samplings. Add --num_samplings=0."
        )
    size = sum(4 * model.count_params() for model in ensemble.models)
    if size > _MAX_BYTES:
        raise InputError(
            f"--format={format_name} cannot hold {size} bytes of weights: a file has at most 2 GiB."
            " Export fewer models, or use --format=saved_model."
        )


def _difference(predict, ensemble, data):
    """Returns the largest difference between the predictions for four padded videos."""
    inputs = random_inputs(data, 4, 9)
    tensors = tf.nest.map_structure(tf.constant, inputs)
    expected = _predictions(ensemble, tensors)["predictions"].numpy()
    return np.abs(predict(inputs) - expected).max()


def random_inputs(data: DataConfig, num_videos: int, length: int) -> dict[str, np.ndarray]:
    """Returns inputs of random numbers; the first video has all frames, the others are padded."""
    rng = np.random.default_rng(0)
    size = sum(data.feature_sizes)
    if not data.frame_level:
        return {"features": rng.normal(size=(num_videos, size)).astype(np.float32)}
    num_frames = rng.integers(1, length + 1, num_videos, np.int32)
    num_frames[0] = length
    if data.frame_format.is_quantized:
        frames = rng.integers(0, 256, (num_videos, length, size), np.uint8)
    else:
        frames = rng.normal(size=(num_videos, length, size)).astype(data.frame_format.dtype)
    return {"frames": frames, "num_frames": num_frames}


def _predictions(ensemble, inputs):
    """Returns the outputs of the graph for its inputs, dicts of tensors."""
    probabilities = ensemble.predict_whole_batch(inputs.get("features", inputs))
    return {"predictions": tf.identity(probabilities, name="predictions")}


# --- ONNX -----------------------------------------------------------------------------------------


def _write_onnx(ensemble, data, path, texts):
    """Writes a model with the input `weights` as initializers.

    Converted as constants, they would take many times their size of memory.
    """
    import onnx
    import tf2onnx

    inputs = serving.input_specs(data)
    weights = {weight.path: weight for model in ensemble.models for weight in model.weights}

    def predict(*tensors):
        given, values = tensors[: len(inputs)], tensors[len(inputs) :]
        mapping = zip(weights.values(), values, strict=True)
        with keras.StatelessScope(state_mapping=list(mapping)):
            return _predictions(ensemble, dict(zip(inputs, given, strict=True)))

    specs = [
        *inputs.values(),
        *(tf.TensorSpec(weight.shape, weight.dtype, name) for name, weight in weights.items()),
    ]
    model, _ = tf2onnx.convert.from_function(
        tf.function(predict, autograph=False),
        specs,
        opset=_ONNX_OPSET,
        custom_op_handlers={"Erfc": (_convert_erfc, [])},
    )
    _weights_as_initializers(model.graph, weights)
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, path)


def _weights_as_initializers(graph, weights):
    from onnx import numpy_helper

    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.input if tensor.name in weights]:
        graph.input.remove(tensor)
        if tensor.name in used:
            values = weights[tensor.name].numpy()
            graph.initializer.append(numpy_helper.from_array(values, tensor.name))


def _convert_erfc(graph, node, name, _):
    """Writes erfc(x) as 1 - erf(x): ONNX has no erfc, which Keras' GELU uses."""
    erf = graph.make_node("Erf", node.input)
    one = graph.make_const(f"{name}/one", np.ones((), np.float32))
    shapes, dtypes = [graph.get_shape(node.output[0])], [graph.get_dtype(node.output[0])]
    graph.remove_node(name)
    graph.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        name=name,
        outputs=node.output,
        shapes=shapes,
        dtypes=dtypes,
    )


def load_onnx(path: str) -> Predict:
    """Loads a file for ONNX Runtime on the CPU; see `OtherRuntime.load`."""
    onnxruntime = import_optional("onnxruntime", f"{path} needs ONNX Runtime", "onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["predictions"], inputs)[0]


# --- LiteRT ---------------------------------------------------------------------------------------


def _write_litert(ensemble, data, path, _):
    module = tf.Module()
    module.weights = [weight.value for model in ensemble.models for weight in model.weights]
    predict = tf.function(lambda **inputs: _predictions(ensemble, inputs), autograph=False)
    signature = predict.get_concrete_function(**serving.input_specs(data))
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={SIGNATURE: signature})
        _rewrite_functions(os.path.join(folder, "saved_model.pb"))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        # Stores the weights as constants. As variables they need memory twice.
        converter.experimental_enable_resource_variables = False
        content = converter.convert()
    with open(path, "wb") as file:
        file.write(content)


def _rewrite_functions(path):
    """Rewrites the functions of a SavedModel without what LiteRT lacks."""
    saved = saved_model_pb2.SavedModel()
    with open(path, "rb") as file:
        saved.ParseFromString(file.read())
    for function in saved.meta_graphs[0].graph_def.library.function:
        _expand_before_slices(function)
    with open(path, "wb") as file:
        file.write(saved.SerializeToString())


def _expand_before_slices(function: function_pb2.FunctionDef) -> None:
    """Makes every slice with new axes, x[:, None], a slice of a tensor that has these axes.

    LiteRT has new axes in slices only if at most one other axis has an unknown length.
    """
    lengths = {
        node.name: node.attr["value"].tensor.tensor_shape.dim[0].size
        for node in function.node_def
        if node.op == "Const" and node.attr["value"].tensor.tensor_shape.dim
    }
    for node in list(function.node_def):
        new_axes = node.attr["new_axis_mask"].i if "new_axis_mask" in node.attr else 0
        if node.op != "StridedSlice" or not new_axes:
            continue
        ellipsis = node.attr["ellipsis_mask"].i if "ellipsis_mask" in node.attr else 0
        num_entries = lengths[node.input[3].partition(":")[0]]
        for axis in _inserted_axes(new_axes, ellipsis, num_entries):
            node.input[0] = _add_expansion(function, node, axis)
        for name in ("begin_mask", "end_mask"):
            whole = node.attr[name].i if name in node.attr else 0
            node.attr[name].i = whole | new_axes
        del node.attr["new_axis_mask"]


def _inserted_axes(new_axes, ellipsis, num_entries):
    """Returns where to insert axes, one after another; those after an ellipsis from the end."""
    numbers = [number for number in range(num_entries) if new_axes >> number & 1]
    is_late = [bool(ellipsis & ((1 << number) - 1)) for number in numbers]
    early = [number for number, late in zip(numbers, is_late, strict=True) if not late]
    late = [number - num_entries for number, late in zip(numbers, is_late, strict=True) if late]
    return early + late[::-1]


def _add_expansion(function, node, axis):
    """Adds an operation that inserts an axis into the input of a node; returns its output."""
    name = f"{node.name}/expand_{axis}"
    constant = node_def_pb2.NodeDef(name=f"{name}/axis", op="Const")
    constant.attr["dtype"].type = tf.int32.as_datatype_enum
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(axis, tf.int32))
    expansion = node_def_pb2.NodeDef(
        name=name, op="ExpandDims", input=[node.input[0], f"{constant.name}:output:0"]
    )
    expansion.attr["T"].CopyFrom(node.attr["T"])
    expansion.attr["Tdim"].type = tf.int32.as_datatype_enum
    function.node_def.extend([constant, expansion])
    return f"{name}:output:0"


def load_litert(path: str) -> Predict:
    """Loads a file for the LiteRT interpreter; see `OtherRuntime.load`."""
    litert = import_optional("ai_edge_litert.interpreter", f"{path} needs LiteRT", "litert")
    # By default it uses one thread, the other runtimes one per core.
    interpreter = litert.Interpreter(path, num_threads=len(os.sched_getaffinity(0)))
    runner = interpreter.get_signature_runner(SIGNATURE)
    return lambda inputs: runner(**inputs)["predictions"]


# --- Table ----------------------------------------------------------------------------------------

RUNTIMES = {
    "onnx": OtherRuntime(
        name="ONNX Runtime",
        file_name="model.onnx",
        modules=("onnx", "tf2onnx", "onnxruntime"),
        write=_write_onnx,
        load=load_onnx,
    ),
    "litert": OtherRuntime(
        name="LiteRT",
        file_name="model.tflite",
        modules=("ai_edge_litert.interpreter",),
        write=_write_litert,
        load=load_litert,
    ),
}
