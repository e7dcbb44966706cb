"""What layers know of the replicas that train on one batch together, each on a part of it.

It is said in no backend's terms: whoever runs a replica tells how numbers are summed over all.
"""

import contextlib
import contextvars
import dataclasses
import typing

import keras
from keras import ops


@dataclasses.dataclass(frozen=True)
class Replica:
    """One of several replicas.

    Attributes:
        index: int or int tensor. Its number, which its random numbers depend on.
        total: function from a list of float tensors to the list of their sums over all replicas.
    """

    index: typing.Any
    total: typing.Callable


_current = contextvars.ContextVar("replica", default=None)


@contextlib.contextmanager
def running(replica):
    """Makes layers that are called inside parts of a `Replica`; None for the only one."""
    token = _current.set(replica)
    try:
        yield
    finally:
        _current.reset(token)


def totals():
    """The function `total` of the replica that runs; the identity if it is the only one."""
    replica = _current.get()
    return replica.total if replica else list


class SeedGenerator(keras.random.SeedGenerator):
    """A seed generator whose seeds differ between replicas, though its state does not."""

    def next(self, ordered=True):
        """The next seed, `[2]`."""
        seed, replica = super().next(ordered), _current.get()
        if replica is None:
            return seed
        return seed + ops.cast(ops.stack([replica.index, 0]), seed.dtype)
