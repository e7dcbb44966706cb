"""Straightforward Keras implementations of the paper's models: the baseline of the speed ratios.

Frames are converted to float32, sampled by copying and passed through Keras layers. A test shows
that a plain model predicts the same as the project's with the same weights. `PlainModel` takes its
sizes from a model of the project.
"""

import keras
from keras import layers, ops

import frame_level_models
import nextvlad_models
import quantization
import registry
import utils
import video_level_models
from nonlocal_vlad import l2_normalize


class PlainMoe(layers.Layer):
    """Mixture of experts in the layout `[B, C, M]`."""

    def __init__(self, model):
        super().__init__()
        self.num_classes, self.mixtures = model.num_classes, model.num_mixtures
        penalty = {"kernel_regularizer": model.gates.regularizer}
        self.gates = layers.Dense(self.num_classes * (self.mixtures + 1), use_bias=False, **penalty)
        self.experts = layers.Dense(self.num_classes * self.mixtures, **penalty)
        self.gating = PlainGating(self.num_classes) if model.prob_gating is not None else None

    def call(self, x, training=False):
        """Returns probabilities `[B, C]`."""
        gates = ops.reshape(self.gates(x), (-1, self.num_classes, self.mixtures + 1))
        experts = ops.reshape(self.experts(x), (-1, self.num_classes, self.mixtures))
        # The last gate belongs to the dummy expert, which predicts 0.
        gate_probabilities = ops.softmax(gates, axis=-1)[..., : self.mixtures]
        probabilities = ops.sum(gate_probabilities * ops.sigmoid(experts), axis=-1)
        if self.gating is None:
            return probabilities
        return self.gating(probabilities, training=training)


class PlainGating(layers.Layer):
    """Context gating."""

    def __init__(self, size):
        super().__init__()
        self.gate = layers.Dense(size, use_bias=False)
        self.norm = layers.BatchNormalization(momentum=0.999, epsilon=1e-3)

    def call(self, x, training=False):
        """Returns the gated `[B, D]`."""
        return x * ops.sigmoid(self.norm(self.gate(x), training=training))


class PlainPooling(layers.Layer):
    """NetVLAD, NetRVLAD or soft bag of features for one stream."""

    def __init__(self, size, pooling):
        super().__init__()
        self.assign = layers.Dense(pooling.clusters, use_bias=False)
        self.norm = layers.BatchNormalization(momentum=0.999, epsilon=1e-3)
        self.is_vlad = hasattr(pooling, "has_centers")
        self.centers = None
        if self.is_vlad and pooling.has_centers:
            self.centers = self.add_weight(shape=(pooling.clusters, size), name="centers")
        block = pooling.nonlocal_block if self.is_vlad else None
        self.block = None if block is None else PlainNonLocal(size, block)

    def call(self, frames, mask, training=False):
        """Returns one vector per video."""
        assignments = ops.softmax(self.norm(self.assign(frames), training=training), axis=-1)
        assignments *= mask[..., None]
        assignment_sums = ops.sum(assignments, axis=1)
        if not self.is_vlad:
            return l2_normalize(assignment_sums)
        vlad = ops.matmul(ops.transpose(assignments, (0, 2, 1)), frames)
        if self.centers is not None:
            vlad -= assignment_sums[..., None] * self.centers
        if self.block is not None:
            vlad = self.block(vlad)
        vlad = l2_normalize(vlad)
        width = vlad.shape[1] * vlad.shape[2]
        return l2_normalize(ops.reshape(vlad, (-1, width)))


class PlainNonLocal(layers.Layer):
    """Non-local block with the embedded Gaussian."""

    def __init__(self, size, block):
        super().__init__()
        self.scale = size**-0.5 if block.scale is None else block.scale
        self.theta, self.phi, self.g = (
            layers.Dense(block.embedding_dim, use_bias=False) for _ in range(3)
        )
        self.out = layers.Dense(size, use_bias=False)

    def call(self, x):
        """Returns `[B, K, D]`, each row updated by attention over all K rows."""
        logits = self.scale * ops.matmul(self.theta(x), ops.transpose(self.phi(x), (0, 2, 1)))
        return x + self.out(ops.matmul(ops.softmax(logits), self.g(x)))


