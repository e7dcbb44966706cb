"""Measures what a non-local block does to the residuals of clusters before any training."""

import keras
import numpy as np

import layers
from nonlocal_vlad import NonLocalBlock

NUM_VIDEOS = 256


def measure(config, inputs):
    """Yields a row of numbers for each feature of a late-fusion model with its initial weights.

    Batch normalization uses the statistics of the batch, as in the first step of training.

    Args:
        config: `run_config.RunConfig` of a model with a non-local block per feature.
        inputs: inputs of a `readers.Batch`.

    Yields:
        dict: feature; added_cosine, the mean cosine between the vectors that the block adds to two
        clusters of a video; added_size, their mean norm divided by the median norm of the video's
        residuals, median over the videos; cosine_before and cosine_after, the mean cosine between
        two residuals of a video in front of the block and behind it.
    """
    keras.utils.set_random_seed(config.seed)
    model = config.build_model()
    blocks = [layer for layer in layers.sublayers(model) if isinstance(layer, NonLocalBlock)]
    recorded = [_record(block) for block in blocks]
    model(inputs, training=True)
    for feature, [(before, after)] in zip(config.data.feature_names, recorded, strict=True):
        added = after - before
        sizes = _norms(added).mean(axis=1) / np.median(_norms(before), axis=1)
        yield {
            "feature": feature,
            "added_cosine": mean_cosine(added),
            "added_size": np.median(sizes),
            "cosine_before": mean_cosine(before),
            "cosine_after": mean_cosine(after),
        }


def _record(layer):
    """Returns a list that receives the input and output of every call of a layer."""
    calls, call = [], layer.call

    def record(x):
        output = call(x)
        calls.append((keras.ops.convert_to_numpy(x), keras.ops.convert_to_numpy(output)))
        return output

    layer.call = record
    return calls


def mean_cosine(vectors):
    """Returns the mean cosine between two different vectors of a set, over sets `[B, K, D]`."""
    units = vectors / np.maximum(_norms(vectors)[..., None], 1e-12)
    num_pairs = units.shape[1] * (units.shape[1] - 1)
    # The squared norm of a sum of unit vectors is K plus the cosines of all pairs.
    return np.mean((_norms(units.sum(axis=1)) ** 2 - (_norms(units) ** 2).sum(axis=1)) / num_pairs)


def _norms(vectors):
    return np.linalg.norm(vectors.astype(np.float64), axis=-1)
