"""Prediction from end to end: the file of inference.py."""

import csv
import gzip
import io
import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

import eval_util
import prediction_file
import programs
import sample_records
from predictor import Predictor
from programs import predict, prediction_rows
from utils import InputError


def test_every_video_gets_its_best_classes_in_order(trained_mean, frame_data, tmp_path):
    output = tmp_path / "predictions.csv"
    predict(trained_mean, frame_data, output, "--top_k=3")
    header, *rows = prediction_rows(output)
    assert header == ["VideoId", "LabelConfidencePairs"]
    assert len(rows) == 160
    assert len({row[0] for row in rows}) == 160
    for _, pairs in rows:
        classes, scores = pairs.split()[::2], [float(score) for score in pairs.split()[1::2]]
        assert len(set(classes)) == 3
        assert scores == sorted(scores, reverse=True)
    assert not list(tmp_path.glob("*.partial"))


def test_the_seed_decides_the_sampled_frames_and_compression_nothing(
    trained_mean, frame_data, tmp_path
):
    found = []
    for name, seed in (("plain.csv", 1), ("compressed.csv.gz", 1), ("other.csv", 2)):
        given = ("--num_samplings=1", f"--seed={seed}")
        predict(trained_mean, frame_data, tmp_path / name, *given)
        found.append(prediction_rows(tmp_path / name))
    assert found[0] == found[1] != found[2]


def test_inference_takes_data_without_labels(tmp_path, trained_mean):
    record = sample_records.frame_record("a,b", [], rgb=[b"12345678"], audio=[b"1234"])
    path = sample_records.write_records(tmp_path / "test.tfrecord", [record])
    output = tmp_path / "predictions.csv"
    predict(trained_mean, path, output)
    assert prediction_rows(output)[1][0] == "a,b"


ODD_LABELS = [sample_records.int64_feature([4000]), sample_records.bytes_feature(b"cat")]


@pytest.mark.parametrize("labels", ODD_LABELS, ids=["too large", "no numbers"])
def test_inference_ignores_labels(tmp_path, trained_mean, labels):
    record = sample_records.frame_record("a", [], rgb=[b"12345678"], audio=[b"1234"])
    example = tf.train.SequenceExample.FromString(record)
    example.context.feature["labels"].CopyFrom(labels)
    path = sample_records.write_records(
        tmp_path / "test.tfrecord", [example.SerializeToString()] * 2
    )
    predict(trained_mean, path, tmp_path / "predictions.csv")
    assert len(prediction_rows(tmp_path / "predictions.csv")) == 3


def test_predictions_with_other_reading_options_do_not_resume(tmp_path, trained_mean):
    good = sample_records.frame_record("a", [], rgb=[b"12345678"], audio=[b"1234"])
    short = sample_records.frame_record("b", [], rgb=[b"12345678"] * 2, audio=[b"1234"])
    silent = sample_records.frame_record("c", [], rgb=[b"12345678"])
    for number, bad in enumerate((short, silent)):
        sample_records.write_records(tmp_path / f"test{number}.tfrecord", [good, bad])
    output, data = tmp_path / "predictions.csv", tmp_path / "test*.tfrecord"
    with pytest.raises(InputError, match="unequal numbers of frames: 2 of 'rgb', 1 of 'audio'"):
        predict(trained_mean, data, output)
    with pytest.raises(InputError, match="no feature 'audio'"):
        predict(trained_mean, data, output, "--trim_features")
    given = ("--trim_features", "--missing_features=zeros")
    with pytest.raises(InputError, match="with another value of missing_features"):
        predict(trained_mean, data, output, *given)
    predict(trained_mean, data, output, *given, "--noresume")
    assert [row[0] for row in prediction_rows(output)[1:]] == ["a", "b", "a", "c"]


def test_a_corrupt_record_stops_inference_without_an_output_file(
    tmp_path, trained_mean, frame_data
):
    source = next(pathlib.Path(frame_data).parent.glob("part000*"))
    content = bytearray(source.read_bytes())
    content[200] ^= 1
    corrupt = tmp_path / "corrupt.tfrecord"
    corrupt.write_bytes(content)
    output = tmp_path / "predictions.csv"
    with pytest.raises(InputError, match=r"record \d+ of .*corrupt\.tfrecord"):
        predict(trained_mean, corrupt, output)
    assert {path.name for path in tmp_path.iterdir()} == {"corrupt.tfrecord"}
    predict(trained_mean, corrupt, output, "--skip_corrupt_records=1")
    assert len(prediction_rows(output)) == 1 + 39


# --- Formats --------------------------------------------------------------------------------------

# Each id with its cell of CSV.
ODD_IDS = {
    "plain": "plain",
    "-hyphen": "-hyphen",
    'comma, "quote"': 'comma, "quote"',
    "two\nlines\r\n": "two\nlines\r\n",
    "=1+1": "'=1+1",
    "\ttab": "'\ttab",
    "größe 猫 \u2028 😀": "größe 猫 \u2028 😀",
    "no UTF-8 \\xff\\xfe": "no UTF-8 \\xff\\xfe",
    "": "",
}
NAMES = {0: "Cats, big", 1: '"Größe"', 2: "=SUM(A1)", 3: "two\nlines", 5: "Dogs"}


