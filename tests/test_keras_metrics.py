"""Keras metrics over batches equal the metrics of all videos at once, ties included."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import eval_util
import losses
import metric_references as references
from keras_metrics import GlobalAveragePrecision, HitAtOne, PrecisionAtEqualRecallRate
from small_models import NUM_CLASSES, build, make_inputs, make_labels
from utils import InputError

COMPILED = pytest.mark.parametrize(
    "how", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=["graph", "xla", "eager"]
)


def videos(num_videos, num_classes=7, seed=0):
    """Returns labels and scores with many ties, some of them negative, float32 `[B, C]`."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num_videos, num_classes)) < 0.3
    scores = rng.integers(-1, 5, (num_videos, num_classes)) / 4
    return labels.astype(np.float32), scores.astype(np.float32)


def identity(metrics, num_classes=7, **how):
    """Returns a compiled model whose predictions are its inputs."""
    model = keras.Sequential([keras.Input([num_classes]), keras.layers.Identity()])
    model.compile(loss=losses.HingeLoss(), metrics=metrics, **how)
    return model


def evaluate(metrics, labels, scores, batch_size=4, **how):
    """Returns what `evaluate` reports of a model whose predictions are its inputs."""
    model = identity(metrics, scores.shape[1], **how)
    return model.evaluate(scores, labels, batch_size=batch_size, return_dict=True, verbose=0)


@COMPILED
def test_metrics_over_batches_equal_their_definitions(how):
    labels, scores = videos(22)
    metrics = [
        GlobalAveragePrecision(top_k=3),
        GlobalAveragePrecision(top_k=20, name="gap_at_20"),
        HitAtOne(),
        PrecisionAtEqualRecallRate(),
    ]
    found = evaluate(metrics, labels, scores, **how)
    rows = scores.tolist(), labels.tolist()
    expected = {
        "gap": references.gap(*rows, 3),
        "gap_at_20": references.gap(*rows, 20),
        "hit_at_one": references.hit_at_one(*rows),
        "perr": references.perr(*rows),
    }
    del found["loss"]
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})


@pytest.mark.parametrize("batch_size", [1, 64])
def test_gap_does_not_depend_on_the_batches(batch_size):
    labels, scores = videos(90, num_classes=40)
    found = evaluate([GlobalAveragePrecision()], labels, scores, batch_size)
    expected = eval_util.calculate_gap(scores, labels)
    assert found["gap"] == pytest.approx(expected, abs=1e-6)


def test_fit_reports_the_gap_of_all_videos_after_every_epoch():
    model, inputs, labels = build("LogisticModel"), make_inputs("LogisticModel"), make_labels(5)
    adam = keras.optimizers.Adam(0.1)
    model.compile(adam, losses.CrossEntropyLoss(), metrics=[GlobalAveragePrecision()])
    expected = []

    class Expect(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            predictions = model.predict(inputs, verbose=0)
            expected.append(eval_util.calculate_gap(predictions, labels))

    data = {"validation_data": (inputs, labels), "validation_batch_size": 2}
    history = model.fit(
        inputs, labels, batch_size=2, epochs=3, callbacks=[Expect()], verbose=0, **data
    ).history
    assert history["val_gap"] == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 3
    assert 0 < min(history["gap"]) <= max(history["gap"]) < 1


def test_a_compiled_step_reports_the_gap_of_its_batch():
    labels, scores = videos(11)
    model, found = identity([GlobalAveragePrecision()]), []
    collect = keras.callbacks.LambdaCallback(
        on_test_batch_end=lambda batch, logs: found.append(logs["gap"])
    )
    model.evaluate(scores, labels, batch_size=6, callbacks=[collect], verbose=0)
    parts = [slice(6), slice(6, 11)]
    expected = [eval_util.calculate_gap(scores[part], labels[part]) for part in parts]
    assert found == pytest.approx(expected)


def test_gap_of_more_videos_than_it_keeps_is_that_of_the_newest(logged_warnings):
    labels, scores = videos(23)
    model = identity([GlobalAveragePrecision(max_videos=10)])
    for _ in range(2):
        found = model.evaluate(scores, labels, batch_size=4, return_dict=True, verbose=0)
        expected = eval_util.calculate_gap(scores[-10:], labels[-10:])
        assert found["gap"] == pytest.approx(expected)
    (warning,) = logged_warnings
    assert warning == "gap is the GAP of the newest 10 of 23 videos. For all, give max_videos=23."


def test_gap_without_videos_or_labels_is_0_and_of_nan_is_nan():
    metric = GlobalAveragePrecision()
    assert float(metric.result()) == 0
    labels, scores = videos(3)
    assert float(metric(0 * labels, scores)) == 0
    assert np.isnan(float(metric(labels, scores * np.nan)))
    metric.reset_state()
    assert float(metric(labels, scores)) == pytest.approx(eval_util.calculate_gap(scores, labels))


def test_labels_that_are_not_multi_hot_are_refused():
    labels, scores = videos(3)
    for metric in (GlobalAveragePrecision(), HitAtOne(), PrecisionAtEqualRecallRate()):
        with pytest.raises(InputError, match=r"labels must be \[videos, 7\] .* Received: \[3\]"):
            metric.update_state(labels[:, 0], scores)


def test_gap_refuses_weights_of_videos():
    labels, scores = videos(3)
    with pytest.raises(InputError, match=r"gap takes no sample_weight.*not of weighted_metrics"):
        GlobalAveragePrecision().update_state(labels, scores, sample_weight=np.ones(3))


def test_gap_refuses_several_devices(monkeypatch):
    several = types.SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: several)
    with pytest.raises(InputError, match="the metric gap works on one device"):
        GlobalAveragePrecision().update_state(*videos(3))


@pytest.mark.parametrize("name", ["top_k", "max_videos"])
def test_sizes_that_are_not_positive_are_refused(name):
    with pytest.raises(InputError, match=f"{name} must be above 0. Received: 0"):
        GlobalAveragePrecision(**{name: 0})


def test_metrics_are_saved_with_a_model(tmp_path):
    model, inputs, labels = build("LogisticModel"), make_inputs("LogisticModel"), make_labels(5)
    metrics = [
        GlobalAveragePrecision(top_k=NUM_CLASSES - 1, max_videos=9, name="mine"),
        HitAtOne(),
        PrecisionAtEqualRecallRate(name="p"),
    ]
    model.compile("adam", losses.CrossEntropyLoss(), metrics=metrics)
    model.fit(inputs, labels, verbose=0)
    expected = model.evaluate(inputs, labels, return_dict=True, verbose=0)
    assert set(expected) == {"loss", "mine", "hit_at_one", "p"}
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert restored.evaluate(inputs, labels, return_dict=True, verbose=0) == expected
    for metric in metrics:
        twin = keras.metrics.deserialize(keras.metrics.serialize(metric))
        assert type(twin) is type(metric)
        assert twin.get_config() == metric.get_config()
