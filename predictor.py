"""Prediction with trained models or an exported graph, from records and from arrays."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from absl import logging

import checkpoints
import files
import layers
import losses
import serving
import vocabulary
from ensemble import Ensemble, frozen_model, normalized_weights, restore_frozen, with_weight
from options import Options, option, options_of, same_option
from readers import Video
from run_config import CONFIG_FILE, DataConfig, ReadOptions, RunConfig, TrainOptions
from serving import MANIFEST, SAVED_MODEL
from utils import InputError, check_at_least, comma_separated, shortened

# --- Options --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Trained models and how they predict: everything that an exported graph fixes."""

    train_dir: str | None = option(
        None,
        "Directory of a training run.",
        group="model",
        environment="AIP_CHECKPOINT_DIR",
        alternatives=("train_dir", "train_dirs", "exported_model"),
    )
    train_dirs: tuple[str, ...] | None = option(
        None, "Several training runs, whose predictions are averaged.", group="model"
    )
    weights: tuple[float, ...] | None = option(
        None,
        "Weights of --train_dirs in the average, for example 2,1,1. Default: equal weights.",
        group="model",
        fixed_by="exported_model",
    )
    checkpoint: str | None = option(
        None,
        "Checkpoint of --train_dir: a path without extension, for example run/model.ckpt-1000; a "
        "step, for example 1000; or best, which train.py --keep_best keeps. Default: the newest.",
        group="checkpoints",
        fixed_by="exported_model",
    )
    use_ema: bool = option(
        False,
        "Use the moving average of the weights, which a run with --ema_decay saves.",
        group="checkpoints",
        fixed_by="exported_model",
    )
    num_samplings: int | None = option(
        None,
        "Samplings of the frames to average over, for models that sample; 0 uses every frame once. "
        "Default: 0; 5 for LstmModel, GruModel and DbofModel with max pooling.",
        group="prediction",
        at_least=0,
        fixed_by="exported_model",
    )
    seed: int = option(
        0,
        "Seed of the sampling of frames.",
        group="prediction",
        at_least=0,
        fixed_by="exported_model",
    )

    def __post_init__(self):
        """Checks options that depend on each other."""
        super().__post_init__()
        if self.weights and not self.train_dirs:
            raise InputError("--weights needs --train_dirs, which is not given.")
        if self.weights:
            normalized_weights(self.weights, len(self.run_dirs))  # Fails before models are built.
        if self.checkpoint not in (None, checkpoints.BEST) and self.train_dirs:
            raise InputError(
                "--checkpoint selects a checkpoint of --train_dir; --train_dirs uses the newest of "
                "each run or, with --checkpoint=best, the best of each. average_checkpoints.py "
                "turns any checkpoint into a run of its own."
            )

    @property
    def run_dirs(self) -> list[str]:
        """Directories of all training runs."""
        return [self.train_dir] if self.train_dir else list(self.train_dirs or ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorOptions(ModelOptions, ReadOptions):
    """The model that predicts, and how it goes through records."""

    exported_model: str | None = option(
        None, "Directory written by export_model.py, instead of --train_dir.", group="model"
    )
    verify_digest: bool = option(
        False,
        "Compare the files of --exported_model with the digest in its manifest before loading.",
        group="model",
    )
    compute_dtype: str | None = same_option(
        TrainOptions, "compute_dtype", fixed_by="exported_model"
    )
    batch_size: int = option(128, "Videos per batch.", group="prediction", above=0)
    top_k: int = option(
        20,
        "Best classes per video: the K of GAP@K, and the classes per line of a prediction file.",
        group="prediction",
        above=0,
    )

    def __post_init__(self):
        """Checks options that depend on each other."""
        super().__post_init__()
        if self.verify_digest and not self.exported_model:
            raise InputError("--verify_digest needs --exported_model, which is not given.")


# --- Predictors -----------------------------------------------------------------------------------


class Predictor:
    """Predicts with the checkpoints of training runs.

    Args:
        train_dirs: directories of training runs; the predictions of several are averaged.
        weights: one weight per run; None for equal weights.
        num_samplings: samplings of the frames to average over; 0 uses every frame once; None
            stands for the default of each model.
        seed: seed of the sampling of frames.
        use_ema: whether to use the exponential moving average of the weights.
        compute_dtype: dtype of matrices and their products, see `layers.resolve_compute_dtype`; or
            one dtype of `layers.STORAGE_DTYPES` per run.
        bfloat16_layers: layers or matrices that are bfloat16 in runs with int8.
        configs: the configs of the runs, if they are loaded already.
        classes: numbers of the classes to predict, ascending; None for all.

    Attributes:
        configs: configs of the runs, without those of weight 0.
        data: `DataConfig` of the models.
        label_loss: loss that evaluation reports: that of training, without class weights and
            smoothing of labels.
        steps: steps of the restored checkpoints.
        predict: function from the inputs of a `readers.Batch` to probabilities `[B, C]`.
        embed: function from these inputs to embeddings `[B, E]`, all models side by side.

    Raises:
        InputError: if a directory holds no run, or the runs differ in their data or classes.
    """

    def __init__(
        self,
        train_dirs: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        num_samplings: int | None = None,
        seed: int = 0,
        use_ema: bool = False,
        compute_dtype: str | Sequence[str] | None = None,
        bfloat16_layers: Sequence[str] = layers.BFLOAT16_LAYERS,
        configs: Sequence[RunConfig] | None = None,
        classes: Sequence[int] | None = None,
    ):
        if compute_dtype is None or isinstance(compute_dtype, str):
            compute_dtype = [layers.resolve_compute_dtype(compute_dtype)] * len(train_dirs)
        kept, weights = with_weight(train_dirs, weights)
        train_dirs = [train_dirs[number] for number in kept]
        if configs is None:
            self.configs = load_configs(train_dirs)
        else:
            self.configs = [configs[number] for number in kept]
        first = self.configs[0]
        self.data = first.data
        self.label_loss = evaluation_loss(first.label_loss, first.loss_hyperparameters)
        self.steps: list[int] = []
        self.ensemble = Ensemble(
            [
                frozen_model(
                    config, compute_dtype[number], bfloat16_layers=bfloat16_layers, classes=classes
                )
                for number, config in zip(kept, self.configs, strict=True)
            ],
            weights=weights,
            num_samplings=num_samplings,
            seed=seed,
            classes=classes,
        )
        self.predict = compiled(self.ensemble)
        self.embed = compiled(self.ensemble.embeddings)
        self._train_dirs = train_dirs
        self._vocabulary = find_vocabulary(train_dirs)
        self._use_ema = use_ema

    def restore(self, checkpoint: str | None = None) -> None:
        """Restores a checkpoint as in `checkpoints.find`; by default the newest of every run."""
        self.steps = []
        for model, config, train_dir in zip(
            self.ensemble.models, self.configs, self._train_dirs, strict=True
        ):
            restore = functools.partial(
                restore_frozen,
                model,
                config,
                use_ema=self._use_ema,
                classes=self.ensemble.classes,
            )
            path = checkpoints.restore(train_dir, checkpoint, restore)
            self.steps.append(checkpoints.step_of(path))

    @property
    def embedding_sizes(self) -> list[int]:
        """Sizes of the embeddings of the models.

        Raises:
            InputError: if a model has no embeddings.
        """
        return self.ensemble.embedding_sizes

    def identity(self) -> dict:
        """Returns everything except the input that predictions depend on, for comparison."""
        weights = {
            f"{number}/{weight.path}": weight.numpy()
            for number, model in enumerate(self.ensemble.models)
            for weight in model.weights
        }
        return {
            "models": [dataclasses.asdict(config) for config in self.configs],
            "checkpoint_steps": self.steps,
            "model_weights": checkpoints.digest(weights),
            "weights": self.ensemble.weights,
            "num_samplings": self.ensemble.num_samplings,
            "seed": self.ensemble.seed,
        }

    def class_names(self) -> dict[int, str] | None:
        """Returns the names in the vocabulary that the runs were trained with, or None.

        Raises:
            InputError: if the vocabulary cannot be read, or does not fit the models.
        """
        if self._vocabulary is None:
            return None
        return vocabulary.read_class_names(self._vocabulary, self.data.num_classes)

    def describe(self) -> str:
        """Describes the restored models in a few words."""
        if len(self.steps) == 1:
            return f"step {self.steps[0]}"
        return f"{len(self.steps)} models of steps {comma_separated(self.steps)}"


class ExportedPredictor:
    """Predicts with a graph that export_model.py wrote; has the attributes of `Predictor`.

    Args:
        export_dir: directory that export_model.py wrote.
        verify_digest: whether to compare its files with the digest in its manifest.

    Raises:
        InputError: if there is no exported model, or its files do not have that digest.
    """

    def __init__(self, export_dir: str, *, verify_digest: bool = False):
        self._manifest, self.data = read_manifest(export_dir, verify_digest=verify_digest)
        self.label_loss = _exported_loss(self._manifest)
        self.steps = [model["step"] for model in self._manifest["models"]]
        serving.check_graph(export_dir)
        try:
            self._loaded = tf.saved_model.load(export_dir)
            self._loaded.signatures["predict"]
        except (OSError, ValueError, *files.REMOTE_ERRORS) as error:
            raise InputError(f"cannot load {export_dir}: {error}") from error
        except Exception as error:  # An object graph can be wrong in many ways.
            raise InputError(
                f"{export_dir} was not written by export_model.py: {error!r}"
            ) from error
        self._name = export_dir
        # Earlier versions exported all models with the same dtype.
        dtype = self._manifest.get("dtype")
        dtypes = {model.get("dtype", dtype) for model in self._manifest["models"]}
        logging.info("%s: matrices in %s", export_dir, comma_separated(sorted(map(str, dtypes))))

    def predict(self, inputs: dict | np.ndarray) -> np.ndarray:
        """Returns probabilities `[B, C]` for the inputs of a `readers.Batch`."""
        return self._run("predict", inputs)["predictions"].numpy()

    def embed(self, inputs: dict | np.ndarray) -> np.ndarray:
        """Returns embeddings `[B, E]`, all models side by side."""
        return self._run("embed", inputs)["embeddings"].numpy()

    @property
    def segment_settings(self) -> dict[str, int]:
        """Segments of the signature `segments`.

        Raises:
            InputError: if the exported model has no such signature.
        """
        if not self._manifest.get("segments"):
            raise InputError(
                f"{self._name} predicts no segments. Export its runs again with --segment_labels."
            )
        return self._manifest["segments"]["settings"]

    def predict_segments(self, inputs: Mapping) -> np.ndarray:
        """Returns probabilities of all segments of videos, `[B, N, C]`."""
        return self._run("segments", inputs)["predictions"].numpy()

    def _run(self, signature, inputs):
        if not isinstance(inputs, dict):
            inputs = {"features": inputs}
        tensors = {name: tf.convert_to_tensor(value) for name, value in inputs.items()}
        return self._loaded.signatures[signature](**tensors)

    @property
    def embedding_sizes(self) -> list[int]:
        """Sizes of the embeddings of the models.

        Raises:
            InputError: if the exported model has no signature for embeddings.
        """
        sizes = [model.get("embedding_size") for model in self._manifest["models"]]
        if "embed" not in self._loaded.signatures or None in sizes:
            raise InputError(
                f"{self._name} has no embeddings: either an earlier version exported it, then "
                "export its runs again; or it classifies the features of a video directly."
            )
        return sizes

    def restore(self, checkpoint: str | None = None) -> None:
        """Does nothing: the weights are in the graph."""

    def identity(self) -> dict:
        """Returns everything except the input that predictions depend on, for comparison."""
        return {"exported_model": self._manifest}

    def class_names(self) -> dict[int, str] | None:
        """Returns the names in the vocabulary that was exported with the model, or None.

        Raises:
            InputError: if the vocabulary cannot be read, or does not fit the model.
        """
        asset = getattr(self._loaded, "class_names", None)
        if not isinstance(asset, tf.saved_model.Asset):
            return None
        # Only the name of the file: a path in the graph could lead anywhere.
        name = os.path.basename(asset.asset_path.numpy().decode())
        path = os.path.join(self._name, "assets", name)
        return vocabulary.read_class_names(path, self.data.num_classes)

    def describe(self) -> str:
        """Names the exported model."""
        return self._name


def load_predictor(
    options: PredictorOptions,
    configs: Sequence[RunConfig] | None = None,
    classes: Sequence[int] | None = None,
) -> Predictor | ExportedPredictor:
    """Returns the predictor that the options name; its checkpoints are not restored yet.

    Args:
        options: options.
        configs: the configs of the runs, if they are loaded already.
        classes: numbers of the classes that runs predict, ascending; None for all. An exported
            model always predicts all.
    """
    if options.exported_model:
        return ExportedPredictor(options.exported_model, verify_digest=options.verify_digest)
    return Predictor(
        options.run_dirs,
        weights=options.weights,
        num_samplings=options.num_samplings,
        seed=options.seed,
        use_ema=options.use_ema,
        compute_dtype=options.compute_dtype,
        configs=configs,
        classes=classes,
    )


def load_class_names(
    predictor: Predictor | ExportedPredictor, path: str | None
) -> dict[int, str] | None:
    """Returns the names in a vocabulary, by default that of the model; None if there is none.

    Raises:
        InputError: if the vocabulary cannot be read, or does not fit the model.
    """
    if path:
        return vocabulary.read_class_names(path, predictor.data.num_classes)
    return predictor.class_names()


def read_manifest(export_dir: str, *, verify_digest: bool = False) -> tuple[dict, DataConfig]:
    """Reads the description of a SavedModel of export_model.py without loading it.

    Args:
        export_dir: directory that export_model.py wrote.
        verify_digest: whether to compare its files with the digest in the description.

    Returns:
        The content of its manifest, and the `DataConfig` of its input.

    Raises:
        InputError: if there is no exported model, it is for another runtime, another version wrote
            its manifest, or its files do not have the digest.
    """
    path, manifest = files.read_description(
        export_dir, MANIFEST, "export_model.py", "exported_model"
    )
    try:
        manifest["digest"]
        _exported_loss(manifest)
        for model in manifest["models"]:
            check_at_least(0, step=model["step"])
            if model.get("embedding_size") is not None:
                check_at_least(1, embedding_size=model["embedding_size"])
        data = DataConfig(**manifest["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not fit this version: {error!r}") from error
    if manifest.get("format", SAVED_MODEL) != SAVED_MODEL:
        raise InputError(
            f"{export_dir} is in the format {manifest['format']}, which is for another runtime. "
            f"Export the run with --format={SAVED_MODEL}, or predict from its train directory."
        )
    if verify_digest:
        digest = serving.digest(export_dir, manifest)
        if digest != manifest["digest"]:
            raise InputError(
                f"{export_dir} has the digest {digest}, but {MANIFEST} states "
                f"{manifest['digest']}: its files have changed since export_model.py wrote them. "
                "Copy or export the model again."
            )
        logging.info("%s has the digest %s that %s states", export_dir, digest, MANIFEST)
    return manifest, data


def evaluation_loss(name: str, hyperparameters: Mapping[str, Any]) -> losses.LabelLoss:
    """Returns the loss of the labels as they are, not smoothed.

    Args:
        name: a registered loss.
        hyperparameters: those of the loss in training.
    """
    kept = {key: value for key, value in hyperparameters.items() if key != "label_smoothing"}
    return losses.get_loss(name, **kept)


def _exported_loss(manifest):
    # Models exported by older versions have the default hyperparameters.
    return evaluation_loss(manifest["label_loss"], manifest.get("loss_hyperparameters", {}))


def load_configs(train_dirs: Sequence[str]) -> list[RunConfig]:
    """Returns the configs of training runs whose models take the same data.

    Raises:
        InputError: naming the directories that do not fit together, and how they differ.
    """
    loaded = {train_dir: RunConfig.load(train_dir) for train_dir in dict.fromkeys(train_dirs)}
    configs = [loaded[train_dir] for train_dir in train_dirs]
    for train_dir, config in zip(train_dirs, configs, strict=True):
        differences = configs[0].data.differences(config.data)
        if differences:
            changes = "; ".join(
                f"{key}: {shortened(a)} and {shortened(b)}" for key, (a, b) in differences.items()
            )
            raise InputError(
                "models of an ensemble must take the same data and classes, but "
                f"{train_dirs[0]} and {train_dir} differ ({changes})."
            )
    return configs


def find_vocabulary(train_dirs: Sequence[str]) -> str | None:
    """Returns the path of the vocabulary that runs were trained with, or None if they have none.

    Raises:
        InputError: if two runs name a class differently.
    """
    return vocabulary.same_class_names(
        [*filter(None, map(checkpoints.find_vocabulary, train_dirs))],
        "Models of an ensemble must have the same classes. If only names have been corrected, copy "
        "one of these files over the other.",
    )


def predict_videos(
    predictor: Predictor | ExportedPredictor, video_ids: Sequence[str], inputs: dict | np.ndarray
) -> np.ndarray:
    """Returns probabilities `[B, C]` for the videos of a batch.

    Args:
        predictor: restored predictor.
        video_ids: B ids.
        inputs: the inputs of a `readers.Batch`.

    Raises:
        InputError: if a prediction is not finite, naming the first such video.
    """
    return check_finite(predictor.predict(inputs), "prediction", video_ids)


def embed_videos(
    predictor: Predictor | ExportedPredictor, video_ids: Sequence[str], inputs: dict | np.ndarray
) -> np.ndarray:
    """Returns embeddings `[B, E]` for the videos of a batch, like `predict_videos`.

    Raises:
        InputError: if an embedding is not finite, naming the first such video.
    """
    return check_finite(predictor.embed(inputs), "embedding", video_ids)


def check_finite(vectors: np.ndarray, name: str, video_ids: Sequence[str]) -> np.ndarray:
    """Returns vectors `[B, size]` if all are finite.

    Args:
        vectors: the vectors.
        name: name of a vector for the message.
        video_ids: id for each.

    Raises:
        InputError: naming the first video whose vector is not finite.
    """
    wrong = ~np.isfinite(vectors).all(axis=1)
    if wrong.any():
        raise InputError(
            f"the {name} for video {video_ids[wrong.argmax()]!r} is not finite: the features "
            "of that video are far out of range, or the model has diverged."
        )
    return vectors


def compiled(function: Callable) -> Callable:
    """Returns a function on the inputs of a `readers.Batch` that runs one on tensors as a graph.

    One graph takes any number of videos and of frames, so that it is traced once.
    """
    run = tf.function(function, autograph=False)
    graph = None

    def call(inputs):
        nonlocal graph
        tensors = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        if graph is None:
            graph = run.get_concrete_function(tf.nest.map_structure(_any_length, tensors))
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), graph(tensors))

    return call


