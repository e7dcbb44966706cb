"""Lets the programs run out of disk space and checks that they say so and harm nothing.

    python tests/robustness/full_disk.py

Each program writes its output to a small file system (tmpfs, which needs root) that is full. It
must end with a one-line error and exit status 1, keep what it wrote before, and leave no unfinished
files. With free space, the same command must succeed. Where no file system can be mounted, or with
--nomount, a limit on the size of files replaces the full disk.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import harness

# isort: split
from absl import app, flags

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


def run_full(disk, name, arguments):
    """Runs a program on a full disk, then with free space, and returns its error message."""
    before = content(disk.folder)
    with disk.filled(_FREE_FOR_TRAINING if name == "train" else _FREE) as limit:
        ended = processes.run(name, arguments, file_limit=limit)
    lines = ended.text.strip().splitlines()
    harness.check(ended.status == 1, f"{name} ended with {ended.status}: {ended.text[-2000:]}")
    harness.check(lines[-1].startswith(f"{name}.py: error: "), f"no clear error: {lines[-12:]}")
    harness.check(_CAUSE.search(lines[-1]), f"the error does not name the cause: {lines[-1]}")
    harness.check(str(disk.folder) in lines[-1], f"the error names no file: {lines[-1]}")
    harness.check("Traceback" not in ended.text, f"{name} has a traceback")
    after = content(disk.folder)
    harness.check(after == before, f"{name} left {sorted(after)}, before: {sorted(before)}")
    processes.succeed(name, arguments)
    return lines[-1]


def run(*, mount=True, names=processes.PROGRAMS):
    """Runs programs on a full disk and yields the error message of each.

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
        of_run = f"--train_dir={trained}"
        with small_disk(place, mount) as disk:
            on_disk = shutil.copytree(trained, place / "run")
            (place / "a.csv").write_text("earlier predictions\n" * 1000)
            commands = {
                "train": [f"--train_dir={on_disk}", *training],
                "average_checkpoints": [of_run, f"--output_dir={place}/averaged"],
                "export_model": [of_run, f"--output_dir={place}/model"],
                "inference": [
                    *(of_run, f"--input_data_pattern={records}"),
                    f"--output_file={place}/a.csv",
                ],
                "eval": [
                    *(f"--train_dir={on_disk}", f"--eval_data_pattern={records}", "--run_once"),
                    f"--per_class_csv={place}/per_class.csv",
                ],
            }
            for name in names:
                yield f"{name}: {run_full(disk, name, commands[name])}"


def main(_):
    for line in run(mount=flags.FLAGS.mount):
        print(line, flush=True)
    print("all programs on a full disk: clear error, no harm, then success")


if __name__ == "__main__":
    flags.DEFINE_boolean("mount", True, "Mount a small file system, if possible.")
    app.run(main)
