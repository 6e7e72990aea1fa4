"""Public inputs of scores and bad ones, all padded to one shape, scored in one compiled pass."""

import functools

import jax
import numpy as np
import oracle_files

from fdjax import scores
from fdjax.types import TeacherOutputs

PUBLIC = ("t01", "t03", "t04_wide", "t06_deficient", "t07_wide", "t10_many", "missing_class")
LABELS, FEATURES, CLASSES = 44, 130, 30


def _tasks() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Probabilities, features and labels by name."""
    data = {name: oracle_files.load(f"transfer/{name}") for name in PUBLIC}
    tasks = {name: (d["source_probs"], d["features"], d["labels"]) for name, d in data.items()}
    # The one that has all classes: for some scores the others are without value.
    probabilities, features, labels = tasks["t10_many"]
    order = np.random.default_rng(0).permutation(len(labels))
    near = np.eye(features.shape[1])[labels] + 0.05 * features
    sure = 0.97 * np.eye(40)[labels] + 0.03 / 40
    return tasks | {
        "in another order": (probabilities[order], features[order], labels[order]),
        "good": (sure, near, labels),
        "bad": (sure[order], near[order], labels),
        "black box": (probabilities, features * np.nan, labels),
        "features that do not vary": (probabilities, np.full_like(features, 0.1), labels),
        "no feature": (probabilities, features[:, :0], labels),
        "one class": (probabilities, features, np.full_like(labels, 3)),
        "one example": (probabilities, features, np.where(np.arange(150) == 7, labels, -1)),
        "no example": (probabilities, features, np.full_like(labels, -1)),
    }


@functools.cache
def _padded() -> tuple[tuple[str, ...], TeacherOutputs, np.ndarray]:
    """Names, faculty and labels of each teacher of the faculty.

    Teacher labels and features are padded with zeros, classes with classes that have no
    example, and examples with unlabelled ones, half of which are not even numbers.
    """
    tasks = _tasks()
    rng = np.random.default_rng(0)
    size = (len(tasks), max(len(labels) for _, _, labels in tasks.values()))
    every_probability = rng.dirichlet(np.ones(LABELS), size)
    every_feature = rng.normal(size=(*size, FEATURES))
    every_probability[:, ::2] = every_feature[:, ::2] = np.nan
    every_label = np.full(size, -1, np.int32)
    for place, (probabilities, features, labels) in enumerate(tasks.values()):
        here = (place, slice(len(labels)))
        every_probability[here], every_feature[here] = 0.0, 0.0
        every_probability[here][:, : probabilities.shape[1]] = probabilities
        every_feature[here][:, : features.shape[1]] = features
        every_label[here] = labels
    sizes = [[probabilities.shape[1]] for probabilities, _, _ in tasks.values()]
    faculty = TeacherOutputs(
        probabilities=every_probability,
        features=every_feature,
        class_vectors=np.broadcast_to(np.eye(LABELS, FEATURES), (size[0], LABELS, FEATURES)),
        class_mask=np.arange(LABELS) < np.array(sizes),
        source_accuracy=np.full(size[0], 0.5),
        num_parameters=np.full(size[0], 1000.0),
    )
    return tuple(tasks), faculty, every_label


@functools.cache
def scored(name: str, dtype: str = "float64") -> dict[str, float]:
    """One score of every task by the task's name."""
    names, faculty, labels = _padded()
    with jax.enable_x64(dtype == "float64"):
        score = jax.vmap(lambda one, labels: scores.SCORES[name](one, labels, CLASSES))
        return dict(zip(names, np.asarray(jax.jit(score)(faculty, labels)), strict=True))


@functools.cache
def alone(name: str) -> float:
    """One score of the task with all classes, without any padding."""
    probabilities, features, labels = _tasks()["t10_many"]
    outputs = TeacherOutputs(
        probabilities,
        features.astype(np.float64),
        np.eye(probabilities.shape[1], features.shape[1]),
        np.ones(probabilities.shape[1], bool),
        np.float64(0.5),
        np.float64(1000.0),
    )
    with jax.enable_x64():
        score = jax.jit(scores.SCORES[name], static_argnums=2)
        return float(score(outputs, labels.astype(np.int32), CLASSES))
