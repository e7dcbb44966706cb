"""Measures the training step of many full-size models at several batch sizes on one GPU.

    KERAS_BACKEND=jax XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 python benchmarks/gpu_table.py

Prints one line per model and batch size. The step is that of train_step.py under JAX. All steps are
compiled first, models side by side, and then measured one after the other, within --seconds in
total. benchmarks/README.md explains the output.
"""

import concurrent.futures
import dataclasses
import math
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import program

import jax
from absl import logging
from jax import numpy as jnp

import comparison
import full_size
import jax_step
import layers
from options import Options, option, same_option
from run_config import TrainOptions

# Share of the time in which compilations may start.
_COMPILING = 0.5
# Seconds of a measurement, of which the median of three counts.
_ROUND = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOptions(Options):
    """Options of this program."""

    recipes: tuple[str, ...] = option(
        (
            *full_size.PAPER,
            *("nextvlad", "transformer", "netfv", "gated_dbof", "lfnl_netvlad_normalized"),
        ),
        "Recipes whose models to measure, the most important first.",
        group="model",
    )
    batch_sizes: tuple[int, ...] = option(
        (80, 256, 1024), "Videos per step.", group="training", above=0
    )
    seconds: float = option(
        300.0, "Time after which no measurement starts.", group="output", above=0
    )
    compute_dtype: str | None = same_option(TrainOptions, "compute_dtype")


class OutOfTimeError(Exception):
    """A step was not compiled or measured because the time for it was over."""


def check_time(until):
    """Raises `OutOfTimeError` after a time of `time.monotonic`."""
    if time.monotonic() > until:
        raise OutOfTimeError("not run; raise --seconds")


@dataclasses.dataclass
class CompiledStep:
    """A training step for one batch size.

    Attributes:
        run: maps `(variables, inputs, labels)` to `(variables, loss)`; consumes the variables.
        operations: number of floating-point operations in its matrix products.
        seconds: time that tracing and compiling took beside those of other models.
    """

    run: jax.stages.Compiled
    operations: int
    seconds: float

    @property
    def gib(self):
        """Memory that XLA plans for the step: arguments, results and temporary buffers."""
        plan = self.run.memory_analysis()
        results = plan.output_size_in_bytes - plan.alias_size_in_bytes
        return (plan.argument_size_in_bytes + results + plan.temp_size_in_bytes) / 2**30


def prepare(recipe, options, dtype, until):
    """Builds a model and compiles its step for each batch size.

    Args:
        recipe: name of a recipe.
        options: `TableOptions`.
        dtype: str. Type of the operands of matrix products.
        until: time, of `time.monotonic`, after which no compilation starts.

    Returns:
        `(config, variables, steps)`: steps is a dict from the batch size to a `CompiledStep`, or to
        the error that was raised instead.
    """
    try:
        check_time(until)
        config = full_size.config_of_recipe(recipe, 1)
        model = config.build_model(layers.training_policy(dtype))
        step, variables = jax_step.training_step(model, config)
    except Exception as error:  # Whatever it is, other models are still measured.
        return None, None, dict.fromkeys(options.batch_sizes, error)
    steps = {}
    for size in options.batch_sizes:
        try:
            check_time(until)
            steps[size] = compile_step(step, variables, config, size)
            print(f"{recipe}, {size}: compiled in {steps[size].seconds:.0f} s", file=sys.stderr)
        except Exception as error:
            steps[size] = error
    return config, variables, steps


def compile_step(step, variables, config, batch_size):
    """Returns the `CompiledStep` for a batch size."""
    start = time.monotonic()
    batch = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype),
        full_size.random_batch(config),
    )
    traced = step.trace(variables, *batch)
    compiled = traced.lower().compile()
    operations = jax_step.product_operations(traced.jaxpr)
    return CompiledStep(compiled, operations, time.monotonic() - start)


def seconds_per_step(step, variables, batch):
    """Returns the median time of a training step after two warm-up steps."""
    # The step consumes its variables; other batch sizes start with the same.
    variables = jax.tree.map(jnp.copy, variables)

    def run(count):
        nonlocal variables
        start = time.perf_counter()
        for _ in range(count):
            variables, loss = step.run(variables, *batch)
        # Each step depends on the previous one, so this waits for all of them.
        loss.block_until_ready()
        return (time.perf_counter() - start) / count

    run(2)
    count = max(math.ceil(_ROUND / run(2)), 2)
    return statistics.median(run(count) for _ in range(3))


def peak_speed(dtype):
    """Returns the operations per second of large matrix products."""
    multiply, operations = jax_step.large_product(dtype)
    multiply(10)
    start = time.perf_counter()
    multiply(10)
    return 10 * operations / (time.perf_counter() - start)


def measure(step, variables, config, until, peak):
    """Returns the cells of a line for one batch size.

    Args:
        step: `CompiledStep`, or the error that prevented it.
        variables: of model and optimizer.
        config: `RunConfig` with the batch size.
        until: time after which no measurement starts.
        peak: operations per second of large matrix products.
    """
    if isinstance(step, Exception):
        raise step
    check_time(until)
    seconds = seconds_per_step(step, variables, jax.device_put(full_size.random_batch(config)))
    share = step.operations / seconds / peak
    return (
        f"{config.batch_size / seconds:,.0f}",
        f"{1e3 * seconds:.2f}",
        f"{step.gib:.1f}",
        f"{share:.1%}",
        f"{step.seconds:.0f}",
    )


def print_line(*cells):
    """Prints a line of the table at once."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_model(recipe, prepared, until, peak):
    """Measures and prints all batch sizes of a model."""
    config, variables, steps = prepared
    for size, step in steps.items():
        try:
            sized = config and dataclasses.replace(config, batch_size=size)
            print_line(recipe, size, *measure(step, variables, sized, until, peak))
        except Exception as error:
            lines = str(error).splitlines() or [""]
            print_line(recipe, size, f"{type(error).__name__}: {lines[0][:200]}")


def main(options: TableOptions):
    """Runs the program."""
    start = time.monotonic()
    dtype = layers.resolve_compute_dtype(options.compute_dtype)
    until = start + _COMPILING * options.seconds
    logging.set_verbosity(logging.WARNING)
    # Each compilation has threads of its own; with fewer at a time, the first end sooner.
    with concurrent.futures.ThreadPoolExecutor(max(os.cpu_count() // 2, 1)) as pool:
        models = list(pool.map(lambda name: prepare(name, options, dtype, until), options.recipes))
    peak = peak_speed(dtype)
    described = ", ".join(f"{k} {v}" for k, v in comparison.environment()["versions"].items())
    print(
        f"{jax.devices()[0].device_kind}, {dtype}, peak of matrix products "
        f"{peak / 1e12:.3g} TFLOP/s, compiled in {time.monotonic() - start:.0f} s, {described}"
    )
    print_line("model", "batch", "videos/s", "ms/step", "peak GiB", "of the peak", "compile s")
    print_line(*["---"] * 7)
    for recipe in options.recipes:
        # Popped, so that the memory of measured models is free again.
        print_model(recipe, models.pop(0), start + options.seconds, peak)


if __name__ == "__main__":
    program.run(main, backends=("jax",))
