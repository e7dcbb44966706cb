"""Paths, local or on any file system that TensorFlow knows (gs:// and the like)."""

import codecs
import contextlib
import gzip
import json
import os
import re
import shutil
import socket

import tensorflow as tf

from utils import InputError

gfile = tf.io.gfile

# What file operations of TensorFlow raise in place of OSError, with a message that tells the path.
REMOTE_ERRORS = (
    tf.errors.AlreadyExistsError,
    tf.errors.FailedPreconditionError,
    tf.errors.NotFoundError,
    tf.errors.OutOfRangeError,  # Of a file that may not become larger.
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnavailableError,
    tf.errors.UnimplementedError,
    tf.errors.UnknownError,
)


def is_remote(path):
    """Whether a path names another file system, as `gs://bucket/file` does."""
    return "://" in path


def absolute(path):
    """The path from the root, without a slash at its end; one of another file system has it."""
    return path.rstrip("/") if is_remote(path) else os.path.abspath(path)


def remove(path):
    """Removes a file, or a directory with all that is in it; of a link, the link alone."""
    if is_remote(path):
        (gfile.rmtree if gfile.isdir(path) else gfile.remove)(path)
    elif os.path.isdir(path) and not os.path.islink(path):
        # gfile would go through links.
        shutil.rmtree(path)
    else:
        os.remove(path)


def expand_patterns(patterns):
    """Files that match comma-separated globs, sorted and without repetition.

    Raises:
        InputError: if a pattern matches no file.
    """
    found = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        try:
            matches = [path for path in gfile.glob(pattern) if not gfile.isdir(path)]
        except REMOTE_ERRORS as error:
            raise InputError(f"cannot list the files that match {pattern!r}: {error}") from error
        if not matches:
            raise InputError(
                f"no file matches {pattern!r} (working directory {os.getcwd()}). "
                "Check the path, and quote the pattern so that the shell leaves it alone."
            )
        found.update(matches)
    if not found:
        raise InputError(f"a file pattern was expected. Received: {patterns!r}")
    return sorted(found)


def open_binary(path, mode="rb", buffering=-1):
    """Opens a file for reading or writing bytes."""
    return gfile.GFile(path, mode) if is_remote(path) else open(path, mode, buffering)


def file_size(path):
    """Size of a file in bytes."""
    return gfile.stat(path).length


@contextlib.contextmanager
def atomic_path(path):
    """Gives a path to write to, in the same directory, renamed to `path` at the end.

    After an error it is removed, so that a file under `path` is always whole.

    Raises:
        InputError: if the file cannot be created.
    """
    check_writable(path)
    _remove_abandoned(path)
    partial = _partial_path(path)
    try:
        yield partial
        gfile.rename(partial, path, overwrite=True)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = path  # Python does not tell which write found the disk full.
        with contextlib.suppress(OSError, *REMOTE_ERRORS):
            gfile.remove(partial)
        raise


@contextlib.contextmanager
def atomic_directory(path):
    """Gives a directory to fill, beside `path`, renamed to `path` at the end.

    After an error it is removed, so that a directory under `path` is always whole.

    Raises:
        InputError: if `path` exists and is not an empty directory, or cannot be made.
    """
    path = path.rstrip("/")
    check_new_directory(path)
    partial = _partial_path(path)
    try:
        gfile.makedirs(partial)
        _remove_abandoned(path)
    except (OSError, *REMOTE_ERRORS) as error:
        raise InputError(f"cannot write {path}: {error}") from error
    try:
        yield partial
        if gfile.exists(path):
            gfile.rmtree(path)
        gfile.rename(partial, path)
    except BaseException:
        with contextlib.suppress(OSError, *REMOTE_ERRORS):
            gfile.rmtree(partial)
        raise


def check_new_directory(path):
    """Refuses the path of a directory to make where something is already.

    Raises:
        InputError: if `path` exists and is not an empty directory.
    """
    if gfile.exists(path) and not (gfile.isdir(path) and not gfile.listdir(path)):
        raise InputError(f"{path} exists already. Choose another directory, or remove it.")


@contextlib.contextmanager
def atomic_write(path):
    """Opens a text file that appears under `path` only when it was written whole.

    A path that ends in `.gz` is compressed.

    Raises:
        InputError: if the file cannot be created.
    """
    compress = _compressed if path.endswith(".gz") else contextlib.nullcontext
    with atomic_path(path) as partial, open_binary(partial, "wb") as raw, compress(raw) as file:
        yield codecs.getwriter("utf-8")(file)


def _compressed(raw):
    # No name and no time inside, so that equal content gives equal files.
    return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)


def _partial_path(path):
    # With the process, so that two that write the same file leave each other's alone.
    return f"{path}.{socket.gethostname()}-{os.getpid()}.partial"


def _remove_abandoned(path):
    """Removes what processes on this host left of `path` when they were killed."""
    folder, name = os.path.split(path)
    abandoned = re.compile(rf"{re.escape(f'{name}.{socket.gethostname()}')}-(\d+)\.partial/?")
    for entry in gfile.listdir(folder or "."):
        found = abandoned.fullmatch(entry)
        if found and not is_running(int(found[1])):
            remove(os.path.join(folder, entry))


def is_running(pid):
    """Whether this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def check_writable(path):
    """Refuses a path that cannot be written, before long work is begun.

    Raises:
        InputError: if a file cannot be created there.
    """
    partial = _partial_path(path)
    try:
        if gfile.isdir(path):
            raise OSError("it is a directory")
        gfile.makedirs(os.path.dirname(path) or ".")
        with open_binary(partial, "wb") as file:
            file.write(b"")  # Without it, TensorFlow creates no file.
        gfile.remove(partial)
    except (OSError, *REMOTE_ERRORS) as error:
        raise InputError(f"cannot write {path}: {error}") from error


def write_json(path, value):
    """Writes a value as indented JSON, whole or not at all."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def read_description(folder, name, program, flag):
    """Content of the JSON file in which a program describes a directory that it wrote.

    Args:
        folder: str. The directory, as the user gave it.
        name: str. The file's name.
        program: str. Name of the program that writes it.
        flag: str. Name of the flag that gave the directory.

    Returns:
        The path of the file, and its content.

    Raises:
        InputError: if there is no such file, or it is not JSON.
    """
    path = os.path.join(folder, name)
    if not gfile.exists(path):
        raise InputError(
            f"{folder} has no {name}, so it is no directory that {program} wrote. Check --{flag}."
        )
    return path, read_json(path)


def read_json(path):
    """Reads a JSON file.

    Raises:
        InputError: if it is not JSON.
    """
    with open_binary(path) as file:
        content = file.read()
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
