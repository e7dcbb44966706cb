"""Tells how large models are and what a prediction costs, without data.

    python model_info.py --all
    python model_info.py --model=DbofModel --dbof_cluster_size=4096
    python model_info.py --flagfile=recipes/lfnl_netvlad.flags --format=json

It takes every flag that a recipe may set, and shows the model that training with it would build.
Parameters are all weights of a model, the statistics of batch normalisation included.
Multiply-adds are those of the matrix products (and convolutions) that TensorFlow computes to
predict one video of `--max_frames` frames: a model that copies the frames it samples computes only
those, one that counts them where they stand computes all.
"""

import gc
import json
import math
import os
import re

import tensorflow as tf
from absl import flags

import program
import recipe_flags
import registry
from run_config import RunConfig
from utils import InputError, listing


def describe(config):
    """Size and cost of a model, as a dict that JSON can hold.

    Args:
        config: `RunConfig`.

    Returns:
        A dict with the keys `model`, `parameters`, `float32_mib`, `bfloat16_mib`,
        `multiply_adds` and `layers`, a list of dicts with `name`, `parameters` and
        `multiply_adds`, in the order of computation. What belongs to no layer in particular goes
        under the name of the model. The numbers of the layers sum to those of the model.
    """
    model = config.build_model()
    parameters = _parameters_by_layer(model)
    products = multiply_adds(model, config.max_frames)
    total = model.count_params()
    return {
        "model": config.model,
        "parameters": total,
        "float32_mib": total * 4 / 2**20,
        "bfloat16_mib": total * 2 / 2**20,
        "multiply_adds": sum(products.values()),
        "layers": [
            {
                "name": "/".join(layer) or config.model,
                "parameters": parameters.get(layer, 0),
                "multiply_adds": products.get(layer, 0),
            }
            for layer in {**products, **parameters}
            if parameters.get(layer) or products.get(layer)
        ],
    }


def _parameters_by_layer(model):
    """Number of weights by the path of their layer, a tuple of names below the model's own."""
    parameters = {}
    for weight in model.weights:
        layer = tuple(weight.path.split("/")[1:-1])
        parameters[layer] = parameters.get(layer, 0) + math.prod(weight.shape)
    return parameters


def multiply_adds(model, max_frames):
    """Multiply-adds of a prediction for one video, by layer in the order of computation.

    They are counted in the graph that TensorFlow makes of the model: the operations that the
    prediction depends on, those of a loop as often as it runs. Of an `ops.cond`, both branches
    count.

    Args:
        model: `keras.Model`, built.
        max_frames: int. Frames of the video.

    Returns:
        A dict from the path of a layer, a tuple of names below the model's own, to an int.

    Raises:
        InputError: if the graph leaves a size or the length of a loop open.
    """

    def one_video(tensor):
        _, *sizes = tensor.shape
        return tf.TensorSpec([1, *(size or max_frames for size in sizes)], tensor.dtype)

    specs = tf.nest.map_structure(one_video, model.input_spec_tensors())
    predict = tf.function(lambda inputs: model(inputs, training=False), autograph=False)
    traced = predict.get_concrete_function(specs)
    graph = traced.graph.as_graph_def(add_shapes=True)
    main = _Function(graph.node, [output.name for output in traced.outputs])
    functions = {
        function.signature.name: _Function(
            function.node_def,
            function.ret.values(),
            zip(
                (argument.name for argument in function.signature.input_arg),
                function.attr["_input_shapes"].list.shape,
                strict=True,
            ),
        )
        for function in graph.library.function
    }
    layers = {
        layer[:length] for layer in _parameters_by_layer(model) for length in range(len(layer) + 1)
    }
    return _count(main, functions, layers, caller=())


