"""The few teachers of a large faculty whose sketches are nearest to a task."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import _task
from fdjax import checks, data, faculty, scores, selection

PROBES_SEED = 311202
"""Seed of the draw of probe images: the same in every experiment, so that sketches are kept."""


class Shortlist(NamedTuple):
    """Who was found, and what it took.

    Attributes:
        names: Of the teachers, nearest first.
        costs: Of transport between their sketches and the task's.
        teachers: How many there were.
        bounded: How many were bounded by relaxed transport.
        solved: For how many transport was solved.
        seconds: Of the search, the sketches being there.
    """

    names: tuple[str, ...]
    costs: tuple[float, ...]
    teachers: int
    bounded: int
    solved: int
    seconds: float

    @property
    def words(self) -> str:
        """What was found, in a sentence."""
        return (
            f"Nearest {len(self.names)} of {self.teachers} teachers by their sketches, found in "
            f"{self.seconds:.3g} s by solving transport for {self.solved} of them "
            f"({self.solved / self.teachers:.2%}); the others' bounds rule them out."
        )


def probe_images(config: _task.TaskConfig, number: int) -> np.ndarray:
    """Images of the teachers' half of a data set, whatever the task is."""
    teachers, _ = _task.halves(_task.load(config.dataset, config.data_dir, config.image_size))
    images = teachers.train.images
    rows = np.random.default_rng(PROBES_SEED).permutation(len(images))[:number]
    return images[np.sort(rows)]


def _encoder(root: str, name: str | None) -> Callable[[np.ndarray], np.ndarray]:
    """Features of a teacher, or the pixels."""
    if name is None:

        def pixels(images: np.ndarray) -> np.ndarray:
            scale = 255.0 if images.dtype == np.uint8 else 1.0
            return (images.reshape(len(images), -1) / scale).astype(np.float32)

        return pixels

    def features(images: np.ndarray) -> np.ndarray:
        found = faculty.observe(root, name, images).features
        checks.require(
            found is not None, f"--encoder: teacher {name!r} has no features; choose another."
        )
        return np.asarray(found)

    return features


def find(
    root: str,
    config: _task.TaskConfig,
    task: data.Task,
    *,
    k: int,
    probes: int,
    encoder: str | None,
) -> Shortlist:
    """The k teachers nearest to a task.

    Every teacher is asked once about the probe images, in the first search of its life; the task
    is sketched by its labelled images.

    Args:
        root: Folder of the faculty.
        config: Of the task; names the data set from which the probe images come.
        task: The task.
        k: How many teachers.
        probes: How many probe images.
        encoder: The teacher whose features are the shared embedding; None for the pixels.
    """
    images = probe_images(config, probes)
    encode = _encoder(root, encoder)
    encoded = encode(images)
    centre = encoded.mean(axis=0)
    names = [card.name for card in faculty.cards(root)]
    sketches = faculty.sketch_all(root, images, encoded - centre, progress=True)
    index = selection.index(sketches, names)
    known = task.train.labels >= 0
    labels: Any = np.eye(task.num_classes)[task.train.labels[known]]
    goal = selection.sketch(labels, encode(task.train.images[known]) - centre)
    start = time.perf_counter()
    found = scores.nearest(index, goal, k)
    return Shortlist(
        tuple(names[place] for place in found.positions),
        tuple(float(cost) for cost in found.costs),
        found.total,
        found.bounded[-1],
        found.solved,
        time.perf_counter() - start,
    )
