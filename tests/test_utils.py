"""Quantisation, files and the helpers that programs read their flags with."""

import gzip
import json
import os
import socket

import program

import numpy as np
import pytest
from absl import flags

import files
import utils
from utils import InputError

# --- Quantisation ---


def test_every_byte_survives_dequantising_and_quantising():
    stored = np.arange(256, dtype=np.uint8)
    for dtype in (np.float32, np.float64):
        restored = utils.quantize(utils.dequantize(stored.astype(dtype)))
        assert restored.dtype == np.uint8
        np.testing.assert_array_equal(restored, stored)


def test_dequantised_byte_is_four_255ths_of_it_with_the_offset_of_youtube_8m():
    values = utils.dequantize(np.arange(256, dtype=np.float64))
    expected = [byte * 4 / 255 + 4 / 512 - 2 for byte in range(256)]
    np.testing.assert_allclose(values, expected, rtol=1e-14)
    assert values[0] == -1.9921875
    assert values[255] == 2.0078125


def test_quantised_value_is_the_nearest_byte():
    values = np.random.default_rng(0).uniform(-1.99, 2.0, 500)
    levels = np.arange(256) * 4 / 255 + 4 / 512 - 2
    nearest = np.argmin(np.abs(values[:, None] - levels), axis=1)
    np.testing.assert_array_equal(utils.quantize(values), nearest)


def test_quantising_clips_values_out_of_range():
    np.testing.assert_array_equal(utils.quantize([-100.0, -2.1, 2.1, 100.0]), [0, 0, 255, 255])


def test_listing_joins_names_and_says_none():
    assert utils.comma_separated(["a", 2]) == "a, 2"
    assert utils.comma_separated([]) == "none"


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


# --- Files ---


def write(path, text):
    with files.atomic_write(str(path)) as file:
        file.write(text)


def test_atomic_write_makes_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "new" / "folder" / "out.csv"
    write(path, "a,ü\n")
    assert path.read_bytes() == "a,ü\n".encode()
    assert os.listdir(path.parent) == ["out.csv"]


