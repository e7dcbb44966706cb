"""Predicts the labels of videos and writes them as CSV.

    python inference.py --train_dir=run --input_data_pattern='data/test*.tfrecord' \
        --output_file=predictions.csv

Several runs (--train_dirs) or an exported model (--exported_model) predict just so.

The file has the columns VideoId and LabelConfidencePairs: the best classes, each with its score.
"""

import csv
import os
import time

from absl import flags, logging

import eval_util
import files
import predictor as predictors
import program
from progress import Progress

HEADER = ("VideoId", "LabelConfidencePairs")


def write_predictions(predictor, reader, output_file, *, batch_size, top_k=20):
    """Predicts all videos of a reader and writes a CSV file.

    The file appears under its name only when it is whole. Memory does not grow with the number of
    videos.

    Args:
        predictor: `Predictor`, restored, or `ExportedPredictor`.
        reader: `readers.RecordReader`.
        output_file: str. Path; one that ends in `.gz` is compressed.
        batch_size: int. Videos per batch.
        top_k: int. Classes per video.

    Returns:
        The number of videos.
    """
    num_videos, start = 0, time.perf_counter()
    with files.atomic_write(output_file) as file, Progress(reader.total_bytes, "B") as progress:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for batch in reader.batches(batch_size):
            writer.writerows(format_rows(batch.video_ids, predictor.predict(batch.inputs), top_k))
            num_videos += len(batch.video_ids)
            rate = num_videos / (time.perf_counter() - start)
            progress.tick(reader.bytes_read, f"predicted {num_videos} videos, {rate:.0f} videos/s")
    return num_videos


def format_rows(video_ids, predictions, top_k):
    """Rows of the CSV file: `(id, "class score class score ...")`, best first."""
    classes, scores = eval_util.top_k_predictions(predictions, top_k)
    for video_id, row_classes, row_scores in zip(
        video_ids, classes.tolist(), scores.tolist(), strict=True
    ):
        pairs = zip(row_classes, row_scores, strict=True)
        yield video_id, " ".join(f"{label} {score:g}" for label, score in pairs)


def define_flags(flag_values):
    """Defines the flags of this program."""
    predictors.define_flags(flag_values)
    flags.DEFINE_string(
        "input_data_pattern",
        None,
        "Globs of records to predict, comma-separated; quote them.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "output_file",
        None,
        "CSV file to write; compressed if it ends in .gz.",
        flag_values=flag_values,
    )


def main(flag_values):
    """Runs the program."""
    program.require_flags(flag_values, "input_data_pattern", "output_file")
    files.check_writable(flag_values.output_file)
    predictor = predictors.from_flags(flag_values)
    predictor.restore(flag_values.checkpoint)
    reader = predictors.reader_from_flags(flag_values, predictor, flag_values.input_data_pattern)
    start = time.perf_counter()
    num_videos = write_predictions(
        predictor,
        reader,
        flag_values.output_file,
        batch_size=flag_values.batch_size,
        top_k=flag_values.top_k,
    )
    logging.info(
        "predicted %d videos by %s, %.0f videos/s, %d damaged records skipped: %s",
        num_videos,
        predictor.describe(),
        num_videos / (time.perf_counter() - start),
        reader.damage.count,
        os.path.abspath(flag_values.output_file),
    )


if __name__ == "__main__":
    program.run(main, define_flags)
