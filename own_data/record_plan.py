"""Which videos belong to which split and record file, and in which order."""

import hashlib
from collections.abc import Mapping

import record_writer
from own_data.video_labels import Labels

SPLITS = ("train", "validate", "test")


def hash_number(video_id: str, purpose: str) -> float:
    """Returns a number in [0, 1) that depends only on the id and the purpose."""
    digest = hashlib.sha256(f"{purpose}:{video_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_of(video_id: str, fractions: tuple[float, float]) -> str:
    """Returns the split of a video, which depends only on its id.

    With another fraction of validate or test, only the videos between the old and the new fraction
    move, from or to train.

    Args:
        video_id: id of the video.
        fractions: fractions of validate and test.
    """
    position = hash_number(video_id, "split")
    validate, test = fractions
    if position < validate:
        return "validate"
    return "test" if position >= 1 - test else "train"


class RecordPlan:
    """The videos to write, in random order, with their classes, splits and files.

    Args:
        labels: labels by id.
        numbers: class by label.
        fractions: fractions of validate and test, for videos whose labels name no split.

    Attributes:
        classes: class numbers by id.
        by_split: ids by split.
    """

    def __init__(
        self,
        labels: Mapping[str, Labels],
        numbers: Mapping[str, int],
        fractions: tuple[float, float],
    ):
        ids = sorted(labels, key=lambda video_id: hash_number(video_id, "order"))
        self.classes = {
            name: sorted({numbers[label] for label in labels[name].names}) for name in ids
        }
        self.by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
        for name in ids:
            split = labels[name].split or split_of(name, fractions)
            self.by_split.setdefault(split, []).append(name)

    def files(self, videos_per_file: int) -> dict[str, list[str]]:
        """Returns the ids of each record file, by its name."""
        found = {}
        for split, ids in self.by_split.items():
            count = -(-len(ids) // videos_per_file)
            for number in range(count):
                bounds = (len(ids) * index // count for index in (number, number + 1))
                found[record_writer.record_name(split, number)] = ids[slice(*bounds)]
        return found
