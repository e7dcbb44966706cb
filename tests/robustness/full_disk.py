"""Lets the programs run out of disk space and checks that they say so and harm nothing.

    python tests/robustness/full_disk.py --fills=3

Each program writes its output to a small file system (tmpfs, which needs root) that is full. It
must end with a one-line error and exit status 1, keep what it wrote before, and leave no unfinished
files. With free space, the same command must succeed. Where no file system can be mounted, or with
--nomount, a limit on the size of files replaces the full disk.

Then the disk of each program fills up to a random size at a random moment; this needs a mounted
one. The program must end in the same way, or with its whole output. With free space, the same
command must give the output of an undisturbed run.
"""

import collections
import concurrent.futures
import contextlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import tempfile
import time

import harness

# isort: split
from absl import app, flags

import kills
import processes
import programs
import sample_records

_DISK_BYTES = 32 << 20
# Free bytes on the disk, or the limit on the size of files. Training can write its config but no
# checkpoint; the others cannot even write the smallest output.
_FREE_FOR_TRAINING, _FREE = 4096, 100
_CAUSE = re.compile(r"No space left on device|File too large")


class FullDisk:
    """A folder on a file system that can be filled, or that imitates one."""

    def __init__(self, folder, mounted):
        self.folder = folder
        self.mounted = mounted

    @contextlib.contextmanager
    def filled(self, free):
        """Fills the disk except for some bytes; yields the file limit that imitates it, if any."""
        if not self.mounted:
            yield free
            return
        filler = self.folder / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - free)  # Less than a block frees nothing.
        try:
            yield None
        finally:
            filler.unlink()


@contextlib.contextmanager
def small_disk(folder, mount):
    """Mounts a small file system at a folder and yields its `FullDisk`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    mounted = mount and subprocess.run(command, capture_output=True, check=False).returncode == 0
    if mount and not mounted:
        print("cannot mount a file system here; the size of files is limited instead")
    try:
        yield FullDisk(folder, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def content(folder):
    """Returns the content of all files in a folder, except logs and locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tfevents" not in path.name and path.name != "training.lock"
    }


def check_error(ended, name, disk):
    """Checks that a program reported a full disk in one line, and returns that line."""
    lines = ended.text.strip().splitlines()
    harness.check(ended.status == 1, f"{name} ended with {ended.status}: {ended.text[-2000:]}")
    harness.check(lines[-1].startswith(f"{name}.py: error: "), f"no clear error: {lines[-12:]}")
    harness.check(_CAUSE.search(lines[-1]), f"the error does not name the cause: {lines[-1]}")
    harness.check(str(disk.folder) in lines[-1], f"the error names no file: {lines[-1]}")
    harness.check("Traceback" not in ended.text, f"{name} has a traceback")
    return lines[-1]


def run_full(disk, name, arguments):
    """Runs a program on a full disk, then with free space, and returns its error message."""
    before = content(disk.folder)
    with disk.filled(_FREE_FOR_TRAINING if name == "train" else _FREE) as limit:
        ended = processes.run(name, arguments, file_limit=limit)
    error = check_error(ended, name, disk)
    after = content(disk.folder)
    harness.check(after == before, f"{name} left {sorted(after)}, before: {sorted(before)}")
    processes.succeed(name, arguments)
    return error


def fill_randomly(disk, name, arguments, output, result, fills, rng):
    """Fills the disk of a program at random moments; returns a line about the outcomes."""
    earlier, outcomes = disk.folder.with_name("earlier"), collections.Counter()
    shutil.copytree(disk.folder, earlier)
    before = content(disk.folder)
    seconds, expected = processes.succeed(name, arguments), result(output)
    size = sum(map(len, content(disk.folder).values())) - sum(map(len, before.values()))
    for _ in range(fills):
        restore(disk.folder, earlier)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(processes.run, name, arguments)
            time.sleep(rng.choice([0.0, rng.uniform(0.0, seconds)]))
            with disk.filled(rng.randrange(max(size, 1))):
                ended = running.result()
        if ended.status == 0:
            outcomes["whole outputs"] += 1
        else:
            check_error(ended, name, disk)
            after, added = content(disk.folder), ("run/checkpoint", "run/eval/metrics.json")
            changed = [path for path in before if before[path] != after.get(path)]
            harness.check({*changed} <= {*added}, f"{name} changed {changed}")
            processes.succeed(name, arguments)
            outcomes["clear errors"] += 1
        harness.check(result(output) == expected, f"{name} wrote another output")
    restore(disk.folder, earlier)
    shutil.rmtree(earlier)
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))


def restore(folder, earlier):
    for path in folder.iterdir():
        kills.remove(path)
    shutil.copytree(earlier, folder, dirs_exist_ok=True)


def run(*, mount=True, names=processes.PROGRAMS, fills=0, seed=0):
    """Runs programs on a full disk and yields the error message of each.

    Args:
        mount: whether to mount a small file system.
        names: of the programs.
        fills: times that the disk of each program fills at a random moment.
        seed: of the moments and sizes.

    Raises:
        harness.FaultError: if a check fails.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data, trained, place = folder / "data", folder / "trained", folder / "disk"
        data.mkdir(), place.mkdir()
        records = sample_records.write_frame_files(data, 4, 40)
        training = [f"--train_data_pattern={records}", *programs.SMALL_DBOF, "--num_epochs=2"]
        processes.succeed("train", [f"--train_dir={trained}", *training, "--max_steps=9"])
        with small_disk(place, mount) as disk:
            on_disk = shutil.copytree(trained, place / "run")
            (place / "a.csv").write_text("earlier predictions\n" * 1000)
            train = [f"--train_dir={on_disk}", *training]
            commands = {
                "train": (train, on_disk, kills.variables_of),
                **kills.commands(on_disk, records, place),
            }
            if fills and not disk.mounted:
                yield "skipped: disks that fill at random moments, which need root to be mounted"
                fills = 0
            rng = random.Random(seed)
            for name in names:
                if fills:
                    outcomes = fill_randomly(disk, name, *commands[name], fills, rng)
                    yield f"{name}, filled at {fills} random moments: {outcomes}"
                yield f"{name}: {run_full(disk, name, commands[name][0])}"


def main(_):
    given = {name: flags.FLAGS[name].value for name in ("mount", "fills", "seed")}
    for line in run(**given):
        print(line, flush=True)
    print("all programs on a full disk: clear error, no harm, then success")


if __name__ == "__main__":
    flags.DEFINE_boolean("mount", True, "Mount a small file system, if possible.")
    flags.DEFINE_integer("fills", 3, "Fills of the disk at random moments, for each program.")
    flags.DEFINE_integer("seed", 0, "Seed of the moments.")
    app.run(main)
