"""inspect_records.py against sums by hand, and the commands that it prints against training."""

import collections
import dataclasses
import gzip
import json
import math
import pathlib
import shlex

import numpy as np
import pytest
import tensorflow as tf

import dataset_info
import files
import inspect_records
import programs
import record_statistics
from sample_records import (
    bytes_feature,
    flip_bit,
    float_feature,
    frame_record,
    int64_feature,
    random_frames,
    video_record,
    with_ratings,
    write_records,
)
from utils import InputError

SIZES = {"rgb": 8, "audio": 4}


def found_in(capsys, *patterns, **flags):
    """Returns the JSON object that the program prints."""
    given = [f"--input_data_pattern={pattern}" for pattern in patterns]
    given += [f"--{name}={value}" for name, value in flags.items()]
    programs.run("inspect_records", *given, "--format=json")
    return json.loads(capsys.readouterr().out)


def features_of(found):
    return {(entry["name"], entry["kind"]): entry for entry in found["features"]}


def frames(rng, num_frames=6, **sizes):
    return {name: random_frames(rng, num_frames, size) for name, size in {**SIZES, **sizes}.items()}


def videos(count=20, first=0, make_labels=lambda number: [number % 5], **changes):
    """Returns frame-level records; `changes` replace features, None removes one."""
    rng = np.random.default_rng(first)
    records = []
    for number in range(first, first + count):
        features = frames(rng) | changes
        features = {name: value for name, value in features.items() if value is not None}
        records.append(frame_record(f"v{number}", make_labels(number), **features))
    return records


def with_context(record, **features):
    """Returns a record with features of its context replaced; None removes one."""
    message = tf.train.SequenceExample.FromString(record)
    for name, feature in features.items():
        message.context.feature.pop(name, None)
        if feature is not None:
            message.context.feature[name].CopyFrom(feature)
    return message.SerializeToString()


def float_frames(num_frames=6, size=8):
    features = [float_feature(np.linspace(-1, 1, size)) for _ in range(num_frames)]
    return tf.train.FeatureList(feature=features)


def with_lists(record, **lists):
    """Returns a frame-level record with more feature lists."""
    message = tf.train.SequenceExample.FromString(record)
    for name, feature_list in lists.items():
        message.feature_lists.feature_list[name].CopyFrom(feature_list)
    return message.SerializeToString()


def read_as_training(command):
    """Returns how many records the reader of a printed command yields and skips in an epoch."""
    python, script, *flags = shlex.split(command)
    assert (python, script) == ("python", "train.py")
    options = programs.options("train", *flags)
    paths = files.expand_patterns(options["options"].train_data_pattern)
    config = dataset_info.complete(options["config"], options["given"], paths)
    reader = config.data.reader(paths, options["options"])
    reader.check_first_records()
    count = sum(len(batch.video_ids) for batch in reader.batches(8))
    return count, reader.corrupt_records.count


# --- Statistics ---


