"""A prediction file of an interrupted run is completed by the next run."""

import dataclasses
import itertools
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

import files
import prediction_file
import programs
import sample_records
from readers import RecordReader
from records import CorruptRecordLog
from utils import InputError

# Runs inference.py and kills the process before it marks the fourth input file as finished.
KILLED_RUN = """
import os, signal, sys
import inference
import prediction_file
import program

finish = prediction_file.PredictionParts.finish

def finish_or_die(parts, number, *arguments):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(parts, number, *arguments)

prediction_file.PredictionParts.finish = finish_or_die
program.call(inference.main, sys.argv[1:])
"""


@pytest.fixture
def input_files(tmp_path, video_data):
    """Paths of six input files of 60 videos each."""
    folder = tmp_path / "input"
    folder.mkdir()
    sources = sorted(pathlib.Path(video_data).parent.glob("part*"))
    paths = [folder / f"test{number}.tfrecord" for number in range(6)]
    for number, path in enumerate(paths):
        shutil.copy(sources[number % len(sources)], path)
    return paths


@pytest.fixture
def corrupt_files(input_files):
    """Paths of three input files; the first and the last have a corrupt record."""
    for path in input_files[3:]:
        path.unlink()
    for path in (input_files[0], input_files[2]):
        sample_records.flip_bit(path, 200)
    return input_files[:3]


def arguments(train_dir, inputs, output):
    return (
        f"--train_dir={train_dir}",
        f"--input_data_pattern={inputs[0].parent}/*.tfrecord",
        f"--output_file={output}",
        "--batch_size=16",
    )


def finished_parts(output):
    return sorted(pathlib.Path(f"{output}.parts").glob("[0-9]*.json"))


@pytest.fixture
def files_read(monkeypatch):
    """Names of the input files that are predicted, in order."""
    read, file_batches = [], RecordReader.file_batches

    def remember(reader, batch_size, numbers, before_opening):
        read.extend(pathlib.Path(reader.paths[number]).name for number in numbers)
        return file_batches(reader, batch_size, numbers, before_opening)

    monkeypatch.setattr(RecordReader, "file_batches", remember)
    return read


@pytest.mark.slow
def test_a_killed_run_is_resumed_without_reading_finished_files_again(
    tmp_path, trained_moe, input_files, files_read
):
    unbroken, broken = tmp_path / "unbroken.csv", tmp_path / "broken.csv"
    # float32, as in this process.
    given = (*arguments(trained_moe, input_files, broken), "--compute_dtype=float32")
    killed = programs.run_command("-c", KILLED_RUN, *given)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not broken.exists()
    programs.run("inference", *arguments(trained_moe, input_files, unbroken))
    finished = [int(path.stem) for path in finished_parts(broken)]
    assert finished == [0, 1, 2]
    files_read.clear()
    programs.run("inference", *given)
    assert files_read == ["test3.tfrecord", "test4.tfrecord", "test5.tfrecord"]
    assert broken.read_bytes() == unbroken.read_bytes()
    assert not pathlib.Path(f"{broken}.parts").exists()
    assert len(programs.prediction_rows(broken)) == 1 + 6 * 60


def test_lines_are_in_the_order_of_the_input_files(tmp_path, trained_moe, video_data):
    output = tmp_path / "predictions.csv"
    inputs = sorted(pathlib.Path(video_data).parent.glob("part*"))
    programs.run("inference", *arguments(trained_moe, inputs, output))
    ids = [row[0] for row in programs.prediction_rows(output)[1:]]
    assert ids == [f"v{file}_{index}" for file in range(3) for index in range(60)]


def interrupt(given):
    """Leaves the parts of two of three files: the corrupt record of the last one is an error."""
    with pytest.raises(InputError, match=r"record 1 of .*test2"):
        programs.run("inference", *given, "--skip_corrupt_records=1")


