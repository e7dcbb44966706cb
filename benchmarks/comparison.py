"""What all benchmarks share: ways to do the same work take turns, and a ratio is what counts."""

import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time

import keras
from absl import flags

import program


def define_flags(flag_values, rounds=5, plain=None):
    """Defines the flags of every benchmark; with `plain`, what it does, that of `run_beside`."""
    own = {"flag_values": flag_values}
    flags.DEFINE_integer("rounds", rounds, "How often each way is measured.", **own)
    flags.DEFINE_enum("format", "table", ["table", "json"], "How to print the result.", **own)
    if plain is not None:
        flags.DEFINE_boolean("plain", True, plain, **own)


def peak_memory_gib():
    """Peak memory so far: of the process, under JAX on a GPU of the GPU."""
    if keras.backend.backend() == "jax":
        import jax

        statistics_of_device = jax.devices()[0].memory_stats()
        if statistics_of_device:
            return statistics_of_device["peak_bytes_in_use"] / 2**30
    # Kilobytes on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(makers, baseline, flag_values, **conditions):
    """Measures ways to do the same work and prints the result.

    The ways are made one after the other, and each runs once, before the first round: a peak of
    memory is that of the process until then, for the first way its own. Then they take turns, so
    that whatever else the machine does hits all of them alike. A ratio is taken within one round.

    Args:
        makers: dict from name to a function that makes a way: a function that does the work and
            returns the number of videos.
        baseline: str. Name of the way to compare with.
        flag_values: with the flags of `define_flags`.
        **conditions: what else the numbers depend on.
    """
    program.require_positive(flag_values, "rounds")
    ways, peaks = {}, {}
    for name, make in makers.items():
        ways[name] = make()
        ways[name]()
        peaks[name] = peak_memory_gib()
    rates = {name: [] for name in ways}
    for _ in range(flag_values.rounds):
        for name, work in ways.items():
            start = time.perf_counter()
            videos = work()
            rates[name].append(videos / (time.perf_counter() - start))
    result = {
        "baseline": baseline,
        "results": summarize(rates, baseline, peaks),
        "conditions": {**conditions, "rounds": flag_values.rounds, **circumstances()},
    }
    as_text = json.dumps(result, indent=2) if flag_values.format == "json" else as_table(result)
    print(as_text, flush=True)


def run_beside(name, plain, project, flag_values, bounds=None, **conditions):
    """Runs the project's way and, with `--plain`, the plain one as baseline.

    Without it, the baseline is the first of the bounds, if there are any.

    Args:
        name: str. What to call the plain way.
        plain: function that makes it, as of `run`.
        project: function that makes the project's.
        flag_values: with the flags of `define_flags`.
        bounds: dict of makers, as of `run`, of what the project cannot be faster than.
        **conditions: as of `run`.
    """
    makers = {"project": project}
    if flag_values.plain:
        makers[name] = plain
    makers |= bounds or {}
    baseline = name if flag_values.plain else next(iter(bounds or {"project": project}))
    run(makers, baseline, flag_values, **conditions)


def summarize(rates, baseline, peaks):
    """Medians over the rounds, and speed relative to the baseline in the same round, by way."""
    summary = {}
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates[baseline], strict=True)]
        summary[name] = {
            "videos_per_second": round(statistics.median(values), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "peak_memory_gib": round(peaks[name], 2),
        }
    return summary


def circumstances():
    """The machine and the versions."""
    packages = (keras.backend.backend(), "keras", "numpy")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def as_table(result):
    """The result as lines for a terminal."""
    width = max(map(len, result["results"])) + 2
    lines = [f"{'':{width}}{'videos/s':>10}{'ratio':>8}  {'(min to max)':16}{'peak GiB':>9}"]
    for name, row in result["results"].items():
        spread = f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        lines.append(
            f"{name:{width}}{row['videos_per_second']:10.1f}{row['ratio']:8.2f}  {spread:16}"
            f"{row['peak_memory_gib']:9.2f}"
        )
    conditions = dict(result["conditions"])
    conditions |= conditions.pop("versions")
    described = ", ".join(f"{name} {value}" for name, value in conditions.items())
    return "\n".join([*lines, "", f"Ratio of speed to {result['baseline']!r}. {described}"])
