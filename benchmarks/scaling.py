"""Computes what the paper's models would cost on YouTube-8M with more machines: docs/scaling.md.

    python benchmarks/scaling.py > docs/scaling.md

Nothing is measured: it takes sizes and multiply-adds from model_info.py, speeds of one machine from
docs/performance.md, and the assumptions below, which the document states.
"""

import dataclasses
import gc
import os
import pathlib
import re
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import model_info
import program
import recipe_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Recipe and name in docs/performance.md.
MODELS = {
    "lfnl_netvlad": "LFNL-NetVLAD",
    "lfnl_netrvlad": "LFNL-NetRVLAD",
    "efnl_netvlad": "EFNL-NetVLAD",
    "soft_bof_4k": "Soft-BoF-4k",
    "soft_bof_8k": "Soft-BoF-8k",
    "gru": "GRU",
}
TRAIN_VIDEOS = 3.9e6
ALL_VIDEOS = 6.1e6  # Training, validation and test.
ALL_BYTES = 1.5e12
BATCH = 80  # Videos of a step on each device, as in most recipes.
PEAK_FLOPS = 312e12  # Of an NVIDIA A100 in bfloat16, without sparsity.
SHARE = 0.3  # Of the peak, that the products of a step reach.
MEMORY = 1.5e12  # Bytes a second from and to a GPU's memory.
PASSES = 7  # The update reads weight, gradient, two moments; writes weight and moments.
LOOP = 20e-6  # Seconds a frame, layer and direction of a recurrent layer take at least.
NVLINK = 200e9  # Bytes a second that all-reduce reaches between GPUs of a machine.
NETWORK = 12.5e9 * 0.8  # The same between machines: 100 Gbit/s, of which 80%.


@dataclasses.dataclass(frozen=True)
class Situation:
    """Some GPUs: how many, in how many machines with a reader each, and how fast they exchange."""

    name: str
    devices: int
    machines: int
    bandwidth: float


ONE = Situation("one GPU", 1, 1, NVLINK)
EIGHT = Situation("eight GPUs", 8, 1, NVLINK)
WORKERS = Situation("32 workers", 32, 32, NETWORK)


class Model:
    """What a model costs.

    Args:
        name: str. Its name in docs/performance.md.
        parameters: int.
        multiply_adds: int. Of the prediction for one video.
        examples: int. Videos that its recipe trains on, every repetition counted.
        cpu_rate: float. Videos per second of training on the two cores of docs/performance.md.
        loop: int. Steps of recurrent layers that wait for each other, in both directions.
    """

    def __init__(self, name, parameters, multiply_adds, examples, cpu_rate, loop):
        self.name = name
        self.parameters = parameters
        self.examples = examples
        self.cpu_rate = cpu_rate
        # A multiply-add is two operations; the gradient costs twice the prediction.
        self.flops = 6 * multiply_adds
        self.gradient_bytes = 4 * parameters
        self.loop_seconds = loop * LOOP
        self.update_seconds = PASSES * 4 * parameters / MEMORY

    def product_seconds(self, batch=BATCH):
        """Seconds of the products of a step on one GPU, or of the recurrent loop."""
        return max(batch * self.flops / (PEAK_FLOPS * SHARE), self.loop_seconds)

    def reduce_seconds(self, situation):
        """Seconds of a ring all-reduce, which sends every gradient nearly twice."""
        devices = situation.devices
        return 2 * (devices - 1) / devices * self.gradient_bytes / situation.bandwidth

    def step_seconds(self, situation, batch=BATCH):
        """Seconds of a step, if the reader keeps up."""
        return self.product_seconds(batch) + self.update_seconds + self.reduce_seconds(situation)

    def step_rate(self, situation):
        """Videos per second of all GPUs, if the reader keeps up."""
        return situation.devices * BATCH / self.step_seconds(situation)

    def rate_and_bound(self, situation, reader_rate):
        """Videos per second of all GPUs, and what takes most of the time."""
        parts = {
            "products": self.product_seconds(),
            "update": self.update_seconds,
            "all-reduce": self.reduce_seconds(situation),
        }
        if self.loop_seconds == parts["products"]:
            parts["loop"] = parts.pop("products")
        step, read = self.step_rate(situation), situation.machines * reader_rate
        return (read, "reader") if read < step else (step, max(parts, key=parts.get))

    def balanced_batch(self, situation):
        """Videos per GPU whose products take as long as the all-reduce."""
        return self.reduce_seconds(situation) * PEAK_FLOPS * SHARE / self.flops