def test_numbers_are_those_of_a_loop_over_the_records(frame_data, capsys):
    found = found_in(capsys, frame_data)
    paths = sorted(pathlib.Path(frame_data).parent.glob("*.tfrecord"))
    classes, label_counts, lengths, values = collections.Counter(), [], [], []
    for payload in tf.data.TFRecordDataset([str(path) for path in paths]):
        example = tf.train.SequenceExample.FromString(payload.numpy())
        labels = list(example.context.feature["labels"].int64_list.value)
        classes.update(labels)
        label_counts.append(len(labels))
        features = example.feature_lists.feature_list["rgb"].feature
        lengths.append(len(features))
        values += [byte for feature in features for byte in feature.bytes_list.value[0]]
    assert (found["files"], found["records"], found["levels"]) == (4, 160, {"frame": 160})
    assert (found["ids"], found["without_id"], found["repeated_ids"]) == ({"id": 160}, 0, 0)
    assert found["frames_per_video"] == {
        "min": min(lengths),
        "median": sorted(lengths)[79],
        "mean": pytest.approx(np.mean(lengths)),
        "max": max(lengths),
    }
    assert found["labels_per_video"]["mean"] == pytest.approx(np.mean(label_counts))
    assert found["num_classes"] == max(classes) + 1 == 10
    ranked = sorted(classes.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = found["frequent_classes"] + found["rare_classes"]
    assert [(entry["class"], entry["videos"]) for entry in shown] == ranked
    assert features_of(found)["rgb", "frames of bytes"] == {
        "name": "rgb",
        "kind": "frames of bytes",
        "records": 160,
        "sizes": {"8": 160},
        "float_type": None,
        "min": min(values),
        "max": max(values),
        "mean": pytest.approx(np.mean(values)),
        "not_finite": 0.0,
    }


def test_values_that_are_not_finite_are_a_share_and_not_part_of_the_range(tmp_path, capsys):
    vectors = [[1.0, math.nan, -2.0, math.inf], [0.5, 0.5, 4.0, 0.0]]
    records = [video_record(f"v{n}", [n], mean_rgb=vector) for n, vector in enumerate(vectors)]
    path = write_records(tmp_path / "data", records)
    found = found_in(capsys, path)
    entry = features_of(found)["mean_rgb", "floats"]
    assert (entry["min"], entry["max"], entry["not_finite"]) == (-2.0, 4.0, 0.25)
    assert entry["mean"] == pytest.approx(np.mean([1.0, -2.0, 0.5, 0.5, 4.0, 0.0]))
    assert [entry["records"] for entry in found["unusable"]] == [1]
    assert "--skip_corrupt_records=1" in found["train_command"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_bytes_of_floats_are_recognized_and_described_as_floats(tmp_path, capsys, dtype):
    values = np.random.default_rng(0).normal(size=(10, 6, 32)).astype(dtype)
    records = [
        frame_record(f"v{number}", [1], rgb=[frame.tobytes() for frame in video])
        for number, video in enumerate(values)
    ]
    found = found_in(capsys, write_records(tmp_path / "data", records))
    entry = features_of(found)["rgb", "frames of bytes"]
    assert entry["float_type"] == dtype
    assert (entry["min"], entry["max"]) == (values.min(), values.max())
    if dtype == "float64":
        assert found["train_command"] is None
        assert f"its bytes are those of 32 {dtype} values" in found["problem"]
    else:
        flags = f"--feature_sizes=32 --feature_dtypes={dtype} --train_dir=run"
        assert found["train_command"].endswith(flags)
        assert read_as_training(found["train_command"]) == (10, 0)


def test_every_kind_of_feature_has_a_row(tmp_path, capsys):
    # Frames of several strings, of unequal sizes, of several types, and none.
    strings = tf.train.FeatureList(feature=[bytes_feature(b"a", b"b")])
    mixed = tf.train.FeatureList(feature=[int64_feature([1]), float_feature([1.0])])
    record = with_lists(
        frame_record("v", [1, 2], **frames(np.random.default_rng(0)), images=[b"abc", b"ab"]),
        floats=float_frames(size=3),
        times=tf.train.FeatureList(feature=[int64_feature([5]), int64_feature([7])]),
        strings=strings,
        mixed=mixed,
        nothing=tf.train.FeatureList(),
    )
    empty = tf.train.Feature()
    record = with_context(record, title=bytes_feature(b"x"), ratio=float_feature([2]), none=empty)
    found = found_in(capsys, write_records(tmp_path / "data", [record]))
    sizes = {key: entry["sizes"] for key, entry in features_of(found).items()}
    assert sizes == {
        ("id", "strings"): {"1": 1},
        ("labels", "integers"): {"2": 1},
        ("none", "no values"): {"0": 1},
        ("ratio", "floats"): {"1": 1},
        ("title", "strings"): {"1": 1},
        ("audio", "frames of bytes"): {"4": 1},
        ("rgb", "frames of bytes"): {"8": 1},
        ("floats", "frames of floats"): {"3": 1},
        ("images", "frames of strings"): {"differ": 1},
        ("mixed", "frames of mixed types"): {"differ": 1},
        ("nothing", "no frames"): {"0": 1},
        ("strings", "frames of strings"): {"differ": 1},
        ("times", "frames of integers"): {"1": 1},
    }
    times = features_of(found)["times", "frames of integers"]
    assert (times["min"], times["max"], times["mean"]) == (5, 7, 6)


def test_files_ids_and_damaged_records_are_counted(tmp_path, capsys):
    for number in range(2):
        write_records(tmp_path / f"part{number}", videos(20))
    flip_bit(tmp_path / "part1", 100)
    packed = gzip.compress(pathlib.Path(write_records(tmp_path / "x", videos(5, 20))).read_bytes())
    (tmp_path / "x").write_bytes(packed)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "table").write_bytes(b"PAR1" + bytes(99))
    write_records(tmp_path / "rest", [b"\xff\xff", with_context(videos(1, 99)[0], id=None)])
    found = found_in(capsys, tmp_path / "*")
    assert [found[name] for name in ("files", "compressed_files", "empty_files")] == [6, 1, 2]
    assert (found["records"], found["ids"], found["without_id"]) == (45, {"id": 44}, 1)
    assert found["repeated_ids"] == 19
    assert found["damaged_records"] == 3
    places, reasons = zip(*found["first_damaged"].items(), strict=True)
    assert [place.split(" (")[0] for place in places] == [
        f"record 0 of {tmp_path / name}" for name in ("part1", "rest", "table")
    ]
    for reason, expected in zip(reasons, ("checksum", "not a YouTube-8M", "Parquet"), strict=True):
        assert expected in reason
    assert read_as_training(found["train_command"]) == (44, 4)


def test_only_some_records_of_each_file_are_read_on_request(frame_data, capsys):
    found = found_in(capsys, frame_data, max_records=10)
    assert (found["files"], found["records"]) == (4, 12)
    found = found_in(capsys, frame_data, max_records=3)
    assert (found["files"], found["records"]) == (3, 3)


# --- The command ---


@pytest.mark.parametrize(
    ("records", "flags"),
    [
        (videos(), "--num_classes=5 --feature_sizes=8,4"),
        (videos(audio=None), "--num_classes=5 --feature_names=rgb --feature_sizes=8"),
        (
            videos() + videos(1, 20, audio=None),
            "--num_classes=5 --feature_sizes=8,4 --missing_features=zeros",
        ),
        (
            videos() + videos(1, 20, audio=[]),
            "--num_classes=5 --feature_sizes=8,4 --missing_features=zeros",
        ),
        (
            videos() + videos(1, 20, audio=[b"abcd"] * 5),
            "--num_classes=5 --feature_sizes=8,4 --trim_features",
        ),
        (
            videos(rgb=[b"abc"] * 301, audio=None, touch=[b"ab"] * 301, clip=[b"abcde"] * 301),
            "--num_classes=5 --feature_names=rgb,clip,touch --feature_sizes=3,5,2 --max_frames=301",
        ),
        (
            videos() + videos(2, 20, rgb=[b"abc"] * 6) + videos(1, 22, audio=[b"abcd", b"a"]),
            "--num_classes=5 --feature_sizes=8,4 --skip_corrupt_records=3 --missing_features=zeros",
        ),
        (
            [*videos(), with_context(videos(1, 20)[0], labels=bytes_feature(b"cat"))],
            "--num_classes=5 --feature_sizes=8,4 --skip_corrupt_records=1",
        ),
        (
            [*videos(), video_record("w", [7], mean_rgb=[1.0, 2.0])],
            "--num_classes=8 --feature_sizes=8,4 --skip_corrupt_records=1",
        ),
        (
            [with_context(r, segment_labels=int64_feature([9])) for r in videos()],
            "--num_classes=5 --feature_sizes=8,4",
        ),
        (
            [with_lists(r, motion=float_frames(size=3)) for r in videos()],
            "--num_classes=5 --feature_names=rgb,audio,motion --feature_sizes=8,4,3 "
            "--feature_dtypes=uint8,uint8,float_list",
        ),
        (
            [with_lists(r, rgb=float_frames()) for r in videos(rgb=None, audio=None)],
            "--num_classes=5 --feature_names=rgb --feature_sizes=8 --feature_dtypes=float_list",
        ),
        (
            [
                video_record(f"w{n}", [n], "video_id", mean_audio=[0.0] * 3, start=[1.0])
                for n in range(9)
            ],
            "--num_classes=9 --feature_names=mean_audio --feature_sizes=3",
        ),
    ],
    ids=[
        *("plain", "one feature", "missing", "no frames", "unequal", "own and long", "sizes"),
        *("string labels", "mixed levels", "segments", "floats as well", "floats"),
        "video level",
    ],
)
def test_the_command_reads_all_records_that_can_be_read(tmp_path, capsys, records, flags):
    path = write_records(tmp_path / "data, (1)", records)
    found = found_in(capsys, path)
    model = "MoeModel" if "video" in found["levels"] and len(found["levels"]) == 1 else "DbofModel"
    command = shlex.join(["python", "train.py", f"--model={model}", f"--train_data_pattern={path}"])
    assert found["train_command"] == f"{command} {flags} --train_dir=run"
    skipped = sum(entry["records"] for entry in found["unusable"])
    assert read_as_training(found["train_command"]) == (len(records) - skipped, skipped)


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([], "the files have no intact record."),
        ([with_context(r, labels=None) for r in videos()], "none of the first 20 videos has a"),
        (
            [with_context(r, labels=float_feature([1])) for r in videos()],
            "Store the class numbers of each video as integers.",
        ),
        (
            [with_context(r, id=int64_feature([1])) for r in videos()],
            "Store the id of each video as one string.",
        ),
        (videos(make_labels=lambda number: [-1, 2]), "has label -1, but labels must be 0 to 2"),
        (
            [video_record("w", [1])] * 3,
            "most records have neither frames (feature lists of a SequenceExample) nor a vector of "
            "floats (in an Example). They have: id (strings), labels (integers).",
        ),
        (
            [video_record(f"w{n}", [7], mean_rgb=[1.0, 2.0]) for n in range(16)] + videos(),
            "Of the first 16 records, none is usable. Choose frame-level data",
        ),
    ],
    ids=[
        *("none", "no labels", "float labels", "integer id", "negative", "no features"),
        "other level first",
    ],
)
def test_why_training_cannot_read_the_records_is_what_the_reader_says(
    tmp_path, capsys, records, problem
):
    found = found_in(capsys, write_records(tmp_path / "data", records))
    assert found["train_command"] is None
    assert problem in found["problem"]


