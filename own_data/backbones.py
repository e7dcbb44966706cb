"""Image networks of `keras.applications`, which turn frames into features.

Needs no TensorFlow: the networks run on any backend of Keras.
"""

import inspect
import os

import keras
from keras import ops

from utils import InputError, check_one_of

NAMES = tuple(name for name in vars(keras.applications) if name[0].isupper())
# Height and width for which networks were trained, where it is not 224.
_IMAGE_SIZES = {
    "EfficientNetB1": 240,
    "EfficientNetB2": 260,
    "EfficientNetB3": 300,
    "EfficientNetB4": 380,
    "EfficientNetB5": 456,
    "EfficientNetB6": 528,
    "EfficientNetB7": 600,
    "EfficientNetV2B1": 240,
    "EfficientNetV2B2": 260,
    "EfficientNetV2B3": 300,
    "EfficientNetV2L": 480,
    "EfficientNetV2M": 480,
    "EfficientNetV2S": 384,
    "InceptionResNetV2": 299,
    "InceptionV3": 299,
    "NASNetLarge": 331,
    "Xception": 299,
}


def check(name: str, weights: str) -> None:
    """Checks the arguments of `build` without building the network.

    Raises:
        InputError: if there is no such network, or no such file of weights.
    """
    check_one_of(NAMES, **{"--backbone": name})
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise InputError(
            f"--weights must be imagenet, none or the path of a file. Received: {weights}"
        )


def default_image_size(name: str) -> int:
    """Returns the height and width in pixels for which a network was trained."""
    return _IMAGE_SIZES.get(name, 224)


def build(name: str, weights: str, image_size: int, seed: int = 0) -> keras.Model:
    """Returns a network from images, uint8 RGB `[B, H, W, 3]`, to features `[B, D]`.

    The network preprocesses the images as it was trained. The features are the mean over all
    positions of its last convolution.

    Args:
        name: one of `NAMES`.
        weights: `imagenet`, which Keras downloads once; `none` for random weights; or the path of a
            file of weights of the network without its classifier.
        image_size: height and width of the images in pixels.
        seed: seed of random weights.

    Raises:
        InputError: if the weights cannot be loaded, or the network takes no images of this size.
    """
    check(name, weights)
    builder = getattr(keras.applications, name)
    keras.utils.set_random_seed(seed)
    shape = (image_size, image_size, 3)
    try:
        network = builder(
            weights=None if weights == "none" else weights,
            include_top=False,
            pooling="avg",
            input_shape=shape,
        )
    except Exception as error:  # Keras raises Exception itself after a failed download.
        raise InputError(
            f"cannot build --backbone={name} for images of {image_size} pixels with "
            f"--weights={weights}: {error}. A file of weights is made by "
            f"keras.applications.{name}(include_top=False).save_weights('NAME.weights.h5')."
        ) from error
    images = keras.Input(shape, dtype="uint8")
    preprocess = inspect.getmodule(builder).preprocess_input  # type: ignore[union-attr]
    return keras.Model(images, network(preprocess(ops.cast(images, "float32"))))
