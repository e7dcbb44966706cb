"""The share of right siblings: how well a model tells the two classes of a pair apart."""

import numpy as np


def right_siblings(predicted, labels, classes):
    """Returns the share of labels that score above their sibling; 0.5 by chance.

    Labels whose sibling is also a label do not count. Equal scores count half.

    Args:
        predicted: `[N, C]`.
        labels: bool `[N, C]`.
        classes: indices of the classes that have siblings: 2k has 2k + 1, and vice versa.
    """
    siblings = classes ^ 1
    counted = labels[:, classes] & ~labels[:, siblings]
    above = np.sign(predicted[:, classes] - predicted[:, siblings])
    return ((above[counted] + 1) / 2).mean()