class _Function:
    """The nodes of a traced function that its results depend on, and the shapes between them.

    Args:
        nodes: sequence of `NodeDef`, with shapes.
        results: names of the tensors that it returns.
        arguments: pairs of the name of an argument and its `TensorShapeProto`.
    """

    def __init__(self, nodes, results, arguments=()):
        self._shapes = {name: [shape] for name, shape in arguments}
        self._shapes |= {node.name: node.attr["_output_shapes"].list.shape for node in nodes}
        self._by_name = {node.name: node for node in nodes}
        waiting, found = [_split(result)[0] for result in results], set()
        while waiting:
            name = waiting.pop()
            if name in self._by_name and name not in found:
                found.add(name)
                waiting += [_split(source)[0] for source in self._by_name[name].input]
        self.nodes = [node for node in nodes if node.name in found]

    def shape(self, source):
        """`tf.TensorShape` of a tensor, which is named as in the inputs of a node."""
        name, number = _split(source)
        return tf.TensorShape(self._shapes[name][number])

    def counted_to(self):
        """The limit, if this is the condition `count < limit` of a loop; else None."""
        for node in self.nodes:
            if node.op != "Less" or _split(node.input[0])[0] in self._by_name:
                continue
            limit = self._by_name.get(_split(node.input[1])[0])
            if limit is not None and limit.op == "Const" and node.attr["T"].type == tf.int32:
                return tf.make_ndarray(limit.attr["value"].tensor).item()
        return None

    def loop_length(self, node, functions):
        """How often a loop runs: to the limit of its count, or to the end of the lists it reads."""
        limit = functions[node.attr["cond"].func.name].counted_to()
        if limit is not None:
            return limit
        sources = [self._by_name.get(_split(source)[0]) for source in node.input]
        lengths = {
            self.shape(source.input[0])[0]
            for source in sources
            if source is not None and source.op == "TensorListFromTensor"
        }
        if len(lengths) != 1 or None in lengths:
            raise InputError(
                f"multiply-adds cannot be counted: it is open how often the loop {node.name} runs"
            )
        return lengths.pop()


def _split(source):
    """Name of the node and number of the output of `name`, `name:1`, `name:field:1`, `^name`."""
    name, *rest = source.removeprefix("^").split(":")
    return name, int(rest[-1]) if rest else 0


def _count(function, functions, layers, caller):
    """Multiply-adds of a function called by a layer, by layer."""
    counts = {}
    for node in function.nodes:
        layer = _layer_of(node.name, layers, caller)
        counts.setdefault(layer, 0)
        if node.op in _PRODUCTS:
            counts[layer] += _products(function, node)
        for name in _called_functions(node):
            inner = _count(functions[name], functions, layers, layer)
            loop = node.op in ("While", "StatelessWhile") and any(inner.values())
            times = function.loop_length(node, functions) if loop else 1
            for key, value in inner.items():
                counts[key] = counts.get(key, 0) + times * value
    return counts


def _layer_of(node_name, layers, caller):
    """Path of the layer that a node belongs to.

    The name of a node holds the names of its layers, with a number where TensorFlow met the name
    before, and other names between them.
    """
    path = caller
    for part in node_name.split("/"):
        for name in (re.sub(r"_\d+$", "", part), part):
            if (*path, name) in layers:
                path = (*path, name)
                break
    return path


def _called_functions(node):
    """Names of the functions that a node calls."""
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for function in value.list.func:
            yield function.name


def _products(function, node):
    shapes = [function.shape(source) for source in node.input if not source.startswith("^")]
    result = function.shape(node.name)
    if not all(shape.is_fully_defined() for shape in [*shapes, result]):
        raise InputError(
            f"multiply-adds cannot be counted: {node.name} has sizes that depend on the data, "
            f"{listing(shapes)}"
        )
    return _PRODUCTS[node.op](node, [shape.as_list() for shape in shapes], result.num_elements())


def _of_matrices(node, shapes, outputs):
    transposed = node.attr["transpose_a"].b or node.attr["adj_x"].b
    return outputs * shapes[0][-2 if transposed else -1]


def _of_einsum(node, shapes, outputs):
    if len(shapes) == 1:  # A sum or a transposition.
        return 0
    terms, _, result = node.attr["equation"].s.decode().partition("->")
    summed = {}
    for term, shape in zip(terms.split(","), shapes, strict=True):
        before, _, after = term.partition("...")
        sizes = [*zip(before, shape, strict=False), *zip(after[::-1], shape[::-1], strict=False)]
        summed |= {letter: size for letter, size in sizes if letter not in result}
    return outputs * math.prod(summed.values())


