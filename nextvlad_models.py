"""NeXtVLAD, and a mixture of NeXtVLADs that learn from each other.

B is the batch, N the number of samplings, C of classes, M of branches and H of hidden units.

Reference: [Lin et al., 2018](https://arxiv.org/abs/1811.05014).
"""

import functools
import operator

from keras import ops

import nextvlad
import registry
import utils
from frame_level_models import FrameLevelModel, per_stream
from video_level_models import half_l2

# Keeps the logarithms of the distillation finite.
_EPSILON = 1e-8


class NeXtVLADBase(FrameLevelModel):
    """Base of the models of NeXtVLAD encoders, with their hyperparameters.

    Args:
        normalize_frames: str. Normalization of each frame, over all features together: l2 scales it
            to L2 norm 1; none takes the values as they are.
        nextvlad_expansion: int. Each feature is expanded to this many times its size.
        nextvlad_groups: str. Groups of each feature, separated by commas; the last number also
            applies to all further features. They divide the size of the expanded feature.
        nextvlad_cluster_size: str. Clusters of each feature, separated by commas; the last number
            also applies to all further features.
        nextvlad_hidden_size: int. Units of the hidden layer after the VLAD.
        gating_reduction: int. The gate of the hidden layer has a bottleneck of this fraction of its
            size.
        nextvlad_dropout: float. Share of the VLAD's entries set to 0 in training.
        l2_penalty: float. Weight of the L2 penalty, half the sum of squares of the weights and
            biases of the logistic regressions; 0 turns it off.

    Reference: [Lin et al., 2018](https://arxiv.org/abs/1811.05014).
    """

    takes_stored_frames = True
    sample_by_count = True
    # The classifier has initial weights and a penalty of its own, and dropout comes earlier.
    fixed_arguments = (registry.CLASSIFIER_ARGUMENT, "classifier_dropout")

    def __init__(
        self,
        *,
        normalize_frames="none",
        nextvlad_expansion=2,
        nextvlad_groups="8,4",
        nextvlad_cluster_size="128,64",
        nextvlad_hidden_size=2048,
        gating_reduction=8,
        nextvlad_dropout=0.5,
        l2_penalty=1e-5,
        **kwargs,
    ):
        super().__init__(
            normalize_frames=normalize_frames, video_level_classifier_model=None, **kwargs
        )
        utils.check_at_least(
            1,
            nextvlad_expansion=nextvlad_expansion,
            nextvlad_hidden_size=nextvlad_hidden_size,
            gating_reduction=gating_reduction,
        )
        groups, clusters = per_stream(
            self,
            self.feature_sizes,
            nextvlad_groups=nextvlad_groups,
            nextvlad_cluster_size=nextvlad_cluster_size,
        )
        expanded_sizes = [nextvlad_expansion * size for size in self.feature_sizes]
        for divisor, size in zip(groups, expanded_sizes, strict=True):
            _check_divisor("nextvlad_groups", divisor, "the size of an expanded feature", size)
        _check_divisor(
            "gating_reduction", gating_reduction, "nextvlad_hidden_size", nextvlad_hidden_size
        )
        utils.check_share(nextvlad_dropout=nextvlad_dropout)
        self.expanded_size = sum(expanded_sizes)
        self.assignments_per_frame = sum(map(operator.mul, groups, clusters))
        self.regularizer = half_l2("l2_penalty", l2_penalty)
        self._make_encoder = functools.partial(
            nextvlad.Encoder,
            self.feature_sizes,
            expanded_sizes=expanded_sizes,
            groups=groups,
            clusters=clusters,
            hidden_size=nextvlad_hidden_size,
            reduction=gating_reduction,
            dropout=nextvlad_dropout,
        )

    def make_encoders(self, count):
        """Returns a list of `Encoder`s with the hyperparameters."""
        return [self._make_encoder(name=f"encoder_{number}") for number in range(count)]

    @property
    def pooled_size(self):
        """Size of the VLADs of all encoders."""
        return sum(encoder.hidden.kernel.shape[0] for encoder in self.encoders)

    def floats_per_video(self, num_frames, num_samplings):
        """Counts copies of the expanded frames, and of their assignments for each sampling."""
        assignments = (1 + 2 * num_samplings) * self.assignments_per_frame
        return len(self.encoders) * num_frames * (2 * self.expanded_size + assignments)


