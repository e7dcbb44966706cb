"""Matrices of models for prediction, stored in int8 or transposed, in `keras.ops` only."""

import contextlib
import contextvars

import keras
from keras import ops

_LARGEST = 127
# Columns and entries of the blocks that products of few rows cast: 4 MiB in bfloat16, which stay in
# the processor's cache, unless that were less than 128 columns.
_MIN_COLUMNS, _ENTRIES = 128, 2**21
# Calls a function that casts a whole matrix; None calls it at once.
_caller = contextvars.ContextVar("caller", default=None)


class Int8Matrix:
    """Matrix `[D, K]` in int8, with one scale per column.

        w_dk = s_k q_dk,  s_k = max_d |w_dk| / 127,  q_dk = round(w_dk / s_k)

    Products cast q, which bfloat16 represents exactly, and multiply their result by s. They are not
    computed in int8, because that takes TensorFlow several times as long on CPUs. A transposed q is
    cast block by block.

    Args:
        q: variable or tensor, int8 `[D, K]`, or `TransposedMatrix` of one.
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
        q = self.q.variables if isinstance(self.q, TransposedMatrix) else [self.q]
        return [*q, self.scale]

    def __getitem__(self, rows):
        """Returns the matrix of a slice of the rows; not for a transposed q."""
        return Int8Matrix(self.q[rows], self.scale)

    def assign(self, values):
        """Stores float values `[D, K]`."""
        values = ops.cast(values, "float32")
        scale = ops.max(ops.abs(values), axis=0) / _LARGEST
        self.scale.assign(scale)
        self.q.assign(ops.cast(ops.round(values / ops.where(scale > 0.0, scale, 1.0)), "int8"))

    def to_float(self, dtype):
        """Returns the matrix in a float dtype."""
        return ops.cast(self.scale * to_float(self.q, "float32"), dtype)

    def cast(self, dtype):
        """Returns the matrix with q, which is not transposed, in a float dtype."""
        cast, caller = (lambda: ops.cast(self.q, dtype)), _caller.get()
        return Int8Matrix(caller(cast) if caller else cast(), self.scale)

    def multiply(self, x, product, dtype):
        """Multiplies rows by the matrix; returns float32 `[B, K]` or `[B, T, K]`.

        Args:
            x: float `[B, D]` or `[B, T, D]`.
            product: function of rows and a matrix in `dtype` to their product, float32.
            dtype: float dtype of the products.
        """
        if isinstance(self.q, TransposedMatrix):
            return self.scale * self.q.multiply_by_blocks(x, product, dtype)
        is_cast = keras.backend.standardize_dtype(self.q.dtype) == dtype
        return self.scale * product(x, self.q if is_cast else self.cast(dtype).q)


class TransposedMatrix:
    """Matrix `[D, K]` stored as `[K, D]`.

    A processor multiplies a few rows by a large bfloat16 matrix faster if the entries of a column,
    which it multiplies in pairs, lie side by side. The products are equal. In float32 it is slower.
    A matrix in int8 can then be cast in blocks of columns.

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

    def multiply_by_blocks(self, x, product, dtype):
        """Multiplies rows by the matrix, of which it casts one block of columns after the other.

        Args:
            x: float `[B, D]`.
            product: as for `Int8Matrix.multiply`, and so is `dtype`.
            dtype: float dtype.

        Returns:
            float32 `[B, K]`.
        """
        depth, columns = self.shape
        size = min(max(_ENTRIES // depth, _MIN_COLUMNS), columns)
        num_blocks = columns // size

        def multiply_block(start, size):
            block = ops.slice(self.columns, (start, 0), (size, depth))
            return product(x, TransposedMatrix(ops.cast(block, dtype)))

        def multiply_next(last, number):
            # 0, but known only after the last block. TensorFlow would cast ten blocks ahead.
            after = ops.shape(last)[0] - ops.shape(x)[0]
            rows = multiply_block(number * size + after, size)
            return rows, rows

        first = ops.zeros((ops.shape(x)[0], size))
        # [blocks, B, size]
        _, blocks = ops.scan(multiply_next, first, ops.arange(num_blocks))
        rows = ops.reshape(ops.transpose(blocks, (1, 0, 2)), (-1, num_blocks * size))
        rest = columns - num_blocks * size
        if not rest:
            return rows
        return ops.concatenate([rows, multiply_block(num_blocks * size, rest)], axis=1)


@contextlib.contextmanager
def casting_by(caller):
    """Lets another function cast whole matrices, for example once before a loop.

    Args:
        caller: function of a function without arguments, of which it returns the result.
    """
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def is_casting_elsewhere():
    """Returns whether `casting_by` is in effect."""
    return _caller.get() is not None


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
