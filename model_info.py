"""Prints the size of models: parameters and MiB, in total and by layer. Needs no data.

    python model_info.py --all
    python model_info.py --model=DbofModel --dbof_cluster_size=4096
    python model_info.py --flagfile=recipes/lfnl_netvlad.flags --format=json
    python model_info.py --train_dir=run

It takes every flag that a recipe may set, and describes the model that training would build with
them, or the model of a training run. Parameters are all weights of a model, including batch
normalization statistics. The MiB are those of an exported model of each dtype.
"""

import dataclasses
import gc
import json
import math
import os

import program

import keras

import registry
from ensemble import count_parameters, frozen_model, trained_weights
from options import Options, option, same_option
from run_config import RecipeOptions, RunConfig
from utils import InputError, aligned_table, comma_separated


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoOptions(Options):
    """Options of this program."""

    train_dir: str | None = option(
        None, "Describe the model of a training run, instead of --model.", group="model"
    )
    all: bool = option(False, "Describe every model with its defaults.", group="model")
    format: str = option(
        "table", "Print a table or a JSON list.", group="output", choices=("table", "json")
    )
    num_classes: int = same_option(RunConfig, "num_classes", fixed_by="train_dir")
    feature_sizes: tuple[int, ...] = same_option(RunConfig, "feature_sizes", fixed_by="train_dir")


def describe(config: RunConfig) -> dict:
    """Returns the size of a model.

    Returns:
        A dict with the keys `model`, `parameters`, `float32_mib`, `bfloat16_mib`, `int8_mib` and
        `layers`: a list of dicts with `name` and `parameters`, in the order of their weights.
    """
    model = frozen_model(config, "int8")
    total = count_parameters(model)
    return {
        "model": config.model,
        "parameters": total,
        "float32_mib": total * 4 / 2**20,
        "bfloat16_mib": total * 2 / 2**20,
        "int8_mib": sum(
            weight.value.dtype.size * math.prod(weight.shape) for weight in model.weights
        )
        / 2**20,
        "layers": [
            {"name": name, "parameters": parameters}
            for name, parameters in _parameters_by_layer(model).items()
        ],
    }


def _parameters_by_layer(model: keras.Model) -> dict[str, int]:
    """Returns the number of weights by the path of their layer inside the model."""
    parameters: dict[str, int] = {}
    for path, weight in trained_weights(model).items():
        layer = "/".join(path.split("/")[1:-1]) or model.name
        parameters[layer] = parameters.get(layer, 0) + math.prod(weight.shape)
    return parameters


def summary_table(descriptions: list[dict]) -> str:
    """Formats descriptions of models as a table, one line per model."""
    return aligned_table(
        ("model", "parameters", "float32 MiB", "bfloat16 MiB", "int8 MiB"),
        [
            (
                entry["model"],
                f"{entry['parameters']:,}",
                f"{entry['float32_mib']:,.1f}",
                f"{entry['bfloat16_mib']:,.1f}",
                f"{entry['int8_mib']:,.1f}",
            )
            for entry in descriptions
        ],
    )


def layer_table(description: dict) -> str:
    """Formats the layers of a model as a table, one line per layer."""
    return aligned_table(
        ("layer", "parameters"),
        [(layer["name"], f"{layer['parameters']:,}") for layer in description["layers"]],
    )


def _default_configs(options: InfoOptions) -> list[RunConfig]:
    return [
        RunConfig(name, num_classes=options.num_classes, feature_sizes=options.feature_sizes)
        for name in registry.models()
    ]


def main(options: InfoOptions, config: RunConfig | None, recipe: RecipeOptions) -> None:
    """Runs the program."""
    del recipe  # Accepted so that the flag files of recipes parse.
    given = {"--model": config, "--train_dir": options.train_dir, "--all": options.all}
    names = [name for name, value in given.items() if value]
    if len(names) != 1:
        raise InputError(
            "one of --model (or --flagfile), --train_dir and --all must be given. "
            f"Received: {comma_separated(names)}"
        )
    if options.train_dir:
        config = RunConfig.load(options.train_dir)
    configs = [config] if config else _default_configs(options)
    descriptions = []
    for entry in configs:
        descriptions.append(describe(entry))
        gc.collect()  # A model holds up to a gigabyte until its reference cycles are collected.
    if options.format == "json":
        print(json.dumps(descriptions, indent=2))
        return
    print(summary_table(descriptions))
    if not options.all:
        print(f"\n{layer_table(descriptions[0])}")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # Leaves GPUs to others: nothing is computed.
    program.run(main)