def test_corrupt_records_of_both_runs_are_added(tmp_path, trained_moe, corrupt_files):
    output = tmp_path / "predictions.csv"
    given = arguments(trained_moe, corrupt_files, output)
    interrupt(given)
    assert len(finished_parts(output)) == 2
    with pytest.raises(InputError, match="1 corrupt records were skipped before"):
        programs.run("inference", *given, "--skip_corrupt_records=1")
    with pytest.raises(InputError, match=r"test0\.tfrecord"):
        programs.run("inference", *given)
    programs.run("inference", *given, "--skip_corrupt_records=2")
    assert len(programs.prediction_rows(output)) == 1 + 3 * 60 - 2


def test_parts_of_other_settings_are_rejected_unless_the_run_starts_over(
    tmp_path, trained_moe, corrupt_files
):
    output = tmp_path / "predictions.csv"
    given = arguments(trained_moe, corrupt_files, output)
    interrupt(given)
    with pytest.raises(InputError, match="another value of top_k"):
        programs.run("inference", *given, "--top_k=3")
    with pytest.raises(InputError, match="another value of checkpoint_steps, model_weights"):
        programs.run("inference", *given, "--checkpoint=90")
    shutil.copy(corrupt_files[1], corrupt_files[1].with_name("test9.tfrecord"))
    with pytest.raises(InputError, match="another value of input_files"):
        programs.run("inference", *given)
    programs.run("inference", *given, "--noresume", "--skip_corrupt_records=3")
    assert len(programs.prediction_rows(output)) == 1 + 4 * 60 - 2


@pytest.mark.parametrize("output_format", ["csv", "jsonl", "parquet"])
def test_every_format_resumes_to_the_same_bytes(
    tmp_path, trained_moe, corrupt_files, files_read, output_format
):
    if output_format == "parquet":
        pytest.importorskip("pyarrow", reason="needs requirements/parquet.txt")
    ending = {"csv": ".csv.gz", "jsonl": ".jsonl.gz", "parquet": ".parquet"}[output_format]
    output, fresh = tmp_path / f"predictions{ending}", tmp_path / f"fresh{ending}"
    names = tmp_path / "vocabulary.csv"
    names.write_text("Index,Name\n0,Cats\n")
    given = (*arguments(trained_moe, corrupt_files, output), f"--output_format={output_format}")
    given = (*given, f"--class_names={names}")
    interrupt(given)
    with pytest.raises(InputError, match="another value of class_names"):
        programs.run("inference", *given[:-1])
    files_read.clear()
    skip = "--skip_corrupt_records=2"
    programs.run("inference", *given, skip)
    assert files_read == ["test2.tfrecord"]
    programs.run("inference", *given, skip, f"--output_file={fresh}")
    assert output.read_bytes() == fresh.read_bytes()


def test_parts_of_another_format_are_not_used(tmp_path, trained_moe, corrupt_files):
    output = tmp_path / "predictions"
    given = arguments(trained_moe, corrupt_files, output)
    interrupt(given)
    for more in ("csv", "jsonl"):
        with pytest.raises(InputError, match="another value of output_format"):
            programs.run("inference", *given, f"--output_format={more}")
    more = ("--output_format=jsonl", "--noresume", "--skip_corrupt_records=2")
    programs.run("inference", *given, *more)
    assert len(output.read_text().splitlines()) == 3 * 60 - 2
    assert not pathlib.Path(f"{output}.parts").exists()


def assert_second_file_is_predicted_again(trained_moe, corrupt_files, files_read, output):
    """Resumes a run that finished the first two files, and compares it with an undisturbed one."""
    fresh = output.with_name("fresh.csv")
    files_read.clear()
    for path in (output, fresh):
        given = arguments(trained_moe, corrupt_files, path)
        programs.run("inference", *given, "--skip_corrupt_records=2")
    assert files_read[:-3] == ["test1.tfrecord", "test2.tfrecord"]
    assert output.read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("change", ["order", "time"])