def of_recipe(recipe, name, performance):
    """The `Model` of a recipe."""
    flag_values = flags.FlagValues()
    recipe_flags.define_flags(flag_values)
    lines = (ROOT / "recipes" / f"{recipe}.flags").read_text().splitlines()
    flag_values([recipe, *(line for line in lines if line.startswith("--"))])
    config = recipe_flags.config_from_flags(flag_values)
    description = model_info.describe(config)
    gc.collect()
    return Model(
        name,
        description["parameters"],
        description["multiply_adds"],
        flag_values.max_steps * config.batch_size,
        measured(performance, f"training, {name}"),
        2 * config.max_frames * config.hyperparameters.get("gru_layers", 0),
    )


def measured(performance, work):
    """Videos per second of a row of docs/performance.md."""
    return float(re.search(rf"^\| {re.escape(work)} \| ([\d.]+)", performance, re.MULTILINE)[1])


def duration(seconds):
    """A time in words, with two digits that count."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} seconds"


def table(header, rows):
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


TEXT = """\
# Scaling, on paper

What training on YouTube-8M would take on one machine, eight GPUs and 32 workers. **Computed, not
measured**: this file is what `python benchmarks/scaling.py` prints, and only the speeds of two
cores in it were measured ([performance](performance.md)). Read it for proportions and bounds.

## Assumptions

- The data: {videos} videos to train on, of {all_videos} in {all_bytes}: {video_bytes} a video,
  {epoch_bytes} an epoch.
- The work: matrix products, the multiply-adds of `model_info.py` for a prediction. Each is two
  operations, and the gradient costs twice the prediction: six operations.
- A GPU: {peak} in bfloat16 (NVIDIA A100), of which a step reaches {share}, everything
  elementwise included; {memory} of memory. The share is a guess, and the first thing to measure.
- The update passes {passes} times over the weights in float32. A recurrent layer takes {loop} a
  frame and direction at least, whatever the batch.
- {batch} videos a step on each GPU. Gradients are summed in float32 by a ring, after the step and
  not beside it, at {nvlink} between the GPUs of a machine and {network} between machines
  (80% of 100 Gbit/s). The 32 workers are machines with one GPU each.
- Every machine reads by one process, which delivers {reader_rate} videos/s beside the step, as
  measured on two cores from memory. More cores may do more, a slow disk or bucket less.

## The models

{sizes}

## Speed

Videos per second, and what takes most of the time. Two cores are measured.

{speeds}

## Time

Of an epoch; of the recipe's training, as many videos in all.

{times}

## One step

In milliseconds. The balanced batch is the number of videos on each of 32 workers whose products
take as long as the all-reduce; with fewer, the network takes more.

{steps}

## Reading

What the steps of eight GPUs in one machine could take, if it were there; how many times the reader
that is; and what each of the 32 workers reads.

{reading}

## What bounds it

- **Two cores: products.** The reader delivers {reader_ratio} times what LFNL-NetVLAD takes.
- **GPUs of one machine: the reader.** A single GPU could train LFNL-NetVLAD with {one_rate}
  videos/s, eight with {eight_rate}; the reader gives {reader_rate}. So eight GPUs are worth their
  price only with several processes that read, as workers with one GPU each have. The files then
  must deliver {eight_bytes} a second, more than one disk or one stream from a bucket.
- **32 workers: the network, for models with many weights.** LFNL-NetVLAD has {gradient} of
  gradient, which the ring moves nearly twice in each step: {reduce_32}, beside {rest} for the rest.
  Only {balanced} videos on each worker would take as long. What helps is to exchange less
  often, by larger batches, or eight GPUs in each machine, which share one transfer.
- **The batch.** {batch} videos on each of 32 workers are {global_batch} a step, and LFNL-NetVLAD's
  recipe becomes {global_steps} steps instead of {recipe_steps}. Whether that reaches the same GAP,
  nobody has tried. With the recipe's batch of {batch} in all, a worker would have {tiny_batch}
  videos a step, and the network would take {tiny_ratio} times as long as the rest.
