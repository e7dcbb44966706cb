r"""Predicts the labels of videos and writes them as CSV, JSON lines or Parquet.

    python inference.py --train_dir=run --input_data_pattern='data/test*.tfrecord' \
        --output_file=predictions.csv

Several runs (--train_dirs) or an exported model (--exported_model) predict the same way.

The file has the columns VideoId and LabelConfidencePairs: the best classes, each with its score.
--output_format selects other formats, which also hold class names. The file appears only when it is
complete. Until then, the predictions for finished input files are kept in OUTPUT_FILE.parts, from
which the same command resumes an interrupted run. Input files that changed meanwhile are predicted
again.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping

import program
from program import Progress

from absl import logging

import files
from options import option
from prediction_file import FORMATS, check_format, format_lines, prediction_parts
from predictor import (
    ExportedPredictor,
    Predictor,
    PredictorOptions,
    load_class_names,
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
        help="File to write, replaced if it exists; compressed if it ends in .gz.",
        group="output",
        required=True,
    )
    output_format: str = option(
        "kaggle",
        "kaggle: CSV with a line per video, `id,class score class score ...`; csv: a line per "
        "prediction, with id, rank, class, name and score; jsonl: a JSON object per video; "
        "parquet: the rows of csv.",
        group="output",
        choices=tuple(FORMATS),
    )
    class_names: str | None = option(
        None,
        "vocabulary.csv for the class names in all formats except kaggle. Default: the vocabulary "
        "of the training run or of --exported_model, if it has one.",
        group="output",
    )
    resume: bool = option(
        True,
        "Resume an interrupted run of the same command from OUTPUT_FILE.parts, without predicting "
        "finished and unchanged input files again. --noresume starts over.",
        group="output",
    )

    def __post_init__(self):
        """Checks options that depend on each other."""
        super().__post_init__()
        check_format(self.output_format, self.output_file)
        if self.class_names and not FORMATS[self.output_format].has_names:
            raise InputError(
                f"--class_names was given, but --output_format={self.output_format} holds no "
                "names. Choose another format, or leave out --class_names."
            )


def write_predictions(
    predictor: Predictor | ExportedPredictor,
    reader: RecordReader,
    output_file: str,
    *,
    batch_size: int,
    top_k: int = 20,
    resume: bool = True,
    output_format: str = "kaggle",
    class_names: Mapping[int, str] | None = None,
) -> int:
    """Predicts all videos of a reader, one input file after another, and writes a file.

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
        output_format: key of `prediction_file.FORMATS`.
        class_names: names by class, or None; the format kaggle ignores them.

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
        "class_names": class_names,
    }
    format_batch = functools.partial(
        format_lines, top_k=top_k, output_format=output_format, class_names=class_names
    )
    with prediction_parts(
        output_file, settings, reader.paths, resume=resume, output_format=output_format
    ) as parts:
        parts.restore_corrupt_records(reader.corrupt_records)
        _write_parts(predictor, reader, parts, batch_size, format_batch)
        num_videos = parts.num_videos()
        if num_videos == 0:
            raise InputError(f"no video in {len(reader.paths)} files, such as {reader.paths[0]}")
    return num_videos


def _write_parts(predictor, reader, parts, batch_size, format_batch):
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
                        part.write(format_batch(batch.video_ids, predictions))
                        predicted += len(batch.video_ids)
                        rate = predicted / (time.perf_counter() - start)
                        progress.tick(
                            done_bytes + file_reader.bytes_read,
                            f"predicted {predicted} videos, {rate:.0f} videos/s",
                        )
                parts.finish(number, predicted - before, reader.corrupt_records)
            done_bytes += files.file_size(path)


def find_class_names(
    options: InferenceOptions, predictor: Predictor | ExportedPredictor
) -> Mapping[int, str] | None:
    """Returns the class names for the prediction file by class, or None if there are none.

    Raises:
        InputError: if they cannot be read, or do not fit the model.
    """
    if not FORMATS[options.output_format].has_names:
        return None
    return load_class_names(predictor, options.class_names)


def main(options: InferenceOptions) -> None:
    """Runs the program."""
    files.check_writable(options.output_file)
    paths = files.expand_patterns(options.input_data_pattern)
    files.check_not_input(options.output_file, paths)
    predictor = load_predictor(options)
    class_names = find_class_names(options, predictor)
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
        output_format=options.output_format,
        class_names=class_names,
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
