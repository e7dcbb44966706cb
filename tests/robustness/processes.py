"""Runs the project's programs in separate processes that start at once.

They are forked from a process that has already imported everything.
"""

import importlib
import multiprocessing
import os
import resource
import sys
import time
from typing import NamedTuple

import harness

PROGRAMS = ("train", "average_checkpoints", "export_model", "inference", "eval")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["harness", *PROGRAMS])


class Ended(NamedTuple):
    """How a program ended: exit status, text on standard error, duration in seconds."""

    status: int
    text: str
    seconds: float


def start(name, arguments, *, stderr=None, file_limit=None):
    """Starts a program with the flags of its command line, and returns its process.

    Args:
        name: str. The program.
        arguments: list.
        stderr: connection that receives its standard error; None discards it.
        file_limit: int. Largest size of a file in bytes, which imitates a full disk.
    """
    arguments = [str(argument) for argument in arguments]
    process = _CONTEXT.Process(target=_run, args=(name, arguments, stderr, file_limit))
    process.start()
    return process


def _run(name, arguments, stderr, file_limit):
    sys.argv = [f"{name}.py", *arguments]
    os.dup2(os.open(os.devnull, os.O_WRONLY) if stderr is None else stderr.fileno(), 2)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    module = importlib.import_module(name)
    module.program.run(module.main)


def run(name, arguments, *, file_limit=None):
    """Runs a program to its end and returns how it `Ended`."""
    begin = time.monotonic()
    received, stderr = _CONTEXT.Pipe(duplex=False)
    process = start(name, arguments, stderr=stderr, file_limit=file_limit)
    stderr.close()
    parts = []
    while part := os.read(received.fileno(), 1 << 16):
        parts.append(part)
    process.join()
    text = b"".join(parts).decode(errors="replace")
    return Ended(process.exitcode, text, time.monotonic() - begin)


def succeed(name, arguments):
    """Runs a program that must succeed, and returns its duration in seconds."""
    ended = run(name, arguments)
    harness.check(ended.status == 0, f"{name} ended with {ended.status}: {ended.text[-2000:]}")
    return ended.seconds
