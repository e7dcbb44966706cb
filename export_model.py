"""Writes trained models as one SavedModel that predicts wherever TensorFlow runs.

    python export_model.py --train_dir=run --output_dir=exported
    python export_model.py --train_dirs=run1,run2,run3 --output_dir=exported --num_samplings=10

It takes YouTube-8M records (signature serving_default) or decoded features (signature predict).
Nothing in it can be trained; matrices are stored, and multiplied, in bfloat16 by default.
manifest.json tells where it comes from and what it takes.
"""

import contextlib
import dataclasses
import os

import numpy as np
import tensorflow as tf
from absl import flags, logging

import checkpoints
import evaluation
import files
import freezing
import predictor as predictors
import program
import run_config
import serving
from ensemble import Ensemble, StackingFit
from progress import Progress
from utils import InputError, listing

# An exported graph keeps its activations at about so many floats, 40 MiB, beside its weights.
_MOST_VALUES = 10 * 2**20
FROZEN_GRAPH = "frozen_graph.pb"


def export(
    train_dirs,
    output_dir,
    *,
    checkpoint=None,
    use_ema=False,
    weights=None,
    dtype="bfloat16",
    num_samplings=1,
    seed=0,
    top_k=20,
    frozen_graph=False,
    class_names=None,
):
    """Writes the models of train directories as one SavedModel.

    The directory appears under its name only when it is whole.

    Args:
        train_dirs: list of str. Directories of training runs.
        output_dir: str. Directory to write, which must not exist.
        checkpoint: str. A path prefix or a step; by default the newest one of each run.
        use_ema: bool. Whether to use the exponential moving average of the weights.
        weights: sequence of float, one per run; None for equal ones.
        dtype: str. Type in which matrices are stored and multiplied: bfloat16 or float32.
        num_samplings: int. Samplings of the frames to average over; 0 takes every frame once.
        seed: int. Of the samplings.
        top_k: int. Classes that the signature for records tells per video.
        frozen_graph: bool. Whether to write frozen_graph.pb as well, a single file.
        class_names: str. Path of the dataset's vocabulary.csv, to travel along.

    Returns:
        The content of manifest.json, a dict.

    Raises:
        InputError: if the runs do not fit together, or the directory cannot be written.
    """
    configs = predictors.load_configs(train_dirs)
    data = configs[0].data
    if frozen_graph and len(configs) > 1:
        raise InputError("--frozen_graph is for one model: the file could not hold several.")
    paths = [checkpoints.find(train_dir, checkpoint) for train_dir in train_dirs]
    with files.atomic_directory(output_dir) as partial:
        # Names of nodes begin with that of the model, so it is short.
        models = [
            freezing.new_model(config, dtype, f"m{number}") for number, config in enumerate(configs)
        ]
        for model, config, path in zip(models, configs, paths, strict=True):
            freezing.restore(model, config, path, use_ema)
        members = Ensemble(
            models,
            weights=weights,
            num_samplings=num_samplings,
            seed=seed,
            most_values=_MOST_VALUES,
        )
        module = serving.make_module(members, data, top_k, class_names)
        with _quiet():
            tf.saved_model.save(module, partial, signatures=module.served)
        serving.make_compact(partial)
        if frozen_graph:
            serving.write_frozen_graph(module, os.path.join(partial, FROZEN_GRAPH))
        manifest = {
            "models": [
                {
                    "step": checkpoints.step_of(path),
                    "weight": weight,
                    "parameters": model.count_params(),
                    "config": dataclasses.asdict(config),
                }
                for config, path, model, weight in zip(
                    configs, paths, members.models, members.weights, strict=True
                )
            ],
            "data": dataclasses.asdict(data),
            "label_loss": configs[0].label_loss,
            "dtype": dtype,
            "use_ema": use_ema,
            "num_samplings": num_samplings,
            "seed": seed,
            "top_k": top_k,
            "parameters": sum(model.count_params() for model in members.models),
            "bytes": _size_of(partial),
            "digest": checkpoints.digest(
                {str(n): variable.numpy() for n, variable in enumerate(module.kept_variables)}
            ),
            "versions": run_config.versions(),
        }
        files.write_json(os.path.join(partial, predictors.MANIFEST), manifest)
    return manifest


