"""SavedModels with unsafe ops are rejected before they are loaded."""

import shutil

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import predictor
import serving
from utils import InputError


def save(path, function):
    """Saves a function and its signature as a SavedModel."""
    module = tf.Module()
    module.function = tf.function(function, input_signature=[tf.TensorSpec([], tf.string)])
    tf.saved_model.save(module, str(path), signatures=module.function)


def write_file(name):
    tf.io.write_file(name, "harm")
    return {"out": name}


def write_file_in_a_branch(name):
    tf.cond(name == "", lambda: tf.constant(0), lambda: (tf.io.write_file(name, "harm"), 1)[1])
    return {"out": name}


def map_file(name):
    mapped = tf.raw_ops.ImmutableConst(dtype=tf.uint8, shape=[4], memory_region_name="/etc/passwd")
    return {"out": name, "mapped": mapped}


def print_to_a_file(name):
    tf.print(name, output_stream="file:///tmp/never_written")
    return {"out": name}


def save_a_checkpoint(name):
    tf.raw_ops.SaveV2(prefix=name, tensor_names=["a"], shape_and_slices=[""], tensors=[name])
    return {"out": name}


UNSAFE = {
    write_file: "WriteFile",
    write_file_in_a_branch: "WriteFile",
    map_file: "ImmutableConst",
    print_to_a_file: "PrintV2",
    save_a_checkpoint: "SaveV2",
    tf.io.read_file: "ReadFile",
    lambda name: tf.numpy_function(lambda value: value, [name], tf.string): "PyFunc",
}


@pytest.fixture
def copy(exported, tmp_path):
    """Copy of an exported model, which a test may change."""
    return shutil.copytree(exported, tmp_path / "model")


def change_graph(copy, change):
    """Changes the parsed SavedModel of a copy."""
    path = copy / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())


@pytest.mark.parametrize(("function", "operation"), UNSAFE.items())
def test_a_graph_with_an_unsafe_op_is_rejected_by_its_name(tmp_path, function, operation):
    save(tmp_path, function)
    with pytest.raises(InputError, match=f"not known to be safe: {operation}"):
        serving.check_graph(str(tmp_path))


def test_exported_models_are_accepted(exported):
    serving.check_graph(str(exported))


def test_predictors_check_the_graph_before_they_load_it(copy, tmp_path):
    save(tmp_path / "harm", write_file)
    shutil.copy(tmp_path / "harm" / "saved_model.pb", copy)
    with pytest.raises(InputError, match="not known to be safe: WriteFile"):
        predictor.ExportedPredictor(str(copy))


def call_restore(graph):
    (restore,) = (
        function.signature.name
        for function in graph.graph_def.library.function
        if any(node.op == "RestoreV2" for node in function.node_def)
    )
    graph.object_graph_def.concrete_functions[restore].SetInParent()


def test_loading_must_not_run_functions_that_read_checkpoints(copy):
    change_graph(copy, call_restore)
    with pytest.raises(InputError, match="not known to be safe: RestoreV2"):
        serving.check_graph(str(copy))


@pytest.mark.parametrize("name", ["saved_model.cpb", "saved_model.pbtxt"])
def test_other_formats_of_a_saved_model_are_rejected(copy, name):
    (copy / name).touch()
    with pytest.raises(InputError, match=f"it has {name}"):
        serving.check_graph(str(copy))


def test_a_graph_of_tensorflow_1_is_rejected(copy):
    change_graph(copy, lambda graph: graph.ClearField("object_graph_def"))
    with pytest.raises(InputError, match="SavedModel of TensorFlow 1"):
        serving.check_graph(str(copy))


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_corrupt_graph_is_rejected(copy, content):
    path = copy / "saved_model.pb"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=str(copy)):
        serving.check_graph(str(copy))
