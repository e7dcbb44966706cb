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


class Harm(tf.saved_model.experimental.TrackableResource):
    """Runs functions when it is loaded, as every resource does."""

    def __init__(self, initialize):
        super().__init__()
        self.initialize = initialize

    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])

    def _initialize(self):
        self.initialize()


def save_checkpoint(target):
    tf.raw_ops.SaveV2(
        prefix=f"{target}/harm", tensor_names=["a"], shape_and_slices=[""], tensors=[1.0]
    )


def merge_checkpoints(target):
    """Deletes the directory of the merged files."""
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[f"{target}/victim/part"],
        destination_prefix=f"{target}/merged",
        delete_old_dirs=True,
    )


def hide_signatures(graph):
    """Removes the list of functions, so that only the nodes of objects name them."""
    for function in graph.graph_def.library.function:
        if "initializer" in function.signature.name:  # Without a signature it returns nothing.
            function.signature.ClearField("output_arg")
            function.ret.clear()
            for node in function.node_def:
                if node.op in UNSAFE.values() and node.name not in function.control_ret:
                    function.control_ret[node.name] = node.name
                    function.signature.control_output.append(node.name)
    objects = graph.object_graph_def
    objects.concrete_functions.clear()
    for node in objects.nodes:
        if node.HasField("resource"):
            for child in node.children:
                child.node_id = objects.nodes[child.node_id].children[0].node_id
    for node in objects.nodes:
        if node.HasField("bare_concrete_function"):
            node.bare_concrete_function.ClearField("function_spec")
        elif node.HasField("function"):
            node.ClearField("children")
            node.user_object.SetInParent()


@pytest.mark.parametrize(
    ("harm", "named"), [(save_checkpoint, "SaveV2"), (merge_checkpoints, "MergeV2Checkpoints")]
)
def test_functions_that_run_when_a_model_is_loaded_are_rejected(tmp_path, harm, named):
    """Although object_graph_def.concrete_functions does not list them."""
    victim = tmp_path / "victim"
    victim.mkdir()
    tf.raw_ops.SaveV2(
        prefix=f"{victim}/part", tensor_names=["a"], shape_and_slices=[""], tensors=[1.0]
    )
    module = tf.Module()
    module.resource = Harm(lambda: harm(tmp_path))
    tf.saved_model.save(module, f"{tmp_path}/model")
    change_graph(tmp_path / "model", hide_signatures)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"not known to be safe: {named}"):
        serving.check_graph(f"{tmp_path}/model")
    assert sorted(tmp_path.rglob("*")) == before
    tf.saved_model.load(f"{tmp_path}/model")
    assert sorted(tmp_path.rglob("*")) != before


def checkpoint_functions(graph):
    """Returns the functions with which other loaders restore and save the variables."""
    return sorted(
        (f for f in graph.graph_def.library.function if "__traced_" in f.signature.name),
        key=lambda f: f.signature.name,
    )


def name_in_a_function_node(graph, restore):
    graph.object_graph_def.nodes.add().function.concrete_functions.append(restore.signature.name)


def name_in_a_bare_function_node(graph, restore):
    node = graph.object_graph_def.nodes.add()
    node.bare_concrete_function.concrete_function_name = restore.signature.name


def name_in_a_captured_tensor(graph, restore):
    graph.object_graph_def.nodes.add().captured_tensor.concrete_function = restore.signature.name


def name_in_the_list_of_functions(graph, restore):
    graph.object_graph_def.concrete_functions[restore.signature.name].SetInParent()


def call_in_a_nested_attribute(graph, restore):
    node = graph.graph_def.library.function.add().node_def.add(op="PartitionedCall")
    node.attr["f"].func.attr["g"].func.name = restore.signature.name


def call_by_name(graph, restore):
    graph.graph_def.library.function.add().node_def.add(op=restore.signature.name)


def use_as_a_gradient(graph, restore):
    graph.graph_def.library.gradient.add(gradient_func=restore.signature.name)


def replace_another_function(graph, restore):
    restore.attr["api_implements"].s = b"predict"


def call_from_another_operation(graph, restore):
    graph.graph_def.node.add(op="PartitionedCall").attr["f"].func.name = restore.signature.name


@pytest.mark.parametrize(
    "change",
    [
        name_in_a_function_node,
        name_in_a_bare_function_node,
        name_in_a_captured_tensor,
        name_in_the_list_of_functions,
        call_in_a_nested_attribute,
        call_by_name,
        use_as_a_gradient,
        replace_another_function,
        call_from_another_operation,
    ],
    ids=lambda change: change.__name__,
)
def test_nothing_may_name_the_functions_that_read_checkpoints(copy, change):
    change_graph(copy, lambda graph: change(graph, checkpoint_functions(graph)[0]))
    with pytest.raises(InputError, match=r"not known to be safe: .*RestoreV2"):
        serving.check_graph(str(copy))


@pytest.mark.parametrize("name", ["MatMul", "WriteFile", "SaveV2", None])
def test_functions_with_the_name_of_an_operation_or_of_each_other_are_rejected(copy, name):
    def add_function(graph):
        used = name or checkpoint_functions(graph)[1].signature.name
        graph.graph_def.library.function.add().signature.name = used

    change_graph(copy, add_function)
    with pytest.raises(InputError, match=rf"functions with the name of .*: {name or '__infer'}"):
        serving.check_graph(str(copy))


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", ""])
def test_assets_outside_the_directory_are_rejected(copy, name):
    change_graph(copy, lambda graph: graph.asset_file_def.add(filename=name))
    with pytest.raises(InputError, match=f"assets outside its directory: {name}"):
        serving.check_graph(str(copy))


@pytest.mark.parametrize("place", ["graph", "function"])
def test_every_operation_of_a_graph_is_checked(copy, place):
    def add_operation(graph):
        library = graph.graph_def.library
        nodes = graph.graph_def.node if place == "graph" else library.function.add().node_def
        nodes.add(op="WriteFile")

    change_graph(copy, add_operation)
    with pytest.raises(InputError, match="not known to be safe: WriteFile"):
        serving.check_graph(str(copy))


def drop_signatures(graph):
    graph.object_graph_def.nodes[0].children.pop()


def name_a_missing_function(graph):
    graph.object_graph_def.nodes.add().function.concrete_functions.append("missing")


def name_a_missing_node(graph):
    graph.object_graph_def.nodes[0].children[0].node_id = 10**6


@pytest.mark.parametrize(
    "change",
    [drop_signatures, name_a_missing_function, name_a_missing_node],
    ids=lambda change: change.__name__,
)
def test_a_wrong_object_graph_is_rejected(copy, change):
    change_graph(copy, change)
    with pytest.raises(InputError, match=str(copy)):
        predictor.ExportedPredictor(str(copy))


def test_several_graphs_in_a_model_are_rejected(copy):
    path = copy / "saved_model.pb"
    path.write_bytes(path.read_bytes() * 2)  # The proto format concatenates lists.
    with pytest.raises(InputError, match="SavedModel of TensorFlow 1"):
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
