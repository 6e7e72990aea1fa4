"""What frozen features are worth: a linear classifier trained on them."""

import warnings

import numpy as np

from fdjax import checks


def accuracy(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    decay: float = 1e-3,
) -> float:
    """Accuracy on test features of a linear classifier trained on others.

    It is the minimum of mean cross-entropy and half `decay` times the squared kernel, so no
    seed and no schedule plays a part. Features are standardised by the training ones; one that
    never changes is left out.

    Args:
        train: Features and labels.
        test: Features and labels.
        decay: Weight of the penalty, > 0.

    Raises:
        InputError: If the features hold NaN or infinity, or `decay` is not positive.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    checks.positive("decay", decay)
    for features, _ in (train, test):
        checks.finite("the features of the probe", features)
    mean, std = train[0].mean(axis=0), train[0].std(axis=0)
    scale = np.where(std > 1e-6, 1 / np.maximum(std, 1e-6), 0.0)
    classifier = LogisticRegression(C=1 / (decay * len(train[1])), max_iter=300)
    with warnings.catch_warnings():
        # Three hundred steps come near enough: what is left moves no more than single images.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit((train[0] - mean) * scale, train[1])
    return float(classifier.score((test[0] - mean) * scale, test[1]))
