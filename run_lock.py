"""Lets one training at a time work in a train directory."""

import contextlib
import fcntl
import os
import socket

from absl import logging

import distribution
import files
from utils import InputError

FILE_NAME = "training.lock"


@contextlib.contextmanager
def hold(train_dir):
    """Keeps other trainings out of a directory until the block ends.

    The operating system keeps the lock and drops it when the process ends, however that happens, so
    a file that is left says nothing. The directory is made if it is not there. Of several workers
    of one training the first holds the lock. Remote file systems (gs:// and the like) have no
    locks: there it does nothing.

    Raises:
        InputError: if another training has the lock, naming its process and host.
    """
    if files.is_remote(train_dir) or not distribution.is_first_worker():
        yield
        return
    try:
        os.makedirs(train_dir, exist_ok=True)
        # Opened to append, so that the words of who has the lock stay.
        file = open(os.path.join(train_dir, FILE_NAME), "a+")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot write to --train_dir {train_dir}: {error}") from error
    with file:
        _lock(file, train_dir)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock(file, train_dir):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise InputError(
            f"another training works in {train_dir}: {file.read() or 'one that just began'}. Wait "
            "until it ends, stop it, or choose another --train_dir."
        ) from None
    except OSError as error:
        logging.warning(
            "%s cannot be locked: see that no other training uses it: %s", train_dir, error
        )
