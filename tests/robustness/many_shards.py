"""Runs all programs on data in as many files as YouTube-8M has.

    python tests/robustness/many_shards.py --shards=3844

Each file has one video. The programs may open few files at once.
"""

import json
import pathlib
import resource
import tempfile

import harness  # isort: skip
from absl import app, flags

import checkpoints
import processes
import programs

MAX_OPEN_FILES = 256


def run(shards):
    """Runs the programs and yields a line for each.

    Raises:
        harness.FaultError: if one fails or misses a video.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data, of_run = f"{folder}/data/train*.tfrecord", f"--train_dir={folder}/run"
        metrics, predictions = folder / "metrics.json", folder / "predictions.csv"
        sample = [f"--num_videos={shards}", f"--shards={shards}", "--max_frames=6"]
        training = [*programs.SMALL_MEAN, "--num_epochs=1", "--log_steps=100"]
        evaluation = [f"--eval_data_pattern={data}", "--run_once", f"--metrics_json={metrics}"]
        commands = {
            "make_sample_data": [f"--output_dir={folder}/data", *programs.SMALL_DATA, *sample],
            "train": [of_run, f"--train_data_pattern={data}", *training],
            "eval": [of_run, *evaluation],
            "inference": [of_run, f"--input_data_pattern={data}", f"--output_file={predictions}"],
            "average_checkpoints": [
                *(of_run, f"--output_dir={folder}/averaged", f"--train_data_pattern={data}"),
            ],
            "export_model": [of_run, f"--output_dir={folder}/model"],
        }
        for name, arguments in commands.items():
            yield f"{name}: {processes.succeed(name, arguments):.0f} s"
        saved = checkpoints.names(f"{folder}/run")
        harness.check(saved == [f"model.ckpt-{shards // 16}"], f"training saved {saved}")
        num_videos = json.loads(metrics.read_text())["num_videos"]
        harness.check(num_videos == shards, f"{num_videos} videos were evaluated")
        num_rows = len(programs.prediction_rows(predictions)) - 1
        harness.check(num_rows == shards, f"{num_rows} videos were predicted")


def main(_):
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    print(f"{flags.FLAGS.shards} files through all programs: {', '.join(run(flags.FLAGS.shards))}")


if __name__ == "__main__":
    flags.DEFINE_integer("shards", 3844, "Files.")
    app.run(main)
