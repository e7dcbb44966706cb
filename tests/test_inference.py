"""Prediction from end to end: the file of inference.py."""

import pathlib

import pytest
import tensorflow as tf

import sample_records
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
