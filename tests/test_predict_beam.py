"""Prediction with Apache Beam, on this machine."""

import csv
import pathlib
import shutil

import pytest

import programs
import sample_records
from utils import InputError

pytest.importorskip("apache_beam", reason="needs requirements/beam.txt")

pytestmark = pytest.mark.filterwarnings("ignore")  # Beam's dependencies warn.
# The part of Beam's DirectRunner that needs no download.
IN_PROCESS = "--beam_options=--runner=FnApiRunner"


def shards(prefix):
    return sorted(prefix.parent.glob(f"{prefix.name}-*-of-*.csv"))


def lines(paths):
    """Returns the lines after the header of each file, sorted."""
    found = []
    for path in paths:
        header, *rows = path.read_text().splitlines()
        assert header == "VideoId,LabelConfidencePairs"
        found += rows
    return sorted(found)


def arguments(exported, data, prefix):
    return (
        f"--exported_model={exported}",
        f"--input_data_pattern={data}",
        f"--output_prefix={prefix}",
        "--batch_size=16",
    )


@pytest.mark.slow
def test_two_workers_write_the_lines_of_inference(exported_sampling, frame_data, tmp_path):
    """Runs from another directory, in separate processes, as on a cluster."""
    prefix, single = tmp_path / "beam" / "predictions", tmp_path / "single.csv"
    options = "--direct_num_workers=2 --direct_running_mode=multi_processing"
    done = programs.run_command(
        programs.ROOT / "predict_beam.py",
        *arguments(exported_sampling, frame_data, prefix),
        f"{IN_PROCESS} {options}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "160 videos predicted, 0 corrupt records skipped" in done.stderr
    programs.run(
        "inference",
        f"--exported_model={exported_sampling}",
        f"--input_data_pattern={frame_data}",
        f"--output_file={single}",
        "--batch_size=16",
    )
    assert lines(shards(prefix)) == lines([single])
    assert len(lines([single])) == 160


@pytest.fixture
def corrupt(tmp_path, frame_data):
    """Glob of three files, two of which have a corrupt record."""
    for number, source in enumerate(sorted(pathlib.Path(frame_data).parent.glob("part*"))[:3]):
        path = shutil.copy(source, tmp_path / f"test{number}.tfrecord")
        if number != 1:
            sample_records.flip_bit(path, 200)
    return tmp_path / "test*.tfrecord"


@pytest.mark.parametrize("allowed", [0, 1])
def test_more_corrupt_records_than_allowed_fail_and_write_no_file(
    exported, corrupt, tmp_path, allowed
):
    given = arguments(exported, corrupt, tmp_path / "p")
    with pytest.raises(Exception, match="skip_corrupt_records"):
        programs.run("predict_beam", *given, IN_PROCESS, f"--skip_corrupt_records={allowed}")
    assert not shards(tmp_path / "p")


def test_allowed_corrupt_records_are_skipped(exported, corrupt, tmp_path):
    given = arguments(exported, corrupt, tmp_path / "p")
    programs.run("predict_beam", *given, IN_PROCESS, "--skip_corrupt_records=2")
    assert len(lines(shards(tmp_path / "p"))) == 3 * 40 - 2


def test_files_are_read_with_all_options_and_without_labels(exported, tmp_path):
    features = {"rgb": [b"12345678"] * 2}
    records = [
        sample_records.frame_record("a", [4000], **features, audio=[b"1234"]),
        sample_records.frame_record("b", [], **features),
    ]
    for name, record in zip("ab", records, strict=True):
        sample_records.write_records(tmp_path / f"{name}.tfrecord", [record])
    given = arguments(exported, tmp_path / "*.tfrecord", tmp_path / "p")
    options = ("--trim_features", "--missing_features=zeros")
    programs.run("predict_beam", *given, IN_PROCESS, *options)
    assert [line[0] for line in lines(shards(tmp_path / "p"))] == ["a", "b"]


def test_ids_are_quoted_as_csv(exported, tmp_path):
    record = sample_records.frame_record('a,"b', [], rgb=[b"12345678"], audio=[b"1234"])
    path = sample_records.write_records(tmp_path / "test.tfrecord", [record])
    programs.run("predict_beam", *arguments(exported, path, tmp_path / "p"), IN_PROCESS)
    (row,) = csv.reader(lines(shards(tmp_path / "p")))
    assert row[0] == 'a,"b'


def test_shards_of_an_earlier_run_are_rejected(exported, frame_data, tmp_path):
    (tmp_path / "p-00000-of-00007.csv").touch()
    with pytest.raises(InputError, match=r"p-00000-of-00007\.csv exists already"):
        programs.run("predict_beam", *arguments(exported, frame_data, tmp_path / "p"), IN_PROCESS)


def test_a_directory_without_an_exported_model_is_rejected(frame_data, tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        programs.run("predict_beam", *arguments(tmp_path, frame_data, tmp_path / "p"), IN_PROCESS)