def test_file_appears_only_when_it_was_written_whole(tmp_path):
    path = tmp_path / "out.csv"
    with files.atomic_write(str(path)) as file:
        file.write("x" * 100_000)
        assert not path.exists()
        assert os.listdir(tmp_path) == [f"out.csv.{socket.gethostname()}-{os.getpid()}.partial"]
    assert path.stat().st_size == 100_000


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz"])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_failed_write_keeps_the_old_file_and_removes_the_partial(tmp_path, name, failure):
    path = tmp_path / name
    path.write_bytes(b"old")

    def write_half():
        with files.atomic_write(str(path)) as file:
            file.write("half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [name]


def test_atomic_write_replaces_an_old_file(tmp_path):
    path = tmp_path / "out.csv"
    write(path, "a longer old text")
    write(path, "new")
    assert path.read_text() == "new"


def test_gz_path_is_compressed_and_reads_back(tmp_path):
    path = tmp_path / "out.csv.gz"
    write(path, "ü,1\n" * 5000)
    assert gzip.decompress(path.read_bytes()).decode() == "ü,1\n" * 5000
    assert path.stat().st_size < 1000


def test_equal_text_gives_equal_compressed_bytes(tmp_path, monkeypatch):
    write(tmp_path / "first.gz", "text")
    # The header of a gzip file usually holds the time in seconds.
    monkeypatch.setattr(gzip.time, "time", lambda: 1e9)
    write(tmp_path / "second.gz", "text")
    assert (tmp_path / "first.gz").read_bytes() == (tmp_path / "second.gz").read_bytes()


@pytest.mark.parametrize("refused", [files.check_writable, lambda path: write(path, "text")])
def test_path_that_cannot_be_written_is_named(tmp_path, refused):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"cannot write .*file/out\.csv: "):
        refused(str(tmp_path / "file" / "out.csv"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*folder: it is a directory"):
        refused(str(tmp_path / "folder"))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_check_writable_leaves_nothing_behind_and_an_old_file_alone(tmp_path):
    path = tmp_path / "out.csv"
    files.check_writable(str(path))
    assert os.listdir(tmp_path) == []
    path.write_text("old")
    files.check_writable(str(path))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_json_reads_back_and_is_indented(tmp_path):
    path, value = tmp_path / "a.json", {"b": [1, 2.5, "ü"], "a": None}
    files.write_json(str(path), value)
    assert files.read_json(str(path)) == value
    assert path.read_text() == json.dumps(value, indent=2) + "\n"


def test_value_that_is_not_json_writes_no_file(tmp_path):
    with pytest.raises(TypeError):
        files.write_json(str(tmp_path / "a.json"), {"a": 1, "b": object()})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe\xff"])
def test_file_that_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json is not valid JSON: "):
        files.read_json(str(path))


def test_patterns_expand_to_sorted_files_without_repetition(tmp_path):
    for name in ("b1", "a2", "a1", "c1"):
        (tmp_path / name).write_text("")
    (tmp_path / "a_folder").mkdir()
    pattern = f"{tmp_path}/b*, {tmp_path}/a*,{tmp_path}/?1,"
    expected = [str(tmp_path / name) for name in ("a1", "a2", "b1", "c1")]
    assert files.expand_patterns(pattern) == expected


def test_pattern_without_a_file_is_named_though_others_match(tmp_path):
    (tmp_path / "a1").write_text("")
    with pytest.raises(InputError, match=r"no file matches '.*/z\*' \(working directory /"):
        files.expand_patterns(f"{tmp_path}/a*,{tmp_path}/z*")


@pytest.mark.parametrize("patterns", ["", " , "])
def test_empty_pattern_is_refused(patterns):
    with pytest.raises(InputError, match="a file pattern was expected"):
        files.expand_patterns(patterns)


def test_remote_paths_are_those_with_a_scheme():
    assert files.is_remote("gs://bucket/file")
    assert not files.is_remote("/folder/file")


# --- Flags ---


@pytest.fixture
def flag_values():
    values = flags.FlagValues()
    program.define_flags(
        values, "train_dir", "checkpoint", "seed", "batch_size", "feature_sizes", top_k=7
    )
    values.mark_as_parsed()
    return values


def test_shared_flags_have_their_usual_or_the_given_default(flag_values):
    assert set(flag_values) == {
        "train_dir",
        "checkpoint",
        "seed",
        "batch_size",
        "feature_sizes",
        "top_k",
    }
    assert (flag_values.batch_size, flag_values.top_k) == (128, 7)


def test_all_missing_flags_are_named(flag_values):
    flag_values.checkpoint = ""
    with pytest.raises(InputError, match=r"^--train_dir, --checkpoint must be given\."):
        program.require_flags(flag_values, "train_dir", "checkpoint", "batch_size")


def test_flags_that_are_given_pass(flag_values):
    flag_values.train_dir = "run"
    program.require_flags(flag_values, "train_dir", "batch_size")


@pytest.mark.parametrize("value", [0, -3])
def test_value_below_one_is_refused_by_name(flag_values, value):
    flag_values.top_k = value
    with pytest.raises(InputError, match=f"^--top_k must be above 0. Received: {value}$"):
        program.require_positive(flag_values, "batch_size", "top_k")


def test_positive_values_and_none_pass(flag_values):
    flag_values["seed"].value = None
    program.require_positive(flag_values, "batch_size", "seed")


def test_list_flag_is_read_as_integers(flag_values):
    assert program.integer_list(flag_values, "feature_sizes") == (1024, 128)
    flag_values.feature_sizes = [" 5"]
    assert program.integer_list(flag_values, "feature_sizes") == (5,)


def test_list_entry_that_is_no_integer_is_named(flag_values):
    flag_values.feature_sizes = ["1024", "x"]
    message = "^--feature_sizes must be integers, as 1024,128. Received: 1024,x$"
    with pytest.raises(InputError, match=message):
        program.integer_list(flag_values, "feature_sizes")


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("-abc_1", "-abc_1"),
        ("=1+1", "=1+1"),
        ("a\rb", '"a\rb"'),
        ("a\nb", '"a\nb"'),
        ('say "x", y', '"say ""x"", y"'),
        ("=HYPERLINK(A1)", "'=HYPERLINK(A1)"),
        (" @SUM(1)", "' @SUM(1)"),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
    ],
)
def test_ids_neither_break_a_line_of_csv_nor_run_as_formulas(cell, written):
    assert utils.csv_line((cell, "5 0.5")) == f"{written},5 0.5\n"
