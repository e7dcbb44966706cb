"""The layers over frames: values and gradients of their formulas, and what changes neither."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import layer_references as references
import layers
import nonlocal_vlad
import willow_models
from gradient_checks import assert_close, assert_gradients_equal_finite_differences
from utils import InputError

SIZE = 3
CLUSTERS = 4
PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product")
# Three videos; some frames count several times, some not at all.
FRAME_WEIGHTS = np.array([[2, 0, 1, 3, 0], [1, 3, 0, 0, 2], [0, 0, 0, 6, 0]], np.float32)
BOTH_MODES = pytest.mark.parametrize("training", [False, True])


def netvlad(centers=True, block=False, **options):
    block = nonlocal_vlad.NonLocalBlock(2, name="nonlocal_block", **options) if block else None
    return nonlocal_vlad.NetVLAD(CLUSTERS, centers=centers, nonlocal_block=block)


def reference_of_netvlad(**options):
    return lambda *arguments: references.netvlad(*arguments, **options)


# Layers called with frames, their weights and the mode, each with its reference.
FRAME_LAYERS = {
    "batch norm": (
        layers.BatchNorm,
        lambda x, row_weights, weights, training: references.batch_norm(
            x, weights, training, row_weights
        ),
    ),
    "soft assignment": (
        lambda: nonlocal_vlad.SoftAssignment(CLUSTERS),
        references.soft_assignment,
    ),
    "NetVLAD": (netvlad, references.netvlad),
    "NetRVLAD": (lambda: netvlad(centers=False), references.netvlad),
    "non-local NetVLAD": (lambda: netvlad(block=True), references.netvlad),
    "non-local NetRVLAD": (lambda: netvlad(centers=False, block=True), references.netvlad),
    "non-local NetVLAD of dot products": (
        lambda: netvlad(block=True, scale=0.3, pairwise="dot_product"),
        reference_of_netvlad(scale=0.3, pairwise="dot_product"),
    ),
    "non-local NetVLAD of normalized dot products": (
        lambda: netvlad(block=True, normalize=True, scale=0.7, pairwise="dot_product"),
        reference_of_netvlad(normalize=True, scale=0.7, pairwise="dot_product"),
    ),
    "soft bag of features": (
        lambda: nonlocal_vlad.SoftBagOfFeatures(CLUSTERS),
        references.soft_bag_of_features,
    ),
    "gated bag of features": (
        lambda: willow_models.GatedBagOfFeatures(CLUSTERS),
        references.gated_bag_of_features,
    ),
    "NetFV": (lambda: willow_models.NetFV(CLUSTERS), references.netfv),
    "NetFV, each cluster normalized": (
        lambda: willow_models.NetFV(CLUSTERS, second_order_norm="intra"),
        lambda *arguments: references.netfv(*arguments, second_order_norm="intra"),
    ),
}
# These have one output per frame; the others sum over the frames.
ONE_OUTPUT_PER_FRAME = ("batch norm", "soft assignment")
SUMMING_LAYERS = [name for name in FRAME_LAYERS if name not in ONE_OUTPUT_PER_FRAME]
EVERY_FRAME_LAYER = pytest.mark.parametrize("name", FRAME_LAYERS)
# Settings of the non-local block: every one alone, and those that belong together.
BLOCKS = pytest.mark.parametrize(
    "options",
    [
        *({"pairwise": form, "scale": scale} for form in PAIRWISE for scale in (None, 0.3)),
        *({"pairwise": form, "normalize": True} for form in PAIRWISE),
        *({"pairwise": form, "attention": "centered"} for form in PAIRWISE[:2]),
        {"normalize": True, "attention": "centered", "scale": 0.3},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
# The variant of the recipe lfnl_netvlad_normalized, for an embedding of 2.
NORMALIZED = {"pairwise": "dot_product", "normalize": True, "scale": 2**-0.5}


def make(name):
    """Returns a layer with random weights."""
    layer = FRAME_LAYERS[name][0]()
    layer(make_frames(), FRAME_WEIGHTS)
    references.randomize(layer)
    return layer


def make_frames(seed=0):
    return np.random.default_rng(seed).normal(size=(*FRAME_WEIGHTS.shape, SIZE)).astype(np.float32)


def make_block(**options):
    """Returns a non-local block with random weights, and residuals for it."""
    layer = nonlocal_vlad.NonLocalBlock(2, **options)
    x = np.random.default_rng(3).normal(size=(2, CLUSTERS, SIZE)).astype(np.float32)
    layer(x)
    references.randomize(layer)
    return layer, x


@EVERY_FRAME_LAYER
@BOTH_MODES
def test_layer_over_frames_equals_its_formula(name, training):
    layer, reference = make(name), FRAME_LAYERS[name][1]
    weights = references.weights_of(layer)
    frames = make_frames()
    actual = layer(frames, FRAME_WEIGHTS, training=training)
    assert_close(actual, reference(frames.astype(float), FRAME_WEIGHTS, weights, training))


@EVERY_FRAME_LAYER
@BOTH_MODES
def test_gradients_of_layer_over_frames_equal_finite_differences(name, training):
    layer, reference = make(name), FRAME_LAYERS[name][1]
    assert_gradients_equal_finite_differences(
        layer,
        lambda x: layer(x, FRAME_WEIGHTS, training=training),
        lambda x, weights: reference(x, FRAME_WEIGHTS, weights, training),
        make_frames(),
    )


@BLOCKS
def test_nonlocal_block_equals_its_formula(options):
    layer, x = make_block(**options)
    expected = references.nonlocal_block(x.astype(float), references.weights_of(layer), **options)
    assert_close(layer(x), expected)


@BLOCKS
def test_gradients_of_nonlocal_block_equal_finite_differences(options):
    layer, x = make_block(**options)
    assert_gradients_equal_finite_differences(
        layer, layer, lambda x, weights: references.nonlocal_block(x, weights, **options), x
    )


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_nonlocal_block_has_no_weights_that_it_does_not_use(pairwise):
    layer, _ = make_block(pairwise=pairwise)
    unused = {"theta", "phi"} if pairwise == "gaussian" else set()
    assert set(references.weights_of(layer)) == {"theta", "phi", "g", "out"} - unused


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_nonlocal_block_treats_residuals_as_a_set(pairwise):
    layer, x = make_block(pairwise=pairwise)
    order = [2, 0, 3, 1]
    assert_close(layer(x[:, order]), np.asarray(layer(x))[:, order])


def initial_block(**options):
    """Returns a block with its initial weights, and residuals of a NetVLAD with such weights."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    # Eight videos of 40 frames, which show six topics each.
    topics = rng.normal(size=(8, 6, 64))[np.arange(8)[:, None], rng.integers(0, 6, (8, 40))]
    frames = topics + 0.7 * rng.normal(size=topics.shape)
    recorder = Recorder()
    vlad = nonlocal_vlad.NetVLAD(32, nonlocal_block=recorder)
    vlad(frames.astype(np.float32), np.ones((8, 40)), training=True)
    layer = nonlocal_vlad.NonLocalBlock(16, **options)
    layer(recorder.x)
    return layer, recorder.x


