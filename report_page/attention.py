"""What a model attends to: the soft assignment of a video's frames to clusters."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

import layers
from nonlocal_vlad import SoftAssignment


def frame_assignments(model: keras.Model, inputs: dict) -> list[np.ndarray]:
    """Returns the soft assignments that a model computes for one video.

    Args:
        model: built model, also a frozen one.
        inputs: inputs of one video, every frame of which counts once.

    Returns:
        float32 `[T, K]` for each `SoftAssignment` of the model, in the order in which they run;
        none if the model has no such layer.
    """
    found: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        assigning = [
            layer for layer in layers.sublayers(model) if isinstance(layer, SoftAssignment)
        ]
        for layer in assigning:
            stack.enter_context(_recorded(layer, found))
        if assigning:
            model(inputs, training=False, num_samplings=0)
    return found


@contextlib.contextmanager
def _recorded(layer: keras.layers.Layer, outputs: list) -> Iterator[None]:
    """Appends the outputs of a layer for the first video of a batch to a list."""
    call = layer.call

    def record(*args, **options):
        output = call(*args, **options)
        outputs.append(keras.ops.convert_to_numpy(output)[0])
        return output

    layer.call = record
    try:
        yield
    finally:
        del layer.call
