"""Train directories with random weights, without training."""

import numpy as np
import tensorflow as tf

import checkpoints


def make_model(config, seed=0):
    """Builds a model with random values in all weights, also of batch normalization."""
    model = config.build_model()
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        values = rng.normal(size=weight.shape)
        weight.assign(1 + values**2 if weight.name == "moving_variance" else values / 2)
    return model


def save_run(folder, config, *, step=7, seed=0, names=(), ema_seed=None):
    """Writes a train directory with random weights, as training leaves it."""
    model = make_model(config, seed)
    groups = {"weights": checkpoints.weights(model)}
    if ema_seed is not None:
        groups["ema"] = checkpoints.weights(make_model(config, ema_seed))
    folder.mkdir(exist_ok=True)
    manager = checkpoints.new_manager(str(folder), tf.train.Checkpoint(**groups))
    manager.save(checkpoint_number=step)
    config.save(str(folder))
    if names:
        write_vocabulary(folder / "vocabulary.csv", names)
    return folder


def write_vocabulary(path, names):
    rows = [f"{number},{name}\n" for number, name in enumerate(names)]
    path.write_text("Index,Name\n" + "".join(rows))
    return str(path)