def test_names_that_may_hold_labels_are_reported(tmp_path, capsys):
    records = [with_context(r, labels=None, Label=int64_feature([3])) for r in videos()]
    path = write_records(tmp_path / "data", records)
    assert found_in(capsys, path)["other_label_names"] == ["Label"]
    programs.run("inspect_records", f"--input_data_pattern={path}")
    assert "other names that may hold labels: Label\n" in capsys.readouterr().out


def test_unusable_records_are_counted_by_reason(tmp_path, capsys):
    first, second = videos(2, 20, rgb=[bytes(16)] * 6)
    other_layout = with_context(second, year=int64_feature([2026]))
    path = write_records(tmp_path / "data", [*videos(), first, other_layout])
    (entry,) = found_in(capsys, path)["unusable"]
    assert entry["records"] == 2
    assert "feature 'rgb' has size 16" in entry["reason"]


def test_records_of_too_many_layouts_count_as_unusable(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(record_statistics, "_MAX_LAYOUTS", 3)
    odd = [videos(1, 20 + size, rgb=[bytes(size)] * 6)[0] for size in range(2, 7)]
    found = found_in(capsys, write_records(tmp_path / "data", videos() + odd))
    assert [entry["records"] for entry in found["unusable"]] == [1, 1, 3]
    assert "too many combinations" in found["unusable"][2]["reason"]
    assert read_as_training(found["train_command"]) == (20, 5)


@pytest.mark.slow
def test_the_printed_command_trains_on_damaged_and_mixed_files(tmp_path, capsys):
    write_records(
        tmp_path / "a", videos(40) + videos(2, 40, audio=None) + videos(1, 42, audio=[b"abcd"] * 5)
    )
    write_records(tmp_path / "b", [video_record("w", [1], mean_rgb=[1.0, 2.0])] * 2)
    write_records(tmp_path / "c", videos(9, 50))
    flip_bit(tmp_path / "c", 100)
    programs.run(
        "inspect_records",
        *(f"--input_data_pattern={tmp_path / name}" for name in ("a", "[bc]")),
    )
    command = capsys.readouterr().out.splitlines()[-1]
    flags = shlex.split(command)[2:]
    assert "--skip_corrupt_records=3" in flags
    train_dir = tmp_path / "run"
    small = ("--dbof_cluster_size=4", "--dbof_hidden_size=2", "--batch_size=16", "--num_epochs=2")
    programs.run("train", *flags, *small, f"--train_dir={train_dir}")
    assert (train_dir / "model.ckpt-6.index").exists()


def test_the_command_leaves_out_what_dataset_json_says(tmp_path, capsys):
    path = write_records(tmp_path / "part", videos())
    features = [
        dataset_info.Feature(
            name=name, size=size, dtype="uint8", quantization={"min": -2, "max": 2}
        )
        for name, size in {"audio": 4, "rgb": 8}.items()
    ]
    info = dataset_info.DatasetInfo(level="frame", features=features, num_classes=9, max_frames=6)
    info.save(str(tmp_path))
    command = found_in(capsys, path)["train_command"]
    # The five classes in the records are not all classes of the data set.
    assert command == shlex.join(
        [
            *("python", "train.py", "--model=DbofModel", f"--train_data_pattern={path}"),
            *("--feature_names=rgb,audio", "--feature_sizes=8,4", "--train_dir=run"),
        ]
    )
    assert read_as_training(command) == (20, 0)
    dataclasses.replace(info, features=features[:1]).save(str(tmp_path))
    problem = found_in(capsys, path)["problem"]
    assert problem.startswith(f"--feature_names=rgb,audio contradicts {tmp_path}/dataset.json")


def test_the_printed_command_trains_on_video_level_sample_data(tmp_path, capsys):
    sizes = ("--num_videos=64", "--num_classes=12", "--feature_sizes=8,4", "--level=video")
    programs.run("make_sample_data", f"--output_dir={tmp_path}", *sizes)
    names = f"--class_names={tmp_path / 'vocabulary.csv'}"
    programs.run("inspect_records", f"--input_data_pattern={tmp_path / 'train*'}", names)
    command = capsys.readouterr().out.splitlines()[-1]
    assert "--model=MoeModel" in command
    assert "--num_classes" not in command  # dataset.json has it.
    train_dir = tmp_path / "run"
    flags = shlex.split(command)[2:]
    programs.run("train", *flags, f"--train_dir={train_dir}", "--batch_size=16", "--max_steps=2")
    assert (train_dir / "model.ckpt-2.index").exists()


# --- The report ---


def test_the_tables_show_the_numbers(tmp_path, capsys):
    frame = bytes(range(8))
    records = videos(12, make_labels=lambda number: [number], rgb=[frame] * 6, audio=None)
    records[11] = frame_record("v0", [], rgb=[frame * 2] * 6)
    records.append(video_record("w", [0], mean_rgb=[math.nan, 1.5, 2.5, 3.5]))
    path = write_records(tmp_path / "data", records)
    names = tmp_path / "names.csv"
    names.write_text("Index,Name\n0,Cat\n12,Dog\n")
    programs.run("inspect_records", f"--input_data_pattern={path}", f"--class_names={names}")
    *lines, last = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines[:21]] == [
        "files 1",
        "records 13; frame-level: 12; video-level: 1",
        "ids 13; named id: 13; repeated: 1",
        "frames 6 to 6 per video, median 6, mean 6.00",
        "labels 0 to 1 per video, median 1, mean 0.92; videos without integers in 'labels': 1",
        "classes 13; without videos: 2",
        "",
        "feature records size min max mean NaN or infinite",
        "id: strings 13 1",
        "labels: integers 13 0 (1), 1 (12) 0 10 4.5833",
        "mean_rgb: floats 1 4 1.5 3.5 2.5 25.0%",
        "rgb: frames of bytes 12 8 (11), 16 (1) 0 7 3.5",
        "",
        "class videos",
        "0 Cat 2",
        "1 1",
        "2 1",
        "3 1",
        "4 1",
        "... ...",
        "6 1",
    ]
    assert lines[-4].startswith(f"skipped in training: 1, first record 11 of {path} (byte ")
    assert "feature 'rgb' has size 16, but the model takes size 8" in lines[-4]
    assert lines[-3].startswith(f"skipped in training: 1, first record 12 of {path} (byte ")
    assert last.endswith(
        "--num_classes=13 --feature_names=rgb --feature_sizes=8 "
        "--skip_corrupt_records=2 --train_dir=run"
    )


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path, capsys):
    path = write_records(tmp_path / "data", videos(**{"\x1b[31mré": [b"ab"] * 6}))
    programs.run("inspect_records", f"--input_data_pattern={path}")
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert r"\x1b[31mré: frames of bytes" in output


