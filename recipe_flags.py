"""The flags that a recipe sets: what a run learns, how long it goes on, and the models' own.

A recipe is a file of flags, given to a program by `--flagfile`. Programs that take recipes define
these flags; where the data and the results lie is not among them.
"""

import dataclasses

from absl import flags

import losses
import program
import registry
from run_config import RunConfig
from utils import InputError, listing

# Flags defined here belong to the program that asks for them, so that its --help shows them.
flags.disclaim_key_flags()


def define_flags(flag_values):
    """Defines the flags that a recipe sets."""
    program.define_flags(
        flag_values, "batch_size", "seed", "num_classes", "feature_sizes", "max_frames"
    )
    settings = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    own = {"flag_values": flag_values}
    flags.DEFINE_string("model", None, f"Name of the model: {listing(registry.models())}.", **own)
    flags.DEFINE_list(
        "feature_names",
        None,
        "Features to read; by default rgb,audio at frame level and mean_rgb,mean_audio at video "
        "level.",
        **own,
    )
    flags.DEFINE_boolean(
        "frame_features",
        None,
        "Whether the data are at frame level. The model decides it; if given, it must agree.",
        **own,
    )
    flags.DEFINE_enum(
        "label_loss", settings["label_loss"], list(losses.LOSSES), "Loss of the labels.", **own
    )
    flags.DEFINE_string(
        "optimizer", settings["optimizer"], "Keras optimizer, as Adam or SGD.", **own
    )
    flags.DEFINE_float(
        "base_learning_rate", settings["base_learning_rate"], "Learning rate at the start.", **own
    )
    flags.DEFINE_float(
        "learning_rate_decay",
        settings["learning_rate_decay"],
        "Factor on the learning rate after every --learning_rate_decay_examples videos.",
        **own,
    )
    flags.DEFINE_integer(
        "learning_rate_decay_examples",
        settings["learning_rate_decay_examples"],
        "Videos between two decays of the learning rate.",
        **own,
    )
    flags.DEFINE_float(
        "clip_gradient_norm",
        settings["clip_gradient_norm"],
        "Norm that the gradient of each variable is clipped to; 0 for no clipping.",
        **own,
    )
    flags.DEFINE_float(
        "regularization_penalty",
        settings["regularization_penalty"],
        "Factor on the regularisation losses of the model.",
        **own,
    )
    flags.DEFINE_float(
        "ema_decay",
        settings["ema_decay"],
        "Decay of an exponential moving average of the weights, as 0.9999, which is saved beside "
        "them for --use_ema; 0 for none.",
        **own,
    )
    flags.DEFINE_integer(
        "shuffle_buffer_size",
        settings["shuffle_buffer_size"],
        "Videos among which the next one is drawn; at full size 1024 frame-level videos take "
        "350 MB.",
        **own,
    )
    flags.DEFINE_integer("num_epochs", 5, "How often to use every video.", **own)
    flags.DEFINE_integer(
        "max_steps",
        None,
        "Steps of the whole run, those before a restart included; by default no limit.",
        **own,
    )
    flags.DEFINE_integer("export_model_steps", 1000, "Steps between two checkpoints.", **own)
    flags.DEFINE_integer("keep_checkpoints", 5, "Newest checkpoints to keep; 0 for all.", **own)
    flags.DEFINE_integer("log_steps", 10, "Steps between two log lines.", **own)
    flags.DEFINE_integer(
        "metrics_steps", 100, "Steps between log lines with Hit@1, PERR, GAP of a batch.", **own
    )
    program.define_model_flags(flag_values)


def config_from_flags(flag_values):
    """The `RunConfig` of a command line.

    Raises:
        InputError: if a flag has no usable value or is not one of the model.
    """
    program.require_flags(flag_values, "model")
    program.require_positive(
        flag_values,
        *("batch_size", "max_frames", "base_learning_rate", "learning_rate_decay"),
        *("learning_rate_decay_examples", "shuffle_buffer_size", "num_epochs", "max_steps"),
        *("export_model_steps", "log_steps", "metrics_steps"),
    )
    program.require_not_negative(
        flag_values,
        *("seed", "keep_checkpoints", "clip_gradient_norm", "regularization_penalty"),
        "ema_decay",
    )
    if flag_values.ema_decay >= 1:
        raise InputError(f"--ema_decay must be below 1. Received: {flag_values.ema_decay}")
    settings = {field.name for field in dataclasses.fields(RunConfig)} - {"hyperparameters"}
    values = {name: flag_values[name].value for name in settings}
    values["feature_sizes"] = program.integer_list(flag_values, "feature_sizes")
    config = RunConfig.create(
        hyperparameters=program.given_model_flags(flag_values),
        **values,
    )
    if flag_values.frame_features not in (None, config.frame_level):
        level = "frames" if config.frame_level else "video-level features"
        raise InputError(
            f"--frame_features={flag_values.frame_features} does not fit: {config.model} takes "
            f"{level}."
        )
    return config
