"""Matrices of models for prediction, stored in int8 or transposed, in `keras.ops` only."""

import keras
from keras import ops

_LARGEST = 127
# Rows and entries of the blocks that products of few rows cast: 2 MiB in bfloat16, which stays in
# the processor's cache, unless that were less than 128 rows.
_MIN_ROWS, _ENTRIES = 128, 2**20


class Int8Matrix:
    """Matrix `[D, K]` in int8, with one scale per column.

        w_dk = s_k q_dk,  s_k = max_d |w_dk| / 127,  q_dk = round(w_dk / s_k)

    Products cast q, which bfloat16 represents exactly, and multiply their result by s. They are not
    computed in int8, because that takes TensorFlow several times as long on CPUs.

    Args:
        q: variable or tensor, int8 `[D, K]`.
        scale: variable or tensor, the s_k, float32 `[K]`.
    """

    def __init__(self, q, scale):
        self.q = q
        self.scale = scale

    @property
    def shape(self):
        """`(D, K)`."""
        return self.q.shape

    @property
    def variables(self):
        """The variables that hold the matrix."""
        return [self.q, self.scale]

    def __getitem__(self, rows):
        """Returns the matrix of a slice of the rows."""
        return Int8Matrix(self.q[rows], self.scale)

    def assign(self, values):
        """Stores float values `[D, K]`."""
        values = ops.cast(values, "float32")
        scale = ops.max(ops.abs(values), axis=0) / _LARGEST
        self.scale.assign(scale)
        self.q.assign(ops.cast(ops.round(values / ops.where(scale > 0.0, scale, 1.0)), "int8"))

    def to_float(self, dtype):
        """Returns the matrix in a float dtype."""
        return ops.cast(self.scale * ops.cast(self.q, "float32"), dtype)

    def cast(self, dtype):
        """Returns the matrix with q in a float dtype, to multiply by it repeatedly."""
        return Int8Matrix(ops.cast(self.q, dtype), self.scale)

    def multiply(self, x, product, dtype):
        """Multiplies rows by the matrix; returns float32 `[B, K]` or `[B, T, K]`.

        Args:
            x: float `[B, D]` or `[B, T, D]`.
            product: function of rows and a matrix in `dtype` to their product, float32.
            dtype: float dtype of the products.
        """
        is_cast = keras.backend.standardize_dtype(self.q.dtype) == dtype
        # The frames of videos take more memory than a float copy of the matrix.
        if is_cast or len(x.shape) == 3:
            return self.scale * product(x, ops.cast(self.q, dtype))
        return self.scale * self._sum_of_block_products(x, product, dtype)

    def _sum_of_block_products(self, x, product, dtype):
        """Returns the product of rows `[B, D]` and q, which is cast one block after the other."""
        depth, columns = self.shape
        size = min(max(_ENTRIES // columns, _MIN_ROWS) // 64 * 64, depth)
        last = (depth - 1) // size * size

        def block_product(start, size):
            block = ops.slice(self.q, (start, 0), (size, columns))
            part = ops.slice(x, (0, start), (ops.shape(x)[0], size))
            return product(part, ops.cast(block, dtype))

        def add_block(number, sums):
            # 0, but known only after the block before. TensorFlow would cast ten blocks ahead.
            after = ops.shape(sums)[0] - ops.shape(x)[0]
            return sums + block_product(number * size + after, size)

        sums = block_product(last, depth - last)
        return ops.fori_loop(0, last // size, add_block, sums) if last else sums


class TransposedMatrix:
    """Matrix `[D, K]` stored as `[K, D]`.

    A processor multiplies a few rows by a large bfloat16 matrix faster if the entries of a column,
    which it multiplies in pairs, lie side by side. The products are equal. In float32 it is slower.

    Args:
        columns: variable, `[K, D]`.
    """

    def __init__(self, columns):
        self.columns = columns

    @property
    def shape(self):
        """`(D, K)`."""
        return self.columns.shape[::-1]

    @property
    def variables(self):
        """The variables that hold the matrix."""
        return [self.columns]

    def assign(self, values):
        """Stores float values `[D, K]`."""
        self.columns.assign(ops.transpose(ops.cast(values, self.columns.dtype)))

    def to_float(self, dtype):
        """Returns the matrix in a float dtype."""
        return ops.cast(ops.transpose(self.columns), dtype)


_KINDS = (Int8Matrix, TransposedMatrix)


def cast(matrix, dtype):
    """Returns a matrix, stored in int8 or as floats, to multiply by repeatedly."""
    return matrix.cast(dtype) if isinstance(matrix, Int8Matrix) else ops.cast(matrix, dtype)


def to_float(matrix, dtype):
    """Returns a matrix, however it is stored, in a float dtype."""
    return matrix.to_float(dtype) if isinstance(matrix, _KINDS) else ops.cast(matrix, dtype)


def stored_matrices(layer):
    """Returns the matrices of the classes above in a layer, not those of the layers inside it."""
    return [value for value in vars(layer).values() if isinstance(value, _KINDS)]