def _of_convolution(node, shapes, outputs):
    return outputs * math.prod(shapes[1][:-1])


def _of_cudnn(node, shapes, outputs):
    """On a GPU, a recurrent layer is one operation over all frames."""
    gates = {"lstm": 4, "gru": 3}[node.attr["rnn_mode"].s.decode()]
    (*steps, size), (*_, units) = shapes[:2]
    return math.prod(steps) * gates * units * (size + units)


_PRODUCTS = {
    "MatMul": _of_matrices,
    "BatchMatMul": _of_matrices,
    "BatchMatMulV2": _of_matrices,
    "BatchMatMulV3": _of_matrices,
    "Einsum": _of_einsum,
    "Conv2D": _of_convolution,
    "CudnnRNNV3": _of_cudnn,
}


def summary_table(descriptions):
    """Text with a line for each of some models, as `describe` tells them."""
    header = ("model", "parameters", "float32 MiB", "bfloat16 MiB", "multiply-adds")
    return _aligned(
        header,
        [
            (
                entry["model"],
                f"{entry['parameters']:,}",
                f"{entry['float32_mib']:,.1f}",
                f"{entry['bfloat16_mib']:,.1f}",
                f"{entry['multiply_adds']:,}",
            )
            for entry in descriptions
        ],
    )


def layer_table(description):
    """Text with a line for each layer of a model, as `describe` tells it."""
    return _aligned(
        ("layer", "parameters", "multiply-adds"),
        [
            (layer["name"], f"{layer['parameters']:,}", f"{layer['multiply_adds']:,}")
            for layer in description["layers"]
        ],
    )


def _aligned(header, rows):
    """Lines of columns: the first is aligned to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(header, *rows, strict=True))
    return "\n".join(
        "  ".join([name.ljust(first), *map(str.rjust, values, others)])
        for name, *values in [header, *rows]
    )


def define_flags(flag_values):
    """Defines the flags of this program, those that a recipe sets among them."""
    recipe_flags.define_flags(flag_values)
    own = {"flag_values": flag_values}
    flags.DEFINE_boolean("all", False, "Shows every model with its defaults.", **own)
    flags.DEFINE_enum(
        "format", "table", ["table", "json"], "Whether to print text or a JSON list.", **own
    )


def configs_from_flags(flag_values):
    """The `RunConfig`s of a command line: one, or with --all one of each model.

    Raises:
        InputError: if a flag has no usable value or does not fit the others.
    """
    if not flag_values.all:
        if flag_values.model is None:
            raise InputError("--model, --flagfile or --all must be given")
        return [recipe_flags.config_from_flags(flag_values)]
    names = ["model", *program.given_model_flags(flag_values)]
    given = [f"--{name}" for name in names if flag_values[name].present]
    if given:
        raise InputError(f"--all shows models with their defaults. Leave out {listing(given)}.")
    program.require_positive(flag_values, "max_frames")
    return [
        RunConfig.create(
            name,
            num_classes=flag_values.num_classes,
            feature_sizes=program.integer_list(flag_values, "feature_sizes"),
            max_frames=flag_values.max_frames,
        )
        for name in registry.models()
    ]


def main(flag_values):
    """Runs the program."""
    configs = configs_from_flags(flag_values)
    descriptions = []
    for config in configs:
        descriptions.append(describe(config))
        gc.collect()  # A model takes up to a gigabyte until its cycles of references are found.
    if flag_values.format == "json":
        print(json.dumps(descriptions, indent=2))
        return
    print(summary_table(descriptions), end="\n\n")
    if not flag_values.all:
        print(layer_table(descriptions[0]), end="\n\n")
    print(f"Multiply-adds: matrix products to predict one video of {configs[0].max_frames} frames.")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # Nothing is computed: leave GPUs to others.
    program.run(main, define_flags)