@registry.register
class NeXtVLADModel(NeXtVLADBase):
    """NeXtVLAD: per feature, a NetVLAD of groups of each frame's entries.

    A hidden layer with squeeze-and-excitation gating and one logistic regression per class follow.
    The order of the frames has no effect.

    Reference: [Lin et al., 2018](https://arxiv.org/abs/1811.05014).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoders = self.make_encoders(1)
        self.classifier = nextvlad.Logistic(self.num_classes, self.regularizer, name="classifier")

    def encode(self, frames, frame_weights, training):
        """Returns the hidden vector, `[B, nextvlad_hidden_size]`."""
        (encoder,) = self.encoders
        return encoder(frames, frame_weights, training=training)

    def pool(self, frames, frame_weights):
        """Returns the VLAD."""
        (encoder,) = self.encoders
        return encoder.pool(frames, frame_weights)

    def project(self, pooled):
        """Returns the hidden vector of a VLAD."""
        (encoder,) = self.encoders
        return encoder.project(pooled)


@registry.register
class MixNeXtVLADModel(NeXtVLADBase):
    """Mixture of NeXtVLADs ("branches") that learn together and from each other.

    A gate weights the logits z_m of the branches by the mean of a video's frames:

        p = sigmoid(z),  z = sum_m a_m z_m,  a = softmax(W BN(mean frame) + b)

    Training adds the label loss of every branch, and distills the mixture, the teacher, into each
    branch, with the softmax s over the classes at temperature T. The gradient flows through both
    sides, so the teacher learns from the branches too. With a label loss L:

        loss = L(p) + sum_m L(sigmoid(z_m)) + lambda * sum_m KL(s(z / T) || s(z_m / T))

    Weights of classes, videos or pairs are part of L. The distillation has no weights, because it
    uses no labels: it also draws branches together in classes that are not rated.

    The embedding of a video has the a_m, then the hidden vectors of the branches.

    Args:
        num_branches: int. Branches of the mixture.
        distillation_weight: float. Weight lambda of the distillation; 0 turns it off.
        distillation_temperature: float. Temperature T of the distillation.

    Reference: [Lin et al., 2018](https://arxiv.org/abs/1811.05014).
    """

    def __init__(
        self,
        *,
        num_branches=3,
        distillation_weight=9.0,
        distillation_temperature=3.0,
        nextvlad_cluster_size="112,56",
        gating_reduction=16,
        **kwargs,
    ):
        super().__init__(
            nextvlad_cluster_size=nextvlad_cluster_size,
            gating_reduction=gating_reduction,
            **kwargs,
        )
        utils.check_at_least(1, num_branches=num_branches)
        utils.check_at_least(0, distillation_weight=distillation_weight)
        utils.check_above(0, distillation_temperature=distillation_temperature)
        self.distillation_weight = distillation_weight
        self.distillation_temperature = distillation_temperature
        self.encoders = self.make_encoders(num_branches)
        self.gate = nextvlad.BranchGate(num_branches, name="gate")
        self.classifier = nextvlad.LogisticMixture(
            num_branches, self.num_classes, self.regularizer, name="classifier"
        )

    def encode(self, frames, frame_weights, training):
        """Returns the weights of the branches and their hidden vectors, `[B, M + M * H]`."""
        return ops.concatenate(
            [
                self.gate(frames, frame_weights, training=training),
                *(encoder(frames, frame_weights, training=training) for encoder in self.encoders),
            ],
            axis=-1,
        )

    def pool(self, frames, frame_weights):
        """Returns the weights of the branches and their VLAD."""
        pooled = [encoder.pool(frames, frame_weights) for encoder in self.encoders]
        return ops.concatenate([self.gate(frames, frame_weights), *pooled], axis=-1)

    def project(self, pooled):
        """Returns the weights of the branches and their hidden vectors."""
        count = len(self.encoders)
        vlads = ops.split(pooled[:, count:], count, axis=-1)
        hidden = [encoder.project(vlad) for encoder, vlad in zip(self.encoders, vlads, strict=True)]
        return ops.concatenate([pooled[:, :count], *hidden], axis=-1)

    @property
    def pooled_size(self):
        """Number of branches, and size of their VLADs."""
        return len(self.encoders) + super().pooled_size

    def auxiliary_loss(self, label_loss):
        """Returns the losses of the branches, from the logits of the last call in training."""
        logits, self.classifier.logits = self.classifier.logits, None
        return branch_loss(
            label_loss, *logits, self.distillation_weight, self.distillation_temperature
        )

    def branch(self, number):
        """Returns a branch as a `NeXtVLADModel` of its own, with copies of the weights."""
        config = self.get_config()
        name = NeXtVLADModel.__name__
        model = registry.build_model(
            name,
            num_classes=self.num_classes,
            feature_sizes=self.feature_sizes,
            frame_format=self.frame_format,
            matmul_policy=config["matmul_policy"],
            **{key: config[key] for key in registry.hyperparameters(name)},
        )
        parts = self.encoders[number], self.classifier.branches[number]
        model.set_weights([weight for part in parts for weight in part.get_weights()])
        return model


def branch_loss(label_loss, mixed, branches, weight, temperature):
    """Returns the losses of the branches: those of the labels, and `distillation_loss`.

    Args:
        label_loss: function from probabilities `[B, C]` to a scalar.
        mixed: logits of the mixture, `[B, C]`.
        branches: logits of the branches, `[B, M, C]`.
        weight: float. Factor of the distillation.
        temperature: float. T.
    """
    probabilities = ops.unstack(ops.sigmoid(branches), branches.shape[1], axis=1)
    loss = sum(map(label_loss, probabilities))
    return loss + weight * distillation_loss(mixed, branches, temperature) if weight else loss


def distillation_loss(teacher, students, temperature):
    """Returns the divergence of students from their teacher, summed over the students.

        mean over videos of sum_m KL(softmax(z / T) || softmax(z_m / T))

    Args:
        teacher: logits z, `[B, C]`.
        students: logits z_m, `[B, M, C]`.
        temperature: float. T.
    """
    expected = ops.softmax(teacher / temperature)[:, None]
    actual = ops.softmax(students / temperature)
    terms = expected * (ops.log(expected + _EPSILON) - ops.log(actual + _EPSILON))
    return ops.mean(ops.sum(terms, axis=(1, 2)))


def _check_divisor(name, divisor, name_of_size, size):
    if divisor < 1 or size % divisor:
        raise utils.InputError(f"{name} must divide {name_of_size}, {size}. Received: {divisor}")