class PlainStreams(layers.Layer):
    """Pools every stream and projects the concatenated results to one hidden vector."""

    def __init__(self, encoder):
        super().__init__()
        self.sizes = encoder.stream_sizes
        self.norm = layers.BatchNormalization(momentum=0.999, epsilon=1e-3)
        self.poolings = [
            PlainPooling(size, pooling)
            for size, pooling in zip(self.sizes, encoder.poolings, strict=True)
        ]
        self.hidden = layers.Dense(encoder.hidden.units)
        gated = encoder.hidden_gating is not None
        self.gating = PlainGating(encoder.hidden.units) if gated else None

    def call(self, frames, mask, training=False):
        """Returns the hidden vector."""
        frames = self.norm(frames, training=training)
        pooled, start = [], 0
        for size, pooling in zip(self.sizes, self.poolings, strict=True):
            pooled.append(pooling(frames[..., start : start + size], mask, training=training))
            start += size
        hidden = self.hidden(ops.concatenate(pooled, axis=-1))
        return hidden if self.gating is None else self.gating(hidden, training=training)


class PlainNeXtVLAD(layers.Layer):
    """NeXtVLAD for one stream."""

    def __init__(self, pooling):
        super().__init__()
        self.groups, self.clusters = pooling.groups, pooling.clusters
        self.expand = layers.Dense(pooling.expansion.units)
        self.attend = layers.Dense(self.groups, activation="sigmoid")
        self.assign = layers.Dense(self.groups * self.clusters, use_bias=False)
        self.norm = layers.BatchNormalization(momentum=0.999, epsilon=1e-3)
        self.centers = self.add_weight(shape=pooling.centers.shape, name="centers")

    def call(self, frames, mask, training=False):
        """Returns one vector per video."""
        x = self.expand(frames)
        rows = ops.shape(x)[1] * self.groups
        attention = ops.reshape(self.attend(x) * mask[..., None], (-1, rows, 1))
        logits = self.norm(self.assign(x), training=training)
        assignments = ops.softmax(ops.reshape(logits, (-1, rows, self.clusters))) * attention
        x = ops.reshape(x, (-1, rows, x.shape[-1] // self.groups))
        vlad = ops.matmul(ops.transpose(assignments, (0, 2, 1)), x)
        vlad = l2_normalize(vlad - ops.sum(assignments, axis=1)[..., None] * self.centers)
        return ops.reshape(vlad, (-1, vlad.shape[1] * vlad.shape[2]))


class PlainBranch(layers.Layer):
    """NeXtVLAD from frames to logits."""

    def __init__(self, encoder, logistic):
        super().__init__()
        self.sizes = encoder.stream_sizes
        self.poolings = [PlainNeXtVLAD(pooling) for pooling in encoder.poolings]
        self.vlad_norm, self.norm, self.squeeze_norm = (
            layers.BatchNormalization(momentum=0.999, epsilon=1e-3) for _ in range(3)
        )
        self.dropout = layers.Dropout(encoder.dropout.rate)
        self.hidden = layers.Dense(encoder.hidden.units, use_bias=False)
        self.squeeze = layers.Dense(encoder.gating.squeeze.units, use_bias=False)
        self.excite = layers.Dense(encoder.hidden.units, use_bias=False, activation="sigmoid")
        self.logistic = layers.Dense(
            logistic.units,
            kernel_regularizer=logistic.regularizer,
            bias_regularizer=logistic.bias_regularizer,
        )

    def call(self, frames, mask, training=False):
        """Returns logits `[B, C]`."""
        pooled, start = [], 0
        for size, pooling in zip(self.sizes, self.poolings, strict=True):
            pooled.append(pooling(frames[..., start : start + size], mask, training=training))
            start += size
        x = self.vlad_norm(ops.concatenate(pooled, axis=-1), training=training)
        x = self.hidden(self.dropout(x, training=training))
        x = self.norm(x, training=training)
        squeezed = ops.relu(self.squeeze_norm(self.squeeze(x), training=training))
        return self.logistic(x * self.excite(squeezed))


class PlainNeXtVLADs(layers.Layer):
    """One NeXtVLAD, or a mixture of several."""

    def __init__(self, model):
        super().__init__()
        heads = getattr(model.classifier, "branches", [model.classifier])
        self.branches = [PlainBranch(*parts) for parts in zip(model.encoders, heads, strict=True)]
        if len(self.branches) > 1:
            self.norm = layers.BatchNormalization(momentum=0.999, epsilon=1e-3)
            self.gate = layers.Dense(len(self.branches), activation="softmax")
        self.logits = None

    def call(self, frames, mask, training=False):
        """Returns probabilities `[B, C]`."""
        branches = [branch(frames, mask, training=training) for branch in self.branches]
        if len(branches) == 1:
            return ops.sigmoid(branches[0])
        mean = ops.sum(frames, axis=1) / ops.sum(mask, axis=1, keepdims=True)
        gates = self.gate(self.norm(mean, training=training))
        branches = ops.stack(branches, axis=1)
        mixed = ops.sum(gates[..., None] * branches, axis=1)
        self.logits = mixed, branches
        return ops.sigmoid(mixed)


class PlainGrus(layers.Layer):
    """Stacked GRUs."""

    def __init__(self, stack):
        super().__init__()
        self.grus = [
            layers.GRU(stack.units, return_sequences=True, return_state=True, reset_after=False)
            for _ in stack.grus
        ]

    def call(self, frames, mask, training=False):
        """Returns the concatenated final states of all layers."""
        states = []
        for gru in self.grus:
            frames, state = gru(frames, mask=mask > 0)
            states.append(state)
        return ops.concatenate(states, axis=-1)


class PlainModel(registry.Model):
    """The plain Keras counterpart of a model of the project."""

    def __init__(self, model):
        super().__init__(name="plain")
        check_has_counterpart(model)
        self.iterations = model.iterations
        self.normalize_frames = model.normalize_frames
        self.sampling_seed = keras.random.SeedGenerator(name="sampling_seed")
        self.classifier = self.distillation = None
        if isinstance(model, nextvlad_models.NeXtVLADBase):
            self.encoder = PlainNeXtVLADs(model)
        elif isinstance(model, frame_level_models.GruModel):
            self.encoder = PlainGrus(model.stack)
        else:
            self.encoder = PlainStreams(model.encoder)
        if isinstance(model.classifier, video_level_models.MoeModel):
            self.classifier = PlainMoe(model.classifier)
        if isinstance(model, nextvlad_models.MixNeXtVLADModel):
            self.distillation = model.distillation_weight, model.distillation_temperature

    def call(self, inputs, training=False):
        """Returns probabilities, float32 `[B, C]`, for the input of a `FrameLevelModel`."""
        num_frames = ops.cast(inputs["num_frames"], "int32")
        frames = quantization.YOUTUBE8M.dequantize(ops.cast(inputs["frames"], "float32"))
        frame_indices = ops.arange(ops.shape(frames)[1], dtype="int32")[None]
        if self.iterations:
            shape = (ops.shape(frames)[0], self.iterations)
            uniform = keras.random.uniform(shape, seed=self.sampling_seed)
            frame_indices = ops.cast(uniform * ops.cast(num_frames[:, None], "float32"), "int32")
            frames = ops.take_along_axis(frames, frame_indices[..., None], axis=1)
        mask = ops.cast(frame_indices < num_frames[:, None], "float32")
        if self.normalize_frames == "l2":
            frames = l2_normalize(frames)
        encoding = self.encoder(frames * mask[..., None], mask, training=training)
        return encoding if self.classifier is None else self.classifier(encoding, training=training)

    def auxiliary_loss(self, label_loss):
        """Returns the losses of the branches of a mixture."""
        if self.distillation is None:
            return 0.0
        return nextvlad_models.branch_loss(label_loss, *self.encoder.logits, *self.distillation)


def check_has_counterpart(model):
    """Checks that a model is one of the paper's, or a NeXtVLAD.

    Raises:
        InputError: if it is not, naming the model.
    """
    supported = (
        frame_level_models.LFNLNetVLADModel,
        frame_level_models.SoftBoFModel,
        frame_level_models.GruModel,
        nextvlad_models.NeXtVLADBase,
    )
    blocks = [
        getattr(pooling, "nonlocal_block", None)
        for pooling in getattr(getattr(model, "encoder", None), "poolings", ())
    ]
    settings = {
        (block.pairwise, block.normalize, block.attention) for block in blocks if block is not None
    }
    if (
        not isinstance(model, supported)
        or isinstance(model.classifier, video_level_models.LogisticModel)
        or not settings <= {("embedded_gaussian", False, "softmax")}
    ):
        raise utils.InputError(
            f"{type(model).__name__} with these settings has no plain counterpart; only the "
            "paper's models and NeXtVLAD have one. Use --noplain."
        )
