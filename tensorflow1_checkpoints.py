"""Reads checkpoints of the YouTube-8M code for TensorFlow 1 into the models here.

Three code bases give their variables the same names where they do the same thing: Google's starter
code, that of WILLOW, the winners of 2017, and that of the paper "Non-local NetVLAD Encoding for
Video Classification". The tables say which variables a weight here comes from, and how. Besides
transposes, four things differ:

- The columns of gates and experts hold all mixtures of the first class, then those of the second.
- VLAD and Fisher vectors are flattened features first, clusters last.
- The gates of a recurrent cell have another order, and input and state share one matrix. 1 is added
  to the forget gate of an LSTM whenever it is computed.
- The non-local blocks of NetRVLAD and of early fusion use phi in place of g.

References: [Abu-El-Haija et al., 2016](https://arxiv.org/abs/1609.08675);
[Miech et al., 2017](https://arxiv.org/abs/1706.06905);
[Tang et al., 2018](https://arxiv.org/abs/1810.00207).
"""

import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import checkpoints
import layers
from utils import InputError, comma_separated, examples

# An entry of every checkpoint that `tf.train.Checkpoint` writes, and of no older one.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"

# Names that depend on the code base and on the release of TensorFlow, and those in the tables.
_RENAMED = (
    (r"^tower/", ""),
    (r"^RNN/rnn/", "rnn/"),
    (r"^(rnn/.*)weights$", r"\1kernel"),
    (r"^(rnn/.*)biases$", r"\1bias"),
)

# Layers of a recurrent stack that the tables know.
_NUM_LAYERS = 8


class Source(NamedTuple):
    """Where a weight comes from.

    Attributes:
        names: names of variables in the checkpoint.
        convert: function from the values of these variables to the weight.
    """

    names: tuple[str, ...]
    convert: Callable[..., np.ndarray] = np.asarray


# Sources of weights by the end of their path, after the name of the model or layer.
Table = Mapping[str, Source]


# --- Conversions ----------------------------------------------------------------------------------


def _mixtures_first(values, gates, experts):
    """Reorders the last axis from class by class to mixture by mixture.

    Args:
        values: `[..., C * M]`, or M + 1 in place of M.
        gates: weights of the gates, `[D, C * (M + 1)]`.
        experts: weights of the experts, `[D, C * M]`.
    """
    num_classes = gates.shape[1] - experts.shape[1]
    by_class = values.reshape(*values.shape[:-1], num_classes, -1)
    return by_class.swapaxes(-1, -2).reshape(values.shape)


def _clusters_first(kernel, *cluster_weights):
    """Reorders the rows of a matrix after VLAD from `[D, K]` to `[K, D]`.

    Args:
        kernel: `[sum of D * K, H]`.
        *cluster_weights: for each part of the rows, a matrix `[D, K]`.
    """
    ends = np.cumsum([weights.size for weights in cluster_weights])
    parts = np.split(kernel, ends[:-1])
    return np.concatenate(
        [
            part.reshape(*weights.shape, kernel.shape[1]).swapaxes(0, 1).reshape(part.shape)
            for part, weights in zip(parts, cluster_weights, strict=True)
        ]
    )


def _update_gate_first(gates):
    """Swaps reset gate and update gate, `[..., 2 * units]`."""
    reset, update = np.split(gates, 2, axis=-1)
    return np.concatenate([update, reset], axis=-1)


def _gru_input(gates, candidate):
    """Returns the input's part of the matrices, `[D, 3 * units]`."""
    units = candidate.shape[1]
    return _gru_columns(gates[:-units], candidate[:-units])


def _gru_columns(gates, candidate):
    return np.concatenate([_update_gate_first(gates), candidate], axis=-1)


def _keras_lstm_gates(values):
    """Changes the order of the gates from i, c, f, o to i, f, c, o, `[..., 4 * units]`."""
    input_gate, candidate, forget_gate, output_gate = np.split(values, 4, axis=-1)
    return np.concatenate([input_gate, forget_gate, candidate, output_gate], axis=-1)


def _keras_lstm_bias(bias):
    input_gate, forget_gate, *others = np.split(_keras_lstm_gates(bias), 4)
    return np.concatenate([input_gate, forget_gate + 1.0, *others])


# --- Tables ---------------------------------------------------------------------------------------


def _under(path: str, scope: str, table: Table) -> Table:
    """Returns a table for weights of the layer `path` and variables in `scope`."""
    return {
        f"{path}/{end}": Source(tuple(f"{scope}/{name}" for name in names), convert)
        for end, (names, convert) in table.items()
    }


def _norm(path, scope):
    """Returns the table of a `layers.BatchNorm`."""
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return _under(path, scope, {name: Source((name,)) for name in names})


def _linear(path, kernel, *, bias=None, norm=None):
    """Returns the table of a `layers.Linear`, which has a bias or a batch normalization."""
    return {
        f"{path}/kernel": Source((kernel,)),
        **({f"{path}/bias": Source((bias,))} if bias else {}),
        **(_norm(f"{path}/norm", norm) if norm else {}),
    }


