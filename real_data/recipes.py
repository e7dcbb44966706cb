"""Recipes of the real data sets: models, their sizes, and one training recipe per data set.

Recipes were selected on the split `validate`; see log.md.
"""

import dataclasses

MEAN_LEARNING_RATE = 0.3
CHECKPOINTS, AVERAGED_CHECKPOINTS = 12, 4
BATCH_NORM_BATCHES = 40
SAMPLINGS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model.

    Attributes:
        title: name in tables.
        flags: flags of train.py, separated by spaces.
    """

    title: str
    flags: str


_MEAN = f"--model=FrameLevelLogisticModel --iterations=0 --base_learning_rate={MEAN_LEARNING_RATE}"
_NETVLAD = "--netvlad_cluster_size=32 --netvlad_hidden_size=128 --moe_num_mixtures=2"

MODELS = {
    "logistic": Model("logistic on the mean", _MEAN),
    "moe": Model("MoE on the mean", f"{_MEAN} --video_level_classifier_model=MoeModel"),
    "dbof": Model("DBoF", "--model=DbofModel --dbof_cluster_size=256 --dbof_hidden_size=128"),
    "lstm": Model("LSTM", "--model=LstmModel --lstm_cells=64"),
    "netvlad": Model("gated NetVLAD", f"--model=LFNLNetVLADModel {_NETVLAD} --nononlocal_block"),
    "lfnl_netvlad": Model(
        "LFNL-NetVLAD", f"--model=LFNLNetVLADModel {_NETVLAD} --nonlocal_embedding=16"
    ),
    "lfnl_netrvlad": Model(
        "LFNL-NetRVLAD", f"--model=LFNLNetRVLADModel {_NETVLAD} --nonlocal_embedding=16"
    ),
    "soft_bof": Model(
        "Soft-BoF",
        "--model=SoftBoFModel --soft_bof_cluster_size=256 --soft_bof_hidden_size=128",
    ),
    "gru": Model("GRU", "--model=GruModel --gru_cells=64"),
    "nextvlad": Model(
        "NeXtVLAD",
        "--model=NeXtVLADModel --nextvlad_groups=2 --nextvlad_cluster_size=32 "
        "--nextvlad_hidden_size=128",
    ),
    "gated_dbof": Model(
        "gated DBoF",
        "--model=GatedDbofModel --gated_dbof_cluster_size=256 --gated_dbof_hidden_size=128 "
        "--moe_num_mixtures=2",
    ),
}
MEAN_MODELS = ("logistic", "moe")
# The paper's models, and those that others published. Their checkpoints are averaged, and ensembles
# made of them. EFNL-NetVLAD is left out: with one feature, it is LFNL-NetVLAD with another factor.
PAPER = ("lfnl_netvlad", "lfnl_netrvlad", "soft_bof", "gru")
OTHERS = ("nextvlad", "gated_dbof")
AVERAGED = PAPER + OTHERS
ENSEMBLE, LARGE_ENSEMBLE = "ensemble", "large_ensemble"
ENSEMBLES = {ENSEMBLE: PAPER, LARGE_ENSEMBLE: AVERAGED}
# Of the exported ensemble, the dtypes of the matrices.
EXPORT_DTYPES = ("bfloat16", "int8")
# The model of which several samplings are shown, in addition to every frame once.
SAMPLED = "lfnl_netvlad"


# Logistic regressions on statistics of the frames (see baselines.py), by the name in scores.
STATISTICS = {
    "sklearn_mean": "scikit-learn: mean",
    "sklearn_mean_and_deviation": "scikit-learn: mean and deviation",
    "sklearn_means_of_quarters": "scikit-learn: means of four quarters",
}
# All that is scored, in the order of tables.
TITLES = {
    **STATISTICS,
    **{name: model.title for name, model in MODELS.items()},
    ENSEMBLE: "ensemble of the paper's models",
    LARGE_ENSEMBLE: "ensemble of these and the other authors' models",
}
# Hit@1 to reach.
GOALS = {"spoken_digits": 0.99, "japanese_vowels": 0.987}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Training of all models on a data set.

    Attributes:
        title: name in tables.
        iterations: frames per sampling in training, except for models of the mean.
        max_steps: number of training steps.
        batch_size: clips per step.
        learning_rate: initial learning rate; models of the mean have their own.
    """

    title: str
    iterations: int
    max_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 0.01
    learning_rate_decay: float = 0.7

    def flags(self, model):
        """Returns the flags of train.py for a model, a list."""
        decay_examples = self.max_steps * self.batch_size // 8
        text = (
            f"--normalize_frames=none --num_epochs=0 --max_steps={self.max_steps} "
            f"--batch_size={self.batch_size} --base_learning_rate={self.learning_rate} "
            f"--learning_rate_decay={self.learning_rate_decay} "
            f"--learning_rate_decay_examples={decay_examples} --iterations={self.iterations} "
        )
        # A flag that is given twice has its last value.
        return (text + MODELS[model].flags).split()


RECIPES = {
    "spoken_digits": Recipe("spoken digits", iterations=20),
    "japanese_vowels": Recipe("Japanese vowels", iterations=10, max_steps=400),
    "flash_digits": Recipe("flash digits", iterations=15),
    "watch_exercises": Recipe("watch exercises", iterations=5, max_steps=400),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Size of the experiments.

    Attributes:
        models: maps each data set to the models trained on it.
        seeds: seeds of training.
        max_steps: number of training steps instead of the recipe's.
    """

    models: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...] = (0, 1, 2)
    max_steps: int | None = None

    def recipe(self, data_set):
        """Returns the `Recipe` of a data set at this scale."""
        recipe = RECIPES[data_set]
        return dataclasses.replace(recipe, max_steps=self.max_steps or recipe.max_steps)

    def ensembles(self, data_set):
        """Returns the members of the ensembles at this scale, of those that differ."""
        own = {
            name: [member for member in members if member in self.models[data_set]]
            for name, members in ENSEMBLES.items()
        }
        return {
            name: members
            for name, members in own.items()
            if name == ENSEMBLE or members != own[ENSEMBLE]
        }

    def flags(self):
        """Returns the flags of train.py for every data set and model."""
        return {
            data_set: {model: self.recipe(data_set).flags(model) for model in models}
            for data_set, models in self.models.items()
        }


SCALES = {
    "full": Scale(dict.fromkeys(RECIPES, tuple(MODELS))),
    "quick": Scale(dict.fromkeys(RECIPES, ("moe", "lfnl_netvlad", "soft_bof", "gru")), seeds=(0,)),
    "miniature": Scale(
        {"spoken_digits": ("moe", "lfnl_netvlad", "gru", "nextvlad")}, seeds=(0,), max_steps=24
    ),
}
