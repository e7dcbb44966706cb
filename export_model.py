"""Writes trained models as one SavedModel, ONNX file or LiteRT file.

    python export_model.py --train_dir=run --output_dir=exported
    python export_model.py --train_dirs=run1,run2,run3 --output_dir=exported --num_samplings=10

The SavedModel takes YouTube-8M records (signature serving_default) or decoded features (signature
predict). It cannot be trained; matrices are stored and multiplied in bfloat16 by default, and take
half the bytes with --dtype=int8. --format=onnx and --format=litert write a file for other runtimes
than TensorFlow. manifest.json states the origin of the model and its input.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import program
from program import Progress

import numpy as np
import tensorflow as tf
from absl import logging

import checkpoints
import eval_util
import files
import layers
import model_servers
import other_runtimes
import run_config
import serving
import vocabulary
from ensemble import (
    Ensemble,
    StackingFit,
    count_parameters,
    frozen_model,
    restore_frozen,
    trained_weights,
    with_weight,
)
from evaluation import evaluate, format_summary
from options import option, same_option
from predictor import (
    ModelOptions,
    Predictor,
    PredictorOptions,
    compiled,
    find_vocabulary,
    load_configs,
)
from readers import RecordReader
from run_config import ReadOptions
from segments.ensemble import SegmentEnsemble
from segments.predictor import (
    SegmentOptions,
    load_segment_configs,
    segment_settings,
    video_checkpoint,
)
from serving import MANIFEST, SAVED_MODEL
from utils import InputError, comma_separated

# Limit on the activations of a model in an exported graph, 40 MiB.
_MAX_FLOATS = 10 * 2**20
FROZEN_GRAPH = "frozen_graph.pb"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions, ReadOptions, SegmentOptions):
    """Options of this program."""

    output_dir: str = option(
        help="Directory to write; it must not exist yet.",
        group="output",
        required=True,
        environment="AIP_MODEL_DIR",
    )
    dtype: tuple[str, ...] = option(
        ("bfloat16",),
        "Dtype of the matrices, and of their products, which are bfloat16 for int8; everything "
        "else is float32. One for all models, or one for each of --train_dirs.",
        group="output",
        choices=layers.STORAGE_DTYPES,
    )
    bfloat16_layers: tuple[str, ...] = option(
        layers.BFLOAT16_LAYERS,
        "Layers, or single matrices, that stay bfloat16 with --dtype=int8: names, parts of paths, "
        "for example prob_gating,gru_0/candidate. model_info.py lists layers.",
        group="output",
    )
    format: str = option(
        SAVED_MODEL,
        "Format of the model. onnx is for ONNX Runtime, litert for LiteRT, also known as "
        "TensorFlow Lite. Their models take frames or vectors, no records, and use every frame "
        "once.",
        group="output",
        choices=(SAVED_MODEL, *other_runtimes.RUNTIMES),
    )
    top_k: int = option(
        20,
        "Number of classes that the signature for records returns per video.",
        group="output",
        above=0,
    )
    frozen_graph: bool = option(
        False,
        f"Also write {FROZEN_GRAPH}, one file with the graph and the weights of a single model.",
        group="output",
    )
    class_names: str | None = option(
        None,
        "vocabulary.csv of the data set, to save along with the model. Default: that of the runs.",
        group="output",
    )
    mediapipe: bool = option(
        False,
        "Make the default signature the one that MediaPipe's YouTube-8M inference graph calls: "
        "rgb_and_audio, float32 values of frames, and num_frames. The signature for records is "
        "then called records.",
        group="output",
    )
    segment_labels: bool = same_option(
        SegmentOptions,
        "segment_labels",
        help="Add the signature segments, which predicts all segments of the videos.",
    )
    fit_weights: bool = option(
        False,
        "Fit the weights of --train_dirs to --eval_data_pattern; prints the metrics of each model "
        "and of the ensemble.",
        group="model",
    )
    eval_data_pattern: str | None = option(
        None,
        "Globs of held-out records with labels for --fit_weights, comma-separated; quote them.",
        group="data",
        repeats=True,
    )
    batch_size: int = same_option(PredictorOptions, "batch_size")

    def __post_init__(self):
        """Checks options that depend on each other."""
        super().__post_init__()
        if self.frozen_graph and len(self.run_dirs) > 1:
            raise InputError("--frozen_graph is for one model: the file could not hold several.")
        if self.eval_data_pattern and not self.fit_weights:
            raise InputError("--eval_data_pattern is for --fit_weights, which is not given.")
        if self.fit_weights and not self.eval_data_pattern:
            raise InputError("--eval_data_pattern must be given with --fit_weights.")
        if self.fit_weights and (len(self.run_dirs) < 2 or self.weights):
            raise InputError("--fit_weights needs several --train_dirs, and no --weights.")
        if len(self.dtype) not in (1, len(self.run_dirs)):
            raise InputError(
                f"--dtype must be one dtype, or one for each of {len(self.run_dirs)} runs. "
                f"Received: {comma_separated(self.dtype)}"
            )
        if len(self.dtype) > 1 and self.segment_video_dirs:
            raise InputError(
                "--segment_video_dirs needs one --dtype, for its models too. Received: "
                f"{comma_separated(self.dtype)}"
            )
        if self.format != SAVED_MODEL:
            self._check_other_format()

    @property
    def dtypes(self) -> list[str]:
        """The dtype of each run."""
        count = len(self.run_dirs) if len(self.dtype) == 1 else 1
        return list(self.dtype) * count

    def _check_other_format(self):
        for name in ("frozen_graph", "mediapipe"):
            if getattr(self, name):
                raise InputError(f"--{name} is for --format={SAVED_MODEL}.")
        if self.segment_labels:
            raise InputError(f"--segment_labels needs --format={SAVED_MODEL}.")
        if set(self.dtype) != {"float32"}:
            raise InputError(
                f"--format={self.format} stores matrices in float32. Add --dtype=float32."
            )
        other_runtimes.check_requirements(self.format)


def export(options: ExportOptions) -> dict:
    """Writes the models of training runs as one model.

    The directory appears under its name only when it is complete.

    Args:
        options: models, output and how the graph predicts.

    Returns:
        The content of manifest.json.

    Raises:
        InputError: if the runs do not fit together, or the directory cannot be written.
    """
    configs, video_configs = _load_configs(options)
    data = configs[0].data
    if options.mediapipe and not data.frame_level:
        raise InputError(
            "--mediapipe is for frame-level models, but that of the run is video-level."
        )
    names_of_runs = find_vocabulary(options.run_dirs)  # Also checks that they agree.
    class_names = options.class_names or names_of_runs
    if class_names:
        vocabulary.read_class_names(class_names, data.num_classes)
    kept, weights = with_weight(
        options.run_dirs, fitted_weights(options) if options.fit_weights else options.weights
    )
    train_dirs, dtypes = (
        [values[number] for number in kept] for values in (options.run_dirs, options.dtypes)
    )
    configs = [configs[number] for number in kept]
    for train_dir in train_dirs:
        checkpoints.find(train_dir, options.checkpoint)  # Fails before models are built.
    with files.atomic_directory(options.output_dir) as partial:
        ensemble, described = _restored_ensemble(options, train_dirs, configs, dtypes, weights, "m")
        segment_ensemble, segments = _segment_ensemble(
            options, ensemble, described, configs, video_configs
        )
        models = ensemble.models if segment_ensemble is None else segment_ensemble.models
        _check_layers(models, options.bfloat16_layers)
        num_weights = sum(map(count_parameters, models))
        logging.info("tracing the graph, with %s weights", f"{num_weights:,}")
        logging.info("writing %s", files.absolute(options.output_dir))
        with _without_info():
            if options.format == SAVED_MODEL:
                _write_saved_model(options, ensemble, data, class_names, partial, segment_ensemble)
            else:
                other_runtimes.write(options.format, ensemble, data, partial, class_names)
        manifest = {
            "format": options.format,
            "models": described,
            **({"segments": segments} if segments else {}),
            "data": dataclasses.asdict(data),
            "label_loss": configs[0].label_loss,
            "loss_hyperparameters": configs[0].loss_hyperparameters,
            "bfloat16_layers": list(options.bfloat16_layers),
            "use_ema": options.use_ema,
            "seed": options.seed,
            "top_k": options.top_k,
            "parameters": num_weights,
            "bytes": serving.size(partial),
            "versions": run_config.versions(),
        }
        manifest["digest"] = serving.digest(partial, manifest)
        files.write_json(os.path.join(partial, MANIFEST), manifest)
    return manifest


def _load_configs(options):
    """Returns the configs of the runs, and those of the runs that predict whole videos."""
    if options.segment_labels:
        return load_segment_configs(options.run_dirs, options.segment_video_dirs or ())
    return load_configs(options.run_dirs), []


def _write_saved_model(options, ensemble, data, class_names, folder, segment_ensemble):
    module = serving.make_module(
        ensemble, data, options.top_k, class_names, options.mediapipe, segment_ensemble
    )
    tf.saved_model.save(module, folder, signatures=module.served)
    # Holds a random id and checksums; nothing needs it.
    files.remove(os.path.join(folder, "fingerprint.pb"))
    model_servers.write_warm_up(module.served, data, folder)
    if options.frozen_graph:
        serving.write_frozen_graph(module, os.path.join(folder, FROZEN_GRAPH))


def _restored_ensemble(options, train_dirs, configs, dtypes, weights, prefix):
    """Restores the models of training runs.

    Args:
        options: `ExportOptions`.
        train_dirs: directories of the runs.
        configs: their configs.
        dtypes: dtype of each run.
        weights: one weight per run; None for equal weights.
        prefix: beginning of the names of the models.

    Returns:
        `(ensemble, described)`: their `Ensemble`, and for each a dict for the manifest.
    """
    models, paths = [], []
    runs = zip(configs, train_dirs, dtypes, strict=True)
    for number, (config, train_dir, dtype) in enumerate(runs):
        logging.info("restoring model %d of %d: %s", number + 1, len(configs), train_dir)
        # The names of all nodes begin with the model's name, so it is short.
        name = f"{prefix}{number}"
        models.append(frozen_model(config, dtype, name, options.bfloat16_layers))
        restore = functools.partial(restore_frozen, models[-1], config, use_ema=options.use_ema)
        paths.append(checkpoints.restore(train_dir, options.checkpoint, restore))
    ensemble = Ensemble(
        models,
        weights=weights,
        num_samplings=options.num_samplings,
        seed=options.seed,
        max_floats=_MAX_FLOATS,
    )
    described = [
        {
            "step": checkpoints.step_of(path),
            "weight": weight,
            "num_samplings": num_samplings,
            "dtype": dtype,
            "parameters": count_parameters(model),
            "embedding_size": model.embedding_size,
            "config": dataclasses.asdict(config),
        }
        for config, path, model, dtype, weight, num_samplings in zip(
            configs, paths, models, dtypes, ensemble.weights, ensemble.num_samplings, strict=True
        )
    ]
    return ensemble, described


def _segment_ensemble(options, ensemble, described, configs, video_configs):
    """Returns the `SegmentEnsemble` of the options and a dict for the manifest, or None for both.

    Args:
        options: `ExportOptions`.
        ensemble: restored models of `--train_dir` or `--train_dirs`.
        described: what the manifest says of them.
        configs: their configs.
        video_configs: configs of the runs that predict whole videos.
    """
    if not options.segment_labels:
        return None, None
    settings = segment_settings(configs, options)
    video_dirs = list(options.segment_video_dirs or ())
    video_ensemble, video_models = None, []
    if video_dirs == options.run_dirs:
        video_ensemble, video_models = ensemble, described
    elif video_dirs:
        video_options = dataclasses.replace(
            options, checkpoint=video_checkpoint(options.checkpoint)
        )
        video_ensemble, video_models = _restored_ensemble(
            video_options, video_dirs, video_configs, options.dtype * len(video_dirs), None, "v"
        )
    segments = {"settings": dataclasses.asdict(settings), "video_models": video_models}
    return SegmentEnsemble(ensemble, settings, video_ensemble), segments


def _check_layers(models, names):
    """Raises an error if a name of `--bfloat16_layers` is neither in a model nor a default."""
    paths = [path for model in models for path in trained_weights(model)]
    for name in set(names).difference(layers.BFLOAT16_LAYERS):
        if not any(layers.is_one_of(path, [name]) for path in paths):
            raise InputError(
                f"--bfloat16_layers: the models have no layer {name}. model_info.py lists layers."
            )


@contextlib.contextmanager
def _without_info() -> Iterator[None]:
    """Keeps TensorFlow from logging the names of all inputs, and converters their progress."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def fit_weights(
    predictor: Predictor,
    reader: RecordReader,
    names: Sequence[str],
    *,
    batch_size: int,
    top_k: int = 20,
) -> np.ndarray:
    """Fits the weights of an ensemble to held-out data, and logs the GAP of each model.

    Args:
        predictor: restored predictor of several runs.
        reader: reader of data that no model was trained on.
        names: names of the models for the log.
        batch_size: videos per batch.
        top_k: predictions per video that count for GAP.

    Returns:
        The weights, an array that sums to 1.
    """
    ensemble = predictor.ensemble
    predict_members = compiled(ensemble.member_predictions)
    fit = StackingFit(len(ensemble.models))
    metrics = [
        eval_util.EvaluationMetrics(predictor.data.num_classes, top_k) for _ in ensemble.models
    ]
    with Progress(reader.total_bytes, "B") as progress:
        for batch in reader.batches(batch_size):
            predictions = predict_members(batch.inputs)
            fit.accumulate(predictions, batch.labels)
            for member, values in zip(metrics, predictions, strict=True):
                member.accumulate(values, batch.labels, 0.0)
            progress.tick(reader.bytes_read, f"fitted to {metrics[0].num_videos} videos")
    weights = fit.weights()
    for name, member, weight in zip(names, metrics, weights, strict=True):
        logging.info("%s: GAP@%d %.4f, weight %.4f", name, top_k, member.get()["gap"], weight)
    return weights


