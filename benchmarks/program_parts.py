"""Runs a program and prints the CPU seconds of its parts as JSON; startup.py starts it.

    python benchmarks/program_parts.py train --model=MoeModel ...
    python benchmarks/program_parts.py plain --flagfile=recipes/small_moe.flags ...

`plain` builds the same model of Keras layers and runs one training step, then one prediction.
"""

import collections
import functools
import importlib
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


class Parts:
    """CPU seconds by part, user and system time of all threads.

    Attributes:
        seconds: a `collections.Counter`.
    """

    def __init__(self):
        self.seconds = collections.Counter()
        self._inner = 0.0

    def timed(self, part, function):
        """Returns a function whose time counts for a part, except that of parts inside it."""

        @functools.wraps(function)
        def call(*arguments, **options):
            outer, self._inner = self._inner, 0.0
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent = time.process_time() - start
                self.seconds[part] += spent - self._inner
                self._inner = outer + spent

        return call

    def time(self, part, owner, name):
        """Lets an attribute of a class or module count for a part."""
        setattr(owner, name, self.timed(part, getattr(owner, name)))


def run_program(name, arguments):
    """Returns the seconds of the parts of a program, and of everything else as `rest`."""
    import program

    main = importlib.import_module(name).main
    import ensemble
    import predictor
    import readers
    import trainer
    from run_config import RunConfig

    parts = Parts()
    parts.seconds["import"] = time.process_time()
    parts.time("data", readers.RecordReader, "check_first_records")
    parts.time("building", RunConfig, "build_model")
    parts.time("building", RunConfig, "build_optimizer")
    parts.time("restoring", predictor.Predictor, "restore")
    # Python runs these only while it traces a graph.
    parts.time("tracing", trainer.Trainer, "_replica_step")
    parts.time("tracing", ensemble.Ensemble, "__call__")
    parts.time("batches", trainer.Trainer, "run")
    compiled = predictor.compiled
    predictor.compiled = lambda function: parts.timed("batches", compiled(function))
    parts.timed("rest", program.call)(main, arguments)
    return parts.seconds


def run_plain(arguments):
    """Returns the seconds of a plain model: import, training step, prediction."""
    import keras
    import tensorflow as tf

    imported = time.process_time()
    import program

    import full_size
    import plain_models
    import tensorflow_step
    import train_step

    options = program.parse_options(train_step.main, arguments)
    config = options["config"]
    model = config.build_model()
    batch = tf.nest.map_structure(tf.constant, full_size.random_batch(config))
    keras.utils.set_random_seed(config.seed)

    def train():
        plain = plain_models.PlainModel(model)
        tensorflow_step.plain_step(plain, config, batch)()
        return plain

    parts = Parts()
    plain = parts.timed("training step", train)()
    predict = tf.function(functools.partial(plain, training=False), autograph=False)
    parts.timed("prediction", lambda: predict(batch[0]).numpy())()
    return {"import": imported, **parts.seconds}


if __name__ == "__main__":
    program_name, *flags = sys.argv[1:]
    found = run_plain(flags) if program_name == "plain" else run_program(program_name, flags)
    print(json.dumps(found))
