"""Refuses exported graphs that could do more than compute.

A TensorFlow graph can read and write files, call Python functions of its process and talk to other
machines. An exported model needs nothing of that, so the operations of a graph are looked at before
it is loaded.
"""

import os

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.ops import (
    gen_array_ops,
    gen_bitwise_ops,
    gen_control_flow_ops,
    gen_functional_ops,
    gen_linalg_ops,
    gen_list_ops,
    gen_math_ops,
    gen_nn_ops,
    gen_parsing_ops,
    gen_random_ops,
    gen_resource_variable_ops,
    gen_sparse_ops,
    gen_spectral_ops,
    gen_stateless_random_ops,
    gen_stateless_random_ops_v2,
    gen_string_ops,
)

import files
from utils import InputError, listing

# The operations of these only compute, but for a few.
_COMPUTING = (
    *(gen_array_ops, gen_bitwise_ops, gen_control_flow_ops, gen_functional_ops, gen_linalg_ops),
    *(gen_list_ops, gen_math_ops, gen_nn_ops, gen_parsing_ops, gen_random_ops),
    *(gen_resource_variable_ops, gen_sparse_ops, gen_spectral_ops, gen_stateless_random_ops),
    *(gen_stateless_random_ops_v2, gen_string_ops),
)
# They end the process, read a file, and call other machines.
_REFUSED = {"Abort", "ImmutableConst", "RemoteCall"}
_ALLOWED = {"Assert"}
# Of the functions with which TensorFlow itself saves and restores the variables of the graph.
_OF_CHECKPOINTS = {"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"}


def check(export_dir):
    """Refuses a SavedModel whose functions have operations that do more than compute.

    Those that read and write checkpoints are allowed where neither loading nor predicting can run
    them: `tf.saved_model.load` runs functions that its objects name, and what these call.

    Raises:
        InputError: naming the operations, or what else is not as export_model.py writes it.
    """
    others = [n for n in ("saved_model.cpb", "saved_model.pbtxt") if _has(export_dir, n)]
    if others:
        raise InputError(f"{export_dir} is not of export_model.py, as it has {listing(others)}")
    saved = saved_model_pb2.SavedModel()
    try:
        with files.open_binary(os.path.join(export_dir, "saved_model.pb")) as file:
            saved.ParseFromString(file.read())
    except (OSError, DecodeError, *files.REMOTE_ERRORS) as error:
        raise InputError(f"cannot load {export_dir}: {error}") from error
    if len(saved.meta_graphs) != 1 or not saved.meta_graphs[0].HasField("object_graph_def"):
        raise InputError(f"{export_dir} is not of export_model.py, as it is of TensorFlow 1")
    (graph,) = saved.meta_graphs
    functions = {f.signature.name: f.node_def for f in graph.graph_def.library.function}
    reached = set(graph.object_graph_def.concrete_functions)
    for nodes in functions.values():
        reached |= {called for node in nodes for called in _called(node)}
    refused = {
        node.op
        for name, nodes in functions.items()
        for node in nodes
        if not (_only_computes(node.op, functions) or _keeps(node.op, name not in reached))
    }
    if refused:
        raise InputError(
            f"{export_dir} is refused: its graph has operations that do more than compute: "
            f"{listing(sorted(refused))}. Such a graph may read and write your files."
        )


def _has(folder, name):
    return files.gfile.exists(os.path.join(folder, name))


def _only_computes(op, functions):
    if op in _REFUSED:
        return False
    return op in _ALLOWED or op in functions or any(hasattr(kind, op) for kind in _COMPUTING)


def _keeps(op, unreached):
    return op in _OF_CHECKPOINTS and unreached


def _called(node):
    """Functions that a node may call: those that its attributes name, and one that it is."""
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        for entry in value.list.func:
            yield entry.name
