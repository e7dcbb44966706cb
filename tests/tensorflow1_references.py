"""References for models of TensorFlow 1: their formulas in float64, with the names of variables.

A reference gets its variables by name and shape, as `tf.get_variable` creates them, from
`Variables`, which draws random values and remembers them for `save`. `frames` are those of one
video, `[T, D]`; VLAD and Fisher vectors are flattened features first, clusters last.
"""

import numpy as np
import tensorflow as tf

SLOTS = ("Adam", "Adam_1", "ExponentialMovingAverage")


class Variables:
    """Random variables by name, in a scope."""

    def __init__(self, scope=""):
        self.scope = scope
        self.arrays = {}
        self.rng = np.random.default_rng(6)

    def __call__(self, name, *shape):
        name = self.scope + name
        if name not in self.arrays:
            positive = name.endswith(("gamma", "moving_variance"))
            draw = self.rng.uniform(0.5, 1.5, shape) if positive else self.rng.normal(0, 0.7, shape)
            self.arrays[name] = draw.astype(np.float32)
        assert self.arrays[name].shape == shape
        return self.arrays[name].astype(np.float64)

    def save(self, folder):
        """Saves a checkpoint with variables that training adds; returns its path prefix."""
        name, value = next(iter(self.arrays.items()))
        slots = {f"{name}/{slot}": -value for slot in SLOTS}
        counters = {"global_step": np.int64(7), "beta1_power": np.float32(0.9)}
        return save(folder, {**self.arrays, **slots, **counters})


def save(folder, arrays):
    """Saves arrays by name as TensorFlow 1 does; returns the path prefix of the checkpoint."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for name, value in arrays.items():
            v1.get_variable(name, initializer=value)
        session.run(v1.global_variables_initializer())
        return v1.train.Saver().save(session, str(folder / "model.ckpt"), global_step=7)


# --- Layers ---------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu6(x):
    return np.clip(x, 0, 6)


def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def l2_normalize(x, axis=-1):
    return x / np.sqrt(np.maximum(np.sum(x**2, axis=axis, keepdims=True), 1e-12))


def batch_norm(x, variables, scope):
    names = ("beta", "gamma", "moving_mean", "moving_variance")
    beta, gamma, mean, variance = (variables(f"{scope}/{name}", x.shape[-1]) for name in names)
    return gamma * (x - mean) / np.sqrt(variance + 0.001) + beta


def gated(x, variables, name, norm):
    gates = x @ variables(name, len(x), len(x))
    return x * sigmoid(batch_norm(gates, variables, norm))


def logistic(x, variables, classes):
    weights = variables("fully_connected/weights", len(x), classes)
    return sigmoid(x @ weights + variables("fully_connected/biases", classes))


def moe(x, variables, classes, mixtures, prob_gating=False):
    gates = x @ variables("gates/weights", len(x), classes * (mixtures + 1))
    experts = x @ variables("experts/weights", len(x), classes * mixtures)
    experts += variables("experts/biases", classes * mixtures)
    gates = softmax(gates.reshape(classes, mixtures + 1))[:, :mixtures]
    x = np.sum(gates * sigmoid(experts.reshape(classes, mixtures)), axis=1)
    return gated(x, variables, "gating_prob_weights", "gating_prob_bn") if prob_gating else x


def assignment(frames, variables, scope, clusters):
    weights = variables(f"{scope}/cluster_weights", frames.shape[1], clusters)
    return softmax(batch_norm(frames @ weights, variables, f"{scope}/cluster_bn"))


def netvlad(frames, variables, scope, clusters, *, centers=True, nonlocal_block=None):
    size = frames.shape[1]
    assigned = assignment(frames, variables, scope, clusters)
    vlad = frames.T @ assigned
    if centers:
        vlad -= assigned.sum(axis=0) * variables(f"{scope}/cluster_weights2", 1, size, clusters)[0]
    if nonlocal_block is not None:
        vlad = nonlocal_block(vlad.T, variables, scope).T
    return l2_normalize(l2_normalize(vlad, axis=0).ravel())


def nonlocal_block(x, variables, scope, *, embedding, scale=None, values="g"):
    """The block of the paper's code; in two of its models, `values` are phi by mistake."""
    size = x.shape[1]
    projected = {
        name: x @ variables(f"{scope}/nonlocal_{name}", size, embedding)
        for name in ("theta", "phi", "g")
    }
    products = projected["theta"] @ projected["phi"].T
    attended = softmax(products * (size**-0.5 if scale is None else scale)) @ projected[values]
    return x + attended @ variables(f"{scope}/nonlocal_out", embedding, size)