@contextlib.contextmanager
def _quiet():
    """Keeps TensorFlow from telling the names of all inputs of all functions."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _size_of(directory):
    return sum(
        files.file_size(os.path.join(folder, name))
        for folder, _, names in files.gfile.walk(directory)
        for name in names
    )


def fit_weights(predictor, reader, names, *, batch_size, top_k=20):
    """Weights that make an ensemble fit held-out data best, and what each model reaches by itself.

    Args:
        predictor: `predictor.Predictor` of several runs, restored; gets the weights.
        reader: `readers.RecordReader` of data that no model was trained on.
        names: sequence of str. What to call each model.
        batch_size: int. Videos per batch.
        top_k: int. Predictions per video that count for GAP.

    Returns:
        The weights, an array that sums to 1.
    """
    ensemble = predictor.ensemble
    predict_members = predictors.compiled(ensemble.member_predictions)
    count = len(ensemble.models)
    fit = StackingFit(count)
    metrics = [evaluation.new_metrics(predictor, top_k) for _ in range(count)]
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


def define_flags(flag_values):
    """Defines the flags of this program."""
    predictors.define_sampling_flags(flag_values)
    program.define_flags(flag_values, "top_k", "batch_size", "num_readers", "skip_corrupt_records")
    own = {"flag_values": flag_values}
    flags.DEFINE_string(
        "output_dir",
        None,
        "Directory to write; it must not exist yet. In a job of Vertex AI, by default "
        "$AIP_MODEL_DIR.",
        **own,
    )
    flags.DEFINE_enum(
        "dtype",
        "bfloat16",
        freezing.DTYPES,
        "Type in which matrices are stored and multiplied; everything else is float32.",
        **own,
    )
    flags.DEFINE_boolean(
        "frozen_graph",
        False,
        f"Also writes {FROZEN_GRAPH}, one file with graph and weights, of a single model.",
        **own,
    )
    flags.DEFINE_string(
        "class_names", None, "The dataset's vocabulary.csv, to travel with the model.", **own
    )
    flags.DEFINE_boolean(
        "fit_weights",
        False,
        "Finds the weights of --train_dirs that fit --eval_data_pattern best; prints what each "
        "model reaches alone, and the ensemble.",
        **own,
    )
    flags.DEFINE_string(
        "eval_data_pattern",
        None,
        "Globs of held-out records with labels for --fit_weights, comma-separated; quote.",
        **own,
    )


def main(flag_values):
    """Runs the program."""
    predictors.use_environment(flag_values)
    program.use_environment(flag_values, output_dir="AIP_MODEL_DIR")
    program.require_flags(flag_values, "output_dir")
    files.check_new_directory(flag_values.output_dir)
    program.require_positive(flag_values, "top_k", "batch_size", "num_readers")
    program.require_not_negative(flag_values, "skip_corrupt_records")
    train_dirs, weights = predictors.train_dirs_from_flags(flag_values)
    if flag_values.class_names and not files.gfile.exists(flag_values.class_names):
        raise InputError(f"there is no file --class_names={flag_values.class_names}")
    if flag_values.fit_weights:
        weights = fitted_weights(flag_values, train_dirs)
    elif flag_values.eval_data_pattern:
        raise InputError("--eval_data_pattern is for --fit_weights, which is not given.")
    manifest = export(
        train_dirs,
        flag_values.output_dir,
        weights=weights,
        checkpoint=flag_values.checkpoint,
        use_ema=flag_values.use_ema,
        dtype=flag_values.dtype,
        num_samplings=flag_values.num_samplings,
        seed=flag_values.seed,
        top_k=flag_values.top_k,
        frozen_graph=flag_values.frozen_graph,
        class_names=flag_values.class_names,
    )
    logging.info(
        "exported %d model(s), %s weights in %s, %.1f MiB, digest %s: %s",
        len(manifest["models"]),
        f"{manifest['parameters']:,}",
        manifest["dtype"],
        manifest["bytes"] / 2**20,
        manifest["digest"],
        files.absolute(flag_values.output_dir),
    )


def fitted_weights(flag_values, train_dirs):
    """Weights for --fit_weights, after saying what they bring."""
    program.require_flags(flag_values, "eval_data_pattern")
    if len(train_dirs) < 2 or flag_values.weights:
        raise InputError("--fit_weights needs several --train_dirs, and no --weights.")
    predictor = predictors.Predictor(
        train_dirs,
        num_samplings=flag_values.num_samplings,
        seed=flag_values.seed,
        use_ema=flag_values.use_ema,
        compute_dtype=flag_values.dtype,
    )
    predictor.restore()
    options = {"batch_size": flag_values.batch_size, "top_k": flag_values.top_k}

    def reader():
        return predictors.reader_from_flags(flag_values, predictor, flag_values.eval_data_pattern)

    equal, _ = evaluation.evaluate(predictor, reader(), **options)
    logging.info("equal weights: %s", evaluation.describe(equal))
    weights = fit_weights(predictor, reader(), train_dirs, **options)
    predictor.set_weights(weights)
    fitted, _ = evaluation.evaluate(predictor, reader(), **options)
    logging.info(
        "fitted weights %s: %s",
        listing(np.round(weights, 4)),
        evaluation.describe(fitted),
    )
    return weights


if __name__ == "__main__":
    program.run(main, define_flags)