class Recorder(keras.layers.Layer):
    """Passes on its input, and keeps it."""

    def call(self, x):
        self.x = x
        return x


def mean_cosine(vectors):
    """Returns the mean cosine between different vectors of a video, `[B, K, D]`."""
    vectors = np.asarray(vectors)
    units = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosines = np.einsum("BKD,BJD->BKJ", units, units)
    different = ~np.eye(cosines.shape[-1], dtype=bool)
    return cosines[:, different].mean()


def test_at_first_the_papers_block_adds_the_same_vector_to_every_residual():
    layer, residuals = initial_block(scale=1 / 64)
    added = layer(residuals) - residuals
    assert mean_cosine(added) > 0.99
    sizes = np.linalg.norm(added, axis=-1) / np.median(np.linalg.norm(residuals, axis=-1))
    assert 0.5 < np.median(sizes) < 1.5
    # Which makes the residuals of a video more alike.
    assert mean_cosine(layer(residuals)) > mean_cosine(residuals) + 0.1


def test_at_first_centered_attention_adds_a_vector_of_its_own_to_every_residual():
    layer, residuals = initial_block(attention="centered", normalize=True)
    normalized = layers.l2_normalize(residuals) * residuals.shape[-1] ** 0.5
    assert mean_cosine(layer(residuals) - normalized) < 0.3
    assert mean_cosine(layer(residuals)) < mean_cosine(residuals) + 0.05


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_block_that_starts_as_the_identity_changes_nothing_at_first(pairwise):
    layer, x = initial_block(start="identity", pairwise=pairwise)
    np.testing.assert_array_equal(layer(x), x)
    assert [weight.name for weight in layer.weights if not np.any(weight)] == ["out"]


