"""A clip that cannot become a record is refused, with its place and the reason."""

import numpy as np
import pytest

from own_data.clips import Clip, ClipChecker, ClipError, EmptyClipError

FIRST = "first.npy"


def clip(origin="v.npy", **features):
    arrays = {name: np.asarray(values) for name, values in features.items()}
    return Clip("v", arrays, origin)


def error_of(*clips, **options):
    """Returns the message of the error for the last clip."""
    checker = ClipChecker(**options)
    for good in clips[:-1]:
        checker.check(good)
    with pytest.raises(ClipError) as caught:
        checker.check(clips[-1])
    assert str(caught.value).startswith("v.npy: ")
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", ">f4"])
def test_clips_of_bytes_or_floats_are_accepted(dtype):
    checker = ClipChecker()
    checker.check(clip(rgb=np.ones((2, 5), dtype), audio=np.ones((2, 3))))
    checker.check(clip(rgb=np.ones((4, 5), dtype), audio=np.ones((4, 3))))
    assert checker.sizes == {"rgb": 5, "audio": 3}


def test_sizes_and_names_may_be_given():
    checker = ClipChecker(feature_names=("rgb",), sizes={"rgb": 5})
    checker.check(clip(rgb=np.ones((2, 5))))
    message = error_of(clip(rgb=np.ones((2, 4))), sizes={"rgb": 5})
    assert "rgb must be [frames, 5]. Received: shape [2, 4]" in message
    assert "the features rgb were expected. Received: audio" in error_of(
        clip(audio=np.ones((2, 4))), feature_names=("rgb",)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_value_that_is_not_finite_in_float32_is_refused(value):
    values = np.ones((3, 4))
    values[1, 2] = value
    message = error_of(clip(rgb=np.ones((3, 4)), flow=values))
    assert f"flow has {np.float64(value)} in frame 1, dimension 2" in message
    assert "1 of 12 values" in message


def test_a_video_without_frames_is_told_from_others():
    for empty in (np.zeros((0, 5)), np.zeros((0, 0)), np.zeros(0)):
        with pytest.raises(EmptyClipError, match=r"v\.npy: the video 'v' has no frames"):
            ClipChecker().check(clip(rgb=empty, audio=np.zeros((0, 3))))


def test_an_array_must_have_two_axes():
    message = error_of(clip(rgb=np.ones(5)))
    assert "rgb must be [frames, values]. Received: shape [5]" in message
    assert "reshape one vector per video to [1, values]" in message
    assert "Received: shape [2, 3, 4]" in error_of(clip(rgb=np.ones((2, 3, 4))))
    assert "Received: shape []" in error_of(clip(rgb=0.5))


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "bool", "complex64", "S3", "V2"])
def test_other_types_of_numbers_are_refused(dtype):
    message = error_of(clip(rgb=np.zeros((2, 3), dtype)))
    assert "rgb must hold floats, or uint8 for quantized values" in message
    assert f"Received: dtype {np.dtype(dtype)}" in message


def test_frames_that_differ_in_size_are_refused():
    assert "frames differ in size" in error_of(clip(rgb=np.empty(3, object)))


def test_features_must_have_equal_numbers_of_frames():
    message = error_of(clip(rgb=np.ones((3, 5)), audio=np.ones((4, 2))))
    assert "equal numbers of frames. Received: rgb [3, 5], audio [4, 2]" in message
    first = clip(FIRST, rgb=np.ones((3, 5)), audio=np.ones((3, 2)))
    message = error_of(first, clip(rgb=np.ones((3, 5)), audio=np.zeros((0, 0))))
    assert "Received: rgb [3, 5], audio [0, 0]" in message


def test_a_feature_must_have_one_size_in_all_clips():
    message = error_of(clip(FIRST, rgb=np.ones((3, 5))), clip(rgb=np.ones((3, 4))))
    assert f"rgb must be [frames, 5], as in {FIRST}. Received: shape [3, 4]" in message
    assert "seems to be transposed" not in message


def test_a_transposed_array_is_recognized():
    message = error_of(clip(FIRST, rgb=np.ones((3, 5))), clip(rgb=np.ones((5, 4))))
    assert f"rgb must be [frames, 5], as in {FIRST}. Received: shape [5, 4]" in message
    assert "seems to be transposed" in message
    assert "array.T" in message
    assert "seems to be transposed" in error_of(clip(rgb=np.ones((5, 4))), sizes={"rgb": 5})


def test_arrays_that_are_all_transposed_are_refused_with_the_remedy():
    message = error_of(clip(FIRST, rgb=np.ones((5, 3))), clip(rgb=np.ones((5, 4))))
    assert "arrays of [values, frames] must be transposed" in message


def test_a_feature_must_be_bytes_or_floats_in_all_clips():
    floats, stored = np.ones((3, 5)), np.ones((3, 5), np.uint8)
    message = error_of(clip(FIRST, rgb=floats), clip(rgb=stored))
    assert f"rgb must be floats, as in {FIRST}. Received: uint8" in message
    message = error_of(clip(FIRST, rgb=stored), clip(rgb=floats))
    assert f"rgb must be uint8, as in {FIRST}. Received: float64" in message


def test_clips_must_have_the_same_features():
    both = {"rgb": np.ones((3, 5)), "audio": np.ones((3, 2))}
    message = error_of(clip(FIRST, **both), clip(rgb=both["rgb"]))
    assert "the features audio, rgb were expected. Received: rgb." in message
    assert "--feature_names" in message
    assert "Received: rgb, audio" in error_of(clip(FIRST, rgb=both["rgb"]), clip(**both))


def test_a_refused_clip_decides_nothing():
    checker = ClipChecker()
    with pytest.raises(ClipError):
        checker.check(clip(rgb=np.full((3, 5), np.nan)))
    checker.check(clip(rgb=np.ones((3, 4))))
    assert checker.sizes == {"rgb": 4}
