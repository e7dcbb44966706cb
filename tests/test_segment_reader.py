"""Examples made of rated segments: frames, weights of pairs, order, faulty ratings."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
import readers
import registry
import sample_records
from record_readers import assert_same_batches, error_of, make_reader
from segments.config import SegmentConfig
from segments.ensemble import SegmentEnsemble, SegmentSettings
from segments.reader import RatedVideoReader, SegmentReader
from utils import InputError

SIZES = {"rgb": 2, "audio": 1}


def record(video_id, labels, ratings, num_frames=12):
    """Returns a serialized record whose frames are numbered."""
    numbers = np.arange(num_frames, dtype=np.uint8)[:, None]
    plain = sample_records.frame_record(
        video_id, labels, rgb=np.tile(numbers, (1, 2)), audio=numbers + 100
    )
    return plain if ratings is None else sample_records.with_ratings(plain, ratings)


RECORDS = [
    record("a", [1, 8], [(0, 3, 1), (0, 4, 0), (5, 3, 0)]),
    record("unrated", [2], None),
    record("empty", [2], []),
    record("b", [], [(5, 7, 1), (5, 7, 0)]),
]


def write(tmp_path, contents=RECORDS, name="rated"):
    return sample_records.write_records(tmp_path / f"{name}.tfrecord", contents)


def segment_examples(path, max_frames=20, reader=SegmentReader, **settings):
    skip = settings.pop("skip_corrupt_records", 0)
    config = SegmentConfig(segment_labels=True, **settings)
    return make_reader(
        reader, path, SIZES, max_frames=max_frames, settings=config, skip_corrupt_records=skip
    )


def pairs(weights):
    """Returns the weights that are not 0, by class."""
    return {int(label): float(weights[label]) for label in np.flatnonzero(weights)}


def test_a_rated_segment_is_an_example_with_the_weights_of_its_ratings(tmp_path):
    (batch,) = segment_examples(write(tmp_path)).batches(8)
    assert batch.video_ids == ["a:0", "a:5", "b:5"]
    assert [np.flatnonzero(row).tolist() for row in batch.labels] == [[3], [], [7]]
    assert list(map(pairs, batch.pair_weights)) == [{3: 1.0, 4: 1.0}, {3: 1.0}, {7: 1.0}]
    frames = [list(range(start, start + 5)) for start in (0, 5, 5)]
    np.testing.assert_array_equal(batch.inputs["frames"][:, :, 0], frames)
    np.testing.assert_array_equal(batch.inputs["frames"][:, :, 2], np.add(frames, 100))


@pytest.mark.parametrize("context", [0, 1, 3, 7, 20])
def test_the_context_ends_with_the_video_and_equals_the_frames_of_prediction(tmp_path, context):
    num_frames = 17
    ratings = [(start, 3, 1) for start in (0, 5, 10)]
    path = write(tmp_path, [record("a", [], ratings, num_frames)])
    (batch,) = segment_examples(path, segment_context=context).batches(3)
    ensemble = SegmentEnsemble(None, SegmentSettings(5, context))
    indices = ensemble.frame_indices(3).numpy()
    assert indices.dtype == np.int32
    for row, start in enumerate((0, 5, 10)):
        expected = [
            frame for frame in range(start - context, start + 5 + context) if 0 <= frame < 17
        ]
        length = batch.inputs["num_frames"][row]
        assert batch.inputs["frames"][row, :length, 0].tolist() == expected
        assert not batch.inputs["frames"][row, length:].any()
        real = indices[row] < num_frames
        assert indices[row][real].tolist() == expected
        assert real.tolist() == sorted(real, reverse=True)  # Padding comes last.


def test_positives_and_negatives_have_weights_of_their_own(tmp_path):
    reader = segment_examples(
        write(tmp_path), segment_positive_weight=2.0, segment_negative_weight=0.25
    )
    (batch,) = reader.batches(8)
    assert list(map(pairs, batch.pair_weights)) == [{3: 2.0, 4: 0.25}, {3: 0.25}, {7: 2.0}]


def test_mined_negatives_are_no_class_of_the_video_and_share_their_weight(tmp_path):
    (batch,) = segment_examples(write(tmp_path), segment_mined_weight=0.7).batches(8)
    # Of ten classes, 1, 3 and 8 may occur in video a, and 7 in video b.
    first = {label: pytest.approx(0.1) for label in (0, 2, 5, 6, 7, 9)}
    second = {label: pytest.approx(0.7 / 9) for label in range(10) if label != 7}
    assert list(map(pairs, batch.pair_weights)) == [
        {**first, 3: 1.0, 4: 1.0},
        {**first, 4: pytest.approx(0.1), 3: 1.0},
        {**second, 7: 1.0},
    ]


def test_unrated_pairs_count_as_negatives_if_they_have_a_weight(tmp_path):
    (batch,) = segment_examples(write(tmp_path), segment_unrated_weight=1.0).batches(8)
    assert (batch.pair_weights == 1).all()
    assert batch.labels.sum() == 2


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("name", list(registry.losses()))
def test_an_unrated_pair_has_exactly_zero_gradient(tmp_path, name, smoothed):
    (batch,) = segment_examples(write(tmp_path)).batches(8)
    prior = {"label_smoothing": 0.2, "class_prior": [0.1] * 10} if smoothed else {}
    loss = losses.get_loss(name, **prior)
    # Certain of the wrong thing, where an infinite gradient times 0 would be NaN.
    predictions = np.random.default_rng(0).choice([0.0, 0.5, 1.0], (3, 10)).astype(np.float32)
    predictions = tf.Variable(predictions)
    with tf.GradientTape() as tape:
        value = loss(batch.labels, predictions, batch.pair_weights)
    gradient = tape.gradient(value, predictions).numpy()
    assert np.isfinite(gradient).all()
    assert not gradient[batch.pair_weights == 0].any()
    if name != "SoftmaxLoss":  # Among one or two classes, it may have nothing to choose.
        assert gradient[batch.pair_weights > 0].any()


# --- Order ----------------------------------------------------------------------------------------


def write_many(tmp_path, num_files=3, videos=12):
    """Writes files of videos with one to three rated segments; class 0 has half of the ratings."""
    rng = np.random.default_rng(5)
    for number in range(num_files):
        contents = []
        for index in range(videos):
            starts = rng.choice([0, 5, 10], rng.integers(1, 4), replace=False)
            labels = rng.choice(4, len(starts), p=[0.5, 0.25, 0.15, 0.1])
            ratings = [*zip(starts.tolist(), labels.tolist(), [1] * len(starts), strict=True)]
            contents.append(record(f"v{number}_{index}", [], ratings, num_frames=15))
        write(tmp_path, contents, f"part{number}")
    return str(tmp_path / "part*.tfrecord")


def ids_of(reader, **options):
    return [name for batch in reader.batches(4, **options) for name in batch.video_ids]


def test_an_epoch_has_every_rated_segment_once_in_an_order_of_its_own(tmp_path):
    path = write_many(tmp_path)
    in_order = ids_of(segment_examples(path))
    assert len(in_order) == len(set(in_order)) > 36
    assert in_order[:4] != sorted(in_order)[:4]  # Files take turns.
    both = ids_of(segment_examples(path), num_epochs=2, shuffle=True, shuffle_buffer_size=8)
    first, second = both[: len(in_order)], both[len(in_order) :]
    assert sorted(first) == sorted(second) == sorted(in_order)
    assert first != second
    assert both == ids_of(segment_examples(path), num_epochs=2, shuffle=True, shuffle_buffer_size=8)


@pytest.mark.parametrize("balance", [0.0, 1.0])
@pytest.mark.parametrize("skip", [1, 9, 25, 40])
def test_a_resumed_order_is_that_of_an_uninterrupted_run(tmp_path, balance, skip):
    path = write_many(tmp_path)
    options = {"num_epochs": 3, "shuffle": True, "shuffle_buffer_size": 10, "seed": 3}
    whole = list(segment_examples(path, segment_balance=balance).batches(4, **options))
    rest = segment_examples(path, segment_balance=balance).batches(4, skip_batches=skip, **options)
    assert len(whole) > 41
    assert_same_batches(whole[skip:], rest)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [(0.5, np.sqrt), (1.0, lambda counts: np.ones(len(counts)))],
)
def test_balanced_classes_are_read_at_rates_of_a_power_of_their_frequency(
    tmp_path, balance, expected
):
    path = write_many(tmp_path, videos=30)
    plain = segment_examples(path)
    counts = sum(batch.labels.sum(axis=0) for batch in plain.batches(16))[:4]
    reader = segment_examples(path, segment_balance=balance)
    drawn = sum(batch.labels.sum(axis=0) for batch in reader.batches(16, num_epochs=40))[:4]
    assert drawn.sum() == pytest.approx(40 * counts.sum(), rel=0.03)
    wanted = expected(counts) / expected(counts).sum()
    np.testing.assert_allclose(drawn / drawn.sum(), wanted, rtol=0.1)
    assert counts.max() > 3 * counts.min()


def test_a_dataset_has_the_weights_and_pads_to_the_longest_segment(tmp_path):
    reader = segment_examples(write(tmp_path), segment_context=4)
    dataset = reader.dataset(2, drop_remainder=True, pad_to_max_frames=True)
    inputs, labels, weights = next(iter(dataset))
    assert inputs["frames"].shape == (2, 13, 3)
    assert (labels.shape, weights.shape) == ((2, 10), (2, 10))
    shorter = segment_examples(write(tmp_path), max_frames=12, segment_context=4)
    assert shorter.longest_example == 12


def test_a_model_with_a_keras_loop_learns_from_the_weights(tmp_path):
    reader = segment_examples(write(tmp_path))
    model = registry.build_model(
        "FrameLevelLogisticModel", num_classes=10, feature_sizes=(2, 1), l2_penalty=0.0
    )
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(1.0), losses.CrossEntropyLoss())
    model.fit(reader.dataset(3), verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        changed = np.flatnonzero((old != new).reshape(-1, 10).any(axis=0))
        assert changed.tolist() == [3, 4, 7]


# --- Whole videos ---------------------------------------------------------------------------------


def test_whole_videos_are_read_with_their_ratings(tmp_path):
    reader = segment_examples(write(tmp_path), reader=RatedVideoReader)
    reader.check_labels()
    (batch,) = reader.batches(8)
    assert batch.video_ids == ["a", "unrated", "empty", "b"]
    assert batch.pair_weights is None
    assert batch.ratings[1] is None
    assert [len(batch.ratings[index].starts) for index in (0, 2, 3)] == [3, 0, 1]


def test_other_readers_ignore_ratings_with_a_warning(tmp_path, logged_warnings):
    (batch,) = make_reader(
        readers.YT8MFrameFeatureReader, write(tmp_path), SIZES, max_frames=20
    ).batches(8)
    assert batch.ratings is None
    assert any("the ratings of segments are not used" in text for text in logged_warnings)


# --- Faulty ratings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratings", "fault"),
    [
        ([(3, 1, 1)], "video 'bad' are not usable: it has a segment that starts at 3, no multiple"),
        ([(-5, 1, 1)], "it has a segment that starts at frame -5"),
        ([(5, 1, 2)], "it has a segment with score 2.0, not 0 or 1"),
        ([(10, 1, 1)], "'bad' has a rated segment that ends at frame 15, but 12 frames are read"),
    ],
)
def test_faulty_ratings_are_refused_or_skipped_like_other_corrupt_records(tmp_path, ratings, fault):
    path = write(tmp_path, [RECORDS[0], record("bad", [1], ratings), RECORDS[3]])
    message = error_of(segment_examples(path))
    assert fault in message
    assert "record 1 of" in message
    reader = segment_examples(path, skip_corrupt_records=1)
    assert ids_of(reader) == ["a:0", "a:5", "b:5"]
    assert reader.corrupt_records.count == 1


def test_a_segment_behind_max_frames_names_the_flag(tmp_path):
    message = error_of(segment_examples(write(tmp_path), max_frames=7))
    assert "ends at frame 10, but 7 frames are read" in message
    assert "--max_frames limits the frames" in message


def test_segments_of_another_size_name_the_flag(tmp_path):
    reader = segment_examples(write(tmp_path, RECORDS[:1]), segment_size=4)
    with pytest.raises(InputError, match=r"starts at 5, no multiple of 4.*--segment_size"):
        reader.check_first_records()


def test_a_rating_of_a_class_that_does_not_exist_is_never_skipped(tmp_path):
    path = write(tmp_path, [record("bad", [1], [(0, 10, 1)])])
    message = error_of(segment_examples(path, skip_corrupt_records=1))
    assert "video 'bad' (record 0 of" in message
    assert "rating of class 10, but classes must be 0 to 9" in message


def test_data_without_any_rating_are_refused(tmp_path):
    path = write(tmp_path, RECORDS[1:3])
    for reader in (SegmentReader, RatedVideoReader):
        with pytest.raises(
            InputError, match=r"none of the first 2 videos has a rated segment\. --segment_labels"
        ):
            segment_examples(path, reader=reader).check_first_records()


def test_videos_without_ratings_are_counted(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    ids_of(segment_examples(write(tmp_path)), num_epochs=2)
    assert caplog.text.count("2 of 4 videos have no rated segment and are skipped") == 1
