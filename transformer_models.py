"""A transformer over the frames of a video.

Letters in formulas and einsums: B batch, T frames, S the frames that a frame attends to, H heads,
E embedding, Q queries.
"""

import keras
from keras import ops

import layers
import registry
import utils
from frame_level_models import FrameLevelModel


def masked_softmax(logits, real):
    """Returns softmax over the last axis, with 0 where `real` is false."""
    if logits.shape[-1] == 1:  # Keras warns of a softmax over a single value.
        return ops.ones_like(logits)
    return ops.softmax(ops.where(real, logits, -1e9), axis=-1)


def layer_norm(name):
    """Returns layer normalization in float32, whatever the precision of products."""
    return keras.layers.LayerNormalization(epsilon=1e-6, dtype="float32", name=name)


class SelfAttention(layers.MatmulLayer):
    """Attention of every frame to all frames, with several heads.

        q_t, k_t, v_t = W x_t + b, split into H heads of size E / H
        y_t = sum_s softmax_s(q_t . k_s / sqrt(E / H)) v_s  per head,  output_t = V y_t + c

    Products follow `layers.matmul_policy`, softmax is in float32. This takes as long as Keras'
    `MultiHeadAttention`, which computes both in one precision.

    Args:
        units: int. Size E, a multiple of the heads.
        heads: int. H.

    Input shape: `[B, T, E]`, and bool `[B, T]`, true for real frames. Output shape: `[B, T, E]`.

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.2.
    """

    def __init__(self, units, heads, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.heads = heads
        self.input_projection = layers.Linear(3 * units, name="input_projection")
        self.output_projection = layers.Linear(units, name="output_projection")

    def build(self, frames_shape, *_):
        """Creates W, b, V and c."""
        self.input_projection.build(frames_shape)
        self.output_projection.build(frames_shape)

    def call(self, frames, real):
        """Returns frames that have attended to each other."""
        length, size = ops.shape(frames)[1], self.units // self.heads
        parts = ops.reshape(self.input_projection(frames), (-1, length, 3, self.heads, size))
        queries, keys, values = ops.unstack(parts, 3, axis=2)
        logits = self.einsum("BTHE,BSHE->BHTS", queries * size**-0.5, keys)
        weights = masked_softmax(logits, real[:, None, None])
        attended = self.einsum("BHTS,BSHE->BTHE", weights, values)
        return self.output_projection(ops.reshape(attended, (-1, length, self.units)))


class TransformerBlock(layers.Float32Layer):
    """Self-attention and a feed-forward layer, each added to its input, with pre-normalization.

        x = x + attention(LN(x)),  output = x + W_2 gelu(W_1 LN(x) + b_1) + b_2

    Args:
        units: int. Size E.
        heads: int. Heads of the attention.
        hidden_size: int. Units of the feed-forward layer.
        dropout: float. Share of the entries that training sets to 0 in what is added.

    Input shape: `[B, T, E]`, and bool `[B, T]`, true for real frames. Output shape: `[B, T, E]`.

    Reference: [Xiong et al., 2020](https://arxiv.org/abs/2002.04745) for the order of the layers.
    """

    def __init__(self, units, heads, hidden_size, dropout, **kwargs):
        super().__init__(**kwargs)
        self.attention_norm = layer_norm("attention_norm")
        self.attention = SelfAttention(units, heads, name="attention")
        self.hidden_norm = layer_norm("hidden_norm")
        self.hidden = layers.Linear(hidden_size, name="hidden")
        self.output_projection = layers.Linear(units, name="output_projection")
        self.dropout = layers.Dropout(dropout, name="dropout")

    def call(self, x, real, training=False):
        """Returns the frames after attention and feed-forward layer."""
        attended = self.attention(self.attention_norm(x), real)
        x += self.dropout(attended, training=training)
        hidden = ops.gelu(self.hidden(self.hidden_norm(x)), approximate=False)
        return x + self.dropout(self.output_projection(hidden), training=training)


class AttentionPooling(layers.MatmulLayer):
    """Weighted means of the frames, one for each of a few learned queries u.

        output_q = sum_t softmax_t(u_q . x_t / sqrt(E)) x_t

    Args:
        queries: int. Q.

    Input shape: `[B, T, E]`, and bool `[B, T]`, true for real frames. Output shape: `[B, Q * E]`.
    """

    def __init__(self, queries, **kwargs):
        super().__init__(**kwargs)
        self.num_queries = queries

    def build(self, frames_shape, *_):
        """Creates the queries u, `[E, Q]`."""
        self.size = frames_shape[-1]
        self.queries = self.add_matrix(
            shape=(self.size, self.num_queries), initializer="glorot_uniform", name="queries"
        )

    def call(self, frames, real):
        """Returns the weighted means, concatenated."""
        logits = self.matmul(frames, self.queries) * self.size**-0.5
        weights = masked_softmax(ops.transpose(logits, (0, 2, 1)), real[:, None])
        means = self.einsum("BQT,BTE->BQE", weights, frames)
        return ops.reshape(means, (-1, self.num_queries * self.size))


class TransformerEncoder(layers.Float32Layer):
    """Lets the frames of each video attend to each other, and pools them into one vector.

        x_t = LN(P frame_t + b) + time_t, then the blocks, then LN, then the pooling

    The frames in order are numbered from 0; those beyond the last embedding of time share it.

    Args:
        blocks: list of `TransformerBlock`.
        units: int. Size E of the frames in the blocks.
        positions: int. Learned embeddings of time; 0 for none.
        pooling: str. `mean` of the frames; `attention`, the means of `AttentionPooling`; or
            `class_token`, one more learned frame, which attends to the others.
        queries: int. Queries of the attention pooling.

    Input shape: `StoredFrames` or frames `[B, T, D]`, and their weights `[B, T]`, 0 for padding.
    Output shape: `[B, E]`; `[B, queries * E]` for attention pooling.

    Reference: [Devlin et al., 2019](https://arxiv.org/abs/1810.04805) for learned embeddings of
    time and the class token.
    """

    POOLINGS = ("mean", "attention", "class_token")

    def __init__(self, blocks, *, units, positions, pooling, queries, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.positions = positions
        self.pooling = pooling
        self.projection = layers.Linear(units, name="projection")
        self.projection_norm = layer_norm("projection_norm")
        self.blocks = blocks
        self.output_norm = layer_norm("output_norm")
        is_attention = pooling == "attention"
        self.attention_pooling = AttentionPooling(queries, name="pooling") if is_attention else None

    def build(self, *_):
        """Creates the embeddings of time, `[positions, E]`, and the class token, `[1, E]`."""
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        if self.positions:
            self.time_embedding = self.add_weight(
                shape=(self.positions, self.units), initializer=initializer, name="time_embedding"
            )
        if self.pooling == "class_token":
            self.class_token = self.add_weight(
                shape=(1, self.units), initializer=initializer, name="class_token"
            )

    def call(self, frames, frame_weights, training=False):
        """Returns the encoding of each video."""
        x, real = self._embedded(frames), frame_weights > 0
        if self.pooling == "class_token":
            token = ops.broadcast_to(self.class_token, (ops.shape(x)[0], 1, self.units))
            x = ops.concatenate([token, x], axis=1)
            real = ops.pad(real, ((0, 0), (1, 0)), constant_values=True)
        for block in self.blocks:
            x = block(x, real, training=training)
        return self._pooled(self.output_norm(x), real)

    def _embedded(self, frames):
        """Returns the projected frames with the embeddings of their time, `[B, T, E]`."""
        x = self.projection_norm(self.projection(frames))
        if not self.positions:
            return x
        numbers = ops.minimum(ops.arange(ops.shape(x)[1]), self.positions - 1)
        return x + ops.take(self.time_embedding, numbers, axis=0)

    def _pooled(self, x, real):
        """Returns one vector per video from frames `[B, T, E]`, behind the class token if any."""
        if self.pooling == "class_token":
            return x[:, 0]
        if self.pooling == "attention":
            return self.attention_pooling(x, real)
        weights = ops.cast(real, "float32")
        return ops.einsum("BT,BTE->BE", weights, x) / ops.sum(weights, axis=1, keepdims=True)


@registry.register
class TransformerModel(FrameLevelModel):
    """Transformer encoder over the frames, with pre-normalization; classifies their pooling.

    Without `transformer_positions` the order of the frames has no effect. Where frames are sampled,
    their time is their number in the sampling.

    Args:
        transformer_units: int. Size of the frames in the transformer, a multiple of the heads.
        transformer_layers: int. Blocks of self-attention and feed-forward layer.
        transformer_heads: int. Heads of each self-attention.
        transformer_hidden_size: int. Units of each feed-forward layer.
        transformer_dropout: float. Share of the entries of each branch that training sets to 0.
        transformer_positions: int. Frames, from the first, that have a learned embedding of their
            time; all later frames share the last. 0 turns it off.
        transformer_pooling: str. Pooling over the frames: mean, attention or class_token.
        transformer_queries: int. Learned queries of attention pooling, each of which gives one
            weighted mean.

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762).
    """

    takes_stored_frames = True

    def __init__(
        self,
        *,
        transformer_units=512,
        transformer_layers=4,
        transformer_heads=8,
        transformer_hidden_size=2048,
        transformer_dropout=0.1,
        transformer_positions=300,
        transformer_pooling="attention",
        transformer_queries=4,
        **kwargs,
    ):
        super().__init__(**kwargs)
        utils.check_at_least(
            1,
            transformer_units=transformer_units,
            transformer_layers=transformer_layers,
            transformer_heads=transformer_heads,
            transformer_hidden_size=transformer_hidden_size,
            transformer_queries=transformer_queries,
        )
        utils.check_at_least(0, transformer_positions=transformer_positions)
        utils.check_one_of(TransformerEncoder.POOLINGS, transformer_pooling=transformer_pooling)
        utils.check_share(transformer_dropout=transformer_dropout)
        if transformer_units % transformer_heads:
            raise utils.InputError(
                f"transformer_units must be a multiple of transformer_heads, {transformer_heads}. "
                f"Received: {transformer_units}"
            )
        # All frames of a video have other numbers than those of a sampling.
        self.default_samplings = 5 if transformer_positions else 0
        self.floats_per_frame = 6 * transformer_units + 2 * transformer_hidden_size
        self.heads = transformer_heads
        self.encoder = TransformerEncoder(
            [
                TransformerBlock(
                    transformer_units,
                    transformer_heads,
                    transformer_hidden_size,
                    transformer_dropout,
                    name=f"block_{number}",
                )
                for number in range(transformer_layers)
            ],
            units=transformer_units,
            positions=transformer_positions,
            pooling=transformer_pooling,
            queries=transformer_queries,
            name="encoder",
        )

    def encode(self, frames, frame_weights, training):
        """Returns the pooled frames, `[B, size]`; see `TransformerEncoder`."""
        return self.encoder(frames, frame_weights, training=training)

    def floats_per_video(self, num_frames, num_samplings):
        """Counts the activations of one block, with the attention of every head."""
        floats_per_frame = self.floats_per_frame + 2 * self.heads * num_frames
        return num_samplings * num_frames * floats_per_frame
