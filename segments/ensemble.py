"""Prediction of segments: the probabilities of classes over the time of a video, in one graph.

B is the batch, N the number of segments of the longest video, M that of the shifted copies of a
segment, S the frames that a copy is predicted from, C the classes.
"""

import dataclasses
from typing import Any

import tensorflow as tf

from ensemble import Ensemble
from segments.config import SEGMENT_SIZE
from utils import check_at_least

# An index that is beyond the end of every video.
_PADDING = 2**30


@dataclasses.dataclass(frozen=True)
class SegmentSettings:
    """The segments that a predictor predicts.

    Attributes:
        size: frames of a segment.
        context: further frames that the model sees on each side of it.
        shift_samplings: shifted copies of a segment to average over, M.

    Raises:
        InputError: if a value is not valid.
    """

    size: int = SEGMENT_SIZE
    context: int = 0
    shift_samplings: int = 1

    def __post_init__(self):
        """Checks the values."""
        check_at_least(1, size=self.size, shift_samplings=self.shift_samplings)
        check_at_least(0, context=self.context)

    def shifts(self) -> tf.Tensor:
        """Returns by how many frames each copy is shifted, int32 `[M]`: 0, 1, -1, 2, ..."""
        numbers = tf.range(self.shift_samplings)
        return tf.where(numbers % 2 == 1, (numbers + 1) // 2, -(numbers // 2))

    def count(self, num_frames: Any) -> Any:
        """Returns how many segments videos have; the last may have fewer frames."""
        return (num_frames + (self.size - 1)) // self.size


class SegmentEnsemble:
    """Predicts all segments of videos by the models of an ensemble, in one graph.

    A segment is predicted as if it were a video, together with its context.

    Args:
        ensemble: frame-level models that predict segments.
        settings: the segments.
        video_ensemble: models with the same input that predict whole videos; their probabilities
            multiply those of the segments. None leaves these as they are.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        settings: SegmentSettings,
        video_ensemble: Ensemble | None = None,
    ):
        self.ensemble = ensemble
        self.settings = settings
        self.video_ensemble = video_ensemble

    @property
    def models(self) -> list:
        """All models, each once."""
        ensembles = [self.ensemble, *([self.video_ensemble] if self.video_ensemble else [])]
        models = [model for ensemble in ensembles for model in ensemble.models]
        return list({id(model): model for model in models}.values())

    def __call__(self, inputs: dict) -> tf.Tensor:
        """Returns probabilities, float32 `[B, N, C]`, 0 for segments beyond the end of a video.

        Args:
            inputs: inputs of a `readers.Batch` of frames.
        """
        batch, length, _ = tf.unstack(tf.shape(inputs["frames"]))
        num_frames = tf.cast(inputs["num_frames"], tf.int32)
        count, copies = self.settings.count(length), self.settings.shift_samplings
        indices = self.frame_indices(count)
        indices = tf.broadcast_to(indices, [batch, *tf.unstack(tf.shape(indices))])
        indices.set_shape([None, None, self.settings.size + 2 * self.settings.context])
        predictions = self.ensemble.predict_parts({**inputs, "frame_indices": indices})
        num_classes = predictions.shape[2]
        predictions = tf.reshape(predictions, [batch, count, copies, num_classes])
        starts = self._starts(count)
        is_real = (starts < num_frames[:, None, None]) & (starts + self.settings.size > 0)
        # A copy without frames may be NaN.
        predictions = tf.where(is_real[..., None], predictions, 0.0)
        num_real = tf.reduce_sum(tf.cast(is_real, tf.float32), axis=2)
        means = tf.reduce_sum(predictions, axis=2) / tf.maximum(num_real, 1.0)[..., None]
        is_segment = starts[:, 0] < num_frames[:, None]
        means = tf.where(is_segment[..., None], means, 0.0)
        if self.video_ensemble is not None:
            means *= self.video_ensemble(inputs)[:, None]
        return tf.ensure_shape(means, [None, None, num_classes])

    def frame_indices(self, count: Any) -> tf.Tensor:
        """Returns the frames of the copies of all segments, for `FrameLevelModel.predict_parts`.

        Args:
            count: N.

        Returns:
            int32 `[N * M, S]`. Missing frames are indices beyond the end of any video, and come
            last.
        """
        size, context = self.settings.size, self.settings.context
        starts = tf.reshape(self._starts(count), [-1, 1])
        indices = tf.maximum(starts - context, 0) + tf.range(size + 2 * context)
        return tf.where(indices < starts + size + context, indices, _PADDING)

    def _starts(self, count):
        """Returns the first frame of each copy of the first segments, int32 `[N, M]`."""
        return tf.range(count)[:, None] * self.settings.size + self.settings.shifts()
