"""Files and directories, local or on any file system that TensorFlow supports, such as gs://."""

import codecs
import contextlib
import fcntl
import functools
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from typing import IO, Any

import tensorflow as tf
from absl import logging

from utils import InputError

gfile = tf.io.gfile

# TensorFlow's file operations raise these instead of OSError; their messages contain the path.
REMOTE_ERRORS = (
    tf.errors.AlreadyExistsError,
    tf.errors.FailedPreconditionError,
    tf.errors.NotFoundError,
    tf.errors.OutOfRangeError,  # When a file may not grow.
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnavailableError,
    tf.errors.UnimplementedError,
    tf.errors.UnknownError,
)


# The same when a path itself is not possible, for example too long.
PATH_ERRORS = (*REMOTE_ERRORS, tf.errors.InvalidArgumentError)

# Size of the blocks that `fingerprint` reads.
_BLOCK_BYTES = 2**16
# Names in a message about a directory.
_MAX_NAMES = 6
# Entries of a list in indented JSON, if none of them is a list or an object, or has brackets.
_INNERMOST_LIST = re.compile(r"\[\n +([^][{}]*)\n *\]")


def is_remote(path: str) -> bool:
    """Returns whether a path names another file system, as `gs://bucket/file` does."""
    return "://" in path


def absolute(path: str) -> str:
    """Returns the absolute path without a trailing slash; remote paths are absolute already."""
    return path.rstrip("/") if is_remote(path) else os.path.abspath(path)


def remove(path: str) -> None:
    """Removes a file, or a directory with its contents; for a symbolic link, only the link."""
    if is_remote(path):
        (gfile.rmtree if gfile.isdir(path) else gfile.remove)(path)
    elif os.path.isdir(path) and not os.path.islink(path):
        # gfile would follow links.
        shutil.rmtree(path)
    else:
        os.remove(path)


def remove_empty_directory(path: str) -> None:
    """Removes a directory if it exists and is empty."""
    with contextlib.suppress(OSError, *REMOTE_ERRORS):
        if not is_remote(path):
            os.rmdir(path)
        elif not gfile.listdir(path):
            gfile.rmtree(path)


def check_no_link(path: str) -> None:
    """Rejects a link to a file or directory that may lie elsewhere, before something writes to it.

    Raises:
        InputError: if `path` is a symbolic link, or a file with several names.
    """
    try:
        status = os.lstat(path)
    except OSError:  # Nothing is there, or another process has just removed it.
        return
    if stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1):
        raise InputError(
            f"{path} is a link. Nothing is written or removed through links. Remove the link, or "
            "choose another directory."
        )


def expand_patterns(patterns: str) -> list[str]:
    """Returns the files that match paths and globs, sorted, each once.

    Paths of the same file, for example through a link, count as one.

    Args:
        patterns: paths or globs, separated by commas or line breaks. A line that matches a file as
            a whole is not split at its commas, and a path that exists is not taken for a glob.

    Raises:
        InputError: if a pattern matches no file, or a match is a file that cannot be read.
    """
    found: set[str] = set()
    for line in filter(None, map(str.strip, patterns.split("\n"))):
        matches = _matches(line)
        if not matches:
            for pattern in filter(None, map(str.strip, line.split(","))):
                matches += _matches(pattern) or _no_match(pattern, line)
        found.update(matches)
    if not found:
        raise InputError(f"a file pattern was expected. Received: {patterns!r}")
    _check_local_files([path for path in sorted(found) if not is_remote(path)])
    # The first path of each file.
    paths = sorted({_real(path): path for path in sorted(found, reverse=True)}.values())
    if len(paths) < len(found):
        logging.info(
            "%d of %d paths are other paths of the same files and are not read again",
            len(found) - len(paths),
            len(found),
        )
    return paths


def check_not_input(path: str, inputs: Iterable[str]) -> None:
    """Rejects an output file that would replace an input file.

    Raises:
        InputError: if `path` is one of `inputs`, whatever their spelling.
    """
    if _real(path) in map(_real, inputs):
        raise InputError(
            f"{path} would replace an input file. Choose another path for the output, or "
            "leave that file out of the input."
        )


