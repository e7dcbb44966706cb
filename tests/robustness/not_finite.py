"""Puts NaN and infinity into data, losses and weights, and checks that the programs report them.

    python tests/robustness/not_finite.py

No program may save, average, export or count such values silently. Each must end with an error that
names the video, the step or the weight, and leave no output.
"""

import pathlib
import shutil
import tempfile

import harness

# isort: split
import numpy as np
from absl import app, logging

import average_checkpoints
import checkpoints
import programs
import sample_records
from utils import InputError


def write_videos(path, *means):
    """Writes video-level records `v0`, `v1`, ...; all entries of the nth have the nth value."""
    records = [
        sample_records.video_record(f"v{n}", [n % 10], mean_rgb=[mean] * 8, mean_audio=[mean] * 4)
        for n, mean in enumerate(means)
    ]
    return sample_records.write_records(path, records)


def check_error(message, program, *arguments):
    """Runs a program that must raise an error with this message, and returns the whole message."""
    try:
        programs.run(program, *arguments)
    except (InputError, FloatingPointError) as error:
        harness.check(message in str(error), f"{program}: {error}")
        return f"{program}: {error}"
    raise harness.FaultError(f"{program} raised no error; expected: {message}")


def check_prediction(message, model, data, output):
    """Checks that eval and inference report an error and leave no output."""
    yield check_error(message, "eval", model, f"--eval_data_pattern={data}", "--run_once")
    input_and_output = (f"--input_data_pattern={data}", f"--output_file={output}")
    yield check_error(message, "inference", model, *input_and_output)
    harness.check(not output.exists(), "an output is left")


def with_weight(trained, target, value, of, ending, everywhere=False):
    """Copies a run, sets one entry or all of a variable, and returns the variable's name."""
    path = checkpoints.find(str(trained))
    values = average_checkpoints.mean_of([path])
    name = next(
        name
        for name in sorted(values)
        if name.startswith(f"{of}/") and checkpoints.split_stored_name(name)[1].endswith(ending)
    )
    values[name] = np.array(values[name])
    values[name].flat[: None if everywhere else 1] = value
    target.mkdir()
    shutil.copy(trained / "model_flags.json", target)
    average_checkpoints.write_checkpoint(values, str(target), checkpoints.step_of(path))
    return checkpoints.split_stored_name(name)[1]


def check_data(folder):
    """NaN and infinity in the data, and values that make the loss infinite."""
    model = ("--model=LogisticModel", *programs.SMALL_DATA, "--batch_size=4")
    trained, good = folder / "trained", write_videos(folder / "good", *np.linspace(-1, 1, 8))
    programs.train(trained, good, *model)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        bad = write_videos(folder / name, 0.1, 0.2, 0.3, 0.4, value)
        named = "of video 'v4' has NaN or infinity"
        run_dir = f"--train_dir={folder / f'run_{name}'}"
        yield check_error(named, "train", run_dir, f"--train_data_pattern={bad}", *model)
        yield from check_prediction(named, f"--train_dir={trained}", bad, folder / f"{name}.csv")
    huge = write_videos(folder / "huge", *[3e38, -3e38] * 4)
    run_dir = folder / "run_huge"
    more = (*model, "--base_learning_rate=1e30", "--clip_gradient_norm=0", "--optimizer=SGD")
    given = (f"--train_dir={run_dir}", f"--train_data_pattern={huge}", "--num_epochs=9")
    yield check_error("not finite", "train", *given, *more)
    harness.check(not checkpoints.names(str(run_dir)), "a checkpoint was saved")


def check_checkpoints(folder):
    """Checkpoints with a weight, statistic or moment that is not finite."""
    data = write_videos(folder / "more_videos", *np.linspace(-1, 1, 8))
    trained = folder / "gated"
    model = ("--model=MoeModel", "--moe_prob_gating", *programs.SMALL_DATA, "--batch_size=4")
    programs.train(trained, data, *model, "--num_epochs=1")
    cases = {"weights": "kernel", "statistics": "moving_variance", "optimizer": "kernel_velocity"}
    for kind, ending in cases.items():
        broken = folder / kind
        group = "optimizer" if kind == "optimizer" else "weights"
        name = with_weight(trained, broken, np.nan, group, ending)
        of_run, output = f"--train_dir={broken}", folder / "output"
        for mode in ("mean", "last"):
            flags = (of_run, f"--output_dir={output}", f"--batch_norm={mode}")
            yield check_error(name, "average_checkpoints", *flags)
        if kind != "optimizer":  # Other programs do not read the optimizer's state.
            yield check_error(name, "export_model", of_run, f"--output_dir={output}")
            yield from check_prediction(name, of_run, data, output)
        yield check_error(
            "not finite", "train", of_run, f"--train_data_pattern={data}", "--num_epochs=2", *model
        )
        harness.check(not output.exists(), "an output is left")


def check_predictions(folder):
    """A model with finite weights whose predictions are not finite."""
    good = write_videos(folder / "videos", *np.linspace(0.1, 1, 8))
    trained, broken = folder / "moe", folder / "overflowing"
    model = ("--model=MoeModel", *programs.SMALL_DATA, "--batch_size=4", "--max_steps=1")
    programs.train(trained, good, *model)
    # Infinite logits, which a softmax turns into NaN.
    with_weight(trained, broken, 3e38, "weights", "gates/kernel", everywhere=True)
    exported = folder / "exported"
    programs.run("export_model", f"--train_dir={broken}", f"--output_dir={exported}")
    for model in (f"--train_dir={broken}", f"--exported_model={exported}"):
        output = folder / "overflowing.csv"
        yield from check_prediction("the prediction for video 'v", model, good, output)


def run():
    """Checks all cases and returns the messages of the programs.

    Raises:
        harness.FaultError: if a program does not report a value, or leaves an output.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        return [*check_data(folder), *check_checkpoints(folder), *check_predictions(folder)]


def main(_):
    logging.set_verbosity(logging.ERROR)
    messages = run()
    print("\n".join(messages))
    print(f"NaN and infinity: all {len(messages)} programs stopped and named the place")


if __name__ == "__main__":
    app.run(main)