def _any_length(tensor):
    """Returns the spec of a tensor with any number of videos and frames."""
    *lengths, size = tensor.shape
    return tf.TensorSpec([*[None] * len(lengths), size if lengths else None], tensor.dtype)


# --- Prediction from Python -----------------------------------------------------------------------


class LoadedModel:
    """A model that predicts from arrays; `load` returns it.

    Args:
        predictor: restored predictor.

    Attributes:
        data: `DataConfig` of the arrays.
        class_names: names by class; None if the model has none.
    """

    def __init__(self, predictor: Predictor | ExportedPredictor):
        self.data = predictor.data
        self.class_names = predictor.class_names()
        self._predictor = predictor
        # Makes batches exactly as from records.
        self._reader = self.data.reader([], with_labels=False)
        # Built from the config at each access, with a check of every range.
        self._storages = self.data.storages
        self._takes_bytes = self.data.frame_level and self.data.frame_format.is_quantized

    def predict(
        self,
        arrays: Sequence[np.ndarray | Mapping[str, np.ndarray]],
        *,
        ids: Sequence[Any] | None = None,
        top_k: int = 20,
        batch_size: int = 128,
    ) -> pd.DataFrame:
        """Predicts the best classes of videos.

        Args:
            arrays: features of each video: an array with all features side by side, or one array by
                name of the feature. Frame level: `[T, D]`, any T; frames beyond the model's
                `max_frames` are ignored. Video level: `[D]`. Floats are values, which are rounded
                to the numbers that records would store; uint8 arrays are bytes, as stored.
            ids: id of each video; their numbers by default.
            top_k: classes per video.
            batch_size: videos per batch.

        Returns:
            A table with the columns `id`, `class`, `name` and `score`, with `top_k` rows per video,
            best first.

        Raises:
            InputError: naming the video, if its features do not fit the model.
        """
        check_at_least(1, top_k=top_k, batch_size=batch_size)
        parts = [
            self._table(part, batch, top_k)
            for part, batch in self._batches(arrays, ids, batch_size)
        ]
        columns = ("id", "class", "name", "score")
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def embed(
        self,
        arrays: Sequence[np.ndarray | Mapping[str, np.ndarray]],
        *,
        batch_size: int = 128,
    ) -> np.ndarray:
        """Returns the embeddings of videos, float32 `[videos, E]`, all models side by side.

        Args:
            arrays: features of each video, as for `predict`.
            batch_size: videos per batch.

        Raises:
            InputError: naming the video, if its features do not fit the model; or if a model has no
                embeddings.
        """
        parts = [np.zeros([0, sum(self._predictor.embedding_sizes)], np.float32)]
        for _, batch in self._batches(arrays, None, batch_size):
            parts.append(embed_videos(self._predictor, batch.video_ids, batch.inputs))
        return np.concatenate(parts)

    def _batches(self, arrays, ids, batch_size):
        """Yields ids and a `readers.Batch` for some videos after another."""
        if isinstance(arrays, Mapping) or getattr(arrays, "ndim", 3) < 2 + self.data.frame_level:
            raise InputError(
                "a list with the features of each video is expected. Put those of a single video "
                "into a list, too."
            )
        arrays = list(arrays)
        if isinstance(ids, str):
            raise InputError(f"ids must be a list with the id of each video. Received: {ids!r}")
        ids = list(range(len(arrays)) if ids is None else ids)
        if len(ids) != len(arrays):
            raise InputError(f"there are {len(ids)} ids for {len(arrays)} videos.")
        for start in range(0, len(arrays), batch_size):
            part = ids[start : start + batch_size]
            pairs = zip(part, arrays[start : start + batch_size], strict=True)
            yield part, self._reader.assemble([self._video(*pair) for pair in pairs])

    def _table(self, ids, batch, top_k):
        scores = predict_videos(self._predictor, batch.video_ids, batch.inputs)
        classes = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        names = self.class_names or {}
        return pd.DataFrame(
            {
                "id": np.repeat(np.array(ids, object), classes.shape[1]),
                "class": classes.ravel(),
                "name": [names.get(label, "") for label in classes.ravel().tolist()],
                "score": np.take_along_axis(scores, classes, axis=1).ravel(),
            }
        ).infer_objects()

    def _video(self, video_id, features):
        """Returns the `Video` that a record with the features would hold."""
        place = f"video {video_id!r}"
        if isinstance(features, Mapping):
            missing = set(self.data.feature_names) - set(features)
            if missing:
                raise InputError(
                    f"{place} lacks features: {comma_separated(sorted(missing))}. It has: "
                    f"{comma_separated(features)}"
                )
            features = [_array(place, features[name]) for name in self.data.feature_names]
        else:
            features = self._split(place, _array(place, features))
        for name, size, values in zip(
            self.data.feature_names, self.data.feature_sizes, features, strict=True
        ):
            self._check(f"{name} of {place}", size, values)
        if len({values.shape[:-1] for values in features}) > 1:
            lengths = comma_separated(len(values) for values in features)
            raise InputError(f"the features of {place} have unequal numbers of frames: {lengths}")
        if self.data.frame_level:
            features = [
                values[: self.data.max_frames]
                if values.dtype == storage.type == np.uint8
                else storage.from_float(values[: self.data.max_frames].astype(np.float32))
                for values, storage in zip(features, self._storages, strict=True)
            ]
        else:
            features = [values.astype(np.float32) for values in features]
        return Video(str(video_id), np.zeros(0, np.int64), features)

    def _split(self, place, array):
        """Returns one array per feature of an array with all of them side by side."""
        self._check(place, sum(self.data.feature_sizes), array)
        return np.split(array, np.cumsum(self.data.feature_sizes)[:-1], axis=-1)

    def _check(self, place, size, array):
        """Rejects an array that has another shape than `[T, size]` or `[size]`, or other values."""
        shape = f"[frames, {size}]" if self.data.frame_level else f"[{size}]"
        if array.ndim != 1 + self.data.frame_level or array.shape[-1] != size or not array.size:
            hint = ""
            if array.ndim == 2 and array.shape[0] == size:
                hint = " Transpose the array: rows are frames."
            raise InputError(f"{place} must be {shape}. Received: {list(array.shape)}.{hint}")
        if array.dtype.kind != "f" and (array.dtype != np.uint8 or not self._takes_bytes):
            raise InputError(f"{place} must have float values. Received: {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{place} has NaN or infinity.")