@pytest.fixture(scope="module")
def odd_videos(tmp_path_factory):
    """Returns the path of a video-level file with the ids of `ODD_IDS`."""
    rng, records = np.random.default_rng(0), []
    for video_id in ODD_IDS:
        vector = rng.normal(size=12)
        sent = video_id.replace("\\xff\\xfe", "??")
        record = sample_records.video_record(sent, [], mean_rgb=vector[:8], mean_audio=vector[8:])
        records.append(record.replace(b"??", b"\xff\xfe"))
    return sample_records.write_records(tmp_path_factory.mktemp("odd") / "a.tfrecord", records)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Returns the path of a vocabulary.csv with the names in `NAMES`."""
    path = tmp_path_factory.mktemp("names") / "vocabulary.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("Index", "Name"), *NAMES.items(), (4, "")])
    return path


@pytest.fixture(scope="module")
def expected_rows(trained_moe, odd_videos):
    """Returns a tuple `(id, rank, class, score)` for each prediction, from the predictor itself."""
    predictor = Predictor([str(trained_moe)])
    predictor.restore()
    (batch,) = predictor.data.reader([odd_videos], with_labels=False).batches(100)
    classes, scores = eval_util.top_k_predictions(predictor.predict(batch.inputs), 4)
    return [
        (video_id, rank + 1, int(classes[video, rank]), scores[video, rank])
        for video, video_id in enumerate(ODD_IDS)
        for rank in range(4)
    ]


def read_csv(path):
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header == ["id", "rank", "class", "name", "score"]
    return [
        (video_id, int(rank), int(label), name, np.float32(score))
        for video_id, rank, label, name, score in rows
    ]


def read_jsonl(path):
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    return [
        (video["id"], rank, entry["class"], entry["name"], np.float32(entry["score"]))
        for video in map(json.loads, content.decode().removesuffix("\n").split("\n"))
        for rank, entry in enumerate(video["predictions"], start=1)
    ]


def read_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs requirements/parquet.txt")
    table = parquet.read_table(path)
    found = [(field.name, str(field.type)) for field in table.schema]
    types = ("string", "int32", "int32", "string", "float")
    assert found == list(zip(prediction_file.COLUMNS, types, strict=True))
    return [(*row.values(),) for row in table.to_pylist()]


@pytest.mark.parametrize("named", [True, False], ids=["named", "no names"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        *(("p.csv", read_csv), ("p.csv.gz", read_csv)),
        *(("p.jsonl", read_jsonl), ("p.jsonl.gz", read_jsonl)),
        ("p.parquet", read_parquet),
    ],
)
def test_formats_read_back_as_the_predictions(
    trained_moe, odd_videos, vocabulary, expected_rows, tmp_path, monkeypatch, name, read, named
):
    monkeypatch.setattr(prediction_file, "_ROWS_PER_GROUP", 7)
    more = [f"--class_names={vocabulary}"] if named else []
    output_format = read.__name__.removeprefix("read_")
    given = (f"--output_format={output_format}", "--top_k=4", "--batch_size=100")
    predict(trained_moe, odd_videos, tmp_path / name, *given, *more)
    is_csv = read is read_csv
    names, missing = NAMES if named else {}, "" if is_csv else None
    if is_csv:
        names = {label: f"'{text}" if text[0] == "=" else text for label, text in names.items()}
    assert read(tmp_path / name) == [
        (ODD_IDS[video_id] if is_csv else video_id, rank, label, names.get(label, missing), score)
        for video_id, rank, label, score in expected_rows
    ]


def test_names_come_from_the_exported_model(trained_moe, odd_videos, vocabulary, tmp_path):
    exported, moved = tmp_path / "exported", tmp_path / "moved"
    given = (f"--train_dir={trained_moe}", f"--output_dir={exported}", "--dtype=float32")
    programs.run("export_model", *given, f"--class_names={vocabulary}")
    exported.rename(moved)
    other = tmp_path / "other.csv"
    other.write_text("Index,Name\n5,Birds\n")

    def names(*more):
        output = tmp_path / "p.jsonl"
        given = (f"--exported_model={moved}", f"--input_data_pattern={odd_videos}")
        more = ("--output_format=jsonl", f"--output_file={output}", *more)
        programs.run("inference", *given, *more)
        return {label: name for _, _, label, name, _ in read_jsonl(output)}

    assert names() == {label: NAMES.get(label) for label in range(10)}
    assert names(f"--class_names={other}") == dict.fromkeys(range(10)) | {5: "Birds"}
    (moved / "assets" / "vocabulary.csv").write_text("Index,Name\n77,Cats\n")
    with pytest.raises(InputError, match=r"row 2 of .*moved/assets/vocabulary\.csv: Index must be"):
        names()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("p.jsonl", (), r"/p\.jsonl ends in \.jsonl, but --output_format=kaggle writes \.csv"),
        (
            "p.parquet",
            ("--output_format=csv",),
            r"p\.parquet ends in .* --output_format=csv writes",
        ),
        ("p.csv.gz", ("--output_format=jsonl",), r"p\.csv\.gz ends in \.csv, .* writes \.jsonl"),
        ("p.csv", ("--output_format=parquet",), r"ends in \.csv, .* writes \.parquet"),
        (
            "p.parquet.gz",
            ("--output_format=parquet",),
            r"is never compressed as a whole. Leave out",
        ),
        ("p.csv", ("--output_format=xml",), "xml"),
        ("p.csv", ("--class_names=names.csv",), "--output_format=kaggle holds no names"),
        ("p", ("--output_format=csv", "--class_names=/no/names"), "cannot read the class names in"),
    ],
)
def test_formats_that_do_not_fit_are_rejected(
    trained_moe, tmp_path, video_data, name, given, message
):
    with pytest.raises(InputError, match=message):
        predict(trained_moe, video_data, tmp_path / name, *given)
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs PyArrow: .* Run: pip install '\.\[parquet\]'"):
        predict("/no/run", "/no/data", tmp_path / "p.parquet", "--output_format=parquet")
