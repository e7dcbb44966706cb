"""Models for prediction alone, as evaluation, inference and exported graphs use them.

Batch normalisation behind a matrix, and that of the frames before an assignment to clusters, is
folded into the matrix. Matrices are stored in the type that is multiplied, and nothing is
trainable.
"""

import gc

import tensorflow as tf

import checkpoints
import frame_level_models
import nonlocal_vlad

DTYPES = ("bfloat16", "float32")


def new_model(config, dtype, name=None):
    """A frozen model whose weights are still to be set.

    Args:
        config: `run_config.RunConfig`.
        dtype: str. Type in which its matrices are stored and multiplied, one of `DTYPES`.
        name: str. With it the names of all nodes in its graph begin.
    """
    with tf.variable_creator_scope(_not_trainable):
        model = config.build_model(dtype, name)
    _fold(model)
    return model


def restore(frozen, config, path, use_ema=False):
    """Sets the weights of a frozen model from a checkpoint, as `checkpoints.restore_weights`."""
    trained = config.build_model()
    checkpoints.restore_weights(trained, path, use_ema)
    _fold(trained)
    for source, target in zip(trained.weights, frozen.weights, strict=True):
        target.assign(tf.cast(source.value, target.dtype))
    # Models of Keras hold themselves, up to 0.6 GiB here, until Python looks for such cycles.
    del trained, source
    gc.collect()


def _fold(model):
    for kind in (frame_level_models.StreamEncoder, nonlocal_vlad.Linear):
        for layer in model._flatten_layers():
            if isinstance(layer, kind):
                layer.fold()


def _not_trainable(create, **options):
    return create(**{**options, "trainable": False})
