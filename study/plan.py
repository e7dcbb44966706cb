"""What the study runs: worlds, models, and the command of every step.

The models are the paper's at a quarter of their widths, with the same recipe for all. Every step is
one of the programs, called from the shell; what it writes is all that later steps see of it.
"""

import dataclasses
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]

FEATURE_SIZES = "64,16"
NUM_CLASSES = 160
MIN_FRAMES, MAX_FRAMES = 20, 48
BATCH_SIZE = 128
LEARNING_RATE = 0.005
LEARNING_RATE_OF_THE_MEAN = 0.1
LEARNING_RATE_DECAY = 0.9
LEARNING_RATE_DECAYS = 8
CHECKPOINTS = 12
AVERAGED_CHECKPOINTS = 4
BATCH_NORM_BATCHES = 100

# Widths of the paper divided by 4; 32 of up to 48 frames are sampled.
_NETVLAD = (
    *("--model=LFNLNetVLADModel", "--iterations=32", "--netvlad_cluster_size=16,8"),
    *("--netvlad_hidden_size=256", "--nonlocal_embedding=16,8"),
)
_SOFT_BOF = ("--model=SoftBoFModel", "--iterations=32", "--soft_bof_hidden_size=256")
_MEAN = ("--model=FrameLevelLogisticModel", "--iterations=0")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of the study.

    Attributes:
        title: its name in tables.
        flags: of train.py.
        cost: seconds that training takes on one core, roughly, at full scale.
        learning_rate: the first one of training.
    """

    title: str
    flags: tuple[str, ...]
    cost: int
    learning_rate: float = LEARNING_RATE


MODELS = {
    "logistic": Model("logistic on the mean", _MEAN, 35, LEARNING_RATE_OF_THE_MEAN),
    "moe": Model(
        "MoE on the mean",
        (*_MEAN, "--video_level_classifier_model=MoeModel"),
        35,
        LEARNING_RATE_OF_THE_MEAN,
    ),
    "dbof": Model(
        "DBoF",
        (
            *("--model=DbofModel", "--iterations=32"),
            *("--dbof_cluster_size=2048", "--dbof_hidden_size=256"),
        ),
        250,
    ),
    "lstm": Model("LSTM", ("--model=LstmModel", "--lstm_cells=128"), 300),
    "netvlad": Model("gated NetVLAD", (*_NETVLAD, "--nononlocal_block"), 75),
    "lfnl_dot": Model(
        "LFNL-NetVLAD, dot product", (*_NETVLAD, "--nonlocal_pairwise=dot_product"), 85
    ),
    "lfnl_netvlad": Model("LFNL-NetVLAD", _NETVLAD, 85),
    "lfnl_netrvlad": Model(
        "LFNL-NetRVLAD",
        (
            *("--model=LFNLNetRVLADModel", "--iterations=32", "--netvlad_cluster_size=16,8"),
            *("--netvlad_hidden_size=256", "--nonlocal_embedding=128,16"),
        ),
        85,
    ),
    "efnl_netvlad": Model(
        "EFNL-NetVLAD",
        (
            *("--model=EFNLNetVLADModel", "--iterations=32", "--netvlad_cluster_size=16"),
            *("--netvlad_hidden_size=256", "--nonlocal_embedding=16"),
        ),
        70,
    ),
    "soft_bof_4k": Model("Soft-BoF-4k", (*_SOFT_BOF, "--soft_bof_cluster_size=1000,125"), 170),
    "soft_bof_8k": Model("Soft-BoF-8k", (*_SOFT_BOF, "--soft_bof_cluster_size=2000,250"), 330),
    "gru": Model("GRU", ("--model=GruModel", "--gru_cells=300"), 750),
}
MEAN_POOLED = ("logistic", "moe")
# The paper's M1 to M6, and its combinations of them.
SIX = ("lfnl_netvlad", "lfnl_netrvlad", "efnl_netvlad", "soft_bof_4k", "soft_bof_8k", "gru")
COMBINATIONS = ((1, 4), (1, 2), (1, 6), (1, 4, 6), (1, 2, 4, 6), (1, 2, 3, 4, 6), range(1, 7))
SAMPLINGS = (1, 5, 10, 0)
EXPORT_DTYPES = ("float32", "bfloat16")

# Ways to make the weights that are evaluated out of a training run: of how many checkpoints, the
# last ones, average_checkpoints.py takes the mean, and its --batch_norm. Beside them are "last",
# the last checkpoint itself, and "ema".
AVERAGES = {
    "averaged": (AVERAGED_CHECKPOINTS, "recompute"),
    "averaged_mean_bn": (AVERAGED_CHECKPOINTS, "mean"),
    "averaged_last_bn": (AVERAGED_CHECKPOINTS, "last"),
    "last_recomputed": (1, "recompute"),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        worlds: the models to train in each world.
        averages: keys of `AVERAGES`.
        seeds: of trainings; the data are the same for all.
        num_videos: training videos.
        num_test_videos: test videos, which all figures are of.
        max_steps: training steps.
    """

    worlds: dict[str, tuple[str, ...]]
    averages: tuple[str, ...]
    seeds: tuple[int, ...]
    num_videos: int
    num_test_videos: int
    max_steps: int

    @property
    def steps(self):
        """Steps of the checkpoints."""
        interval = self.max_steps // CHECKPOINTS
        return range(interval, self.max_steps + 1, interval)

    @property
    def members(self):
        """Models of the paper that the world `bag` has, for averages and ensembles."""
        return tuple(name for name in SIX if name in self.worlds["bag"])

    @property
    def combinations(self):
        """Ensembles of the paper whose members are there: tuples of model names."""
        named = [tuple(SIX[number - 1] for number in numbers) for numbers in COMBINATIONS]
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
        num_videos=6000,
        num_test_videos=1000,
        max_steps=300,
    ),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        name: str. Also the name of its log.
        command: tuple of str. What Python runs: the program and its flags.
        output: path of the file or directory that it makes.
        needs: names of the jobs whose outputs it reads.
        cost: seconds it takes on one core, roughly.
        resumes: whether it goes on with an output that it left unfinished.
        alone: whether nothing may run beside it, as its speed is measured.
    """

    name: str
    command: tuple[str, ...]
    output: pathlib.Path
    needs: tuple[str, ...] = ()
    cost: float = 8.0
    resumes: bool = False
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a job measured: a model or an ensemble of the world `bag`, treated in some way."""

    seed: int
    subject: str
    treatment: str
    metrics: pathlib.Path


