"""The steps of prediction on a cluster, for Apache Beam, which must be installed."""

import apache_beam as beam
from apache_beam.metrics.metric import Metrics, MetricsFilter
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

import predictor as predictors
from prediction_file import HEADER, format_lines
from utils import InputError


class ReadBatches(beam.DoFn):
    """Reads input files: a path to batches `(video_ids, inputs)`, and its damaged records.

    A batch has videos of one file, as in inference.py: what a sampling model predicts depends on
    the batch. The number of damaged records of a file goes to the output `damaged`.

    Args:
        data: `run_config.DataConfig`.
        batch_size: int. Videos per batch.
        num_readers: int. Threads that read and parse.
        skip_corrupt_records: int. How many damaged records to skip.
    """

    def __init__(self, data, batch_size, num_readers, skip_corrupt_records):
        self._data = data
        self._batch_size = batch_size
        self._options = {
            "num_readers": num_readers,
            "skip_corrupt_records": skip_corrupt_records,
        }

    def process(self, path):
        """Reads one file."""
        reader = self._data.reader_of([path], **self._options).of_file(path)
        for batch in reader.batches(self._batch_size):
            Metrics.counter("predict_beam", "videos").inc(len(batch.video_ids))
            yield batch.video_ids, batch.inputs
        Metrics.counter("predict_beam", "damaged_records").inc(reader.damage.count)
        yield beam.pvalue.TaggedOutput("damaged", reader.damage.count)


class ExportedModelHandler(ModelHandler):
    """Makes lines of the prediction file from batches, with an exported model.

    Beam's own handlers for TensorFlow load Keras models and stack single tensors. The model is
    loaded once per process.

    Args:
        export_dir: str. Directory that export_model.py wrote.
        top_k: int. Classes per video.
    """

    def __init__(self, export_dir, top_k):
        super().__init__(max_batch_size=1)  # Batches are made where files are read.
        self._export_dir = export_dir
        self._top_k = top_k

    def load_model(self):
        """Loads the model."""
        return predictors.ExportedPredictor(self._export_dir)

    def run_inference(self, batch, model, inference_args=None):
        """Yields the lines of each `(video_ids, inputs)` as one str, without the last line end."""
        for video_ids, inputs in batch:
            predictions = predictors.predict_videos(model, video_ids, inputs)
            lines = format_lines(video_ids, predictions, self._top_k)
            yield lines.removesuffix("\n")


def check_damage(count, allowed):
    """Refuses too many damaged records of all files together; returns their number.

    Raises:
        InputError: if they are more than allowed.
    """
    if count > allowed:
        raise InputError(
            f"{count} records are damaged, and {allowed} may be. To skip more, pass "
            "--skip_corrupt_records with a larger number."
        )
    return count


def build(pipeline, paths, reading, handler, output_prefix, allowed_damage):
    """Adds all steps to a Beam pipeline.

    Args:
        pipeline: `beam.Pipeline`.
        paths: list of str. Input files.
        reading: `ReadBatches`.
        handler: `ExportedModelHandler`.
        output_prefix: str. What the names of the files to write begin with.
        allowed_damage: int. How many records may be damaged.
    """
    batches, damaged = (
        pipeline
        | "Paths" >> beam.Create(paths)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(reading).with_outputs("damaged", main="batches")
    )
    damage = (
        damaged
        | "Sum damage" >> beam.CombineGlobally(sum)
        | "Check damage" >> beam.Map(check_damage, allowed_damage)
    )
    (
        batches
        | "Predict" >> RunInference(handler)
        # With the damage as an input, so that nothing is written before it is known.
        | "Wait" >> beam.Map(lambda lines, _: lines, beam.pvalue.AsSingleton(damage))
        | "Write" >> beam.io.WriteToText(output_prefix, file_name_suffix=".csv", header=HEADER)
    )


def run(paths, reading, handler, output_prefix, *, allowed_damage=0, options=()):
    """Runs the whole prediction.

    Args:
        paths: list of str. Input files.
        reading: `ReadBatches`.
        handler: `ExportedModelHandler`.
        output_prefix: str. What the names of the files to write begin with.
        allowed_damage: int. How many records may be damaged in all.
        options: sequence of str. Beam's own flags.

    Returns:
        The number of videos, and of damaged records that were skipped.
    """
    pipeline = beam.Pipeline(options=PipelineOptions([*options]))
    build(pipeline, paths, reading, handler, output_prefix, allowed_damage)
    result = pipeline.run()
    result.wait_until_finish()
    return tuple(
        sum(
            counter.result
            for counter in result.metrics().query(MetricsFilter().with_name(name))["counters"]
        )
        for name in ("videos", "damaged_records")
    )
