r"""Predicts the labels of videos, or computes their embeddings, and writes them to a file.

    python inference.py --train_dir=run --input_data_pattern='data/test*.tfrecord' \
        --output_file=predictions.csv

Several runs (--train_dirs) or an exported model (--exported_model) predict the same way.

The file has the columns VideoId and LabelConfidencePairs: the best classes, each with its score.
--output_format selects other formats, which also hold class names. --output=embeddings writes the
vector before the classifier for each video instead, --segment_labels predicts the segments of
videos: a list of the best ones for each class, or, with --output_format=timeline, when each class
occurs. The file appears only when it is complete.
Until then, the predictions for finished input files are kept in OUTPUT_FILE.parts, from
which the same command resumes an interrupted run. Input files that changed meanwhile are predicted
again.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import program
from program import Progress

from absl import logging

import embedding_file
import files
import prediction_file
from options import option, same_option
from prediction_file import FileKind, check_format, format_lines, prediction_parts
from predictor import (
    ExportedPredictor,
    Predictor,
    PredictorOptions,
    embed_videos,
    load_class_names,
    load_predictor,
    predict_videos,
)
from readers import RecordReader
from segments.predictor import (
    ExportedSegmentPredictor,
    SegmentOptions,
    SegmentPredictor,
    load_segment_configs,
    load_segment_predictor,
    predict_segments,
)
from segments.submission import Submission, SubmissionOptions
from segments.timeline import Timeline, TimelineOptions
from utils import InputError, comma_separated, one_ahead

# By output and name; the first format of each is its default.
FORMATS: dict[str, Mapping[str, FileKind]] = {
    "predictions": prediction_file.FORMATS,
    "embeddings": embedding_file.FORMATS,
    "segments": {kind.name: kind for kind in (Submission.kind, Timeline.kind)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceOptions(PredictorOptions, SubmissionOptions, TimelineOptions, SegmentOptions):
    """Options of this program."""

    input_data_pattern: str = option(
        help="Globs of records to predict, comma-separated; quote them.",
        group="data",
        required=True,
        repeats=True,
    )
    output_file: str = option(
        help="File to write, replaced if it exists; text is compressed if it ends in .gz.",
        group="output",
        required=True,
    )
    top_k: int = same_option(
        PredictorOptions, "top_k", help="Best classes per video; for segments, all classes count."
    )
    output: str = option(
        "predictions",
        "predictions: the best classes of each video; embeddings: the vector before the classifier "
        "of a frame-level model, float32.",
        group="output",
        choices=("predictions", "embeddings"),
    )
    output_format: str | None = option(
        None,
        "Of predictions, kaggle (the default): CSV with a line per video, `id,class score class "
        "score ...`; csv: a line per prediction, with id, rank, class, name and score; jsonl: a "
        "JSON object per video; parquet: the rows of csv. Of embeddings, npy (the default): an "
        "array with a row per video, and OUTPUT_FILE.ids.txt (without .npy) with the id of each "
        "row; parquet: id and embedding. Of segments, kaggle (the default): CSV with a line per "
        "class, its best segments; timeline, which implies --segment_labels: CSV with a row for "
        "each occurrence of a class, `id,start,end,...`.",
        group="output",
        choices=tuple(dict.fromkeys(name for formats in FORMATS.values() for name in formats)),
    )
    embedding_member: int | None = option(
        None,
        "Model of an ensemble, counted from 0, whose embeddings to write. Default: those of all "
        "models side by side.",
        group="output",
        at_least=0,
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
        if self.output_format == Timeline.kind.name:
            object.__setattr__(self, "segment_labels", True)
        super().__post_init__()
        if self.segment_labels and self.output != "predictions":
            raise InputError(f"--output={self.output} is of whole videos. Leave out segments.")
        content = "segments" if self.segment_labels else self.output
        if self.output_format is None:
            object.__setattr__(self, "output_format", next(iter(FORMATS[content])))
        if self.output_format not in FORMATS[content]:
            flag = "--segment_labels" if self.segment_labels else f"--output={self.output}"
            raise InputError(
                f"--output_format={self.output_format} is not for {flag}, which has the formats "
                f"{comma_separated(FORMATS[content])}."
            )
        is_timeline = self.output_format == Timeline.kind.name
        self.check_needed(TimelineOptions, is_timeline, "--output_format=timeline")
        is_submission = self.segment_labels and not is_timeline
        need = "--segment_labels with --output_format=kaggle"
        self.check_needed(SubmissionOptions, is_submission, need)
        check_format(self.file_format, self.output_file)
        if self.class_names and not self.file_format.has_names:
            raise InputError(
                f"--class_names was given, but --output_format={self.output_format} holds no "
                f"names of classes with --output={self.output}. Choose another format, or leave "
                "out --class_names."
            )
        if self.embedding_member is not None and self.output != "embeddings":
            raise InputError("--embedding_member is for --output=embeddings.")

    @property
    def file_format(self) -> FileKind:
        """Format of the file to write."""
        content = "segments" if self.segment_labels else self.output
        return FORMATS[content][str(self.output_format)]

    @property
    def output_files(self) -> list[str]:
        """All files to write."""
        is_array = self.file_format.name == "npy"
        return [
            self.output_file,
            *([embedding_file.ids_path(self.output_file)] if is_array else []),
        ]


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

    def lines(video_ids, predictions):
        return format_lines(video_ids, predictions, top_k, output_format, class_names)

    settings = {**predictor.identity(), "top_k": top_k, "class_names": class_names}
    file_format = prediction_file.FORMATS[output_format]
    predict = functools.partial(predict_videos, predictor)
    return _write_file(
        reader, output_file, file_format, settings, predict, lines, batch_size, resume
    )


def write_embeddings(
    predictor: Predictor | ExportedPredictor,
    reader: RecordReader,
    output_file: str,
    *,
    batch_size: int,
    resume: bool = True,
    output_format: str = "npy",
    member: int | None = None,
) -> int:
    """Writes the embeddings of all videos of a reader, like `write_predictions`.

    Args:
        predictor: restored predictor.
        reader: reader of the records.
        output_file: path; see `embedding_file.ids_path` for a second file.
        batch_size: videos per batch; a batch holds videos of one file.
        resume: whether to use the parts of an interrupted run; otherwise they are removed.
        output_format: key of `embedding_file.FORMATS`.
        member: number of the model whose embeddings to write; None for all models side by side.

    Returns:
        The number of videos in the file.

    Raises:
        InputError: as `write_predictions`, or if there is no such model, or a model has no
            embeddings.
    """
    sizes = predictor.embedding_sizes
    columns = slice(None)
    if member is not None:
        if member >= len(sizes):
            raise InputError(
                f"--embedding_member must be below {len(sizes)}, the number of models. "
                f"Received: {member}"
            )
        columns = slice(sum(sizes[:member]), sum(sizes[: member + 1]))
    file_format = embedding_file.FORMATS[output_format]

    def lines(video_ids, embeddings):
        return file_format.lines(video_ids, embeddings[:, columns])

    settings = {**predictor.identity(), "output": "embeddings", "embedding_member": member}
    embed = functools.partial(embed_videos, predictor)
    return _write_file(reader, output_file, file_format, settings, embed, lines, batch_size, resume)


def write_segments(
    predictor: SegmentPredictor | ExportedSegmentPredictor,
    reader: RecordReader,
    output_file: str,
    *,
    batch_size: int,
    output_format: Submission | Timeline,
    resume: bool = True,
) -> int:
    """Writes predictions of the segments of all videos of a reader, like `write_predictions`.

    Args:
        predictor: restored predictor.
        reader: reader of the records.
        output_file: path; a file that ends in `.gz` is compressed.
        batch_size: videos per batch; a batch holds videos of one file.
        output_format: format of the file.
        resume: whether to use the parts of an interrupted run; otherwise they are removed.

    Returns:
        The number of videos.

    Raises:
        InputError: as `write_predictions`, or if a list cannot hold the id of a video.
    """
    settings = {**predictor.identity(), **output_format.identity()}
    file_format = output_format.file_format
    predict = functools.partial(predict_segments, predictor)
    return _write_file(
        reader, output_file, file_format, settings, predict, file_format.lines, batch_size, resume
    )


def _write_file(reader, output_file, file_format, settings, predict, lines, batch_size, resume):
    """Writes a file.

    Args:
        reader: reader of the records.
        output_file: path.
        file_format: `FileFormat` of the file.
        settings: everything else that the lines depend on.
        predict: function from ids and inputs of a batch to its vectors `[B, ...]`.
        lines: function from ids and vectors to lines.
        batch_size: videos per batch.
        resume: whether to use the parts of an interrupted run.
    """
    settings = {
        **settings,
        "batch_size": batch_size,
        "missing_features": reader.missing_features,
        "trim_features": reader.trim_features,
    }
    with prediction_parts(
        output_file, settings, reader.paths, resume=resume, file_format=file_format
    ) as parts:
        parts.restore_corrupt_records(reader.corrupt_records)
        _write_parts(reader, parts, batch_size, predict, lines)
        num_videos = parts.num_videos()
        if num_videos == 0:
            raise InputError(f"no video in {len(reader.paths)} files, such as {reader.paths[0]}")
    return num_videos


def _write_parts(reader, parts, batch_size, predict, lines):
    """Writes the parts that are not finished, while threads read and predict the next batches."""
    finished, numbers = [], []
    for number in range(len(reader.paths)):
        (finished if parts.is_finished(number) else numbers).append(number)
    done_bytes = sum(files.file_size(reader.paths[number]) for number in finished)

    def predict_all():
        for batch in reader.file_batches(batch_size, numbers, parts.note_input):
            yield batch and (batch.video_ids, predict(batch.video_ids, batch.inputs))

    predicted = 0
    start = time.perf_counter()
    with (
        Progress(reader.total_bytes, "B") as progress,
        contextlib.closing(one_ahead(predict_all())) as predictions,
    ):
        for number in numbers:
            before = predicted
            with parts.open(number) as part:
                while (found := next(predictions)) is not None:
                    part.write(lines(*found))
                    predicted += len(found[0])
                    rate = predicted / (time.perf_counter() - start)
                    progress.tick(
                        done_bytes + reader.bytes_read,
                        f"predicted {predicted} videos, {rate:.0f} videos/s",
                    )
            parts.finish(number, predicted - before, reader.corrupt_records)


def find_class_names(
    options: InferenceOptions, predictor: Predictor | ExportedPredictor
) -> Mapping[int, str] | None:
    """Returns the class names for the prediction file by class, or None if there are none.

    Raises:
        InputError: if they cannot be read, or do not fit the model.
    """
    if not options.file_format.has_names:
        return None
    return load_class_names(predictor, options.class_names)


def make_segment_format(
    options: InferenceOptions,
    predictor: SegmentPredictor | ExportedSegmentPredictor,
    paths: Sequence[str],
    class_names: Mapping[int, str] | None,
) -> Submission | Timeline:
    """Returns the format of the file of segments that the options name.

    Args:
        options: options.
        predictor: predictor of the segments.
        paths: record files.
        class_names: names by class, or None.

    Raises:
        InputError: if a file that the format needs does not fit.
    """
    if options.file_format is Timeline.kind:
        return Timeline(options, predictor.settings, paths, class_names)
    return Submission(options, predictor.settings, predictor.data.num_classes, predictor.classes)


def main(options: InferenceOptions) -> None:
    """Runs the program."""
    for path in options.output_files:
        files.check_writable(path)
    paths = files.expand_patterns(options.input_data_pattern)
    for path in options.output_files:
        files.check_not_input(path, paths)
    configs, video_configs, classes = None, None, None
    if options.segment_labels and options.run_dirs:
        configs, video_configs = load_segment_configs(
            options.run_dirs, options.segment_video_dirs or ()
        )
        classes = options.listed_classes(configs[0].num_classes)
    predictor: Any = load_predictor(options, configs, classes)
    class_names = find_class_names(options, predictor)
    output_format: Any = options.file_format.name
    if options.segment_labels:
        predictor = load_segment_predictor(predictor, options, video_configs)
        output_format = make_segment_format(options, predictor, paths, class_names)
        write: Callable = write_segments
    elif options.output == "embeddings":
        write = functools.partial(write_embeddings, member=options.embedding_member)
    else:
        write = functools.partial(write_predictions, top_k=options.top_k, class_names=class_names)
    predictor.restore(options.checkpoint)
    reader = predictor.data.reader(paths, options, with_labels=False)
    start = time.perf_counter()
    num_videos = write(
        predictor,
        reader,
        options.output_file,
        batch_size=options.batch_size,
        resume=options.resume,
        output_format=output_format,
    )
    logging.info(
        "%s of %d videos by %s, %.1f s, %d corrupt records skipped: %s",
        "segments" if options.segment_labels else options.output,
        num_videos,
        predictor.describe(),
        time.perf_counter() - start,
        reader.corrupt_records.count,
        files.absolute(options.output_file),
    )


if __name__ == "__main__":
    program.run(main)
