"""How records store features: types, and ranges of bytes that fit a sample of the videos."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from absl import logging

from dataset_info import Feature
from options import Options, option
from own_data import fitted_range
from own_data.clips import Clip, ClipError
from quantization import FrameStorage, Quantization
from utils import InputError, comma_separated

DTYPES = ("uint8", "float16", "float32")
# The sample: videos at most, and values per feature at most.
SAMPLE_VIDEOS = 1024
_SAMPLE_VALUES = 2**23
# Relative error of bytes, and ratio of the range of a dimension to that of 99 % of its values,
# above which bytes are questionable.
_LARGE_ERROR, _LARGE_RATIO = 0.03, 50
_NUM_DIMENSIONS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageOptions(Options):
    """Options of how features are stored."""

    storage: tuple[str, ...] = option(
        ("uint8",),
        "Type of the stored values, one for all features or one for each. uint8: one byte per "
        "value, with an error of about 1 % of its standard deviation. float16 and float32 take two "
        "and four times the space and time to read.",
        group="storage",
        choices=DTYPES,
    )
    quantization: str = option(
        "dimension",
        "Ranges of values that the bytes cover, fitted to a sample of the videos: one for each "
        "dimension of a feature, or one for the whole feature.",
        group="storage",
        choices=("dimension", "feature"),
    )
    quantization_range: tuple[float, ...] | None = option(
        None,
        "A fixed range MIN,MAX for all features stored as uint8, for example -2,2 as in "
        "YouTube-8M. Arrays of uint8 need it: it states the values of their bytes.",
        group="storage",
    )

    def __post_init__(self):
        """Checks the range."""
        super().__post_init__()
        if self.quantization_range is not None:
            if len(self.quantization_range) != 2:
                raise InputError(
                    "--quantization_range must be two numbers MIN,MAX. Received: "
                    f"{comma_separated(self.quantization_range)}"
                )
            try:
                Quantization(*self.quantization_range)
            except InputError as error:
                raise InputError(f"--quantization_range: {error}") from error

    @property
    def fixed_range(self) -> Quantization | None:
        """The range that the options state."""
        return Quantization(*self.quantization_range) if self.quantization_range else None


# --- The sample -----------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Frames of some videos.

    Attributes:
        frames: values `[N, D]` by feature name, floats or, of a feature of bytes, uint8.
        lengths: number of frames of each video.
    """

    frames: dict[str, np.ndarray]
    lengths: list[int]

    @property
    def num_videos(self) -> int:
        """Number of videos."""
        return len(self.lengths)

    @property
    def num_frames(self) -> float:
        """Mean number of frames per video."""
        return float(np.mean(self.lengths)) if self.lengths else 0.0


