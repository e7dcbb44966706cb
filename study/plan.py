"""The study's worlds, models, and jobs.

All models are the paper's with a quarter of its widths, trained with the same recipe. A job runs
one of the programs in the shell. Later jobs read only the files it writes.
"""

import dataclasses
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]

FEATURE_SIZES = "64,16"
NUM_CLASSES = 160
MIN_FRAMES, MAX_FRAMES = 20, 48
BATCH_SIZE = 128
LEARNING_RATE = 0.005
LEARNING_RATE_OF_MEAN_MODELS = 0.1
LEARNING_RATE_DECAY = 0.9
LEARNING_RATE_DECAYS = 8
CHECKPOINTS = 12
AVERAGED_CHECKPOINTS = 4
BATCH_NORM_BATCHES = 100


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of the study.

    Attributes:
        title: name in tables.
        flags: flags of train.py, separated by spaces.
        learning_rate: initial learning rate.
    """

    title: str
    flags: str
    learning_rate: float = LEARNING_RATE


# Widths are a quarter of the paper's. Frame samplers take 32 of up to 48 frames.
_MEAN = "--model=FrameLevelLogisticModel --iterations=0"
_NETVLAD = (
    "--model=LFNLNetVLADModel --iterations=32 --netvlad_cluster_size=16,8 "
    "--netvlad_hidden_size=256 --nonlocal_embedding=16,8"
)
_NETRVLAD = (
    "--model=LFNLNetRVLADModel --iterations=32 --netvlad_cluster_size=16,8 "
    "--netvlad_hidden_size=256 --nonlocal_embedding=128,16"
)
_EARLY_NETVLAD = (
    "--model=EFNLNetVLADModel --iterations=32 --netvlad_cluster_size=16 "
    "--netvlad_hidden_size=256 --nonlocal_embedding=16"
)
_DBOF = "--model=DbofModel --iterations=32 --dbof_cluster_size=2048 --dbof_hidden_size=256"
_SOFT_BOF = "--model=SoftBoFModel --iterations=32 --soft_bof_hidden_size=256"

MODELS = {
    "logistic": Model("logistic on the mean", _MEAN, LEARNING_RATE_OF_MEAN_MODELS),
    "moe": Model(
        "MoE on the mean",
        f"{_MEAN} --video_level_classifier_model=MoeModel",
        LEARNING_RATE_OF_MEAN_MODELS,
    ),
    "dbof": Model("DBoF", _DBOF),
    "lstm": Model("LSTM", "--model=LstmModel --lstm_cells=128"),
    "netvlad": Model("gated NetVLAD", f"{_NETVLAD} --nononlocal_block"),
    "lfnl_dot": Model("LFNL-NetVLAD, dot product", f"{_NETVLAD} --nonlocal_pairwise=dot_product"),
    "lfnl_netvlad": Model("LFNL-NetVLAD", _NETVLAD),
    "lfnl_netrvlad": Model("LFNL-NetRVLAD", _NETRVLAD),
    "efnl_netvlad": Model("EFNL-NetVLAD", _EARLY_NETVLAD),
    "soft_bof_4k": Model("Soft-BoF-4k", f"{_SOFT_BOF} --soft_bof_cluster_size=1000,125"),
    "soft_bof_8k": Model("Soft-BoF-8k", f"{_SOFT_BOF} --soft_bof_cluster_size=2000,250"),
    "gru": Model("GRU", "--model=GruModel --gru_cells=300"),
}
MEAN_MODELS = ("logistic", "moe")
# The paper's models M1 to M6 and its ensembles of them.
SIX = ("lfnl_netvlad", "lfnl_netrvlad", "efnl_netvlad", "soft_bof_4k", "soft_bof_8k", "gru")
ENSEMBLES = ((1, 4), (1, 2), (1, 6), (1, 4, 6), (1, 2, 4, 6), (1, 2, 3, 4, 6), range(1, 7))
SAMPLINGS = (1, 5, 10, 0)
# All other predictions follow the paper's protocol, in which a model that samples does so once.
ONE_SAMPLING = "--num_samplings=1"
EXPORT_DTYPES = ("float32", "bfloat16")

# Variants of a trained model that average_checkpoints.py makes: the number of checkpoints, counted
# from the last one, and --batch_norm. The other variants are "last", the last checkpoint, and
# "ema", the moving average of the weights.
AVERAGES = {
    "averaged": (AVERAGED_CHECKPOINTS, "recompute"),
    "averaged_mean_bn": (AVERAGED_CHECKPOINTS, "mean"),
    "averaged_last_bn": (AVERAGED_CHECKPOINTS, "last"),
    "last_recomputed": (1, "recompute"),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Size of the study.

    Attributes:
        worlds: maps each world to the models trained in it.
        averages: keys of `AVERAGES`.
        seeds: seeds of training. The data are the same for all seeds.
        num_videos: number of training videos.
        num_test_videos: number of test videos, on which all metrics are computed.
        max_steps: number of training steps.
        samplings: numbers of frame samplings that the largest ensemble averages over; 0 stands for
            every frame once.
    """

    worlds: dict[str, tuple[str, ...]]
    averages: tuple[str, ...]
    seeds: tuple[int, ...]
    num_videos: int
    num_test_videos: int
    max_steps: int
    samplings: tuple[int, ...] = SAMPLINGS

    @property
    def steps(self):
        """Steps of the checkpoints."""
        interval = self.max_steps // CHECKPOINTS
        return range(interval, self.max_steps + 1, interval)

    @property
    def members(self):
        """The paper's models in the world `bag`, used for averages and ensembles."""
        return tuple(name for name in SIX if name in self.worlds["bag"])

    @property
    def ensembles(self):
        """The paper's ensembles whose members are all trained: tuples of model names."""
        named = [tuple(SIX[number - 1] for number in numbers) for numbers in ENSEMBLES]
        return [names for names in named if set(names) <= set(self.members)]