def test_many_damaged_records_are_shortened(tmp_path, capsys):
    path = write_records(tmp_path / "data", [b"\xff\xff"] * 8)
    programs.run("inspect_records", f"--input_data_pattern={path}")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("damaged: record ") for line in lines) == 5
    assert lines[-3:] == [
        "damaged: 3 more",
        "",
        "Training cannot read them: the files have no intact record.",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--input_data_pattern must be given"),
        (("--input_data_pattern=/no/such/file",), "no file matches '/no/such/file'"),
        (("--input_data_pattern=a", "b"), "unexpected argument: b"),
        (("--input_data_pattern=a", "--max_records=0"), "--max_records must be above 0"),
        (("--input_data_pattern=a", "--class_names=/no/names"), "cannot read the class names in"),
    ],
)
def test_bad_input_is_rejected_with_a_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        programs.run("inspect_records", *arguments)


def test_an_inspection_of_paths_returns_statistics(frame_data):
    (path, *_) = sorted(pathlib.Path(frame_data).parent.glob("*.tfrecord"))
    statistics, counts = inspect_records.inspect([str(path)])
    assert statistics.num_records == 40
    assert counts == {"files": 1, "compressed_files": 0, "empty_files": 0}


def test_ratings_of_segments_are_counted_and_faulty_ones_reported(tmp_path, capsys):
    first, second, third, plain = videos(4)
    path = write_records(
        tmp_path / "rated",
        [
            with_ratings(first, [(0, 3, 1), (0, 4, 0), (5, 3, 0)]),
            with_ratings(second, [(0, 7, 1)]),
            with_ratings(third, [(3, 7, 1)]),
            plain,
        ],
    )
    found = found_in(capsys, path)
    assert found["rated_segments"] == 2
    fault = found["ratings"].pop("first_fault")
    assert fault.endswith("it has a segment that starts at 3, no multiple of 5")
    assert f"record 2 of {path}" in fault
    expected = {"segments": 3, "pairs": 4, "rated_1": 2, "classes": 3, "faulty_records": 1}
    assert found["ratings"] == expected
    programs.run("inspect_records", f"--input_data_pattern={path}")
    text = capsys.readouterr().out
    assert "3 segments, 4 pairs of a segment and a class, 2 of them rated 1; 3 classes" in text
    assert "records with ratings that are not usable: 1, the first record 2 of" in text
