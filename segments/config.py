"""Options of training on rated segments of videos.

Needs neither TensorFlow nor Keras.
"""

import dataclasses

from options import Options, option
from utils import InputError

# Frames of a segment in YouTube-8M.
SEGMENT_SIZE = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentConfig(Options):
    """How a run learns from rated segments of videos."""

    segment_labels: bool = option(
        False,
        "Train on the rated segments of the videos instead of the labels of whole videos: the loss "
        "counts the rated pairs of a segment and a class. Records without ratings are skipped.",
        group="segments",
    )
    segment_size: int = option(
        SEGMENT_SIZE,
        "Frames of a segment. Ratings must begin at multiples of it.",
        group="segments",
        above=0,
    )
    segment_context: int = option(
        0,
        "Frames before and after a segment that the model also sees, where the video has them.",
        group="segments",
        at_least=0,
    )
    segment_positive_weight: float = option(
        1.0, "Weight of pairs rated 1 in the loss.", group="segments", at_least=0
    )
    segment_negative_weight: float = option(
        1.0, "Weight of pairs rated 0 in the loss.", group="segments", at_least=0
    )
    segment_mined_weight: float = option(
        0.0,
        "Weight of the mined negatives of a segment, all together: of the classes that are neither "
        "labels of its video nor rated 1 in any of its segments. Published: 0.5.",
        group="segments",
        at_least=0,
    )
    segment_unrated_weight: float = option(
        0.0,
        "Weight of each unrated pair, which then counts as rated 0. The starter code does so with "
        "the weight 1.",
        group="segments",
        at_least=0,
    )
    segment_balance: float = option(
        0.0,
        "Draw segments at rates proportional to n^-B, where n is the number of rated segments of "
        "the class and B this number: 0 reads each once per epoch; 1 reads all classes equally "
        "often. Above 0, all records are read once more at the start.",
        group="segments",
        at_least=0,
    )

    def _check_segments(self) -> None:
        """Rejects segment options that do not fit together."""
        self.check_needed(SegmentConfig, self.segment_labels, "--segment_labels")
        if self.segment_mined_weight and self.segment_unrated_weight:
            raise InputError(
                "--segment_mined_weight and --segment_unrated_weight cannot be combined: mined "
                "negatives are unrated pairs. Use only one of them."
            )