def _real(path):
    """Returns the same path for all paths of a local file."""
    return path if is_remote(path) else os.path.realpath(path)


def _matches(pattern):
    """Returns the files that a path or glob matches."""
    # A path with brackets may also be the folder of a glob.
    literal = re.sub(r"([\[\]])", r"\\\1", pattern)
    try:
        if gfile.exists(pattern) and not gfile.isdir(pattern):
            return [pattern.removeprefix("./")]
        if "**" in pattern.split("/"):
            raise InputError(
                f"{pattern!r}: ** does not search subdirectories. Give a pattern for each level, "
                "for example 'data/*.tfrecord,data/*/*.tfrecord'."
            )
        found = gfile.glob(pattern) or (gfile.glob(literal) if literal != pattern else [])
        isdir = gfile.isdir if is_remote(pattern) else os.path.isdir
        return [path.removeprefix("./") for path in found if not isdir(path)]
    except PATH_ERRORS as error:
        raise InputError(f"cannot list the files that match {pattern!r}: {error}") from error


def _no_match(pattern, line):
    for path in (pattern, line):
        if gfile.isdir(path):
            names = sorted({re.sub(r"\d+", "*", name) for name in gfile.listdir(path)})
            examples = ", ".join(names[:_MAX_NAMES]) or "nothing"
            raise InputError(
                f"{path!r} is a directory. Give a pattern for its files, for example "
                f"'{path.rstrip('/')}/train*.tfrecord'. It has: {examples}"
                f"{', ...' if len(names) > _MAX_NAMES else ''}"
            )
    hint = " If the path has commas, repeat the flag for other paths." if pattern != line else ""
    raise InputError(
        f"no file matches {pattern!r} (working directory {os.getcwd()}). Check the path, and quote "
        f"the pattern so that the shell does not expand it.{hint}"
    )


def _check_local_files(paths):
    """Rejects files that cannot be read, and warns of empty ones."""
    empty = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error}") from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{path} is a pipe or a device, which can be read only once. Save its content in a "
                "file, or leave it out of the pattern."
            )
        if not os.access(path, os.R_OK):
            raise InputError(f"cannot read {path}: this user has no permission.")
        if not status.st_size:
            empty.append(path)
    if empty and len(empty) < len(paths):
        logging.warning("%d of %d files are empty, such as %s", len(empty), len(paths), empty[0])


def open_binary(path: str, mode: str = "rb", buffering: int = -1) -> IO[bytes]:
    """Opens a file for reading or writing bytes; `buffering` applies to local files only."""
    return gfile.GFile(path, mode) if is_remote(path) else open(path, mode, buffering)


def open_for_library(path: str) -> IO[bytes]:
    """Opens a file for reading by a library, which may use all of the `io` module's interface."""
    return io.BufferedReader(_RemoteFile(path)) if is_remote(path) else open(path, "rb")


class _RemoteFile(io.RawIOBase):
    """Reads a remote file with the interface of the `io` module, of which TensorFlow has a part."""

    def __init__(self, path):
        self._file = gfile.GFile(path, "rb")

    def readable(self):
        return True

    def seekable(self):
        return True

    def readinto(self, buffer):
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset, whence=os.SEEK_SET):
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self):
        return self._file.tell()


def file_size(path: str) -> int:
    """Returns the size of a file in bytes."""
    return gfile.stat(path).length


