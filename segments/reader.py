"""Reads rated segments: as examples to train on, or with their whole videos to evaluate."""

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

import records
from readers import Batch, CorruptVideoError, Video, YT8MFrameFeatureReader
from segments.config import SegmentConfig
from segments.ratings import FEATURES, Ratings, parse_ratings
from utils import InputError, comma_separated


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RatedVideo(Video):
    """A video with the ratings of its segments.

    Attributes:
        ratings: the ratings; None for a video without.
    """

    ratings: Ratings | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment(Video):
    """A rated segment with its context. Its labels are the classes rated 1.

    Attributes:
        rated: rated classes, int64 `[n]`.
        scores: their scores, 0 or 1, int64 `[n]`.
        known: classes of the whole video: its labels, and those rated 1 in any of its segments.
    """

    rated: np.ndarray
    scores: np.ndarray
    known: np.ndarray


class _RatingReader(YT8MFrameFeatureReader):
    """Base of the two readers: reads videos and the ratings of their segments.

    A record with a rating that is not usable, or of a segment that is not inside the video, counts
    as corrupt.

    Args:
        paths: TFRecord files.
        settings: size and context of segments, and weights of their pairs.
        **options: as for `YT8MFrameFeatureReader`.
    """

    reads_ratings = True

    def __init__(self, paths: Sequence[str], *, settings: SegmentConfig, **options: Any):
        super().__init__(paths, **options)
        self.settings = settings

    def _check_ratings(self):
        self._require_one(
            _is_rated,
            "has a rated segment. --segment_labels needs ratings in the context of the records: "
            f"{comma_separated(FEATURES)}.",
        )

    def _parse(self, location, context, feature_lists):
        video = super()._parse(location, context, feature_lists)
        try:
            ratings = parse_ratings(context, self.settings.segment_size)
        except ValueError as error:
            raise CorruptVideoError(
                f"the ratings of video {video.video_id!r} are not usable: {error}",
                remedy_for_all="Segments must begin at multiples of --segment_size and have that "
                "many frames; scores must be 0 or 1.",
            ) from error
        if ratings is not None and len(ratings.starts):
            self._check_range(location, video, ratings)
        return RatedVideo(video.video_id, video.labels, video.features, ratings=ratings)

    def _check_range(self, location, video, ratings):
        wrong = (ratings.classes < 0) | (ratings.classes >= self.num_classes)
        if wrong.any():
            raise InputError(
                f"video {video.video_id!r} ({location}) has a rating of class "
                f"{ratings.classes[wrong][0]}, but classes must be 0 to {self.num_classes - 1}. "
                "Use data that fit the model, or train with another --num_classes."
            )
        end, num_frames = ratings.starts[-1] + self.settings.segment_size, len(video.features[0])
        if end > num_frames:
            raise CorruptVideoError(
                f"video {video.video_id!r} has a rated segment that ends at frame {end}, but "
                f"{num_frames} frames are read",
                remedy="--max_frames limits the frames that are read."
                if num_frames == self.max_frames
                else "",
            )


class RatedVideoReader(_RatingReader):
    """Reads whole videos with the `ratings` of their segments."""

    def check_labels(self) -> None:
        """Rejects data without labels, or without ratings.

        Raises:
            InputError: if none of the first 1000 videos has a label or none has a rated segment,
                or a record before the first one is corrupt and may not be skipped.
        """
        super().check_labels()
        self._check_ratings()

    def assemble(self, videos: Sequence[Video], pad_to_max_frames: bool = False) -> Batch:
        """Returns a batch of videos with their ratings; see `RecordReader.assemble`."""
        batch = super().assemble(videos, pad_to_max_frames)
        return batch._replace(
            ratings=[video.ratings for video in videos if isinstance(video, RatedVideo)]
        )


class SegmentReader(_RatingReader):
    """Reads the rated segments of videos as examples to train on.

    The weights of the pairs of a segment and a class are those of its ratings. All other pairs have
    the weight 0, unless `settings` says otherwise. Videos without ratings are skipped.
    """

    example = "rated segment"
    has_one_example_per_record = False

    def __init__(self, paths: Sequence[str], *, settings: SegmentConfig, **options: Any):
        super().__init__(paths, settings=settings, **options)
        self.has_pair_weights = True
        length = settings.segment_size + 2 * settings.segment_context
        self.longest_example = min(self.max_frames, length)

    def check_labels(self) -> None:
        """Rejects data without ratings.

        Raises:
            InputError: if none of the first 1000 videos has a rated segment, or a record before the
                first one is corrupt and may not be skipped.
        """
        self._check_ratings()

    def examples(self, videos: Iterable[RatedVideo], key: str) -> Iterator[Segment]:
        """Yields the segments of videos in order; see `RecordReader.examples`."""
        draw = random.Random(f"segments {key}")
        count = unrated = 0
        for video in videos:
            count += 1
            unrated += not _is_rated(video)
            for segment in self._segments(video):
                yield from itertools.repeat(segment, self._num_copies(segment, draw))
        if unrated:
            self._log_unrated(unrated, count)

    def _warn_of_no_label(self, video, location, payload):
        """Says nothing: labels of whole videos only select mined negatives."""

    def _log_unrated(self, unrated, count):
        if "unrated" not in self._warnings:
            self._warnings.add("unrated")
            logging.info("%d of %d videos have no rated segment and are skipped", unrated, count)

    def _segments(self, video):
        if not _is_rated(video):
            return
        size, context = self.settings.segment_size, self.settings.segment_context
        ratings = video.ratings
        known = np.union1d(video.labels, ratings.classes[ratings.scores == 1])
        for start, rated, scores in ratings.by_segment():
            frames = slice(max(start - context, 0), start + size + context)
            yield Segment(
                f"{video.video_id}:{start}",
                rated[scores == 1],
                # Copies, because a segment in the shuffle buffer would keep the whole record.
                [feature[frames].copy() for feature in video.features],
                rated=rated,
                scores=scores,
                known=known,
            )

    def _weigh_pairs(self, weights, video):
        settings = self.settings
        weights[...] = settings.segment_unrated_weight
        if settings.segment_mined_weight:
            num_mined = len(weights) - len(video.known)
            weights[...] = settings.segment_mined_weight / max(num_mined, 1)
            weights[video.known] = 0.0
        positive, negative = settings.segment_positive_weight, settings.segment_negative_weight
        weights[video.rated] = np.where(video.scores == 1, positive, negative)

    def _num_copies(self, segment, draw):
        """Returns how often an epoch has a segment, at random if classes are balanced."""
        if not self.settings.segment_balance:
            return 1
        mean = self._rates[segment.rated].mean()
        return int(mean) + (draw.random() < mean % 1)

    @functools.cached_property
    def _rates(self):
        """Mean number of copies of a segment by its class, `[C]`; their mean over all is 1."""
        rated = list(self._rated_classes())
        counts = np.bincount(np.concatenate(rated), minlength=self.num_classes)
        rates = np.maximum(counts, 1.0) ** -self.settings.segment_balance
        return rates * len(rated) / sum(rates[classes].mean() for classes in rated)

    def _rated_classes(self):
        """Yields the rated classes of every segment."""
        for path in self.paths:
            with records.TFRecordFile(path, records.IgnoredCorruptRecords()) as file:
                while (record := file.read()) is not None:
                    if self.fault(*record) is None:
                        for segment in self._segments(self._parse_payload(*record)):
                            yield segment.rated


def _is_rated(video):
    return video.ratings is not None and len(video.ratings.starts) > 0
