"""Runs the project's programs in processes of their own, which begin at once.

They are forked from a process that has imported everything before.
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
    """How a program ended: exit status, what it wrote to standard error, seconds that it took."""

    status: int
    text: str
    seconds: float


def start(name, arguments, *, tell=None, file_limit=None):
    """Starts a program, with its flags as on the command line, and returns its process.

    Args:
        name: str. The program.
        arguments: list.
        tell: connection that gets what it writes to standard error.
        file_limit: int. Bytes that a file may have, as if the disk were full then.
    """
    arguments = [str(argument) for argument in arguments]
    process = _CONTEXT.Process(target=_run, args=(name, arguments, tell, file_limit))
    process.start()
    return process


def _run(name, arguments, tell, file_limit):
    sys.argv = [f"{name}.py", *arguments]
    os.dup2(os.open(os.devnull, os.O_WRONLY) if tell is None else tell.fileno(), 2)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    module = importlib.import_module(name)
    module.program.run(module.main, module.define_flags)


def run(name, arguments, *, file_limit=None):
    """Runs a program to its end and returns how it `Ended`."""
    begin = time.monotonic()
    told, tell = _CONTEXT.Pipe(duplex=False)
    process = start(name, arguments, tell=tell, file_limit=file_limit)
    tell.close()
    parts = []
    while part := os.read(told.fileno(), 1 << 16):
        parts.append(part)
    process.join()
    text = b"".join(parts).decode(errors="replace")
    return Ended(process.exitcode, text, time.monotonic() - begin)


def succeed(name, arguments):
    """Runs a program that must succeed, and returns the seconds that it took."""
    ended = run(name, arguments)
    harness.check(ended.status == 0, f"{name} ended with {ended.status}: {ended.text[-2000:]}")
    return ended.seconds