def take_sample(clips: Iterable[Clip], num_videos: int) -> Sample:
    """Returns frames of checked clips, evenly spaced in each, in bounded memory.

    Args:
        clips: clips with the same features.
        num_videos: number of clips, at most.
    """
    frames: dict[str, list[np.ndarray]] = {}
    lengths = []
    for clip in clips:
        lengths.append(len(next(iter(clip.features.values()))))
        for name, values in clip.features.items():
            limit = max(1, _SAMPLE_VALUES // (num_videos * values.shape[1]))
            step = max(1, -(-len(values) // limit))
            frames.setdefault(name, []).append(values[step // 2 :: step].copy())
    return Sample({name: np.concatenate(parts) for name, parts in frames.items()}, lengths)


def choose_features(sample: Sample, options: StorageOptions) -> tuple[Feature, ...]:
    """Returns how the features are stored, with ranges fitted to a sample.

    Logs the error of the bytes, and warns of arrays that may be transposed, and of values that are
    the same everywhere or far off.

    Raises:
        InputError: if a feature is zero everywhere, uint8 without a fixed range, or has no type.
    """
    _warn_of_transposed(sample)
    names = list(sample.frames)
    dtypes = options.storage * len(names) if len(options.storage) == 1 else options.storage
    if len(dtypes) != len(names):
        raise InputError(
            "--storage must be one type, or one for each feature. Received: "
            f"{comma_separated(options.storage)} for the features {comma_separated(names)}"
        )
    return tuple(
        _choose(name, sample.frames[name], dtype, sample.num_videos, options)
        for name, dtype in zip(names, dtypes, strict=True)
    )


def _warn_of_transposed(sample):
    """Warns if all videos are equally long and have more frames than values per frame."""
    sizes = {name: values.shape[1] for name, values in sample.frames.items()}
    num_frames = sample.lengths[0]
    equal = sample.num_videos > 1 and set(sample.lengths) == {num_frames}
    if equal and num_frames > max(sizes.values()):
        logging.warning(
            "all of %d videos of a sample have %d frames, but frames have fewer values: %s. If the "
            "arrays are [values, frames], transpose them, for example array.T",
            *(sample.num_videos, num_frames),
            comma_separated(f"{name} {size}" for name, size in sizes.items()),
        )


def _choose(name, values, dtype, num_videos, options):
    """Returns how a feature is stored."""
    fixed = options.fixed_range
    if values.dtype == np.uint8:
        _check_bytes(name, fixed)
        values = fixed.dequantize(values.astype(np.float32))
    elif not values.any():
        raise InputError(
            f"{name} is zero in all of {num_videos} videos of a sample. Correct its extraction, or "
            "select other features with --feature_names."
        )
    _warn_of_constants(name, values, num_videos)
    if dtype != "uint8":
        return Feature(name=name, size=values.shape[1], dtype=dtype)
    ranges = fixed or fitted_range.fit(values, options.quantization == "dimension")
    _report_error(name, values, FrameStorage(dtype, ranges))
    return Feature(name=name, size=values.shape[1], dtype=dtype, quantization=ranges.as_json())


def _check_bytes(name, fixed):
    if fixed is None:
        raise InputError(
            f"{name} holds uint8, bytes that stand for other values. State their range: "
            "--quantization_range=-2,2 for features quantized as in YouTube-8M, or 0,255 if the "
            "bytes are the values. They are then stored as they are. If they are floats instead, "
            "give --bytes_dtype."
        )


def _warn_of_constants(name, values, num_videos):
    constant = np.flatnonzero((values == values[0]).all(axis=0))
    if constant.size and len(values) > 1:
        logging.warning(
            "%s has the same value in all of %d videos of a sample in %d of %d dimensions: %s",
            *(name, num_videos, constant.size, values.shape[1], _dimensions(constant)),
        )


def _report_error(name, values, storage):
    """Logs the error of bytes; warns if it is large or some values are far from the others."""
    error = relative_error(values, storage)
    logging.info("%s stored as bytes: relative error %.2f %%", name, 100 * error)
    remedy = "--storage=float16 stores them with an error of about 0.02 %"
    if error > _LARGE_ERROR:
        logging.warning("bytes lose %.1f %% of %s: %s", 100 * error, name, remedy)
    low, high = np.quantile(values, (0.005, 0.995), axis=0)
    ratio = (np.max(values, axis=0) - np.min(values, axis=0)) / np.maximum(high - low, 1e-30)
    far = np.flatnonzero((ratio > _LARGE_RATIO) & (high > low))
    if far.size:
        logging.warning(
            "%s has few values far from all others, up to %.0f times the range of 99 %% of the "
            "values, in %d of %d dimensions: %s. They make the steps of the bytes large. Correct "
            "them, or %s",
            *(name, ratio[far].max(), far.size, values.shape[1], _dimensions(far), remedy),
        )


def _dimensions(found):
    shown = comma_separated(found[:_NUM_DIMENSIONS])
    return f"{shown}, ..." if found.size > _NUM_DIMENSIONS else shown


def relative_error(values: np.ndarray, storage: FrameStorage) -> float:
    """Returns the relative L2 error of stored values, over all of them."""
    restored = storage.to_float(storage.from_float(values))
    return float(np.linalg.norm(restored - values) / np.linalg.norm(values))


# --- Storing --------------------------------------------------------------------------------------


class Encoder:
    """Converts the values of clips to those that records store.

    Args:
        features: how the features are stored.
        fixed_range: range of the bytes in clips of uint8, if there are such clips.
    """

    def __init__(self, features: Iterable[Feature], fixed_range: Quantization | None):
        self._storage = {feature.name: feature.storage for feature in features}
        self._fixed_range = fixed_range

    def encode(self, clip: Clip) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Returns the stored values `[T, D]` of a checked clip, by feature name.

        Also returns, for features stored as bytes, the number of values beyond their range.

        Raises:
            ClipError: if the type of a feature cannot hold a value.
        """
        stored, clipped = {}, {}
        for name, storage in self._storage.items():
            values = self._floats(clip, name)
            stored[name] = storage.from_float(values)
            if storage.quantization is not None:
                clipped[name] = storage.quantization.num_clipped(values)
            elif not np.isfinite(stored[name]).all():
                raise ClipError(
                    f"{clip.origin}: {name} has values of up to {np.abs(values).max():g}, but "
                    f"{storage.dtype} holds at most {np.finfo(storage.type).max:g}. Store the "
                    "feature with --storage=float32."
                )
        return stored, clipped

    def _floats(self, clip, name):
        values = clip.features[name]
        if values.dtype != np.uint8:
            return values
        _check_bytes(f"{clip.origin}: {name}", self._fixed_range)
        return self._fixed_range.dequantize(values.astype(np.float32))