def netfv(frames, variables, scope, clusters):
    size = frames.shape[1]
    assigned = assignment(frames, variables, scope, clusters)
    totals = assigned.sum(axis=0)
    deviations = variables(f"{scope}/covar_weights", size, clusters) ** 2 + 1e-6
    centers = variables(f"{scope}/cluster_weights2", 1, size, clusters)[0]
    sums, squares = frames.T @ assigned, (frames**2).T @ assigned
    first = (sums - totals * centers) / deviations
    second = (squares - 2 * centers * sums + totals * centers**2) / deviations**2 - totals
    parts = l2_normalize(first, axis=0).ravel(), second.ravel()
    return np.concatenate([l2_normalize(part) for part in parts])


def soft_dbof(frames, variables, scope, clusters):
    return l2_normalize(assignment(frames, variables, scope, clusters).sum(axis=0))


def gated_dbof(frames, variables, scope, clusters):
    size = frames.shape[1]
    assigned = assignment(frames, variables, scope, clusters)
    gates = l2_normalize(assigned.max(axis=0)) @ variables(f"{scope}/dim_red", clusters, size)
    gates = gates @ variables(f"{scope}/cluster_weights_2", size, clusters)
    gates = sigmoid(batch_norm(gates, variables, f"{scope}/cluster_bn_2"))
    return l2_normalize(gates * assigned.sum(axis=0))


def gru(frames, variables, scope, units, *, kernel="kernel", bias="bias"):
    size = frames.shape[1]
    gates, candidate = (
        (
            variables(f"{scope}/gru_cell/{part}/{kernel}", size + units, columns),
            variables(f"{scope}/gru_cell/{part}/{bias}", columns),
        )
        for part, columns in (("gates", 2 * units), ("candidate", units))
    )
    state, states = np.zeros(units), []
    for frame in frames:
        r, u = np.split(sigmoid(np.append(frame, state) @ gates[0] + gates[1]), 2)
        c = np.tanh(np.append(frame, r * state) @ candidate[0] + candidate[1])
        state = u * state + (1 - u) * c
        states.append(state)
    return np.array(states)


def lstm(frames, variables, scope, units):
    scope = f"{scope}/basic_lstm_cell"
    kernel = variables(f"{scope}/kernel", frames.shape[1] + units, 4 * units)
    bias = variables(f"{scope}/bias", 4 * units)
    state, memory, states = np.zeros(units), np.zeros(units), []
    for frame in frames:
        i, j, f, o = np.split(np.append(frame, state) @ kernel + bias, 4)
        memory = memory * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
        state = np.tanh(memory) * sigmoid(o)
        states.append(state)
    return np.array(states)


# --- Encoders -------------------------------------------------------------------------------------


def streams(frames, variables, *, sizes, pools, hidden, gating=False):
    """Pools the streams of one video, and returns the hidden layer over them.

    Args:
        sizes: size of each stream.
        pools: for each stream, a function from frames and variables to a vector.
        hidden: units of the hidden layer.
    """
    frames = batch_norm(frames, variables, "input_bn")
    parts = np.split(frames, np.cumsum(sizes)[:-1], axis=1)
    x = np.concatenate([pool(part, variables) for pool, part in zip(pools, parts, strict=True)])
    x = x @ variables("hidden1_weights", len(x), hidden) + variables("hidden1_biases", hidden)
    return gated(x, variables, "gating_weights_2", "gating_bn") if gating else x


def dbof(frames, variables, *, clusters, hidden, pool, batch_normalized):
    def project(x, name, units):
        x = x @ variables(f"{name}_weights", x.shape[-1], units)
        if batch_normalized:
            return relu6(batch_norm(x, variables, f"{name}_bn"))
        return relu6(x + variables(f"{name}_biases", units))

    if batch_normalized:
        frames = batch_norm(frames, variables, "input_bn")
    return project(pool(project(frames, "cluster", clusters), axis=0), "hidden1", hidden)
