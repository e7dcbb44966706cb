"""Training on several devices and machines.

The devices of one machine are replicas in one process. Each of several machines runs one process,
a worker, and workers find each other through the environment variable TF_CONFIG. All replicas hold
the same weights; each takes its part of a batch, and their gradients are merged. One worker, the
chief, writes all files.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

import layers
import private_api
import readers
from utils import InputError, comma_separated

# Errors that collective operations raise after a worker has stopped.
_LOST_WORKER = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)
_TF_CONFIG_EXPECTED = (
    'TF_CONFIG must look like {"cluster": {"worker": ["host:port", ...]}, '
    '"task": {"type": "worker", "index": 0}}, with tasks of type worker and at most one of type '
    "chief."
)

Task = tuple[str, int]  # Type and index of a worker.


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A strategy and the role of this process in it.

    Attributes:
        strategy: TensorFlow's distribution strategy.
        num_workers: number of processes that train together.
        is_chief: whether this process writes the files.
        static_shapes: whether all batches must have the same shape, as TPUs require.
    """

    strategy: tf.distribute.Strategy
    num_workers: int = 1
    is_chief: bool = True
    static_shapes: bool = False

    @property
    def num_replicas(self) -> int:
        """Number of devices that share a batch."""
        return self.strategy.num_replicas_in_sync

    def check_batch_size(self, batch_size: int) -> None:
        """Rejects a batch size that does not divide evenly among the replicas.

        Raises:
            InputError: if there is a remainder.
        """
        if batch_size % self.num_replicas:
            raise InputError(
                "--batch_size counts the videos on all devices together and must be a multiple of "
                f"their number, {self.num_replicas}. Received: {batch_size}"
            )

    def describe_parts(self, batch_size: int) -> str:
        """Describes each device's part of a batch; empty on a single device."""
        if self.num_replicas == 1:
            return ""
        return f", {batch_size // self.num_replicas} on each device"

    def check_num_files(self, num_files: int) -> None:
        """Rejects training data of fewer files than workers.

        Raises:
            InputError: if a worker would get no file.
        """
        if num_files < self.num_workers:
            raise InputError(
                f"each worker reads its own files, but there are {self.num_workers} workers and "
                f"--train_data_pattern matches {num_files}. Split the records into more files, or "
                "use fewer workers."
            )

    def batches(self, reader: readers.RecordReader, batch_size: int, **options: Any) -> Iterator:
        """Returns an iterator over the batches of a reader, for `next_batch`.

        Args:
            reader: reader of the records.
            batch_size: videos of all replicas together.
            **options: see `readers.RecordReader.batches`.
        """
        if not is_distributed(self.strategy):
            return iter(reader.dataset(batch_size, drop_remainder=True, **options))

        def worker_dataset(context):
            # Whole batches per worker, split afterwards, let all its replicas end together.
            dataset = reader.dataset(
                batch_size // context.num_input_pipelines,
                drop_remainder=True,
                pad_to_max_frames=self.static_shapes,
                shard=(context.input_pipeline_id, context.num_input_pipelines),
                **options,
            )
            return _endless(dataset.rebatch(batch_size // self.num_replicas, drop_remainder=True))

        return iter(self.strategy.distribute_datasets_from_function(worker_dataset))

    def agree(self, *, summed: Sequence[float] = (), from_chief: Sequence[float] = ()) -> list:
        """Exchanges numbers between the workers; every worker must call it.

        Args:
            summed: numbers to add up over the workers.
            from_chief: numbers to take from the chief.

        Returns:
            The sums, then the chief's numbers; equal on all workers.
        """
        own = [*summed, *(number if self.is_chief else 0 for number in from_chief)]
        if self.num_workers == 1:
            return own
        own = tf.constant(own, tf.float64)
        # Only the first replica of each worker contributes.
        contributions = self.strategy.experimental_distribute_values_from_function(
            lambda context: own if _is_first_of_worker(self, context) else tf.zeros_like(own)
        )
        return self.strategy.reduce("SUM", contributions, axis=None).numpy().tolist()

    def check_same_step(self, step: int) -> None:
        """Rejects a worker that resumes from another step than the chief.

        Raises:
            InputError: if the steps differ.
        """
        (chiefs_step,) = self.agree(from_chief=[step])
        if step != chiefs_step:
            raise InputError(
                f"this worker found step {step} in --train_dir, but the chief found step "
                f"{chiefs_step:.0f}. All workers must share that directory."
            )

    def check_same_weights(self, weights: Iterable[np.ndarray]) -> None:
        """Rejects a worker whose weights differ from the chief's.

        Raises:
            InputError: if a bit differs.
        """
        if self.num_workers == 1:
            return
        checksum = 0
        for weight in weights:
            checksum = zlib.crc32(weight.tobytes(), checksum)
        (chiefs_checksum,) = self.agree(from_chief=[checksum])
        if checksum != chiefs_checksum:
            raise InputError(
                "this worker has read other weights from --init_from than the chief. If training "
                "runs there, give the path of a checkpoint; all workers must read the same file."
            )

    def wait_for_all(self) -> None:
        """Waits until every worker has called this method."""
        self.agree(summed=[0])

    @contextlib.contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Turns TensorFlow's errors about a stopped worker into a `ConnectionError`."""
        try:
            yield
        except _LOST_WORKER as error:
            if self.num_workers == 1:
                raise
            reason = re.search(r"aborted by: (.*)", error.message)
            raise ConnectionError(
                "another worker has stopped or can no longer be reached, so this worker stops too. "
                "Start all workers again with the same command; they resume from the newest "
                f"checkpoint. ({reason[1] if reason else error.message})"
            ) from error


def is_distributed(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy is not TensorFlow's default, which runs on one device."""
    with strategy.scope():
        return tf.distribute.has_strategy()


def next_batch(
    iterator: Any, strategy: tf.distribute.Strategy
) -> tuple[tf.Tensor, Callable[[], Any]]:
    """Takes the next batch from an iterator of `Distribution.batches`.

    Returns:
        `(exists, get)`: a bool tensor, whether all replicas have a batch, and a function that
        returns the batch. Call the function only if the batch exists.
    """
    if not is_distributed(strategy):
        batch = iterator.get_next_as_optional()
        return batch.has_value(), batch.get_value
    *batch, exists = iterator.get_next()
    replicas_with_batch = strategy.reduce("SUM", exists, axis=None)
    return tf.equal(replicas_with_batch, float(strategy.num_replicas_in_sync)), lambda: batch


def _endless(batches):
    """Appends a 1 to each batch; after the last batch, repeats empty videos with a 0 forever.

    The workers' data end at different steps, but all workers must stop at the same step. With
    TensorFlow's own handling, some would compute a step without any video.
    """
    empty_videos = tf.nest.map_structure(
        lambda spec: tf.zeros([size or 1 for size in spec.shape], spec.dtype), batches.element_spec
    )
    end = tf.data.Dataset.from_tensors((*empty_videos, 0.0)).repeat()
    return batches.map(lambda *batch: (*batch, 1.0)).concatenate(end)


def this_replica(synchronized: bool) -> layers.Replica | None:
    """Returns the running `layers.Replica`; None if it is the only replica.

    Args:
        synchronized: whether layers sum over all replicas; otherwise only over their own part.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return None
    return layers.Replica(
        context.replica_id_in_sync_group,
        (lambda values: context.all_reduce("SUM", values)) if synchronized else list,
    )


def choose(mode: str = "auto", tpu: str | None = None) -> Distribution:
    """Returns the distribution that a mode selects. Call it before any other use of devices.

    Args:
        mode: one_device; mirrored, all GPUs of this machine; multi_worker, the machines in
            TF_CONFIG; or tpu. `auto` picks, in order: the TPU if one is given, several machines if
            TF_CONFIG lists them, several GPUs, one device.
        tpu: name or address of a TPU; "local" for the TPU of this machine.

    Raises:
        InputError: if TF_CONFIG or the TPU is not usable.
    """
    if tpu and mode not in ("auto", "tpu"):
        raise InputError(f"--tpu={tpu} cannot be combined with --distribution={mode}.")
    if tpu or mode == "tpu":
        return _logged(Distribution(_tpu_strategy(tpu), static_shapes=True))
    uses_workers = mode in ("auto", "multi_worker")
    workers, own = parse_tf_config(os.environ.get("TF_CONFIG") if uses_workers else None)
    if mode == "multi_worker" and not workers:
        raise InputError(
            "--distribution=multi_worker needs the environment variable TF_CONFIG, which lists the "
            "addresses of all workers and says which of them this process is. See the example in "
            "docs/distribution.md."
        )
    if len(workers) > 1:
        tf.get_logger().setLevel("WARNING")  # INFO logs every reduction of every layer.
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        private_api.start_bfloat16_without_broadcast(strategy)
        return _logged(Distribution(strategy, len(workers), is_chief=own == workers[0]))
    devices = tf.config.list_logical_devices("GPU")
    if mode == "mirrored" and not devices:
        devices = tf.config.list_logical_devices("CPU")
    if mode == "one_device" or len(devices) < 2:
        return _logged(Distribution(tf.distribute.get_strategy()))
    return _logged(
        Distribution(tf.distribute.MirroredStrategy([device.name for device in devices]))
    )


def parse_tf_config(tf_config: str | None) -> tuple[list[Task], Task | None]:
    """Parses TF_CONFIG.

    Args:
        tf_config: value of the environment variable; None if it is not set.

    Returns:
        `(workers, own)`: all workers, the chief first, and the worker that this process is. Without
        a cluster, an empty list and None.

    Raises:
        InputError: if TF_CONFIG is not usable.
    """
    try:
        config = json.loads(tf_config or "{}")
        cluster = config.get("cluster") or {}
        # "chief" sorts before "worker".
        workers = [(kind, n) for kind in sorted(cluster) for n in range(len(cluster[kind]))]
        own = (config["task"]["type"], int(config["task"]["index"])) if workers else None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{_TF_CONFIG_EXPECTED} Received: {tf_config}") from error
    others = sorted(set(cluster) - {"chief", "worker"})
    if others or own not in (*workers, None):
        problem = (
            f"types {comma_separated(others)}" if others else f"task {own}, which the cluster lacks"
        )
        raise InputError(f"{_TF_CONFIG_EXPECTED} Received {problem}, in: {tf_config}")
    return workers, own


def is_first_worker() -> bool:
    """Returns whether this process is the chief according to TF_CONFIG, or the only process.

    Raises:
        InputError: if TF_CONFIG is not usable.
    """
    workers, own = parse_tf_config(os.environ.get("TF_CONFIG"))
    return not workers or own == workers[0]


def _tpu_strategy(tpu):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu or "")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise InputError(
            "no TPU can be used. --tpu=local selects the TPU of this machine and needs the package "
            f"tensorflow-tpu. TensorFlow reports: {error}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _is_first_of_worker(distribution, context):
    per_worker = distribution.num_replicas // distribution.num_workers
    return context.replica_id_in_sync_group % per_worker == 0


def _logged(distribution):
    if distribution.num_replicas > 1:
        logging.info(
            "%s: %d devices of %d worker(s) share each batch%s",
            type(distribution.strategy).__name__,
            distribution.num_replicas,
            distribution.num_workers,
            "" if distribution.is_chief else "; another worker, the chief, writes all files",
        )
    return distribution


@contextlib.contextmanager
def termination_requests() -> Iterator[Callable[[], bool]]:
    """Catches SIGTERM, which announces that the machine will be taken away.

    Yields a function that returns whether the signal has arrived. At the end of the block, an
    earlier handler in Python receives it too, so that a program that trains several models in turn
    ends. Enter the block after `choose`, because the runtime of several workers installs its own
    handler. Outside the main thread, where Python cannot catch signals, it catches nothing.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        # None means that the earlier handler was not installed from Python.
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if received and callable(before):
        before(signal.SIGTERM, None)
