"""Labelled training images held out from training, to judge students by while they learn."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fdjax import checks, data
from fdjax.types import UNLABELLED, Outputs, Variables


class Validation(NamedTuple):
    """How a student is judged while it learns, and when it may stop.

    Attributes:
        held_out: Images that the task has no label of, as they were loaded, with their labels.
        every: Steps between judgements.
        patience: Judgements without a higher value after which training ends; None for never.
    """

    held_out: data.Split
    every: int
    patience: int | None


def hold_out(task: data.Task, share: float, *, seed: int) -> tuple[data.Task, data.Split]:
    """The task without the labels of some of its labelled training images, and these images.

    They stay where they are, unlabelled: what a teacher said of each row is still said of it,
    and it may still teach by it. No test image is looked at.

    Args:
        task: With labelled training images.
        share: Of each class, in (0, 0.5]; one image at least.
        seed: Which images; >= 0.

    Raises:
        InputError: If a class would keep no labelled image.
    """
    checks.require(0 < share <= 0.5, f"`share` must lie in (0, 0.5], got {share}.")
    labels = np.array(task.train.labels)
    held: list[np.ndarray] = []
    for label, name in enumerate(task.class_names):
        rows = np.flatnonzero(labels == label)
        count = max(1, round(share * len(rows)))
        checks.require(
            count < len(rows),
            f"holding out {share:g} of the labelled images would leave class {name!r} none of its "
            f"{len(rows)}; label more of them with --shots, or leave out --validation.",
        )
        held.append(np.random.default_rng([seed, 3, label]).permutation(rows)[:count])
    rows = np.concatenate(held)
    held_out = task.train.rows(rows)
    labels[rows] = UNLABELLED
    train = data.Split(task.train.images, labels)
    return data.Task(task.name, train, task.test, task.class_names), held_out


def judge(
    predict: Callable[[Variables, np.ndarray], Outputs], part: data.Split
) -> Callable[[Variables], float]:
    """A judge of students by their accuracy on a few labelled images.

    Equal accuracies, which are many where images are few, are told apart by the mean
    probability of the right class: with n images it counts as one image more, so the value is
    (n accuracy + probability) / (n + 1), in [0, 1].

    Args:
        predict: What a student of such variables says of images.
        part: Preprocessed images and their labels.
    """
    rows, labels = np.arange(len(part)), part.labels

    def value(variables: Variables) -> float:
        logits = np.asarray(predict(variables, part.images).logits, np.float64)
        right = (logits.argmax(axis=-1) == labels).sum()
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probability = (odds[rows, labels] / odds.sum(axis=-1)).mean()
        return float((right + probability) / (len(part) + 1))

    return value
