"""Whether a run still learns, has settled or overfits: sentences by fixed rules.

Losses are label losses, which training and evaluation compute alike.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from report_page.history import Curve, Run

# A loss counts as changed from this share on, and as far above another from that share on.
CHANGE = 0.01
LARGE_GAP = 0.1
# The learning rate counts as decayed below this share of the largest.
_DECAYED = 0.1
RULES = (
    f"A run overfits if its evaluation loss is at least {CHANGE:.0%} above its minimum at an "
    "earlier step while the training loss fell; if that rose too, the run gets worse. It still "
    f"learns if the evaluation loss fell by at least {CHANGE:.0%} over the last quarter of the "
    "steps, or, with fewer than three evaluations, the mean training loss of the last quarter is "
    "that much below that of the quarter before. Otherwise it has settled. A gap between both "
    f"losses is large from {LARGE_GAP:.0%} on. Training losses are means over a tenth of the steps "
    "of the model in training, for example with sampled frames."
)
# States of a run, in the order in which a page names them, with the verb of one run and of several.
STATES = {
    "worse": ("gets worse", "get worse"),
    "overfits": ("overfits", "overfit"),
    "learns": ("still learns", "still learn"),
    "settled": ("has settled", "have settled"),
    "unknown": ("cannot be judged", "cannot be judged"),
}


@dataclasses.dataclass(frozen=True)
class Learning:
    """What the losses of a run show.

    Attributes:
        name: name of the run.
        state: key of `STATES`.
        reason: sentences with the numbers.
    """

    name: str
    state: str
    reason: str


def judge(run: Run, evaluations: Sequence[dict] | None = None) -> Learning:
    """Judges a run by its losses.

    Args:
        run: the run.
        evaluations: entries like those of metrics.json, ascending by step; by default the run's.
    """
    entries = run.evaluations if evaluations is None else evaluations
    found = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
    training = run.training.get("loss", (np.array([]), np.array([])))
    state, sentences = (
        _by_evaluations(found, training) if len(found) >= 3 else _by_training(training)
    )
    sentences += _gap(found, training)
    if state in ("learns", "settled"):
        sentences += _decay(run.training.get("learning_rate"))
    if 0 < len(found) < 3:
        sentences.append("Fewer than three evaluations cannot show whether it overfits.")
    return Learning(run.name, state, " ".join(sentences))


def _by_evaluations(found, training):
    (last_step, last), (best_step, best) = found[-1], min(found, key=lambda pair: pair[1])
    if last > (1 + CHANGE) * best:
        text = (
            f"The evaluation loss rose from {best:.3f} at step {best_step} to {last:.3f} at step "
            f"{last_step}"
        )
        before, after = mean_until(training, best_step), mean_until(training, last_step)
        if before is None or after is None:
            return "worse", [f"{text}; there is no training loss to compare."]
        change = f"from {before:.3f} to {after:.3f}"
        if after < before:
            return "overfits", [f"{text}, while the training loss fell {change}."]
        return "worse", [f"{text}, and the training loss rose {change}, too."]
    step, before = [pair for pair in found if pair[0] <= 0.75 * last_step or pair is found[0]][-1]
    text = (
        f"The evaluation loss went from {before:.3f} at step {step} to {last:.3f} at step "
        f"{last_step} ({last / before - 1:+.1%})"
    )
    if last <= (1 - CHANGE) * before:
        return "learns", [f"{text}: more steps should improve it."]
    return "settled", [f"{text}."]


def _by_training(training):
    steps, losses = training
    if len(steps):
        share = steps / steps[-1]
        recent, earlier = losses[share > 0.75], losses[(share > 0.5) & (share <= 0.75)]
    if not len(steps) or not len(earlier):
        return "unknown", ["There are too few logged losses."]
    before, last = earlier.mean(), recent.mean()
    text = (
        f"The mean training loss went from {before:.3f} in the third quarter of the steps to "
        f"{last:.3f} in the last ({last / before - 1:+.1%})"
    )
    if last <= (1 - CHANGE) * before:
        return "learns", [f"{text}: more steps should improve it."]
    return "settled", [f"{text}."]


def _gap(found, training):
    if not found:
        return ["It was not evaluated."]
    step, loss = found[-1]
    training_loss = mean_until(training, step)
    if training_loss is None or training_loss <= 0:
        return []
    gap = loss / training_loss - 1
    size = (
        "a large gap: regularization or more data may help" if gap >= LARGE_GAP else "a small gap"
    )
    size = "no gap" if gap <= 0 else size
    return [
        f"At step {step}, the evaluation loss is {loss:.3f} and the training loss "
        f"{training_loss:.3f}: {size} ({gap:+.0%})."
    ]


def _decay(rate):
    if rate is None or rate[1][-1] >= _DECAYED * rate[1].max():
        return []
    share = rate[1][-1] / rate[1].max()
    return [
        f"The learning rate has decayed to {share:.1%} of its start: a slower decay would let the "
        "run learn longer."
    ]


def mean_until(curve: Curve, step: int) -> float | None:
    """Returns the mean of a curve over the tenth of the steps before one; None without a value.

    If no value falls into that tenth, the last before it counts.
    """
    steps, values = curve
    before = steps <= step
    if not before.any():
        return None
    recent = before & (steps > 0.9 * step)
    return float(values[recent].mean() if recent.any() else values[before][-1])
