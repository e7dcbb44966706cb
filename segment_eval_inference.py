r"""Evaluates a file of predicted segments: mean average precision, mAP@K.

    python segment_eval_inference.py --submission_file=segments.csv \
        --eval_data_pattern='data/validate*.tfrecord' --label_cache=ratings.csv

The file has a line for each class: its number, a comma, and segments such as VIDEO_ID:15, best
first, separated by spaces. The records have ratings of segments (docs/segments.md).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import program
from program import Progress

import numpy as np
import pandas as pd
from absl import logging

import eval_util
import files
import records
from options import Options, option
from segments.ranking import MAX_PREDICTIONS
from segments.ratings import FEATURES, Ratings, parse_ratings
from segments.submission import read_submission
from utils import InputError, comma_separated

_COLUMNS = ("id", "start", "class", "score")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentEvalOptions(Options):
    """Options of this program."""

    submission_file: str = option(
        help="CSV file of predictions, with the header Class,Segments or none.",
        group="data",
        required=True,
    )
    eval_data_pattern: str | None = option(
        None, "Globs of records with ratings, comma-separated; quote them.", group="data"
    )
    label_cache: str | None = option(
        None,
        "CSV file that keeps the ratings, so that the next evaluation need not read the records. "
        "It is written if it does not exist; otherwise --eval_data_pattern is not needed.",
        group="data",
    )
    top_n: int = option(
        MAX_PREDICTIONS,
        "Segments of a class that count, the best ones: K of mAP@K.",
        group="data",
        above=0,
    )
    per_class_csv: str | None = option(
        None, "File for the average precision of every class with a rating.", group="output"
    )


def read_ratings(paths: Sequence[str]) -> pd.DataFrame:
    """Reads the ratings in record files.

    Returns:
        Table with the columns `id`, `start`, `class` and `score`, a row for each rated pair.

    Raises:
        InputError: if a record is not usable or occurs twice, or none has a rating.
    """
    rows: list[tuple] = []
    seen: set[str] = set()
    with Progress(len(paths), "file") as progress:
        for path in paths:
            for video_id, ratings in _read_file(path):
                if video_id in seen:
                    raise InputError(
                        f"video {video_id!r} is in two records, the second one in {path}. Give "
                        "each record once."
                    )
                seen.add(video_id)
                columns = (ratings.starts, ratings.classes, ratings.scores)
                rows += (
                    (video_id, *row) for row in zip(*map(np.ndarray.tolist, columns), strict=True)
                )
            progress.advance()
    if not rows:
        raise InputError(
            f"no record of {len(paths)} files, such as {paths[0]}, has ratings: "
            f"{comma_separated(FEATURES)}."
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _read_file(path: str) -> Iterator[tuple[str, Ratings]]:
    with records.TFRecordFile(path, records.CorruptRecordLog()) as file:
        while (found := file.read()) is not None:
            location, payload = found
            context, _ = records.parse_record(payload)
            try:
                ratings = parse_ratings(context)
            except ValueError as error:
                raise InputError(f"{location}: {error}.") from error
            if ratings is None:
                continue
            if (video_id := records.video_id(context)) is None:
                raise InputError(
                    f"{location} has no {' or '.join(records.ID_NAMES)} that holds one string."
                )
            yield video_id, ratings


def load_ratings(options: SegmentEvalOptions) -> pd.DataFrame:
    """Returns the table of `read_ratings`, from the cache if there is one; else writes the cache.

    Raises:
        InputError: if there are neither records nor a cache, or one of them is not usable.
    """
    cache = options.label_cache
    if cache and files.gfile.exists(cache):
        return _read_cache(cache)
    if not options.eval_data_pattern:
        raise InputError("give --eval_data_pattern, or a --label_cache that exists.")
    paths = files.expand_patterns(options.eval_data_pattern)
    if cache:
        files.check_not_input(cache, [*paths, options.submission_file])
        files.check_writable(cache)
    ratings = read_ratings(paths)
    if cache:
        with files.atomic_write(cache) as file:
            ratings.to_csv(file, index=False)
    return ratings


def _read_cache(path):
    try:
        ratings = pd.read_csv(path, dtype={"id": str}, keep_default_na=False)
        if tuple(ratings) != _COLUMNS or not ratings["score"].isin((0, 1)).all():
            raise ValueError(f"it must have the columns {comma_separated(_COLUMNS)}")
    except ValueError as error:
        raise InputError(
            f"{path} is no cache of ratings: {error}. Remove it, or give another --label_cache."
        ) from error
    return ratings


def evaluate(
    submission_file: str, ratings: pd.DataFrame, top_n: int = MAX_PREDICTIONS
) -> pd.DataFrame:
    """Returns the average precision of every class with a rating.

    Args:
        submission_file: file of predictions.
        ratings: table of `read_ratings`.
        top_n: entries of a class that count, K.

    Returns:
        Table by class with the columns `average_precision` (NaN without a segment rated 1),
        `positives`, `negatives` and `listed` (whether the file has a line for the class).

    Raises:
        InputError: if the file is not usable, or none of its segments is of a video with ratings.
    """
    names = ratings["id"].str.cat(ratings["start"].astype(str), sep=":")
    rated = {
        label: dict(zip(names[group.index], group["score"], strict=True))
        for label, group in ratings.groupby("class")
    }
    known = set(ratings["id"])
    hits: dict[Any, np.ndarray] = {}
    num_listed, num_unknown, example = 0, 0, ""
    for number, listed in read_submission(submission_file, top_n):
        unknown = [name for name in listed if name.rpartition(":")[0] not in known]
        num_listed += len(listed)
        num_unknown += len(unknown)
        example = example or next(iter(unknown), "")
        scores = rated.get(number, {})
        hits[number] = np.array([scores[name] for name in listed if name in scores])
    if not hits:
        raise InputError(f"{submission_file} has no line of a class.")
    if num_unknown:
        text = (
            f"{num_unknown} of {num_listed} segments in {submission_file}, such as {example!r}, "
            "are of videos without ratings"
        )
        if num_unknown == num_listed:
            raise InputError(f"{text}. Give the records of these videos in --eval_data_pattern.")
        logging.warning("%s: they count as unrated", text)
    rows = []
    for label, scores in rated.items():
        positives = sum(scores.values())
        of_class = eval_util.average_precision(hits.get(label, np.zeros(0)), positives)
        rows.append(
            (
                label,
                of_class if positives else np.nan,
                positives,
                len(scores) - positives,
                label in hits,
            )
        )
    columns = ("class", "average_precision", "positives", "negatives", "listed")
    return pd.DataFrame(rows, columns=columns).set_index("class")


def main(options: SegmentEvalOptions) -> None:
    """Runs the program."""
    if options.per_class_csv:
        files.check_writable(options.per_class_csv)
    ratings = load_ratings(options)
    table = evaluate(options.submission_file, ratings, options.top_n)
    if options.per_class_csv:
        with files.atomic_write(options.per_class_csv) as file:
            table.to_csv(file)
    with_positives = table[table["positives"] > 0]
    logging.info(
        "%d rated segments and classes in %d videos, %d of them positive",
        len(ratings),
        ratings["id"].nunique(),
        ratings["score"].sum(),
    )
    logging.info(
        "mAP@%d: %.5f, the mean over the %d classes with a positive rating",
        options.top_n,
        with_positives["average_precision"].mean(),
        len(with_positives),
    )
    listed = with_positives[with_positives["listed"]]
    if len(listed) < len(with_positives):
        logging.info(
            "over the %d of them with a line in the file, as Google's tool computes it: %.5f",
            len(listed),
            listed["average_precision"].mean(),
        )


if __name__ == "__main__":
    program.run(main)
