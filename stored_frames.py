"""Frames as they are stored, bytes, that become numbers only inside the products of a model.

Dequantising, normalising to length 1 and batch normalisation are affine for each frame and entry.
So they can be applied around a product instead of to the frames before it, and a tensor of floating
point frames, four times the size of the bytes, is never needed.
"""

from typing import Any, NamedTuple

from keras import ops

import replicas
import utils

# The byte that would stand for 0, 127 + 1/512. Bfloat16 rounds it to 127, a difference of 1/130560
# of the range that the bytes cover, and holds every byte less 127 exactly.
_ZERO = -utils.QUANTIZATION_OFFSET / utils.QUANTIZATION_SCALE


class StoredFrames(NamedTuple):
    """The frames of videos.

        x_td = scales_t * gains_d * (q_td - zero) + offsets_d

    with B videos of T frames of D entries, and the zero of the quantisation.

    Attributes:
        q: the stored bytes, uint8 `[B, T, D]`.
        scales: float32 `[B, T]`, one over the length of each frame; 0 for padding.
        gains: float32 `[D]`, or None for 1.
        offsets: float32 `[D]`, or None for 0.
    """

    q: Any
    scales: Any
    gains: Any = None
    offsets: Any = None

    @property
    def shape(self):
        """`(B, T, D)`."""
        return self.q.shape

    def affine(self, gains, offsets):
        """The frames `gains * x + offsets`."""
        if self.offsets is not None:
            offsets = self.offsets * gains + offsets
        return self._replace(gains=self._gained(gains), offsets=offsets)

    def normalized(self):
        """The frames before any `affine`, of length 1."""
        return StoredFrames(self.q, self.scales)

    def entries(self, start, size):
        """The part of every frame that is one feature."""
        stop = start + size
        return StoredFrames(
            self.q[..., start:stop],
            self.scales,
            None if self.gains is None else self.gains[start:stop],
            None if self.offsets is None else self.offsets[start:stop],
        )

    def to_float(self):
        """The frames as numbers, float32 `[B, T, D]`."""
        values = self.scales[..., None] * self._gained(_centered(self.q, "float32"))
        return values if self.offsets is None else values + self.offsets

    def projection(self, kernel, layer):
        """What multiplies frames by a matrix `[D, K]`, with a `nonlocal_vlad.MatrixLayer`.

        Returns:
            `(project, offset)`: a function of the bytes, `[B, T, D]` or `[B, D]`, and the scales,
            to float32 `[B, T, K]` or `[B, K]`; and what is to be added then, `[K]` or None.
        """
        matrix, offset = kernel, None
        if self.gains is not None:
            matrix = self.gains[:, None] * ops.cast(kernel, "float32")
        if self.offsets is not None:
            offset = ops.sum(self.offsets[:, None] * ops.cast(kernel, "float32"), axis=0)
        matrix = ops.cast(matrix, layer.compute_dtype)

        def project(q, scales):
            return scales[..., None] * layer.rows_times(_centered(q, layer.compute_dtype), matrix)

        return project, offset

    def pool(self, weights, layer):
        """Sums weighted by `[B, T, K]`, without what the offsets add to each frame.

        Returns:
            float32 `[B, K, D]`, made by a `nonlocal_vlad.MatrixLayer`.
        """
        scaled = weights * self.scales[..., None]
        centered = _centered(self.q, layer.compute_dtype)
        return self._gained(layer.product("BTK,BTD->BKD", scaled, centered))

    def moments(self, shares):
        """Mean and variance of the frames, `[D]` each, with shares `[B, T]` that sum to 1.

        Frames can be spread over `replicas`; the shares of all of them sum to 1.
        """
        values = _centered(self.q, "float32")
        mean = ops.einsum("BT,BTD->D", shares * self.scales, values)
        square = ops.einsum("BT,BTD->D", shares * ops.square(self.scales), ops.square(values))
        mean, square = replicas.totals()([mean, square])
        variance = self._gained(self._gained(ops.maximum(square - ops.square(mean), 0.0)))
        mean = self._gained(mean)
        return mean if self.offsets is None else mean + self.offsets, variance

    def _gained(self, values):
        return values if self.gains is None else self.gains * values


def _centered(q, dtype):
    return ops.cast(q, dtype) - ops.cast(_ZERO, dtype)


def frame_scales(q):
    """One over the length of the dequantised frames `[B, T, D]`, in units of the quantisation."""
    return ops.rsqrt(ops.sum(ops.square(_centered(q, "float32")), axis=-1))
