"""Measures the models that came after the paper, and variants of its non-local block.

    pip install jax    # for an NVIDIA GPU: "jax[cuda13]"
    KERAS_BACKEND=jax python study/later_models.py --output_dir=later_models --report_dir=docs

A GPU with 16 cores beside it takes about six minutes. An interrupted measurement resumes when it is
run again. study/later_report.py writes docs/later_models.md from the numbers.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import logging as standard_logging
import multiprocessing
import os
import pathlib
import platform
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import numpy as np
from absl import logging

import eval_util
import later_plan
import plan
from options import Options, option
from run_config import RunConfig
from sample_world import SPLITS, WORLDS, Generator, World
from siblings import right_siblings

FOLDER = "later_models"
# Where a choice is made, and what is reported.
MEASURED = ("validate", "test")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Size of the measurement."""

    num_videos: int
    num_test_videos: int
    max_steps: int
    seeds: tuple[int, ...]
    subjects: tuple[str, ...] = ()


SCALES = {
    "full": Scale(num_videos=36000, num_test_videos=4000, max_steps=1800, seeds=later_plan.SEEDS),
    "miniature": Scale(
        num_videos=256,
        num_test_videos=64,
        max_steps=4,
        seeds=(0, 1),
        subjects=("lfnl_netvlad/none", "lfnl_netvlad/normalized", "mix_nextvlad"),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasurementOptions(Options):
    """Options of this program."""

    scale: str = option(
        "full",
        "full: all models, five seeds. miniature: to test the program itself.",
        group="training",
        choices=tuple(SCALES),
    )
    output_dir: str = option(
        FOLDER,
        "Directory for data and results. Use a new one after a change of the code, because "
        "finished models are not trained again.",
        group="output",
    )
    report_dir: str | None = option(
        None, "Directory for the numbers. Default: --output_dir.", group="output"
    )
    num_parallel: int = option(
        os.cpu_count(), "Number of models that train at the same time.", group="devices", above=0
    )


# --- Data -----------------------------------------------------------------------------------------


def make_world(key, scale, folder):
    """Saves the videos of a world as arrays, unless they are there.

    Args:
        key: key of `later_plan.WORLDS`.
        scale: `Scale`.
        folder: `pathlib.Path` of all worlds.
    """
    if (folder / key / "done").exists():
        return
    (folder / key).mkdir(parents=True, exist_ok=True)
    name, seed = later_plan.WORLDS[key]
    generator = Generator(
        World(seed, plan.NUM_CLASSES, _feature_sizes(), WORLDS[name]),
        seed,
        ("rgb", "audio"),
        plan.MIN_FRAMES,
        plan.MAX_FRAMES,
    )
    for split in SPLITS:
        count = scale.num_videos if split == "train" else scale.num_test_videos
        for array_name, array in _arrays(generator.videos(split), count).items():
            np.save(folder / key / f"{split}_{array_name}.npy", array)
    (folder / key / "done").touch()


def _arrays(videos, count):
    arrays = {
        "frames": np.zeros((count, plan.MAX_FRAMES, sum(_feature_sizes())), np.uint8),
        "num_frames": np.zeros(count, np.int32),
        "labels": np.zeros((count, plan.NUM_CLASSES), bool),
    }
    for row, video in zip(range(count), videos, strict=False):
        frames = np.concatenate(list(video.features.values()), axis=1)
        arrays["frames"][row, : len(frames)] = frames
        arrays["num_frames"][row] = len(frames)
        arrays["labels"][row, video.labels] = True
    return arrays


def _feature_sizes():
    return tuple(int(size) for size in plan.FEATURE_SIZES.split(","))


def _load(folder, split):
    """Returns the inputs of the model and the labels of a split."""
    names = ("frames", "num_frames", "labels")
    *inputs, labels = (np.load(folder / f"{split}_{name}.npy") for name in names)
    return dict(zip(names, inputs, strict=False)), labels


# --- Training -------------------------------------------------------------------------------------


def measure(subject, scale, output_dir):
    """Trains a subject with all seeds, unless it was done; saves its predictions and its numbers.

    Args:
        subject: `later_plan.Subject`.
        scale: `Scale`.
        output_dir: `pathlib.Path`.
    """
    path = _result(output_dir, subject.world, subject.name, ".json")
    if path.exists():
        return
    import seeds_on_jax  # Here, because it initializes the accelerator.

    start = time.monotonic()
    data = output_dir / "data" / subject.world
    num_steps = scale.max_steps * subject.times_steps
    models = seeds_on_jax.SeededModels(config_of(subject, num_steps), scale.seeds, "bfloat16")
    models.train(*_load(data, "train"), num_steps)
    results = {"parameters": models.model.count_params(), "splits": {}}
    for split in MEASURED:
        inputs, labels = _load(data, split)
        found = {subject.name: models.predict(inputs)}
        if subject.name == "mix_nextvlad":
            for number, predicted in enumerate(models.predict_branches(inputs)):
                found[f"{subject.name}/branch{number}"] = predicted
        for name, predicted in found.items():
            np.save(_result(output_dir, subject.world, name, f".{split}.npy"), predicted)
            scores = [_scores(subject.world, of_seed, labels) for of_seed in predicted]
            results["splits"].setdefault(split, {})[name] = scores
    results["seconds"] = time.monotonic() - start
    # The file appears whole or not at all.
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results))
    partial.replace(path)