_MIXTURES = ("gates/weights", "experts/weights")
_LOGISTIC = "fully_connected/weights"
_VIDEO_LEVEL: Table = {
    "gates/kernel": Source(("gates/weights", *_MIXTURES), _mixtures_first),
    "experts/kernel": Source(("experts/weights", *_MIXTURES), _mixtures_first),
    "experts/bias": Source(("experts/biases", *_MIXTURES), _mixtures_first),
    **_linear("prob_gating/gate", "gating_prob_weights", norm="gating_prob_bn"),
    **_linear("logistic", _LOGISTIC, bias="fully_connected/biases"),
}

_ASSIGNMENT = _linear("assignment", "cluster_weights", norm="cluster_bn")
_CENTERS = {"centers": Source(("cluster_weights2",), lambda values: values[0].T)}


def _nonlocal_netvlad(g):
    """Returns the table of a `NetVLAD` whose non-local block takes the variable g as its g."""
    names = {"theta": "nonlocal_theta", "phi": "nonlocal_phi", "g": g, "out": "nonlocal_out"}
    block = {f"nonlocal_block/{end}": Source((name,)) for end, name in names.items()}
    return {**_ASSIGNMENT, **_CENTERS, **block}


def _streams(layer, scopes, pooling, *, flattened=0):
    """Returns the table of a `StreamEncoder`.

    Args:
        layer: name of the pooling layers, without their number.
        scopes: scope of each stream.
        pooling: table of a pooling layer.
        flattened: matrices `[D, K]` that a pooling layer flattens; 0 if it has vectors `[K]`.
    """
    table = {
        **_norm("input_norm", "input_bn"),
        **_linear("hidden", "hidden1_weights", bias="hidden1_biases"),
        **_linear("hidden_gating/gate", "gating_weights_2", norm="gating_bn"),
    }
    for number, scope in enumerate(scopes):
        table |= _under(f"{layer}_{number}", scope, pooling)
    if flattened:
        matrices = [f"{scope}/cluster_weights" for scope in scopes for _ in range(flattened)]
        table["hidden/kernel"] = Source(("hidden1_weights", *matrices), _clusters_first)
    return {f"encoder/{path}": source for path, source in table.items()}


def _recurrent(layer, cell, table):
    """Returns the table of a stack, from the table of one of its layers."""
    layers = {}
    for number in range(_NUM_LAYERS):
        scope = f"rnn/multi_rnn_cell/cell_{number}/{cell}"
        layers |= _under(f"{layer}_{number}", scope, table)
    return layers


