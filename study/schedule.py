"""Runs the jobs of a plan, several at a time, and skips those that are done."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import program

import files
import plan
from utils import InputError

# One thread per job and no GPU, so that results do not depend on the hardware or on other jobs.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Runner:
    """Runs the jobs of a plan, several at a time, and skips those that are done.

    A job is done if it succeeded with its present key, its output exists, and the jobs it needs are
    done. The key is a hash of the command, the keys of the needed jobs and `setting`. A changed
    flag or library version therefore reruns a job and everything that depends on it.

    Args:
        jobs: list of `plan.Job`, each after the jobs it needs.
        output_dir: path. For jobs.json, the states of the jobs, and the folder `logs`.
        num_parallel: int. Number of jobs that run at the same time.
        setting: everything else that the outputs depend on, JSON-serializable.
    """

    def __init__(self, jobs, output_dir, num_parallel, setting=None):
        self._jobs = jobs
        self._output_dir = pathlib.Path(output_dir)
        self._num_parallel = num_parallel
        self._keys = {}
        for job in jobs:
            parts = [job.command, [self._keys[name] for name in job.needs], setting]
            self._keys[job.name] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        path = self._output_dir / "jobs.json"
        self._states = files.read_json(str(path)) if path.exists() else {}
        self._running = {}

    def run(self):
        """Runs the jobs that are not done.

        Ctrl-C and other exceptions that end the program, such as that of `program.end_on_sigterm`,
        end the jobs by SIGTERM, so that trainings save a checkpoint and the next run resumes them.

        Raises:
            InputError: if a job fails; names its log. Jobs that are running finish first.
        """
        done = self._find_done()
        waiting = [job for job in self._jobs if job.name not in done]
        waiting.sort(key=lambda job: job.alone)  # Timed jobs come last.
        self._compiled = tempfile.TemporaryDirectory()
        try:
            with program.Progress(len(self._jobs), "job", initial=len(done)) as progress:
                while waiting or self._running:
                    self._start_jobs(waiting, done)
                    time.sleep(0.1)
                    for job in self._finished_jobs():
                        done.add(job.name)
                        progress.advance()
                        progress.report(f"{len(done)} of {len(self._jobs)} jobs: {job.name}")
        except (KeyboardInterrupt, SystemExit):
            for process in self._running:
                process.terminate()
            raise
        finally:
            for process in self._running:
                process.wait()
            self._compiled.cleanup()

    def _find_done(self):
        """Names of the jobs that are done."""
        done = set()
        for job in self._jobs:
            succeeded = self._states.get(job.name) == f"done {self._keys[job.name]}"
            if succeeded and job.output.exists() and done.issuperset(job.needs):
                done.add(job.name)
        return done

    def _start_jobs(self, waiting, done):
        """Starts the jobs that can run now, and removes them from `waiting`."""
        for job in list(waiting):
            full = self._running and (job.alone or len(self._running) >= self._num_parallel)
            if not full and done.issuperset(job.needs):
                waiting.remove(job)
                self._start(job)

    def _start(self, job):
        resumes = job.resumes and self._keys[job.name] in self._states.get(job.name, "")
        if os.path.lexists(job.output) and not resumes:
            files.remove(str(job.output))
        self._set_state(job, "started")
        for path in (self._log(job), job.output):
            path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *job.command]
        with open(self._log(job), "w") as log:
            print(*command, file=log, flush=True)
            process = subprocess.Popen(
                command,
                cwd=plan.ROOT,
                env={**os.environ, **ENVIRONMENT, **self._shared()},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=program.end_with_parent,
            )
        self._running[process] = job

    def _shared(self):
        """Returns the setting by which jobs that differ only in their seeds compile once."""
        own = os.environ.get("TF_XLA_FLAGS", "")
        cache = f"--tf_xla_persistent_cache_directory={self._compiled.name}"
        return {"TF_XLA_FLAGS": f"{own} {cache}".strip()}

    def _finished_jobs(self):
        """Yields the jobs that succeeded since the last call."""
        for process in list(self._running):
            if process.poll() is not None:
                job = self._running.pop(process)
                if process.returncode:
                    last_line = self._log(job).read_text().rstrip().rpartition("\n")[-1]
                    raise InputError(f"{job.name} failed: {last_line} (see {self._log(job)})")
                self._set_state(job, "done")
                yield job

    def _log(self, job):
        return self._output_dir / "logs" / f"{job.name}.log"

    def _set_state(self, job, state):
        self._states[job.name] = f"{state} {self._keys[job.name]}"
        self._output_dir.mkdir(parents=True, exist_ok=True)
        files.write_json(str(self._output_dir / "jobs.json"), self._states)