def config_of(subject, num_steps):
    """Returns the `RunConfig` of a subject."""
    flags = (
        f"{subject.model.flags} --num_classes={plan.NUM_CLASSES} "
        f"--feature_sizes={plan.FEATURE_SIZES} --max_frames={plan.MAX_FRAMES} "
        f"--batch_size={plan.BATCH_SIZE} --base_learning_rate={subject.model.learning_rate} "
        f"--learning_rate_decay={plan.LEARNING_RATE_DECAY} "
        "--learning_rate_decay_examples="
        f"{num_steps * plan.BATCH_SIZE // plan.LEARNING_RATE_DECAYS}"
    )
    return program.parse_options(_takes_config, flags.split())["config"]


def _takes_config(config: RunConfig):
    pass


def _result(output_dir, world, name, suffix):
    folder = output_dir / "results" / world
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name.replace('/', '.')}{suffix}"


def _scores(world_key, predicted, labels):
    """Returns GAP, GAP of the classes with each factor, and the share of right siblings."""
    name, seed = later_plan.WORLDS[world_key]
    world = World(seed, plan.NUM_CLASSES, _feature_sizes(), WORLDS[name])
    scores = {"gap": eval_util.calculate_gap(predicted, labels)}
    for factor in dict.fromkeys(world.config.factors):
        classes = np.flatnonzero(world.has_factor(factor)[:-1])
        scores[f"gap_{factor}"] = eval_util.calculate_gap(predicted[:, classes], labels[:, classes])
        if factor != "words":
            scores[f"siblings_{factor}"] = float(right_siblings(predicted, labels, classes))
    return scores


# --- Results --------------------------------------------------------------------------------------


def collect(scale, output_dir):
    """Yields rows of numbers: world, subject, seed, split, metric, value."""
    for subject in _subjects(scale):
        path = _result(output_dir, subject.world, subject.name, ".json")
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        yield subject.world, subject.name, "", "", "parameters", results["parameters"]
        for split, found in results["splits"].items():
            for name, by_seed in found.items():
                for seed, scores in zip(scale.seeds, by_seed, strict=True):
                    for metric, value in scores.items():
                        yield subject.world, name, seed, split, metric, value


def ensembles(scale, output_dir):
    """Yields such rows of the mean prediction of the paper's models, also with one more model."""
    for split in MEASURED:
        paths = [_result(output_dir, "bag", name, f".{split}.npy") for name in later_plan.SIX]
        if not all(path.exists() for path in paths):
            return
        labels = np.load(output_dir / "data" / "bag" / f"{split}_labels.npy")
        six = sum(np.load(path) for path in paths)
        for name in ("", *later_plan.SEVENTH):
            path = _result(output_dir, "bag", name, f".{split}.npy")
            total = six + (np.load(path) if name else 0)
            title = "six+" + name if name else "six"
            for seed, predicted in zip(scale.seeds, total, strict=True):
                gap = eval_util.calculate_gap(predicted / (6 + bool(name)), labels)
                yield "bag", title, seed, split, "gap", gap


def _subjects(scale):
    return [
        subject
        for subject in later_plan.SUBJECTS
        if not scale.subjects or (subject.world == "bag" and subject.name in scale.subjects)
    ]


def _setting(scale_name):
    import jax

    packages = ("keras", "jax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "scale": scale_name,
        "date": time.strftime("%Y-%m-%d"),
        "device": jax.devices()[0].device_kind,
        "versions": {**versions, "python": platform.python_version()},
    }


def save(rows, setting, folder):
    """Writes numbers.csv and setting.json."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "numbers.csv", "w") as file:
        print("world,subject,seed,split,metric,value", file=file)
        for *key, value in rows:
            print(*key, f"{value:.6g}" if isinstance(value, float) else value, sep=",", file=file)
    (folder / "setting.json").write_text(json.dumps(setting, indent=2) + "\n")


@contextlib.contextmanager
def worker_pool(num_parallel):
    """Yields a pool of processes, which an exception in the block, such as Ctrl-C, ends at once."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_parallel, context) as pool:
        try:
            yield pool
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def main(options: MeasurementOptions):
    """Runs the program."""
    scale, output_dir = SCALES[options.scale], pathlib.Path(options.output_dir).absolute()
    subjects = _subjects(scale)
    # Each process takes what it needs of the memory of the accelerator.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    setting = _setting(options.scale)
    report = pathlib.Path(options.report_dir or output_dir).absolute() / FOLDER
    with worker_pool(options.num_parallel) as pool:
        worlds = dict.fromkeys(subject.world for subject in subjects)
        made = [pool.submit(make_world, key, scale, output_dir / "data") for key in worlds]
        for future in made:
            future.result()
        waiting = {
            pool.submit(measure, subject, scale, output_dir): subject for subject in subjects
        }
        for number, future in enumerate(concurrent.futures.as_completed(waiting), 1):
            subject = waiting[future]
            logging.info("%d of %d: %s %s", number, len(waiting), subject.world, subject.name)
            if error := future.exception():
                logging.error("%s %s failed: %s", subject.world, subject.name, error)
            save(collect(scale, output_dir), setting, report)
    save([*collect(scale, output_dir), *ensembles(scale, output_dir)], setting, report)


if __name__ == "__main__":
    standard_logging.getLogger("jax").setLevel(standard_logging.ERROR)
    program.end_on_sigterm()
    program.run(main, backends=("jax",))