class Plan:
    """All jobs of a scale, in an order in which they can run.

    Args:
        scale: `Scale`.
        output_dir: path. Where everything goes.

    Attributes:
        jobs: list of `Job`.
        evaluations: list of `Evaluation`; models as they were trained are not among them.
    """

    def __init__(self, scale, output_dir):
        self.scale = scale
        self.output_dir = pathlib.Path(output_dir)
        self.jobs, self.evaluations = [], []
        for world in scale.worlds:
            self._add_data(world)
        for seed in scale.seeds:
            for world, names in scale.worlds.items():
                # The longest first, so that no core waits for them in the end.
                for name in sorted(names, key=lambda name: -MODELS[name].cost):
                    self._add_model(world, seed, name)
            self._add_ensembles(seed)

    def predictions(self, world, seed, name):
        """Path of a model's predictions, all classes of all test videos."""
        return self._folder(world, seed) / "predictions" / f"{name}.csv"

    def model_dir(self, world, seed, name, treatment="last"):
        """Train directory with the weights of a model, treated in some way."""
        return self._folder(world, seed) / "models" / name / treatment

    def export_dir(self, seed, dtype):
        """Directory of an exported ensemble."""
        return self._folder("bag", seed) / "exported" / dtype

    def data(self, world, split="test"):
        """Pattern of the records of a split."""
        return str(self.output_dir / "data" / world / f"{split}*.tfrecord")

    def _folder(self, world, seed):
        return self.output_dir / world / f"seed{seed}"

    def _add(self, name, *command, **options):
        self.jobs.append(Job(name, tuple(map(str, command)), **options))
        return name

    def _add_data(self, world):
        folder = self.output_dir / "data" / world
        self._add(
            f"{world}/data",
            *("make_sample_data.py", f"--output_dir={folder}", f"--world={world}"),
            f"--num_videos={self.scale.num_videos}",
            f"--num_eval_videos={self.scale.num_test_videos}",
            *(f"--num_classes={NUM_CLASSES}", f"--feature_sizes={FEATURE_SIZES}"),
            *(f"--min_frames={MIN_FRAMES}", f"--max_frames={MAX_FRAMES}"),
            output=folder,
        )

    def _add_model(self, world, seed, name):
        prefix, model = f"{world}/seed{seed}/{name}", MODELS[name]
        examples = self.scale.max_steps * BATCH_SIZE
        run = self.model_dir(world, seed, name)
        train = self._add(
            f"{prefix}/train",
            *("train.py", f"--train_data_pattern={self.data(world, 'train')}"),
            f"--train_dir={run}",
            *(*model.flags, f"--seed={seed}", f"--base_learning_rate={model.learning_rate}"),
            *(f"--num_classes={NUM_CLASSES}", f"--feature_sizes={FEATURE_SIZES}"),
            *(f"--max_frames={MAX_FRAMES}", f"--batch_size={BATCH_SIZE}"),
            *(f"--max_steps={self.scale.max_steps}", "--num_epochs=1000000"),
            f"--learning_rate_decay={LEARNING_RATE_DECAY}",
            f"--learning_rate_decay_examples={examples // LEARNING_RATE_DECAYS}",
            *("--ema_decay=0.99", f"--export_model_steps={self.scale.steps[0]}"),
            *("--keep_checkpoints=0", "--log_steps=100"),
            output=run,
            needs=(f"{world}/data",),
            cost=10 + model.cost * self.scale.max_steps / 1800,
            resumes=True,
        )
        self._add(
            f"{prefix}/eval",
            *("eval.py", f"--train_dir={run}", f"--eval_data_pattern={self.data(world)}"),
            "--all_checkpoints",
            output=run / "eval",
            needs=(train,),
            cost=15,
        )
        self._add(
            f"{prefix}/predict",
            *("inference.py", f"--train_dir={run}", f"--input_data_pattern={self.data(world)}"),
            *(f"--top_k={NUM_CLASSES}", f"--output_file={self.predictions(world, seed, name)}"),
            output=self.predictions(world, seed, name),
            needs=(train,),
        )
        if world == "bag" and name in SIX:
            self._add_averages(seed, name, train)

    def _add_averages(self, seed, name, train):
        run = self.model_dir("bag", seed, name)
        self._add_eval(seed, name, "ema", (train,), f"--train_dir={run}", "--use_ema")
        data = (
            f"--train_data_pattern={self.data('bag', 'train')}",
            f"--batch_norm_batches={BATCH_NORM_BATCHES}",
        )
        for treatment in self.scale.averages:
            averaged = self.model_dir("bag", seed, name, treatment)
            count, batch_norm = AVERAGES[treatment]
            # By number, as a training that was stopped in between leaves a checkpoint more.
            chosen = ",".join(map(str, self.scale.steps[-count:]))
            average = self._add(
                self._average(seed, name, treatment),
                *("average_checkpoints.py", f"--train_dir={run}", f"--output_dir={averaged}"),
                *(f"--checkpoints={chosen}", f"--batch_norm={batch_norm}"),
                *(data if batch_norm == "recompute" else ()),
                output=averaged,
                needs=(train,),
                cost=12,
            )
            self._add_eval(seed, name, treatment, (average,), f"--train_dir={averaged}")

    def _average(self, seed, name, treatment="averaged"):
        return f"bag/seed{seed}/{name}/{treatment}/average"

    def _add_ensembles(self, seed):
        for names in self.scale.combinations:
            self._add_ensemble(seed, names, samplings=1)
        everyone = self.scale.combinations[-1]
        for samplings in SAMPLINGS[1:]:
            self._add_ensemble(seed, everyone, samplings)
        for dtype in EXPORT_DTYPES:
            folder = self.export_dir(seed, dtype)
            export = self._add(
                f"bag/seed{seed}/{'+'.join(everyone)}/exported_{dtype}/export",
                *("export_model.py", f"--train_dirs={self._averaged_dirs(seed, everyone)}"),
                *(f"--output_dir={folder}", f"--dtype={dtype}"),
                output=folder,
                needs=tuple(self._average(seed, name) for name in everyone),
                cost=25,
            )
            self._add_eval(
                *(seed, "+".join(everyone), f"exported_{dtype}", (export,)),
                f"--exported_model={folder}",
                alone=True,
            )

    def _add_ensemble(self, seed, names, samplings):
        self._add_eval(
            *(seed, "+".join(names), f"samplings{samplings}"),
            tuple(self._average(seed, name) for name in names),
            f"--train_dirs={self._averaged_dirs(seed, names)}",
            f"--num_samplings={samplings}",
            cost=8 + 4 * len(names),
        )

    def _averaged_dirs(self, seed, names):
        return ",".join(str(self.model_dir("bag", seed, name, "averaged")) for name in names)

    def _add_eval(self, seed, subject, treatment, needs, *what, **options):
        """A job that evaluates a model or an ensemble, treated in some way, in the world `bag`."""
        metrics = self._folder("bag", seed) / "metrics" / subject / f"{treatment}.json"
        self.evaluations.append(Evaluation(seed, subject, treatment, metrics))
        self._add(
            f"bag/seed{seed}/{subject}/{treatment}/eval",
            *("eval.py", *what, f"--eval_data_pattern={self.data('bag')}", "--run_once"),
            f"--metrics_json={metrics}",
            output=metrics,
            needs=needs,
            **options,
        )
