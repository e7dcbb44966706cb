"""The steps of prediction on a cluster with Apache Beam, which must be installed."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from absl import logging
from apache_beam.metrics.metric import Metrics, MetricsFilter
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from prediction_file import HEADER, format_lines
from predictor import ExportedPredictor, predict_videos
from run_config import DataConfig, ReadOptions
from utils import InputError


class ReadBatches(beam.DoFn):
    """Reads input files: from paths to batches `(video_ids, inputs)`.

    A batch holds videos of one file. The number of corrupt records of each file goes to the output
    `corrupt`.

    Args:
        data: data that the model takes.
        paths: all input files; the first records show whether they fit the model at all.
        batch_size: videos per batch.
        options: how to read records.
    """

    def __init__(
        self, data: DataConfig, paths: Sequence[str], batch_size: int, options: ReadOptions
    ):
        self._data = data
        self._paths = paths
        self._batch_size = batch_size
        # Not a subclass of a program, whose module the workers cannot import.
        self._options = ReadOptions(**options.read_options())

    def process(self, path: str) -> Iterator:
        """Reads one file."""
        reader = self._data.reader(self._paths, self._options, with_labels=False).for_file(path)
        for batch in reader.batches(self._batch_size):
            Metrics.counter("predict_beam", "videos").inc(len(batch.video_ids))
            yield batch.video_ids, batch.inputs
        Metrics.counter("predict_beam", "corrupt_records").inc(reader.corrupt_records.count)
        yield beam.pvalue.TaggedOutput("corrupt", reader.corrupt_records.count)


class ExportedModelHandler(ModelHandler):
    """Turns batches into lines of the prediction file with an exported model.

    Beam's own handlers for TensorFlow load Keras models and stack single tensors. Each process
    loads the model once.

    Args:
        export_dir: directory that export_model.py wrote.
        top_k: classes per video.
    """

    def __init__(self, export_dir: str, top_k: int):
        super().__init__(max_batch_size=1)  # ReadBatches already makes batches.
        self._export_dir = export_dir
        self._top_k = top_k

    def load_model(self) -> ExportedPredictor:
        """Loads the model."""
        return ExportedPredictor(self._export_dir)

    def run_inference(
        self, batch: Sequence, model: ExportedPredictor, inference_args: Any = None
    ) -> Iterator[str]:
        """Yields the lines of each `(video_ids, inputs)` as one str, without the last newline."""
        for video_ids, inputs in batch:
            predictions = predict_videos(model, video_ids, inputs)
            lines = format_lines(video_ids, predictions, self._top_k)
            yield lines.removesuffix("\n")


def check_num_corrupt(count: int, max_corrupt: int) -> int:
    """Returns the number of corrupt records in all files.

    Raises:
        InputError: if there are more than `max_corrupt`.
    """
    if count > max_corrupt:
        raise InputError(
            f"{count} records are corrupt, but at most {max_corrupt} are allowed. To skip more, "
            "pass --skip_corrupt_records with a larger number."
        )
    return count


def build(
    pipeline: beam.Pipeline,
    paths: Sequence[str],
    read: ReadBatches,
    handler: ExportedModelHandler,
    output_prefix: str,
    max_corrupt: int,
) -> None:
    """Adds all steps to a Beam pipeline.

    Args:
        pipeline: pipeline without steps.
        paths: input files.
        read: step that reads them.
        handler: step that predicts.
        output_prefix: start of the names of the files to write.
        max_corrupt: number of corrupt records allowed.
    """
    batches, corrupt = (
        pipeline
        | "Paths" >> beam.Create(paths)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(read).with_outputs("corrupt", main="batches")
    )
    num_corrupt = (
        corrupt
        | "Sum corrupt" >> beam.CombineGlobally(sum)
        | "Check corrupt" >> beam.Map(check_num_corrupt, max_corrupt)
    )
    (
        batches
        | "Predict" >> RunInference(handler)
        # As a side input, so that nothing is written before the number is known.
        | "Wait" >> beam.Map(lambda lines, _: lines, beam.pvalue.AsSingleton(num_corrupt))
        | "Write" >> beam.io.WriteToText(output_prefix, file_name_suffix=".csv", header=HEADER)
    )


@contextlib.contextmanager
def _captured_output_of_workers() -> Iterator[None]:
    """Shows what worker processes on this machine write to stderr only if the pipeline fails.

    They log every connection, and the log of this process has their errors.
    """
    handler = logging.get_absl_handler().python_handler
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured, os.fdopen(os.dup(2), "w") as terminal:
        stream = handler.setStream(terminal)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except Exception:
            captured.seek(0)
            terminal.write(captured.read().decode("utf-8", "replace"))
            raise
        finally:
            terminal.flush()
            os.dup2(terminal.fileno(), 2)
            handler.setStream(stream)


def run(
    paths: Sequence[str],
    read: ReadBatches,
    handler: ExportedModelHandler,
    output_prefix: str,
    *,
    max_corrupt: int = 0,
    options: Sequence[str] = (),
) -> tuple[int, int]:
    """Runs the whole prediction.

    Args:
        paths: input files.
        read: step that reads them.
        handler: step that predicts.
        output_prefix: start of the names of the files to write.
        max_corrupt: number of corrupt records allowed in all files together.
        options: Beam's own flags.

    Returns:
        The number of videos, and of skipped corrupt records.
    """
    pipeline = beam.Pipeline(options=PipelineOptions([*options]))
    build(pipeline, paths, read, handler, output_prefix, max_corrupt)
    with _captured_output_of_workers():
        result = pipeline.run()
        result.wait_until_finish()
    num_videos, num_corrupt = (
        sum(
            counter.result
            for counter in result.metrics().query(MetricsFilter().with_name(name))["counters"]
        )
        for name in ("videos", "corrupt_records")
    )
    return num_videos, num_corrupt
