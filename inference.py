"""Predicts the labels of videos and writes them as CSV.

    python inference.py --train_dir=run --input_data_pattern='data/test*.tfrecord' \
        --output_file=predictions.csv

Several runs (--train_dirs) or an exported model (--exported_model) predict just so.

The file has the columns VideoId and LabelConfidencePairs: the best classes, each with its score. It
appears when it is whole. What an interrupted run has finished is kept beside it, input file by
input file; the same command goes on with it.
"""

import time

from absl import flags, logging

import files
import predictor as predictors
import program
from prediction_file import PredictionParts, format_lines
from progress import Progress
from utils import InputError


def write_predictions(predictor, reader, output_file, *, batch_size, top_k=20, resume=True):
    """Predicts all videos of a reader, one file after the other, and writes a CSV file.

    The file appears under its name only when it is whole. Until then each finished input file has
    a part beside it, with which another run can go on. Memory does not grow with the number of
    videos.

    Args:
        predictor: `Predictor`, restored, or `ExportedPredictor`.
        reader: `readers.RecordReader`.
        output_file: str. Path; one that ends in `.gz` is compressed.
        batch_size: int. Videos per batch; those of a batch are of one file.
        top_k: int. Classes per video.
        resume: bool. Whether to go on with the parts of an interrupted run, if there are any;
            else they are removed.

    Returns:
        The number of videos in the file.

    Raises:
        InputError: if a record is damaged beyond what may be skipped, or does not fit, or there is
            no video, or there are parts that this run may not use.
    """
    settings = {**predictor.identity(), "batch_size": batch_size, "top_k": top_k}
    parts = PredictionParts(output_file, settings, reader.paths, resume=resume)
    try:
        parts.restore_damage(reader.damage)
        _write_parts(predictor, reader, parts, batch_size, top_k)
        num_videos = parts.num_videos()
        if num_videos == 0:
            raise InputError(f"no video in {len(reader.paths)} files, as {reader.paths[0]}")
    except BaseException:
        parts.leave()
        raise
    parts.join()
    return num_videos


def _write_parts(predictor, reader, parts, batch_size, top_k):
    """Writes the parts that are not finished."""
    predicted = done_bytes = 0
    start = time.perf_counter()
    with Progress(reader.total_bytes, "B") as progress:
        for number, path in enumerate(reader.paths):
            if not parts.is_finished(number):
                before, of_file = predicted, reader.of_file(path)
                with parts.open(number) as part:
                    for batch in of_file.batches(batch_size):
                        predictions = predictors.predict_videos(
                            predictor, batch.video_ids, batch.inputs
                        )
                        part.write(format_lines(batch.video_ids, predictions, top_k))
                        predicted += len(batch.video_ids)
                        rate = predicted / (time.perf_counter() - start)
                        progress.tick(
                            done_bytes + of_file.bytes_read,
                            f"predicted {predicted} videos, {rate:.0f} videos/s",
                        )
                parts.finish(number, predicted - before, reader.damage)
            done_bytes += files.file_size(path)


def define_flags(flag_values):
    """Defines the flags of this program."""
    predictors.define_flags(flag_values)
    program.define_flags(flag_values, "input_data_pattern")
    flags.DEFINE_string(
        "output_file",
        None,
        "CSV file to write; compressed if it ends in .gz.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "resume",
        True,
        "Goes on with what an interrupted run of the same command left in OUTPUT_FILE.parts: input "
        "files that it finished are not read again. --noresume starts over.",
        flag_values=flag_values,
    )


def main(flag_values):
    """Runs the program."""
    predictors.use_environment(flag_values)
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
        resume=flag_values.resume,
    )
    logging.info(
        "%d videos predicted by %s, %.1f s, %d damaged records skipped: %s",
        num_videos,
        predictor.describe(),
        time.perf_counter() - start,
        reader.damage.count,
        files.absolute(flag_values.output_file),
    )


if __name__ == "__main__":
    program.run(main, define_flags)
