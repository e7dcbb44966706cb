"""Prediction of segments with trained models or an exported graph, from records.

B is the batch, N the number of segments of the longest video, C the classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import checkpoints
from options import Options, option
from predictor import ExportedPredictor, Predictor, check_finite, compiled, load_configs
from run_config import RunConfig
from segments.config import SEGMENT_SIZE
from segments.ensemble import SegmentEnsemble, SegmentSettings
from utils import InputError, comma_separated

# --- Options --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentOptions(Options):
    """Options of the prediction of segments."""

    segment_labels: bool = option(
        False,
        "Predict all segments of the videos instead of whole videos.",
        group="segments",
    )
    segment_size: int | None = option(
        None,
        "Frames of a segment; segments begin at its multiples. Default: that of the training run, "
        f"or {SEGMENT_SIZE}.",
        group="segments",
        at_least=1,
        fixed_by="exported_model",
    )
    segment_context: int | None = option(
        None,
        "Frames before and after a segment that the model also sees, where the video has them. "
        "Default: that of the training run, or 0.",
        group="segments",
        at_least=0,
        fixed_by="exported_model",
    )
    segment_shift_samplings: int = option(
        1,
        "Average over this many copies of each segment, shifted by 0, 1, -1, 2, ... frames. Frames "
        "outside the video are left out.",
        group="segments",
        at_least=1,
        fixed_by="exported_model",
    )
    segment_video_dirs: tuple[str, ...] | None = option(
        None,
        "Training runs that predict the whole video, for a two-stage score: the probability of a "
        "class in a segment is multiplied by that in the video. --train_dir itself may be one.",
        group="segments",
        fixed_by="exported_model",
    )

    def __post_init__(self):
        """Rejects options that only segments have."""
        super().__post_init__()
        self.check_needed(SegmentOptions, self.segment_labels, "--segment_labels")


# --- Predictors -----------------------------------------------------------------------------------


class SegmentPredictor:
    """Predicts all segments of videos with the checkpoints of training runs.

    Args:
        predictor: predictor of the segments, which may be restored later.
        settings: the segments.
        video_predictor: predictor of whole videos for a two-stage score, or None.

    Attributes:
        settings: the segments.
        data: `DataConfig` of the models.
        classes: numbers of the predicted classes, C; None for all.
    """

    classes: Sequence[int] | None

    def __init__(
        self,
        predictor: Predictor,
        settings: SegmentSettings,
        video_predictor: Predictor | None = None,
    ):
        self.settings = settings
        self.data = predictor.data
        self.classes = predictor.ensemble.classes
        self._predictor = predictor
        self._video_predictor = video_predictor
        video_ensemble = None if video_predictor is None else video_predictor.ensemble
        self._predict = compiled(SegmentEnsemble(predictor.ensemble, settings, video_ensemble))

    def restore(self, checkpoint: str | None = None) -> None:
        """Restores a checkpoint of all runs, like `Predictor.restore`."""
        self._predictor.restore(checkpoint)
        if self._video_predictor is not None and self._video_predictor is not self._predictor:
            self._video_predictor.restore(video_checkpoint(checkpoint))

    def predict(self, inputs: Mapping) -> np.ndarray:
        """Returns probabilities, float32 `[B, N, C]`, for the inputs of a `readers.Batch`."""
        return self._predict(inputs)

    def identity(self) -> dict:
        """Returns everything except the input that predictions depend on, for comparison."""
        video = self._video_predictor
        return {
            **self._predictor.identity(),
            "segments": dataclasses.asdict(self.settings),
            "video_models": video and video.identity(),
        }

    def describe(self) -> str:
        """Describes the restored models in a few words."""
        return self._predictor.describe()


class ExportedSegmentPredictor:
    """Predicts all segments of videos with an exported graph, like `SegmentPredictor`.

    Args:
        predictor: exported model.

    Raises:
        InputError: if it has no signature for segments.
    """

    classes = None

    def __init__(self, predictor: ExportedPredictor):
        self.settings = SegmentSettings(**predictor.segment_settings)
        self.data = predictor.data
        self.restore, self.describe = predictor.restore, predictor.describe
        # The settings are in the manifest.
        self.identity = predictor.identity
        self._predictor = predictor

    def predict(self, inputs: Mapping) -> np.ndarray:
        """Returns probabilities, float32 `[B, N, C]`, for the inputs of a `readers.Batch`."""
        return self._predictor.predict_segments(inputs)


def load_segment_configs(
    train_dirs: Sequence[str], video_dirs: Sequence[str] = ()
) -> tuple[list[RunConfig], list[RunConfig]]:
    """Returns the configs of training runs that can predict segments, before models are built.

    Args:
        train_dirs: directories of the runs.
        video_dirs: directories of runs that predict whole videos.

    Returns:
        The configs of both.

    Raises:
        InputError: if they take video-level features, or runs take other data.
    """
    configs = load_configs([*train_dirs, *video_dirs])
    if not configs[0].frame_level:
        raise InputError(
            f"--segment_labels needs a frame-level model, but that of {train_dirs[0]} takes "
            "video-level features, which do not say when something occurs."
        )
    return configs[: len(train_dirs)], configs[len(train_dirs) :]


def segment_settings(
    configs: Sequence[RunConfig], options: SegmentOptions | None = None
) -> SegmentSettings:
    """Returns the segments to predict: those of options, or else those of the training runs.

    Runs that were trained on whole videos take the segments of the others, or else of YouTube-8M.

    Args:
        configs: configs of the runs.
        options: options.

    Raises:
        InputError: if the runs were trained on different segments, and options do not settle it.
    """
    options = options or SegmentOptions(segment_labels=True)
    trained = [config for config in configs if config.segment_labels]

    def resolve(name, default):
        value = getattr(options, name)
        found = {getattr(config, name) for config in trained} if value is None else {value}
        if len(found) > 1:
            raise InputError(
                f"the models were trained on different segments, with --{name} of "
                f"{comma_separated(sorted(found))}. Give --{name} to inference.py or "
                "export_model.py, or evaluate them one by one."
            )
        return found.pop() if found else default

    return SegmentSettings(
        size=resolve("segment_size", SEGMENT_SIZE),
        context=resolve("segment_context", 0),
        shift_samplings=options.segment_shift_samplings,
    )


def video_checkpoint(checkpoint: str | None) -> str | None:
    """Returns the checkpoint of runs that predict whole videos, given that of the others.

    It is the best if theirs is, and otherwise the newest: a step of one run is none of another.
    """
    return checkpoint if checkpoint == checkpoints.BEST else None


def load_segment_predictor(
    predictor: Predictor | ExportedPredictor,
    options: Any = None,
    video_configs: Sequence[RunConfig] | None = None,
) -> SegmentPredictor | ExportedSegmentPredictor:
    """Returns the predictor of segments by the models of another; they may be restored later.

    Args:
        predictor: predictor.
        options: `PredictorOptions` that are also `SegmentOptions`; None for the defaults.
        video_configs: the configs of the runs that predict whole videos, if there are any.

    Raises:
        InputError: if an exported model has no signature for segments, or runs do not fit.
    """
    if isinstance(predictor, ExportedPredictor):
        return ExportedSegmentPredictor(predictor)
    settings = segment_settings(predictor.configs, options)
    video_predictor = _video_predictor(options, predictor, video_configs)
    return SegmentPredictor(predictor, settings, video_predictor)


def _video_predictor(
    options: Any, predictor: Predictor, configs: Sequence[RunConfig] | None
) -> Predictor | None:
    video_dirs = list(options.segment_video_dirs or ()) if options else []
    if not video_dirs:
        return None
    if video_dirs == options.run_dirs:
        return predictor
    return Predictor(
        video_dirs,
        num_samplings=options.num_samplings,
        seed=options.seed,
        use_ema=options.use_ema,
        compute_dtype=options.compute_dtype,
        configs=configs,
        classes=predictor.ensemble.classes,
    )


def predict_segments(
    predictor: SegmentPredictor | ExportedSegmentPredictor,
    video_ids: Sequence[str],
    inputs: Any,
) -> list[tuple[int, np.ndarray]]:
    """Returns for each video of a batch its number of frames, and probabilities `[N, C]`.

    Args:
        predictor: restored predictor.
        video_ids: B ids.
        inputs: the inputs of a `readers.Batch`.

    Raises:
        InputError: if a prediction is not finite, naming the video.
    """
    num_frames = inputs["num_frames"].tolist()
    predictions = [
        segments[: predictor.settings.count(length)]
        for length, segments in zip(num_frames, predictor.predict(inputs), strict=True)
    ]
    for video_id, segments in zip(video_ids, predictions, strict=True):
        check_finite(segments, "prediction", [video_id] * len(segments))
    return list(zip(num_frames, predictions, strict=True))
