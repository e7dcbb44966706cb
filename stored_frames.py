"""Frames as they are stored, bytes, that become numbers only inside the products of a model.

Dequantising, normalising to length 1 and batch normalisation are affine for each frame and entry.
So they can be applied around a product instead of to the frames before it, and a tensor of floating
point frames, four times the size of the bytes, is never needed.
"""

from typing import Any, NamedTuple

from keras import ops

import utils

# Subtracted from a byte, it leaves a number that even bfloat16 holds exactly, and a small one.
_CENTER = 128.0
# What is to be added then, in units of the quantisation, to be where 0 is 0.
_SHIFT = _CENTER + utils.QUANTIZATION_OFFSET / utils.QUANTIZATION_SCALE


class StoredFrames(NamedTuple):
    """The frames of videos.

        x_td = scales_t * gains_d * (q_td - 128 + shift) + offsets_d

    with B videos of T frames of D entries.

    Attributes:
        q: the stored bytes, uint8 `[B, T, D]`.
        scales: float32 `[B, T]`, one over the length of each frame; 0 for padding.
        gains: float32 `[D]`.
        offsets: float32 `[D]`.
    """

    q: Any
    scales: Any
    gains: Any
    offsets: Any

    @classmethod
    def normalized(cls, q, scales):
        """Frames of length 1, with the scales of `frame_scales`."""
        size = q.shape[-1]
        return cls(q, scales, ops.ones([size]), ops.zeros([size]))

    @property
    def shape(self):
        """`(B, T, D)`."""
        return self.q.shape

    def affine(self, gains, offsets):
        """The frames `gains * x + offsets`."""
        return self._replace(gains=self.gains * gains, offsets=self.offsets * gains + offsets)

    def entries(self, start, size):
        """The part of every frame that is one feature."""
        stop = start + size
        return StoredFrames(
            self.q[..., start:stop],
            self.scales,
            self.gains[start:stop],
            self.offsets[start:stop],
        )

    def to_float(self):
        """The frames as numbers, float32 `[B, T, D]`."""
        return self.scales[..., None] * (self.gains * _shifted(self.q)) + self.offsets

    def project(self, kernel, layer):
        """Frames times a matrix `[D, K]`, float32 `[B, T, K]`, by a `nonlocal_vlad.MatrixLayer`."""
        return self.projection(kernel, layer)(self.q, self.scales)

    def projection(self, kernel, layer):
        """`project` as a function of the bytes, `[B, T, D]` or `[B, D]`, and the scales."""
        kernel = ops.cast(kernel, "float32")
        scaled = self.gains[:, None] * kernel
        matrix = ops.cast(scaled, layer.compute_dtype)
        shift = _SHIFT * ops.sum(scaled, axis=0)
        offset = ops.sum(self.offsets[:, None] * kernel, axis=0)

        def project(q, scales):
            rows = "BT"[: len(q.shape) - 1]
            products = layer.product(f"{rows}D,DK->{rows}K", _centered(q, layer), matrix)
            return scales[..., None] * (products + shift) + offset

        return project

    def pool(self, weights, layer):
        """Sums weighted by `[B, T, K]`, float32 `[B, K, D]`, by a `nonlocal_vlad.MatrixLayer`."""
        scaled = weights * self.scales[..., None]
        sums = layer.product("BTK,BTD->BKD", scaled, _centered(self.q, layer))
        sums += _SHIFT * ops.sum(scaled, axis=1)[..., None]
        return self.gains * sums + ops.sum(weights, axis=1)[..., None] * self.offsets

    def moments(self, shares):
        """Mean and variance of the frames, `[D]` each, with shares `[B, T]` that sum to 1."""
        values = _shifted(self.q)
        mean = ops.einsum("BT,BTD->D", shares * self.scales, values)
        square = ops.einsum("BT,BTD->D", shares * ops.square(self.scales), ops.square(values))
        variance = ops.square(self.gains) * ops.maximum(square - ops.square(mean), 0.0)
        return self.gains * mean + self.offsets, variance


def _centered(q, layer):
    return ops.cast(q, layer.compute_dtype) - _CENTER


def frame_scales(q):
    """One over the length of the dequantised frames `[B, T, D]`, in units of the quantisation."""
    return ops.rsqrt(ops.sum(ops.square(_shifted(q)), axis=-1))


def _shifted(q):
    return ops.cast(q, "float32") + (_SHIFT - _CENTER)
