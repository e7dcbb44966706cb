"""Models for prediction alone, as evaluation, inference and exported graphs use them.

Their normalisations are folded into matrices, which are stored in the type that is multiplied, and
nothing in them is trainable.
"""

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
    set_weights(frozen, trained)


def set_weights(frozen, trained):
    """Sets the weights of a frozen model from those of a trained one, which is folded for it."""
    _fold(trained)
    for source, target in zip(trained.weights, frozen.weights, strict=True):
        target.assign(tf.cast(source.value, target.dtype))


def _fold(model):
    """Folds every batch normalisation next to a matrix into it."""
    for kind in (frame_level_models.StreamEncoder, nonlocal_vlad.Linear):
        for layer in model._flatten_layers():
            if isinstance(layer, kind):
                layer.fold()


def _not_trainable(create, **options):
    return create(**{**options, "trainable": False})
