"""Runs jobs that are not done yet, several at a time."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys

from absl import logging
from progress import Progress

import files
import plan
from utils import InputError

# One thread a job, and no GPU: results do not depend on what there is, and jobs run side by side.
_ONE_THREAD = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Runner:
    """Runs the jobs of a plan that are not done, several at a time.

    A job is done when its output is there, its marker holds its key, and those that it needs are
    done. The key depends on the commands of the job and of those before it, and on `setting`. So
    another flag or another version of a library runs it, and all that follow, anew.

    Args:
        jobs: list of `plan.Job`, each after those it needs.
        output_dir: path. Markers go to its folder `jobs`, logs to `logs`.
        num_parallel: int. Jobs that run at the same time.
        setting: what else the outputs depend on, as JSON can hold it.
    """

    def __init__(self, jobs, output_dir, num_parallel, setting=None):
        self._jobs = jobs
        self._output_dir = pathlib.Path(output_dir)
        self._num_parallel = num_parallel
        self._keys = {}
        for job in jobs:
            parts = [job.command, [self._keys[name] for name in job.needs], setting]
            self._keys[job.name] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self._processes = set()
        self._stopping = False

    def run(self):
        """Runs them.

        SIGTERM is passed on, so that a training saves where it is and goes on next time.

        Raises:
            InputError: if one fails, naming its log. Those that run then come to their end.
            SystemExit: after SIGTERM.
        """
        before = signal.signal(signal.SIGTERM, self._stop)
        try:
            self._run(self._waiting())
        finally:
            signal.signal(signal.SIGTERM, before)

    def _run(self, waiting):
        finished = {job.name for job in self._jobs} - {job.name for job in waiting}
        total = round(sum(job.cost for job in self._jobs))
        spent = total - sum(job.cost for job in waiting)
        if finished:
            logging.info("%d of %d jobs are done already", len(finished), len(self._jobs))
        running = {}
        with (
            concurrent.futures.ThreadPoolExecutor(self._num_parallel) as pool,
            Progress(total, "estimated s", round(spent)) as progress,
        ):
            while waiting or running:
                while job := self._next(waiting, running.values(), finished):
                    waiting.remove(job)
                    running[pool.submit(self._run_job, job)] = job
                done, _ = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    job = running.pop(future)
                    future.result()
                    finished.add(job.name)
                    spent += job.cost
                    progress.advance_to(round(spent))
                    progress.report(f"{len(finished)} of {len(self._jobs)} jobs: {job.name}")

    def _stop(self, *_):
        self._stopping = True
        for process in list(self._processes):
            process.terminate()
        sys.exit("stopped by SIGTERM; started again, the study goes on")

    def _waiting(self):
        """Jobs that are not done, or need one that is not, in order."""
        waiting = {}
        for job in self._jobs:
            if not self._is_done(job) or any(name in waiting for name in job.needs):
                waiting[job.name] = job
        return list(waiting.values())

    def _next(self, waiting, running, finished):
        """The first job that can start now, or None; one that runs alone waits for all others."""
        running = list(running)
        if len(running) >= self._num_parallel or any(job.alone for job in running):
            return None
        others = [job for job in waiting if not job.alone] or ([] if running else waiting)
        return next((job for job in others if finished.issuperset(job.needs)), None)

    def _run_job(self, job):
        started = self._marker(job, "started")
        is_continuous = job.resumes and _content(started) == self._keys[job.name]
        if os.path.lexists(job.output) and not is_continuous:
            files.remove(str(job.output))
        _write(started, self._keys[job.name])
        job.output.parent.mkdir(parents=True, exist_ok=True)
        log = self._output_dir / "logs" / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as file:
            command = [sys.executable, *job.command]
            file.write(f"{' '.join(command)}\n")
            file.flush()
            status = self._status(command, file)
        if self._stopping:
            return
        if status:
            last = log.read_text().rstrip().rpartition("\n")[-1]
            raise InputError(f"{job.name} failed: {last} (see {log})")
        _write(self._marker(job, "done"), self._keys[job.name])

    def _status(self, command, log):
        """Exit status of a command."""
        environment = {**os.environ, **_ONE_THREAD}
        with subprocess.Popen(
            command, cwd=plan.ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        ) as process:
            self._processes.add(process)
            if self._stopping:
                process.terminate()
            status = process.wait()
        self._processes.discard(process)
        return status

    def _is_done(self, job):
        return _content(self._marker(job, "done")) == self._keys[job.name] and job.output.exists()

    def _marker(self, job, kind):
        return self._output_dir / "jobs" / f"{job.name}.{kind}"


def _content(path):
    return path.read_text() if path.exists() else None


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(str(path)) as file:
        file.write(text)