def fingerprint(path: str) -> dict[str, Any]:
    """Returns values by which a file that was replaced or changed is noticed, as a dict for JSON.

    These are its size, its modification time, and a digest of its first, middle and last 64 KiB.
    """
    stat = gfile.stat(path)
    hashed = hashlib.sha256()
    with open_binary(path) as file:
        for position in (0, (stat.length - _BLOCK_BYTES) // 2, stat.length - _BLOCK_BYTES):
            file.seek(max(position, 0))
            hashed.update(file.read(_BLOCK_BYTES))
    return {"size": stat.length, "modified": stat.mtime_nsec, "digest": hashed.hexdigest()[:16]}


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """Yields a temporary path in the same directory, which is renamed to `path` at the end.

    After an error the temporary file is removed, so a file at `path` is always complete.

    Raises:
        InputError: if `path` is a directory, or its directory cannot be created.
    """
    _prepare_directory(path)
    _remove_abandoned(path)
    partial = _partial_path(path)
    _remove_if_there(partial)
    try:
        with named_errors(path):
            yield partial
            gfile.rename(partial, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(OSError, *REMOTE_ERRORS):
            gfile.remove(partial)
        raise


def copy(source: str, path: str) -> None:
    """Copies a file to a path at which it appears only when it is complete."""
    with atomic_path(path) as partial:
        gfile.copy(source, partial, overwrite=True)


@contextlib.contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Adds the name of the file to an `OSError` without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = path
        raise


@contextlib.contextmanager
def atomic_directory(path: str) -> Iterator[str]:
    """Yields a temporary directory next to `path`, which is renamed to `path` at the end.

    After an error the temporary directory is removed, so a directory at `path` is always complete.

    Raises:
        InputError: if `path` exists and is not an empty directory, or cannot be created.
    """
    path = path.rstrip("/")
    _check_unused(path)
    partial = _partial_path(path)
    try:
        _remove_if_there(partial)
        gfile.makedirs(partial)
        _remove_abandoned(path)
    except (OSError, *PATH_ERRORS) as error:
        raise InputError(f"cannot write {path}: {error}") from error
    try:
        yield partial
        _check_unused(path)  # Another process may have written it meanwhile.
        remove_empty_directory(path)
        gfile.rename(partial, path)
    except BaseException:
        with contextlib.suppress(OSError, *REMOTE_ERRORS):
            gfile.rmtree(partial)
        raise


def check_new_directory(path: str) -> None:
    """Rejects a path for a new directory that is in use or cannot be written.

    Raises:
        InputError: if `path` exists and is not an empty directory, or cannot be created.
    """
    _check_unused(path)
    _check_creatable(path.rstrip("/"))


def _check_unused(path):
    if gfile.exists(path) and not (gfile.isdir(path) and not gfile.listdir(path)):
        raise InputError(f"{path} exists already. Choose another directory, or remove it.")


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[codecs.StreamWriter]:
    """Opens a text file that appears at `path` only after it is completely written.

    The file is compressed if `path` ends in `.gz`.

    Raises:
        InputError: if `path` is a directory, or its directory cannot be created.
    """
    compress: Any = _compressed if path.endswith(".gz") else contextlib.nullcontext
    with atomic_path(path) as partial, open_binary(partial, "wb") as raw, compress(raw) as file:
        yield codecs.getwriter("utf-8")(file)


def _compressed(raw):
    # Stores neither name nor time, so that equal content gives equal files.
    return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)


def _partial_path(path):
    # Names the process, so that two processes can write the same file without a conflict.
    return f"{path}.{socket.gethostname()}-{os.getpid()}.partial"


def _is_special(path):
    """Returns whether a path is no regular file, such as /dev/null, or a link like /dev/stdout."""
    if is_remote(path):
        return False
    path = os.path.abspath(path)
    if os.path.dirname(path) == "/dev":
        return True
    try:
        # Asked once: between two questions, another process may remove a lock.
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _remove_if_there(partial):
    """Removes what another process left under the name of a partial file, such as a link."""
    if not is_remote(partial) and os.path.lexists(partial):
        remove(partial)


def _remove_abandoned(path):
    """Removes partial files of `path` that killed processes on this host left behind."""
    folder, name = os.path.split(absolute(path))
    abandoned = re.compile(rf"{re.escape(f'{name}.{socket.gethostname()}')}-(\d+)\.partial/?")
    for entry in _partial_files(folder):
        found = abandoned.fullmatch(entry)
        if found and not is_running(int(found[1])):
            with contextlib.suppress(FileNotFoundError, tf.errors.NotFoundError):
                remove(os.path.join(folder, entry))


@functools.cache
def _partial_files(folder):
    """Lists the partial files in a folder once per process: a folder may get thousands of files."""
    return [entry for entry in gfile.listdir(folder) if entry.rstrip("/").endswith(".partial")]


def is_running(pid: int) -> bool:
    """Returns whether this host has a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def check_writable(path: str) -> None:
    """Rejects a path that cannot be written; call it before long work.

    Raises:
        InputError: if a file cannot be created there.
    """
    _prepare_directory(path)
    _check_creatable(path)


def _check_creatable(path):
    partial = _partial_path(path)
    try:
        gfile.makedirs(os.path.dirname(path) or ".")
        _remove_if_there(partial)
        with open_binary(partial, "wb") as file:
            file.write(b"")  # Without a write, TensorFlow creates no file.
        gfile.remove(partial)
    except (OSError, *PATH_ERRORS) as error:
        raise InputError(f"cannot write {path}: {error}") from error


def _prepare_directory(path):
    try:
        if gfile.isdir(path):
            raise OSError("it is a directory")
        if _is_special(path):
            raise OSError("it is a device or the like, which the file would replace")
        gfile.makedirs(os.path.dirname(path) or ".")
    except (OSError, *PATH_ERRORS) as error:
        raise InputError(f"cannot write {path}: {error}") from error


@contextlib.contextmanager
def lock(path: str, busy: str = "", remedy: str = "", *, wait: bool = False) -> Iterator[None]:
    """Holds a lock file until the block ends, and then removes it.

    The operating system drops the lock when the process ends in any way, so a file left behind
    means nothing. Remote file systems (such as gs://) have no locks; there this does nothing.

    Args:
        path: file to create; its directory is created if needed.
        busy: what another process does that holds the lock, for the error.
        remedy: what to do then.
        wait: whether to wait for that process instead.

    Raises:
        InputError: if another process holds the lock, naming that process and its host; or the
            file cannot be created.
    """
    if is_remote(path):
        yield
        return
    with _lock_file(path, busy, remedy, wait) as file:
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            file.truncate(0)
            with named_errors(path):
                os.write(file.fileno(), holder.encode())  # Unbuffered: closing cannot fail.
            yield
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)


def _lock_file(path, busy, remedy, wait):
    """Returns the locked file at `path`, open."""
    check_no_link(path)
    _prepare_directory(path)
    while True:
        try:
            # Opened to append, which keeps the text of the process that holds the lock.
            file = open(path, "a+", opener=_open_no_link)  # noqa: SIM115
        except OSError as error:
            raise InputError(f"cannot write {path}: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read() or "it just started"
            raise InputError(f"{busy}: {holder}. {remedy}") from None
        except OSError as error:
            logging.warning("cannot lock %s; make sure that only one run uses it: %s", path, error)
            return file
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # The process that held it has removed it meanwhile.


def _open_no_link(path, flags):
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_json(path: str, value: Any) -> None:
    """Writes a value as indented JSON, lists on one line, completely or not at all."""
    text = json.dumps(value, indent=2)
    text = _INNERMOST_LIST.sub(lambda found: re.sub(r",\n *", ", ", f"[{found[1]}]"), text)
    with atomic_write(path) as file:
        file.write(f"{text}\n")


def read_description(folder: str, name: str, program: str, flag: str) -> tuple[str, Any]:
    """Reads the JSON file in which a program describes a directory that it wrote.

    Args:
        folder: directory to read from, as the user gave it.
        name: name of the JSON file.
        program: name of the program that writes it.
        flag: name of the flag that gave the directory.

    Returns:
        The path of the file, and its content.

    Raises:
        InputError: if there is no such file, or it is not JSON.
    """
    path = os.path.join(folder, name)
    if not gfile.exists(path):
        raise InputError(
            f"{folder} has no {name}, so {program} did not write this directory. Check --{flag}."
        )
    return path, read_json(path)


def read_json(path: str) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: if it is not JSON, or too deeply nested.
    """
    with open_binary(path) as file:
        content = file.read()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