def test_centered_attention_adds_nothing_where_the_attention_is_uniform():
    layer, x = make_block(attention="centered")
    layer.theta.assign(layer.theta * 0)
    assert_close(layer(x), x)


def test_a_block_that_starts_as_the_identity_learns_out_first_and_then_everything():
    layer, x = make_block(**NORMALIZED)
    layer.out.assign(layer.out * 0)
    moved = []
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(x) - 1.0))
        weights = layer.trainable_weights
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        found = zip(weights, gradients, strict=True)
        moved.append({weight.name for weight, gradient in found if np.any(gradient)})
        keras.optimizers.SGD(0.1).apply(gradients, weights)
    assert moved == [{"out"}, {"theta", "phi", "g", "out"}]


def test_the_normalized_block_does_not_depend_on_the_size_of_residuals_and_keeps_zero():
    layer, x = make_block(**NORMALIZED)
    factors = np.array([0.1, 3, 20, 1], np.float32)[:, None]
    assert_close(layer(x * factors), layer(x))
    x[:, 1] = 0
    assert np.all(np.asarray(layer(x))[:, 1] == 0)


def test_nonlocal_block_keeps_videos_apart():
    layer, x = make_block()
    assert_close(layer(x[:1]), layer(x)[:1])


@EVERY_FRAME_LAYER
@BOTH_MODES
def test_a_frame_of_weight_n_counts_as_n_frames(name, training):
    layer, frames = make(name), make_frames()

    def repeated(rows):
        counts = FRAME_WEIGHTS.astype(int)
        return np.array([np.repeat(*video, axis=0) for video in zip(rows, counts, strict=True)])

    copies = repeated(frames)
    expected = layer(copies, np.ones(copies.shape[:2]), training=training)
    actual = np.asarray(layer(frames, FRAME_WEIGHTS, training=training))
    assert_close(repeated(actual) if name in ONE_OUTPUT_PER_FRAME else actual, expected)


@EVERY_FRAME_LAYER
@BOTH_MODES
def test_a_frame_of_weight_zero_counts_as_absent(name, training):
    layer, frames = make(name), make_frames()
    absent, present = [1, 4], [0, 2, 3]
    frame_weights = FRAME_WEIGHTS.copy()
    frame_weights[:, absent] = 0
    frames[:, absent] = 1e3
    expected = layer(frames[:, present], frame_weights[:, present], training=training)
    actual = layer(frames, frame_weights, training=training)
    if name in ONE_OUTPUT_PER_FRAME:
        actual = np.asarray(actual)[:, present]
    assert_close(actual, expected)


def test_assignments_of_a_frame_sum_to_one():
    assigned = np.asarray(make("soft assignment")(make_frames(), FRAME_WEIGHTS))
    assert_close(assigned.sum(axis=-1), np.ones(FRAME_WEIGHTS.shape))
    assert np.all(assigned > 0)


@pytest.mark.parametrize("name", SUMMING_LAYERS)
def test_several_samplings_at_once_equal_one_after_another(name):
    layer, frames = make(name), make_frames()
    samplings = np.stack([FRAME_WEIGHTS, FRAME_WEIGHTS[::-1], np.ones_like(FRAME_WEIGHTS)], axis=1)
    actual = np.asarray(layer(frames, samplings)).reshape(len(frames), 3, -1)
    for number in range(3):
        assert_close(actual[:, number], np.asarray(layer(frames, samplings[:, number])))


@pytest.mark.parametrize("name", SUMMING_LAYERS)
@BOTH_MODES
def test_the_order_of_the_frames_does_not_change_sums_over_them(name, training):
    layer, frames = make(name), make_frames()
    order = [3, 0, 4, 2, 1]
    expected = layer(frames, FRAME_WEIGHTS, training=training)
    actual = layer(frames[:, order], FRAME_WEIGHTS[:, order], training=training)
    assert_close(actual, expected)


@pytest.mark.parametrize("name", SUMMING_LAYERS)
def test_a_sum_over_frames_has_norm_one(name):
    output = make(name)(make_frames(), FRAME_WEIGHTS)
    # A Fisher vector has two parts, of mean and variance, with norm 1 each.
    parts = np.split(np.asarray(output), 2 if "NetFV" in name else 1, axis=-1)
    assert_close(np.linalg.norm(parts, axis=-1), np.ones((len(parts), len(FRAME_WEIGHTS))))


