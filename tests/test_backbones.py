"""Networks of keras.applications take frames as they were trained to, and give one vector each."""

import inspect

import keras
import numpy as np
import pytest
from keras.src.applications import imagenet_utils

from own_data import backbones
from utils import InputError

# Fast to build, and with random weights its features are not almost 0.
SMALL = "VGG16"


def images(number=2, size=32):
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def test_every_network_of_keras_is_a_backbone():
    assert len(backbones.NAMES) >= 40
    assert {"InceptionV3", "EfficientNetV2B0", "MobileNetV3Small"} <= set(backbones.NAMES)
    for name in backbones.NAMES:
        assert inspect.getmodule(getattr(keras.applications, name)).preprocess_input


# Keras has no function that gives the default of MobileNetV3.
@pytest.mark.parametrize("name", [n for n in backbones.NAMES if not n.startswith("MobileNetV3")])
def test_the_default_size_is_that_of_keras(name, monkeypatch):
    sizes = []

    def obtain_input_shape(input_shape, default_size, **_):
        sizes.append(default_size)
        raise InterruptedError

    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", obtain_input_shape)
    with pytest.raises(InterruptedError):
        getattr(keras.applications, name)(weights=None)
    assert [backbones.default_image_size(name)] == sizes


# Networks with inputs from -1 to 1, with normalized RGB, and with BGR minus its mean.
@pytest.mark.parametrize(
    ("name", "preprocess"),
    [
        ("MobileNetV2", lambda x: x / 127.5 - 1),
        pytest.param(
            "DenseNet121",
            lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
            marks=pytest.mark.slow,
        ),
        ("VGG16", lambda x: x[..., ::-1] - [103.939, 116.779, 123.68]),
    ],
)
def test_features_are_the_mean_of_the_last_convolution_of_preprocessed_images(name, preprocess):
    model = backbones.build(name, "none", 32)
    keras.utils.set_random_seed(0)
    network = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    expected = np.mean(network(preprocess(images().astype(np.float64))), axis=(1, 2))
    features = np.asarray(model(images()))
    assert features.shape == (2, network.output_shape[-1])
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert expected.std() > 0


def test_random_weights_depend_on_the_seed_only():
    first, again, other = (
        np.asarray(backbones.build(SMALL, "none", 32, seed)(images())) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_weights_come_from_a_file(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    model = keras.applications.VGG16(weights=None, include_top=False)
    model.save_weights(path)
    found = backbones.build(SMALL, path, 32).get_weights()
    for weight, expected in zip(found, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_weights_of_another_network_are_refused(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(path)
    with pytest.raises(InputError, match=r"VGG16.*a\.weights\.h5"):
        backbones.build(SMALL, path, 32)


@pytest.mark.parametrize(
    ("name", "weights", "size", "message"),
    [
        ("MobileNet9", "none", 32, "--backbone must be one of .*MobileNetV2"),
        (SMALL, "imagnet", 32, "--weights must be imagenet, none or the path"),
        ("InceptionV3", "none", 32, "images of 32 pixels.*75"),
    ],
)
def test_bad_settings_are_reported(name, weights, size, message):
    with pytest.raises(InputError, match=message):
        backbones.build(name, weights, size)


def test_a_failed_download_is_reported(monkeypatch):
    def fail(**_):
        raise Exception("URL fetch failure on https://storage.googleapis.com")

    monkeypatch.setattr(keras.applications, SMALL, fail)
    with pytest.raises(InputError, match="--weights=imagenet: URL fetch failure"):
        backbones.build(SMALL, "imagenet", 32)
