"""A trained model ready to predict, as evaluation and inference use it."""

import tensorflow as tf

import checkpoints
from run_config import RunConfig


class Predictor:
    """Predicts with the checkpoints of a train directory.

    Args:
        train_dir: str. Directory of a training run.
        seed: int. Seed of the sampling of frames; the same seed, data and batch size give the same
            predictions.

    Attributes:
        config: the `RunConfig` of the run.
        model: the `keras.Model`.
        step: step of the checkpoint that was restored last; None before.
        predict: function from the inputs of a `readers.Batch` to probabilities `[B, C]`.
    """

    def __init__(self, train_dir, seed=0):
        self.config = RunConfig.load(train_dir)
        self.model = self.config.build_model()
        self.step = None
        self._train_dir = train_dir
        self._seed = seed
        self.predict = prediction_function(self.model)

    def restore(self, checkpoint=None):
        """Restores a checkpoint, by default the newest, and begins the sampling of frames anew.

        Args:
            checkpoint: str. A path prefix or a step.
        """
        path = checkpoints.find(self._train_dir, checkpoint)
        checkpoints.restore_weights(self.model, path)
        for number, state in enumerate(checkpoints.random_states(self.model)):
            state.assign([self._seed, number])
        self.step = checkpoints.step_of(path)


def prediction_function(model):
    """A function from the inputs of a `readers.Batch` to probabilities, float32 `[B, C]`."""
    run = tf.function(
        lambda inputs: model(inputs, training=False), reduce_retracing=True, autograph=False
    )
    return lambda inputs: run(tf.nest.map_structure(tf.convert_to_tensor, inputs)).numpy()