_GRU: Table = {
    "input_projection/kernel": Source(("gates/kernel", "candidate/kernel"), _gru_input),
    "input_projection/bias": Source(("gates/bias", "candidate/bias"), _gru_columns),
    "gates": Source(
        ("gates/kernel",), lambda gates: _update_gate_first(gates[-(gates.shape[1] // 2) :])
    ),
    "candidate": Source(("candidate/kernel",), lambda values: values[-values.shape[1] :]),
}
_LSTM: Table = {
    "kernel": Source(
        ("kernel",), lambda values: _keras_lstm_gates(values[: -(values.shape[1] // 4)])
    ),
    "recurrent_kernel": Source(
        ("kernel",), lambda values: _keras_lstm_gates(values[-(values.shape[1] // 4) :])
    ),
    "bias": Source(("bias",), _keras_lstm_bias),
}

_VLAD_SCOPES = ("video_VLAD", "audio_VLAD")
_DBOF_SCOPES = ("video_DBOF", "audio_DBOF")
_ENCODERS: dict[str, Table] = {
    "FrameLevelLogisticModel": {},
    "DbofModel": {
        **_norm("input_norm", "input_bn"),
        **_linear("clusters", "cluster_weights", bias="cluster_biases", norm="cluster_bn"),
        **_linear("hidden", "hidden1_weights", bias="hidden1_biases", norm="hidden1_bn"),
    },
    "LstmModel": _recurrent(
        "lstm",
        "basic_lstm_cell",
        {f"lstm_cell/{end}": source for end, source in _LSTM.items()},
    ),
    "GruModel": _recurrent("stack/gru", "gru_cell", _GRU),
    "SoftBoFModel": _streams("soft_bof", _DBOF_SCOPES, _ASSIGNMENT),
    "GatedDbofModel": _streams(
        "dbof",
        _DBOF_SCOPES,
        {
            **_ASSIGNMENT,
            **_linear("reduction", "dim_red"),
            **_linear("gate", "cluster_weights_2", norm="cluster_bn_2"),
        },
    ),
    "NetFVModel": _streams(
        "netfv",
        ("video_FV", "audio_FV"),
        {
            **_ASSIGNMENT,
            **_CENTERS,
            "deviation_roots": Source(("covar_weights",), np.transpose),
        },
        flattened=2,
    ),
    "LFNLNetVLADModel": _streams(
        "netvlad", _VLAD_SCOPES, _nonlocal_netvlad("nonlocal_g"), flattened=1
    ),
    "LFNLNetRVLADModel": _streams(
        "netvlad", _VLAD_SCOPES, _nonlocal_netvlad("nonlocal_phi"), flattened=1
    ),
    "EFNLNetVLADModel": _streams(
        "netvlad", ("video_audio_VLAD",), _nonlocal_netvlad("nonlocal_phi"), flattened=1
    ),
}
TABLES: dict[str, Table] = {
    "LogisticModel": _VIDEO_LEVEL,
    "MoeModel": _VIDEO_LEVEL,
    **{
        name: {**table, **{f"classifier/{path}": _VIDEO_LEVEL[path] for path in _VIDEO_LEVEL}}
        for name, table in _ENCODERS.items()
    },
}


# --- Reading --------------------------------------------------------------------------------------


def is_tensorflow1(path: str) -> bool:
    """Returns whether TensorFlow 1 wrote the checkpoint with this path prefix.

    Raises:
        InputError: if the checkpoint cannot be read.
    """
    return _OBJECT_GRAPH not in _shapes(path)


def num_classes(path: str) -> int:
    """Returns the number of classes of the model in a checkpoint of TensorFlow 1.

    Raises:
        InputError: if it has no known classifier.
    """
    shapes = _shapes(path)
    by_name = {known: shapes[name] for known, name in _stored_names(shapes).items()}
    if _LOGISTIC in by_name:
        return by_name[_LOGISTIC][-1]
    if all(name in by_name for name in _MIXTURES):
        gates, experts = (by_name[name][-1] for name in _MIXTURES)
        return gates - experts
    raise InputError(
        f"checkpoint {path} has neither {comma_separated(_MIXTURES)} nor {_LOGISTIC}, the weights "
        "of a classifier. It must be of the YouTube-8M code for TensorFlow 1."
    )


def read(path: str, model: keras.Model, excluded: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Returns the weights of a model, by path, from a checkpoint of TensorFlow 1.

    The numbers of updates of batch normalization are left out: they are not counted there.
    Variables of optimizers and moving averages of weights are ignored. Other variables that no
    weight comes from are logged.

    Args:
        path: path prefix of the checkpoint.
        model: built model, with as many classes as the checkpoint.
        excluded: paths inside the model of weights to leave out.

    Raises:
        InputError: if TensorFlow 1 did not write the checkpoint, the model has no table, or a
            weight is missing or has another shape; names the weights and the variables.
    """
    name = type(model).__name__
    if not is_tensorflow1(path):
        raise InputError(f"checkpoint {path} was not written by TensorFlow 1.")
    if name not in TABLES:
        raise InputError(
            f"checkpoint {path} was written by TensorFlow 1. {name} cannot start from it, only "
            f"these models can: {comma_separated(TABLES)}."
        )
    with checkpoints.reading(path):
        reader = tf.train.load_checkpoint(path)
    stored = _stored_names(reader.get_variable_to_shape_map())

    @functools.cache
    def variable(name):
        if name not in stored:
            raise InputError(f"there is no {name}")
        with checkpoints.reading(path):
            return np.asarray(reader.get_tensor(stored[name]), np.float32)

    weights, wrong, unused = {}, [], set(stored)
    for weight in model.weights:
        end = weight.path.partition("/")[2]
        source = TABLES[name].get(end)
        unused -= set(source.names if source else ())
        if end not in excluded and not end.endswith(layers.COUNTER):
            try:
                weights[weight.path] = _weight(source, weight.shape, variable)
            except InputError as error:
                wrong.append(f"{end}: {error}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"checkpoint {path} is not of {name} with these hyperparameters: "
            f"{'; '.join(wrong[:5])}{more}. Variables that no weight comes from: "
            f"{examples(sorted(unused))}."
        )
    if unused:
        logging.warning(
            "no weight of %s comes from these variables of %s: %s",
            *(name, path, comma_separated(sorted(unused))),
        )
    return weights


def _shapes(path):
    """Returns the shapes of the variables in a checkpoint, by name."""
    with checkpoints.reading(path):
        return dict(tf.train.list_variables(path))


def _stored_names(shapes):
    """Returns the names of variables by their names in the tables, from their shapes by name."""
    stored = {}
    for name, shape in shapes.items():
        # Counters are scalars; the names of an optimizer's variables begin with the weight's.
        if shape and name.rpartition("/")[0] not in shapes:
            known = name
            for pattern, replacement in _RENAMED:
                known = re.sub(pattern, replacement, known)
            stored[known] = name
    return stored


def _weight(source, shape, variable):
    """Returns a weight.

    Args:
        source: `Source`; None if the table has none.
        shape: shape that the weight must have.
        variable: function from a name in the tables to the value of the variable.

    Raises:
        InputError: if it does not have that shape, or a variable is missing.
    """
    if source is None:
        raise InputError("no variable is known for it")
    values = {name: variable(name) for name in source.names}
    try:
        weight = source.convert(*(values[name] for name in source.names))
    except (IndexError, ValueError):  # Shapes of variables that do not fit together.
        weight = None
    if weight is None or weight.shape != tuple(shape):
        received = ", ".join(f"{name} {list(value.shape)}" for name, value in values.items())
        raise InputError(f"{received} does not give {list(shape)}")
    return weight
