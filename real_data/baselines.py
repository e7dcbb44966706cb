"""Baselines of scikit-learn: logistic regression on statistics of the frames of a clip."""

import numpy as np


def _mean(frames):
    return frames.mean(axis=0)


def _mean_and_deviation(frames):
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0)])


def _means_of_quarters(frames):
    """Returns the means of four parts in time; a short clip's parts share frames."""
    edges = np.linspace(0, len(frames), 5)
    parts = zip(np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int), strict=True)
    return np.concatenate([frames[start:end].mean(axis=0) for start, end in parts])


STATISTICS = {
    "mean": _mean,
    "mean_and_deviation": _mean_and_deviation,
    "means_of_quarters": _means_of_quarters,
}


def predict(clips, training_splits, split, statistic):
    """Trains a logistic regression on standardized statistics, and predicts.

    Args:
        clips: list of `data_sets.Clip`.
        training_splits: splits to train on.
        split: split to predict.
        statistic: key of `STATISTICS`.

    Returns:
        Probabilities and labels of the clips of the split, `[N, C]` each. With several labels per
        clip there is one regression per class, otherwise a joint one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = sorted({label for clip in clips for label in clip.labels})
    values = np.stack([STATISTICS[statistic](clip.frames) for clip in clips])
    labels = np.array([[name in clip.labels for name in names] for clip in clips])
    of_training = np.array([clip.split in training_splits for clip in clips])
    predicted = np.array([clip.split == split for clip in clips])
    regression, targets = LogisticRegression(max_iter=5000), labels.argmax(axis=1)
    if (labels.sum(axis=1) > 1).any():
        regression, targets = OneVsRestClassifier(regression), labels
    model = make_pipeline(StandardScaler(), regression)
    model.fit(values[of_training], targets[of_training])
    return model.predict_proba(values[predicted]), labels[predicted].astype(np.float32)
