r"""Predicts the labels of videos and writes them as CSV.

    python inference.py --train_dir=run --input_data_pattern='data/test*.tfrecord' \
        --output_file=predictions.csv

Several runs (--train_dirs) or an exported model (--exported_model) predict the same way.

The file has the columns VideoId and LabelConfidencePairs: the best classes, each with its score. It
appears only when it is complete. Until then, the predictions for finished input files are kept in
OUTPUT_FILE.parts, from which the same command resumes an interrupted run. Input files that changed
meanwhile are predicted again.
"""

import dataclasses
import time

import program
from program import Progress

from absl import logging

import files
from options import option
from prediction_file import format_lines, prediction_parts
from predictor import (
    ExportedPredictor,
    Predictor,
    PredictorOptions,
    load_predictor,
    predict_videos,
)
from readers import RecordReader
from utils import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceOptions(PredictorOptions):
    """Options of this program."""

    input_data_pattern: str = option(
        help="Globs of records to predict, comma-separated; quote them.",
        group="data",
        required=True,
        repeats=True,
    )
    output_file: str = option(
        help="CSV file to write, replaced if it exists; compressed if it ends in .gz.",
        group="output",
        required=True,
    )
    resume: bool = option(
        True,
        "Resume an interrupted run of the same command from OUTPUT_FILE.parts, without predicting "
        "finished and unchanged input files again. --noresume starts over.",
        group="output",
    )


def write_predictions(
    predictor: Predictor | ExportedPredictor,
    reader: RecordReader,
    output_file: str,
    *,
    batch_size: int,
    top_k: int = 20,
    resume: bool = True,
) -> int:
    """Predicts all videos of a reader, one input file after another, and writes a CSV file.

    The file appears under its name only when it is complete. Until then, each finished input file
    has a part next to it, from which another run can resume. Memory does not grow with the number
    of videos.

    Args:
        predictor: restored predictor.
        reader: reader of the records.
        output_file: path; a file that ends in `.gz` is compressed.
        batch_size: videos per batch; a batch holds videos of one file.
        top_k: classes per video.
        resume: whether to use the parts of an interrupted run; otherwise they are removed.

    Returns:
        The number of videos in the file.

    Raises:
        InputError: if there is no video, too many records are corrupt, a record does not fit, the
            parts belong to another run, or another process writes the file.
    """
    settings = {
        **predictor.identity(),
        "batch_size": batch_size,
        "top_k": top_k,
        "missing_features": reader.missing_features,
        "trim_features": reader.trim_features,
    }
    with prediction_parts(output_file, settings, reader.paths, resume=resume) as parts:
        parts.restore_corrupt_records(reader.corrupt_records)
        _write_parts(predictor, reader, parts, batch_size, top_k)
        num_videos = parts.num_videos()
        if num_videos == 0:
            raise InputError(f"no video in {len(reader.paths)} files, such as {reader.paths[0]}")
    return num_videos


def _write_parts(predictor, reader, parts, batch_size, top_k):
    """Writes the parts that are not finished."""
    predicted = done_bytes = 0
    start = time.perf_counter()
    with Progress(reader.total_bytes, "B") as progress:
        for number, path in enumerate(reader.paths):
            if not parts.is_finished(number):
                before, file_reader = predicted, reader.for_file(path)
                with parts.open(number) as part:
                    for batch in file_reader.batches(batch_size):
                        predictions = predict_videos(predictor, batch.video_ids, batch.inputs)
                        part.write(format_lines(batch.video_ids, predictions, top_k))
                        predicted += len(batch.video_ids)
                        rate = predicted / (time.perf_counter() - start)
                        progress.tick(
                            done_bytes + file_reader.bytes_read,
                            f"predicted {predicted} videos, {rate:.0f} videos/s",
                        )
                parts.finish(number, predicted - before, reader.corrupt_records)
            done_bytes += files.file_size(path)


def main(options: InferenceOptions) -> None:
    """Runs the program."""
    files.check_writable(options.output_file)
    paths = files.expand_patterns(options.input_data_pattern)
    files.check_not_input(options.output_file, paths)
    predictor = load_predictor(options)
    predictor.restore(options.checkpoint)
    reader = predictor.data.reader(paths, options, with_labels=False)
    start = time.perf_counter()
    num_videos = write_predictions(
        predictor,
        reader,
        options.output_file,
        batch_size=options.batch_size,
        top_k=options.top_k,
        resume=options.resume,
    )
    logging.info(
        "%d videos predicted by %s, %.1f s, %d corrupt records skipped: %s",
        num_videos,
        predictor.describe(),
        time.perf_counter() - start,
        reader.corrupt_records.count,
        files.absolute(options.output_file),
    )


if __name__ == "__main__":
    program.run(main)
