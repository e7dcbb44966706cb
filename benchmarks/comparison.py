"""Shared by all benchmarks: lets several ways to do the same work take turns and compares them."""

import dataclasses
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time

import keras

from options import Options, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonOptions(Options):
    """Options of every benchmark."""

    rounds: int = option(5, "Measurements of each way.", group="output", above=0)
    format: str = option("table", "Output format.", group="output", choices=("table", "json"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainOptions(ComparisonOptions):
    """Options of a benchmark that has a plain baseline."""

    plain: bool = option(True, "Also measure the baseline.", group="output")


def peak_memory_gib():
    """Returns the peak memory so far, of the process or, under JAX on a GPU, of the GPU."""
    if keras.backend.backend() == "jax":
        import jax

        device_statistics = jax.devices()[0].memory_stats()
        if device_statistics:
            return device_statistics["peak_bytes_in_use"] / 2**30
    # ru_maxrss is in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(makers, baseline, options, **conditions):
    """Measures several ways to do the same work and prints the result.

    The ways are built one after the other, and each runs once before the first round. A memory peak
    is that of the process up to then; only the first way's peak is its own. Then the ways take
    turns, so other load on the machine affects all of them equally. A ratio is taken within one
    round.

    Args:
        makers: dict from a name to a function that builds a way. A way is a function that does the
            work and returns the number of videos.
        baseline: str. Name of the way to compare with.
        options: `ComparisonOptions`.
        **conditions: further values that the numbers depend on, to be printed with them.
    """
    ways, peaks = {}, {}
    for name, make in makers.items():
        ways[name] = make()
        ways[name]()
        peaks[name] = peak_memory_gib()
    rates = {name: [] for name in ways}
    cpu_times = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, work in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            videos = work()
            rates[name].append(videos / (time.perf_counter() - start))
            cpu_times[name].append((time.process_time() - cpu_start) / videos)
    result = {
        "baseline": baseline,
        "results": summarize(rates, cpu_times, baseline, peaks),
        "conditions": {**conditions, "rounds": options.rounds, **environment()},
    }
    text = json.dumps(result, indent=2) if options.format == "json" else as_table(result)
    print(text, flush=True)


def run_against_plain(plain_name, plain, project, options, bounds=None, **conditions):
    """Measures the project against a plain implementation, the baseline with `--plain`.

    Without `--plain`, the baseline is the first of `bounds`, or the project if there are none.

    Args:
        plain_name: str. Name of the plain way.
        plain: function that builds the plain way, as in `run`.
        project: function that builds the project's way.
        options: `ComparisonOptions`.
        bounds: dict of makers, as in `run`, of upper bounds for the speed of the project.
        **conditions: as in `run`.
    """
    bounds = bounds or {}
    makers = {"project": project}
    if options.plain:
        makers[plain_name] = plain
    makers |= bounds
    baseline = plain_name if options.plain else next(iter(bounds), "project")
    run(makers, baseline, options, **conditions)


def summarize(rates, cpu_times, baseline, peaks):
    """Returns each way's median speed, its ratios to the baseline by round, CPU time and memory."""
    summary = {}
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates[baseline], strict=True)]
        summary[name] = {
            "videos_per_second": round(statistics.median(values), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "cpu_ms_per_video": round(1e3 * statistics.median(cpu_times[name]), 4),
            "peak_memory_gib": round(peaks[name], 2),
        }
    return summary


def environment():
    """Returns the number of cores and the versions of the libraries."""
    packages = (keras.backend.backend(), "keras", "numpy")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def as_table(result):
    """Formats the result for a terminal."""
    width = max(map(len, result["results"])) + 2
    lines = [
        f"{'':{width}}{'videos/s':>10}{'ratio':>8}  {'(min to max)':16}{'CPU ms':>9}{'peak GiB':>9}"
    ]
    for name, row in result["results"].items():
        spread = f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        lines.append(
            f"{name:{width}}{row['videos_per_second']:10.1f}{row['ratio']:8.2f}  {spread:16}"
            f"{row['cpu_ms_per_video']:9.3f}{row['peak_memory_gib']:9.2f}"
        )
    conditions = dict(result["conditions"])
    conditions |= conditions.pop("versions")
    described = ", ".join(f"{name} {value}" for name, value in conditions.items())
    explained = f"Ratio of speed to {result['baseline']!r}, and CPU time per video. {described}"
    return "\n".join([*lines, "", explained])