def _array(place, values):
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(
            f"{place} must be an array with all features of a frame side by side, or a dict with "
            f"an array for each feature name. Received: {type(values).__name__} ({error})"
        ) from error


def load(folder: Any, **options: Any) -> LoadedModel:
    """Returns a trained or exported model that predicts from arrays.

        model = predictor.load("run")
        table = model.predict([frames, more_frames])

    Args:
        folder: directory of a training run, or one that export_model.py wrote; or the directories
            of several runs, whose predictions are averaged.
        **options: other fields of `PredictorOptions`, for example `checkpoint=1000` or
            `num_samplings=5`. An exported model fixes most of them.

    Raises:
        InputError: if there is no such model, or it does not take an option.
    """
    if isinstance(folder, str | os.PathLike):
        folder = os.fspath(folder)
        kind = _kind(folder)
    else:
        kind, folder = "train_dirs", tuple(map(os.fspath, folder))
    fixed_by = {field.name: field.metadata["fixed_by"] for field, _ in options_of(PredictorOptions)}
    wrong = [name for name in options if fixed_by.get(name, kind) == kind]
    if wrong:
        raise InputError(f"{folder} takes no {comma_separated(wrong)}.")
    settings = PredictorOptions(**{kind: folder, **options})
    predictor = load_predictor(settings)
    predictor.restore(settings.checkpoint)
    return LoadedModel(predictor)


def _kind(folder):
    """Returns the option for a directory: exported_model or train_dir."""
    for kind, name in (("exported_model", MANIFEST), ("train_dir", CONFIG_FILE)):
        if files.gfile.exists(os.path.join(folder, name)):
            return kind
    if not files.gfile.isdir(folder):
        raise InputError(f"there is no directory {files.absolute(folder)}")
    raise InputError(
        f"{folder} holds neither a training run ({CONFIG_FILE}) nor an exported model ({MANIFEST})."
    )