SCALES = {
    "full": Scale(
        worlds={
            "bag": ("logistic", "moe", "dbof", "lstm", "netvlad", *SIX),
            "relational": ("moe", "netvlad", "lfnl_netvlad", "lfnl_dot", "soft_bof_4k"),
            "unrelated": ("moe", "netvlad", "lfnl_netvlad", "lfnl_dot"),
        },
        averages=tuple(AVERAGES),
        seeds=(0, 1, 2),
        num_videos=36000,
        num_test_videos=4000,
        max_steps=1800,
    ),
    "quick": Scale(
        worlds={"bag": ("moe", "netvlad", *SIX)},
        averages=("averaged",),
        seeds=(0,),
        num_videos=12000,
        num_test_videos=1000,
        max_steps=192,
    ),
    "miniature": Scale(
        worlds={"bag": ("lfnl_netvlad", "soft_bof_4k")},
        averages=("averaged",),
        seeds=(0,),
        num_videos=2000,
        num_test_videos=256,
        max_steps=120,
        samplings=(1, 10),
    ),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: str. Also the name of its log.
        command: tuple of str. Arguments of Python: the program and its flags.
        output: path of the file or directory that it writes.
        needs: names of the jobs whose outputs it reads.
        resumes: whether the program can resume from an unfinished output.
        alone: whether it must run alone because it measures speed.
    """

    name: str
    command: tuple[str, ...]
    output: pathlib.Path
    needs: tuple[str, ...] = ()
    resumes: bool = False
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics file of a variant of a model or an ensemble in the world `bag`."""

    seed: int
    subject: str
    variant: str
    metrics: pathlib.Path


class Plan:
    """The jobs of a scale, each after the jobs it needs.

    Args:
        scale: `Scale`.
        output_dir: path. Directory for all outputs.

    Attributes:
        jobs: list of `Job`.
        evaluations: list of `Evaluation`, for all variants but `last`.
    """

    def __init__(self, scale, output_dir):
        self.scale = scale
        self.output_dir = pathlib.Path(output_dir)
        self.jobs, self.evaluations = [], []
        for world in scale.worlds:
            self._add_data(world)
        for seed in scale.seeds:
            for world, names in scale.worlds.items():
                # The last models of a world are the slowest. They start first.
                for name in reversed(names):
                    self._add_model(world, seed, name)
            self._add_ensembles(seed)

    def predictions(self, world, seed, name):
        """Path of a model's predictions: all classes of all test videos."""
        return self._folder(world, seed) / "predictions" / f"{name}.csv"

    def model_dir(self, world, seed, name, variant="last"):
        """Train directory of a variant of a model."""
        return self._folder(world, seed) / "models" / name / variant

    def export_dir(self, seed, dtype):
        """Directory of an exported ensemble."""
        return self._folder("bag", seed) / "exported" / dtype

    def data(self, world, split="test"):
        """File pattern of the records of a split."""
        return str(self.output_dir / "data" / world / f"{split}*.tfrecord")

    def _folder(self, world, seed):
        return self.output_dir / world / f"seed{seed}"

    def _add(self, name, program, *paths, flags="", **options):
        """Adds a job. Flags with a path are passed one by one, as paths may contain spaces."""
        self.jobs.append(Job(name, (program, *paths, *flags.split()), **options))
        return name

    def _add_data(self, world):
        folder = self.output_dir / "data" / world
        self._add(
            f"{world}/data",
            "make_sample_data.py",
            f"--output_dir={folder}",
            flags=f"--world={world} --num_videos={self.scale.num_videos} "
            f"--num_eval_videos={self.scale.num_test_videos} --num_classes={NUM_CLASSES} "
            f"--feature_sizes={FEATURE_SIZES} --min_frames={MIN_FRAMES} --max_frames={MAX_FRAMES}",
            output=folder,
        )

    def _add_model(self, world, seed, name):
        prefix, model = f"{world}/seed{seed}/{name}", MODELS[name]
        decay_examples = self.scale.max_steps * BATCH_SIZE // LEARNING_RATE_DECAYS
        run = self.model_dir(world, seed, name)
        train = self._add(
            f"{prefix}/train",
            "train.py",
            f"--train_data_pattern={self.data(world, 'train')}",
            f"--train_dir={run}",
            flags=f"{model.flags} --seed={seed} --num_classes={NUM_CLASSES} "
            f"--feature_sizes={FEATURE_SIZES} --max_frames={MAX_FRAMES} "
            f"--batch_size={BATCH_SIZE} --max_steps={self.scale.max_steps} --num_epochs=1000000 "
            f"--base_learning_rate={model.learning_rate} "
            f"--learning_rate_decay={LEARNING_RATE_DECAY} "
            f"--learning_rate_decay_examples={decay_examples} --ema_decay=0.99 "
            f"--export_model_steps={self.scale.steps[0]} --keep_checkpoints=0 --log_steps=100",
            output=run,
            needs=(f"{world}/data",),
            resumes=True,
        )
        self._add(
            f"{prefix}/eval",
            "eval.py",
            f"--train_dir={run}",
            f"--eval_data_pattern={self.data(world)}",
            flags=f"--all_checkpoints {ONE_SAMPLING}",
            output=run / "eval",
            needs=(train,),
        )
        self._add(
            f"{prefix}/predict",
            "inference.py",
            f"--train_dir={run}",
            f"--input_data_pattern={self.data(world)}",
            f"--output_file={self.predictions(world, seed, name)}",
            flags=f"--top_k={NUM_CLASSES} {ONE_SAMPLING}",
            output=self.predictions(world, seed, name),
            needs=(train,),
        )
        if world == "bag" and name in SIX:
            self._add_averages(seed, name, train)

    def _add_averages(self, seed, name, train):
        run = self.model_dir("bag", seed, name)
        flags = f"--use_ema {ONE_SAMPLING}"
        self._add_eval(seed, name, "ema", (train,), f"--train_dir={run}", flags=flags)
        for variant in self.scale.averages:
            averaged = self.model_dir("bag", seed, name, variant)
            count, batch_norm = AVERAGES[variant]
            # Steps are listed because an interrupted training has additional checkpoints.
            steps = ",".join(map(str, self.scale.steps[-count:]))
            flags = f"--checkpoints={steps} --batch_norm={batch_norm}"
            paths = [f"--train_dir={run}", f"--output_dir={averaged}"]
            if batch_norm == "recompute":
                flags += f" --batch_norm_batches={BATCH_NORM_BATCHES}"
                paths.append(f"--train_data_pattern={self.data('bag', 'train')}")
            average = self._add(
                self._average(seed, name, variant),
                "average_checkpoints.py",
                *paths,
                flags=flags,
                output=averaged,
                needs=(train,),
            )
            path = f"--train_dir={averaged}"
            self._add_eval(seed, name, variant, (average,), path, flags=ONE_SAMPLING)

    def _average(self, seed, name, variant="averaged"):
        return f"bag/seed{seed}/{name}/{variant}/average"

    def _add_ensembles(self, seed):
        for names in self.scale.ensembles:
            self._add_ensemble(seed, names, samplings=1)
        largest = self.scale.ensembles[-1]
        for samplings in self.scale.samplings[1:]:
            self._add_ensemble(seed, largest, samplings)
        for dtype in EXPORT_DTYPES:
            self._add_export(seed, largest, dtype)

    def _add_ensemble(self, seed, names, samplings):
        self._add_eval(
            seed,
            "+".join(names),
            f"samplings{samplings}",
            tuple(self._average(seed, name) for name in names),
            f"--train_dirs={self._averaged_dirs(seed, names)}",
            flags=f"--num_samplings={samplings}",
        )

    def _add_export(self, seed, names, dtype):
        subject, variant = "+".join(names), f"exported_{dtype}"
        folder = self.export_dir(seed, dtype)
        export = self._add(
            f"bag/seed{seed}/{subject}/{variant}/export",
            "export_model.py",
            f"--train_dirs={self._averaged_dirs(seed, names)}",
            f"--output_dir={folder}",
            flags=f"--dtype={dtype} {ONE_SAMPLING}",
            output=folder,
            needs=tuple(self._average(seed, name) for name in names),
        )
        self._add_eval(seed, subject, variant, (export,), f"--exported_model={folder}", alone=True)

    def _averaged_dirs(self, seed, names):
        return ",".join(str(self.model_dir("bag", seed, name, "averaged")) for name in names)

    def _add_eval(self, seed, subject, variant, needs, path, flags="", **options):
        """Adds a job that evaluates a variant of a model or an ensemble in the world `bag`."""
        metrics = self._folder("bag", seed) / "metrics" / subject / f"{variant}.json"
        self.evaluations.append(Evaluation(seed, subject, variant, metrics))
        self._add(
            f"bag/seed{seed}/{subject}/{variant}/eval",
            "eval.py",
            path,
            f"--eval_data_pattern={self.data('bag')}",
            f"--metrics_json={metrics}",
            flags=f"--run_once {flags}",
            output=metrics,
            needs=needs,
            **options,
        )