"""


def document(models, reader_rate):
    """The text of docs/scaling.md.

    Args:
        models: list of `Model`, LFNL-NetVLAD first.
        reader_rate: float. Videos per second that the reader of a machine delivers.
    """
    lfnl = models[0]
    video_bytes = ALL_BYTES / ALL_VIDEOS
    reduce_32 = lfnl.reduce_seconds(WORKERS)
    tiny = lfnl.product_seconds(BATCH / 32) + lfnl.update_seconds
    return TEXT.format(
        videos=f"{TRAIN_VIDEOS / 1e6:.1f} M",
        all_videos=f"{ALL_VIDEOS / 1e6:.1f} M",
        all_bytes=f"{ALL_BYTES / 1e12:.1f} TB",
        video_bytes=f"{video_bytes / 1e3:.0f} KB",
        epoch_bytes=f"{TRAIN_VIDEOS * video_bytes / 1e12:.2f} TB",
        peak=f"{PEAK_FLOPS / 1e12:.0f} TFLOP/s",
        share=f"{SHARE:.0%}",
        memory=f"{MEMORY / 1e12:.1f} TB/s",
        passes=PASSES,
        loop=f"{LOOP * 1e6:.0f} us",
        batch=BATCH,
        nvlink=f"{NVLINK / 1e9:.0f} GB/s",
        network=f"{NETWORK / 1e9:.0f} GB/s",
        reader_rate=f"{reader_rate:,.0f}",
        sizes=size_table(models),
        speeds=rate_table(models, reader_rate, speed_and_bound),
        times=rate_table(models, reader_rate, durations),
        steps=step_table(models),
        reading=reading_table(models, reader_rate, video_bytes),
        reader_ratio=f"{reader_rate / lfnl.cpu_rate:.0f}",
        one_rate=f"{lfnl.step_rate(ONE):,.0f}",
        eight_rate=f"{lfnl.step_rate(EIGHT):,.0f}",
        eight_bytes=f"{lfnl.step_rate(EIGHT) * video_bytes / 1e9:.0f} GB",
        gradient=f"{lfnl.gradient_bytes / 1e6:.0f} MB",
        reduce_32=f"{1e3 * reduce_32:.0f} ms",
        rest=f"{1e3 * (lfnl.step_seconds(WORKERS) - reduce_32):.0f} ms",
        balanced=f"{lfnl.balanced_batch(WORKERS):,.0f}",
        global_batch=32 * BATCH,
        global_steps=f"{lfnl.examples / (32 * BATCH):,.0f}",
        recipe_steps=f"{lfnl.examples / BATCH:,.0f}",
        tiny_batch=BATCH / 32,
        tiny_ratio=f"{reduce_32 / tiny:.0f}",
    )


def size_table(models):
    """Weights, bytes and operations of the models."""
    return table(
        ["model", "weights", "gradient", "FLOP a video", "FLOP an epoch", "the recipe's videos"],
        [
            [
                model.name,
                f"{model.parameters / 1e6:.1f} M",
                f"{model.gradient_bytes / 1e6:.0f} MB",
                f"{model.flops / 1e9:.3g} G",
                f"{model.flops * TRAIN_VIDEOS / 1e15:.3g} P",
                f"{model.examples / 1e6:.1f} M, {model.examples / TRAIN_VIDEOS:.1f} epochs",
            ]
            for model in models
        ],
    )


def rate_table(models, reader_rate, cell):
    """What `cell(model, rate, bound)` says of every model in every situation."""
    rows = []
    for model in models:
        gpus = [model.rate_and_bound(situation, reader_rate) for situation in (ONE, EIGHT, WORKERS)]
        rates = [(model.cpu_rate, "products"), *gpus]
        rows.append([model.name, *(cell(model, rate, bound) for rate, bound in rates)])
    return table(["model", "two cores", "one GPU", "eight GPUs", "32 workers"], rows)


def speed_and_bound(_, rate, bound):
    """Videos per second."""
    return f"{rate:,.0f}, {bound}"


def durations(model, rate, _):
    """Times of an epoch and of the whole recipe."""
    return f"{duration(TRAIN_VIDEOS / rate)}; {duration(model.examples / rate)}"


def step_table(models):
    """Milliseconds of the parts of a step."""
    return table(
        ["model", "products, loop", "update", "all-reduce, 8", "all-reduce, 32", "balanced batch"],
        [
            [
                model.name,
                f"{1e3 * model.product_seconds():.1f}",
                f"{1e3 * model.update_seconds:.1f}",
                f"{1e3 * model.reduce_seconds(EIGHT):.1f}",
                f"{1e3 * model.reduce_seconds(WORKERS):.1f}",
                f"{model.balanced_batch(WORKERS):,.0f}",
            ]
            for model in models
        ],
    )


def reading_table(models, reader_rate, video_bytes):
    """What the reader must deliver."""
    return table(
        ["model", "eight GPUs", "times the reader", "each of 32 workers"],
        [
            [
                model.name,
                f"{model.step_rate(EIGHT) * video_bytes / 1e9:.1f} GB/s",
                f"{model.step_rate(EIGHT) / reader_rate:.1f}",
                f"{model.step_rate(WORKERS) / 32 * video_bytes / 1e6:,.0f} MB/s",
            ]
            for model in models
        ],
    )


def define_flags(flag_values):
    """Defines no flags."""


def main(flag_values):
    """Prints the document."""
    del flag_values
    performance = (ROOT / "docs" / "performance.md").read_text()
    models = [of_recipe(recipe, name, performance) for recipe, name in MODELS.items()]
    reader_rate = measured(performance, "reading full-size records, `dataset()`, two readers")
    print(document(models, reader_rate), end="")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    program.run(main, define_flags)