def test_input_files_that_changed_since_the_stop_are_predicted_again(
    tmp_path, trained_moe, corrupt_files, files_read, change
):
    output = tmp_path / "predictions.csv"
    interrupt(arguments(trained_moe, corrupt_files, output))
    times = corrupt_files[1].stat()
    if change == "order":
        records = [record.numpy() for record in tf.data.TFRecordDataset(str(corrupt_files[1]))]
        sample_records.write_records(corrupt_files[1], records[::-1])
        assert corrupt_files[1].stat().st_size == times.st_size
        os.utime(corrupt_files[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        os.utime(corrupt_files[1], ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    assert_second_file_is_predicted_again(trained_moe, corrupt_files, files_read, output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [("00001.csv", b""), ("00001.csv", b"v1_0,1 0.5\n"), ("00001.csv", None), ("00001.json", b"")],
    ids=["no lines", "lines cut", "no file", "no metadata"],
)
def test_a_damaged_part_is_predicted_again(
    tmp_path, trained_moe, corrupt_files, files_read, name, content
):
    output = tmp_path / "predictions.csv"
    interrupt(arguments(trained_moe, corrupt_files, output))
    path = pathlib.Path(f"{output}.parts", name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert_second_file_is_predicted_again(trained_moe, corrupt_files, files_read, output)


def test_one_process_at_a_time_writes_an_output(tmp_path, trained_moe, video_data):
    output = tmp_path / "predictions.csv"
    inputs = sorted(pathlib.Path(video_data).parent.glob("part*"))
    given = arguments(trained_moe, inputs, output)
    expected = f"another run is writing {output}: process {os.getpid()} on "
    with files.lock(f"{output}.parts/lock", "", ""):
        for more in ((), ("--noresume",)):
            with pytest.raises(InputError, match=expected):
                programs.run("inference", *given, *more)
    programs.run("inference", *given)
    assert os.listdir(tmp_path) == ["predictions.csv"]


@pytest.mark.parametrize(
    ("name", "content"), [("notes.txt", "{}"), ("settings.json", "{}"), ("settings.json", "")]
)
def test_a_directory_of_somebody_else_is_left_alone(
    tmp_path, trained_moe, video_data, name, content
):
    output = tmp_path / "predictions.csv"
    (tmp_path / "predictions.csv.parts").mkdir()
    (tmp_path / "predictions.csv.parts" / name).write_text(content)
    inputs = sorted(pathlib.Path(video_data).parent.glob("part*"))
    for more in ((), ("--noresume",)):
        with pytest.raises(
            InputError, match=rf"csv\.parts .* holds {name}, which inference.py did"
        ):
            programs.run("inference", *arguments(trained_moe, inputs, output), *more)
    assert (tmp_path / "predictions.csv.parts" / name).read_text() == content
    assert os.listdir(output.with_name("predictions.csv.parts")) == [name]


class Killed(BaseException):
    """Ends a simulated process: every later operation on files raises it, too."""


def write_parts(output, model, inputs, output_format, resume=True):
    """Writes a prediction file whose ids name the model and the input file."""
    given = {"file_format": prediction_file.FORMATS[output_format], "resume": resume}
    with prediction_file.prediction_parts(str(output), {"model": model}, inputs, **given) as parts:
        for number, path in enumerate(inputs):
            if not parts.is_finished(number):
                parts.note_input(number)
                with parts.open(number) as part:
                    scores = np.array([[0.25, 0.5]])
                    ids = [f"{model},{path}"]
                    part.write(prediction_file.format_lines(ids, scores, 2, output_format))
                parts.finish(number, 1, CorruptRecordLog())


def killed_at(operation, write):
    """Calls `write` and kills it before an operation on files; returns whether it came so far."""
    count = 0

    def limited(function):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count > operation:
                raise Killed
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            *((files, name) for name in ("open_binary", "remove")),
            *((files.gfile, name) for name in ("rename", "remove", "makedirs")),
            *((os, name) for name in ("remove", "rmdir")),
        ):
            patch.setattr(owner, name, limited(getattr(owner, name)))
        try:
            write()
        except Killed:
            return True
    return False


def killed_and_resumed(output, inputs, operation, output_format, resume):
    """Kills a run, starts one of another model, and checks lines; returns whether it was killed."""

    def content(model):
        unbroken = output.with_name("unbroken")
        write_parts(unbroken, model, inputs, output_format)
        return unbroken.read_bytes()

    killed = killed_at(operation, lambda: write_parts(output, "old", inputs, output_format))
    assert not output.exists() or output.read_bytes() == content("old")
    model = "new"
    try:
        write_parts(output, model, inputs, output_format, resume)
    except InputError:  # The parts of the unfinished run are kept for the old model.
        assert resume
        model = "old"
        write_parts(output, model, inputs, output_format)
    assert output.read_bytes() == content(model)
    assert not pathlib.Path(f"{output}.parts").exists()
    return killed


@pytest.fixture
def merged_format(monkeypatch):
    """Adds a format whose parts are merged; returns the names of the parts of each merge."""
    merged = []

    def merge(paths, stream):
        merged.append([os.path.basename(path) for path in paths])
        stream.write("".join(pathlib.Path(path).read_text() for path in paths))

    plain = prediction_file.FORMATS["kaggle"]
    added = dataclasses.replace(plain, name="merged", merge=merge, merge_bytes=1)
    monkeypatch.setitem(prediction_file.FORMATS, "merged", added)
    return merged


@pytest.mark.parametrize("output_format", ["kaggle", "merged", "parquet"])
@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.usefixtures("merged_format")
def test_a_kill_at_any_moment_never_mixes_the_lines_of_two_models(tmp_path, resume, output_format):
    if output_format == "parquet":
        pytest.importorskip("pyarrow", reason="needs requirements/parquet.txt")
    names = "abc" if output_format == "merged" else "ab"
    inputs = [sample_records.write_records(tmp_path / name, []) for name in names]
    operations = itertools.count()
    while killed_and_resumed(tmp_path / "out", inputs, next(operations), output_format, resume):
        (tmp_path / "out").unlink()
    assert next(operations) > 20
    assert sorted(os.listdir(tmp_path)) == [*names, "out", "unbroken"]


def test_merged_parts_take_the_place_of_the_first_ones_until_an_input_changes(
    tmp_path, merged_format, monkeypatch
):
    inputs = [sample_records.write_records(tmp_path / name, []) for name in "abcd"]
    output, folder, logged = tmp_path / "out", tmp_path / "out.parts", []
    monkeypatch.setattr(
        prediction_file.logging, "info", lambda text, *values: logged.append(text % values)
    )

    def write(model="model"):
        write_parts(output, model, inputs, "merged")

    def interrupt():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prediction_file.PredictionParts, "join", fail)
            with pytest.raises(KeyboardInterrupt):
                write()
        assert sorted(os.listdir(folder)) == [
            *("00003.csv", "00003.json", "merged-00003.csv", "merged.json", "settings.json")
        ]

    def fail(_):
        raise KeyboardInterrupt

    interrupt()
    assert merged_format == [
        *(["00000.csv"], ["merged-00001.csv", "00001.csv"], ["merged-00002.csv", "00002.csv"])
    ]
    merged_format.clear()
    write()
    whole = output.read_bytes()
    assert merged_format == []
    interrupt()
    os.utime(inputs[1], ns=(0, 0))
    merged_format.clear()
    write()
    assert any("b has changed since it was predicted, so 3 input" in text for text in logged)
    assert [names[-1] for names in merged_format] == ["00000.csv", "00001.csv"]
    interrupt()
    (folder / "merged-00003.csv").write_text("cut")
    write()
    assert any("merged-00003.csv is damaged, so 3 input" in text for text in logged)
    interrupt()
    (folder / "merged.json").write_text("")
    write()
    assert any("merged.json is damaged, so what was merged is" in text for text in logged)
    assert output.read_bytes() == whole
    assert not folder.exists()


def test_an_empty_file_is_allowed_but_not_as_the_only_one(tmp_path, trained_moe, video_data):
    (tmp_path / "input").mkdir()
    empty = tmp_path / "input" / "a.tfrecord"
    sample_records.write_records(empty, [])
    output = tmp_path / "predictions.csv"
    with pytest.raises(InputError, match="no video in 1 files"):
        programs.run("inference", *arguments(trained_moe, [empty], output))
    assert os.listdir(tmp_path) == ["input"]
    shutil.copy(next(pathlib.Path(video_data).parent.glob("part*")), empty.with_name("b.tfrecord"))
    programs.run("inference", *arguments(trained_moe, [empty], output))
    assert len(programs.prediction_rows(output)) == 1 + 60