def test_the_residuals_of_all_clusters_have_the_same_norm():
    residuals = np.reshape(
        make("non-local NetVLAD")(make_frames(), FRAME_WEIGHTS), (-1, CLUSTERS, SIZE)
    )
    assert_close(np.linalg.norm(residuals, axis=-1), np.full((3, CLUSTERS), CLUSTERS**-0.5))


@pytest.mark.parametrize("name", [name for name in FRAME_LAYERS if name != "batch norm"])
def test_moving_averages_follow_the_weighted_statistics_of_the_products(name):
    layer, frames = make(name), make_frames()

    def weights():
        found = references.weights_of(layer)
        return {path.removeprefix("assignment/"): value for path, value in found.items()}

    assignment = getattr(layer, "assignment", layer)
    assignment.norm.num_updates.assign(8)  # The ninth update keeps half of the averages.
    before = weights()
    layer(frames, FRAME_WEIGHTS, training=True)
    after = weights()
    products = [references.linear(frame, before["kernel"]) for frame in np.concatenate(frames)]
    mean, variance = references.statistics(np.array(products), FRAME_WEIGHTS.ravel())
    assert_close(after["norm/moving_mean"], (before["norm/moving_mean"] + mean) / 2)
    assert_close(after["norm/moving_variance"], (before["norm/moving_variance"] + variance) / 2)
    assert after["norm/num_updates"] == 9


def test_inference_does_not_change_weights():
    for name in FRAME_LAYERS:
        layer = make(name)
        before = layer.get_weights()
        layer(make_frames(), FRAME_WEIGHTS)
        for old, new in zip(before, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(new, old, err_msg=name)


@pytest.mark.parametrize(
    "layer",
    [nonlocal_vlad.SoftAssignment, nonlocal_vlad.NetVLAD, nonlocal_vlad.SoftBagOfFeatures],
)
@pytest.mark.parametrize("clusters", [0, -3])
def test_fewer_clusters_than_one_are_rejected(layer, clusters):
    with pytest.raises(InputError, match=f"^clusters must be at least 1. Received: {clusters}$"):
        layer(clusters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be at least 1. Received: 0"),
        ({"scale": 0}, "scale must be above 0. Received: 0"),
        ({"scale": -0.5}, "scale must be above 0. Received: -0.5"),
        ({"scale": float("nan")}, "scale must be above 0. Received: nan"),
        ({"pairwise": "concat"}, f"pairwise must be one of {', '.join(PAIRWISE)}. .*: 'concat'"),
        ({"start": "zero"}, "start must be one of paper, identity. Received: 'zero'"),
        ({"attention": "mean"}, "attention must be one of softmax, centered. Received: 'mean'"),
        (
            {"attention": "centered", "pairwise": "dot_product"},
            "attention=centered needs a softmax, and pairwise=dot_product has none. .*",
        ),
    ],
)
def test_a_nonlocal_block_rejects_bad_arguments_by_name(options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        nonlocal_vlad.NonLocalBlock(**{"embedding_dim": 2, **options})


def test_weights_have_the_shapes_of_the_formulas():
    layer = make("non-local NetVLAD")
    shapes = {path: value.shape for path, value in references.weights_of(layer).items()}
    norm = dict.fromkeys(["gamma", "beta", "moving_mean", "moving_variance"], (CLUSTERS,))
    assert shapes == {
        "assignment/kernel": (SIZE, CLUSTERS),
        **{f"assignment/norm/{weight}": shape for weight, shape in norm.items()},
        "assignment/norm/num_updates": (),
        "centers": (CLUSTERS, SIZE),
        **{f"nonlocal_block/{weight}": (SIZE, 2) for weight in ("theta", "phi", "g")},
        "nonlocal_block/out": (2, SIZE),
    }


def test_the_gradient_of_a_weighted_sum_is_the_derived_one():
    rng = np.random.default_rng(2)
    weights, rows, direction = (
        tf.constant(rng.normal(size=shape).astype(np.float32))
        for shape in ((2, 3), (2, 3, 4), (2, 4))
    )
    with tf.GradientTape() as tape:
        tape.watch(rows)
        sums = nonlocal_vlad.weighted_sum(weights, rows)
        loss = tf.reduce_sum(sums * direction)
    np.testing.assert_allclose(sums, np.einsum("BT,BTK->BK", weights, rows), rtol=1e-5, atol=1e-6)
    expected = np.einsum("BT,BK->BTK", weights, direction)
    np.testing.assert_allclose(tape.gradient(loss, rows), expected, rtol=1e-5)
