"""Lets the programs run out of disk, and checks that they say so and harm nothing.

    python tests/robustness/full_disk.py

Each program writes its output on a small file system of its own (tmpfs, which needs root) that is
full. It must end with one line that tells, and a status that is not 0; what it wrote before must be
as it was, with nothing half written beside it. With room again the same command must succeed. Where
no file system can be mounted, or with --nomount, a limit on the size of files takes its place.
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
# What is left on the disk, or what a file may have where it only pretends to be full: training can
# write its config and not a checkpoint, the others not even the smallest output.
_ROOM_OF_TRAINING, _ROOM = 4096, 100
_CAUSE = re.compile(r"No space left on device|File too large")


class FullDisk:
    """A folder on a file system that can be filled, or that only pretends to be one."""

    def __init__(self, folder, mounted):
        self.folder = folder
        self.mounted = mounted

    @contextlib.contextmanager
    def filled(self, room):
        """Fills the disk up to some bytes; gives the limit on files that is to be used, if any."""
        if not self.mounted:
            yield room
            return
        filler = self.folder / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - room)  # What is below a block gives nothing.
        try:
            yield None
        finally:
            filler.unlink()


@contextlib.contextmanager
def small_disk(folder, mount):
    """Mounts a small file system at a folder, a `FullDisk`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    mounted = mount and subprocess.run(command, capture_output=True, check=False).returncode == 0
    if mount and not mounted:
        print("no file system can be mounted here, so the size of files is limited instead")
    try:
        yield FullDisk(folder, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def content(folder):
    """All files in a folder with what they hold, but for logs and locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tfevents" not in path.name and path.name != "training.lock"
    }


def run_full(disk, name, arguments, leave_output=True):
    """Runs a program on a full disk, then with room, and returns what it said on the full one."""
    before = content(disk.folder)
    with disk.filled(_ROOM_OF_TRAINING if name == "train" else _ROOM) as limit:
        ended = processes.run(name, arguments, file_limit=limit)
    lines = ended.text.strip().splitlines()
    harness.check(ended.status == 1, f"{name} ended with {ended.status}: {ended.text[-2000:]}")
    harness.check(lines[-1].startswith(f"{name}.py: error: "), f"no clear error: {lines[-12:]}")
    harness.check(_CAUSE.search(lines[-1]), f"the error does not tell the cause: {lines[-1]}")
    harness.check(str(disk.folder) in lines[-1], f"the error names no file: {lines[-1]}")
    harness.check("Traceback" not in ended.text, f"{name} has a traceback")
    after = content(disk.folder)
    harness.check(after == before, f"{name} left {sorted(after)}, there was {sorted(before)}")
    processes.succeed(name, arguments)
    return lines[-1]


def run(*, mount=True, names=processes.PROGRAMS):
    """Runs programs on a full disk and yields what each said.

    Raises:
        harness.FaultError: if something is not as it must be.
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
            (place / "a.csv").write_text("predictions of before\n" * 1000)
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
    count = 0
    for line in run(mount=flags.FLAGS.mount):
        print(line, flush=True)
        count += 1
    print(f"{count} of {count} programs on a full disk: clear error, nothing harmed, then success")


if __name__ == "__main__":
    flags.DEFINE_boolean("mount", True, "Uses a small file system, if one can be mounted.")
    app.run(main)