def fitted_weights(options: ExportOptions) -> np.ndarray:
    """Returns the weights for --fit_weights, and logs their effect."""
    paths = files.expand_patterns(options.eval_data_pattern or "")
    settings: dict[str, Any] = {"batch_size": options.batch_size, "top_k": options.top_k}

    def restored(weights=None):
        predictor = Predictor(
            options.run_dirs,
            weights=weights,
            num_samplings=options.num_samplings,
            seed=options.seed,
            use_ema=options.use_ema,
            compute_dtype=options.dtypes,
            bfloat16_layers=options.bfloat16_layers,
        )
        predictor.restore()
        return predictor

    predictor = restored()
    equal, _ = evaluate(predictor, predictor.data.reader(paths, options), **settings)
    logging.info("equal weights: %s", format_summary(equal))
    weights = fit_weights(
        predictor, predictor.data.reader(paths, options), options.run_dirs, **settings
    )
    predictor = restored(weights)
    fitted, _ = evaluate(predictor, predictor.data.reader(paths, options), **settings)
    logging.info(
        "fitted weights %s: %s", comma_separated(np.round(weights, 4)), format_summary(fitted)
    )
    return weights


def main(options: ExportOptions) -> None:
    """Runs the program."""
    files.check_new_directory(options.output_dir)
    manifest = export(options)
    logging.info(
        "exported %d model(s), %s weights in %s, %.1f MiB, digest %s: %s",
        len(manifest["models"]),
        f"{manifest['parameters']:,}",
        comma_separated(sorted({model["dtype"] for model in manifest["models"]})),
        manifest["bytes"] / 2**20,
        manifest["digest"],
        files.absolute(options.output_dir),
    )


if __name__ == "__main__":
    program.run(main)
