"""Scores that need more than one teacher's outputs: the other teachers, or what each was taught."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _task
from fdjax import data, faculty, scores

_EXAMPLES = 200
"""Examples of each teacher's own task, of which as many are paired as the target has labels."""

ETRAN, OTCE, FITTED = "etran", "otce", "otce_fitted"
"""OTCE is minus the conditional entropy; in full it is fitted to what is known of other tasks."""

SCORES = (ETRAN, OTCE, FITTED)


def etran(seen: _task.Observed, task: data.Task) -> np.ndarray:
    """Energy and discriminants, each stretched over the faculty."""
    names = ("etran_energy", "etran_lda")
    found = _task.score(seen, task, {name: scores.SCORES[name] for name in names})
    return np.asarray(scores.etran(*(jnp.asarray(found[name]) for name in names)))


def otce_parts(config: _task.TaskConfig, seen: _task.Observed, task: data.Task) -> np.ndarray:
    """Distance and conditional entropy of each teacher, see `scores.otce_parts`.

    The teacher's examples are of the half of the training images that teachers are taught from.
    """
    known = np.flatnonzero(task.train.labels >= 0)
    labels = jnp.asarray(task.train.labels[known])
    cards = {card.name: card for card in faculty.cards(seen.root)}
    number = min(len(known), _EXAMPLES)
    found = []
    for place, name in enumerate(seen.names):
        own = own_examples(cards[name], config.data_dir, config.image_size)
        said = faculty.observe(seen.root, name, own.images)
        if said.features is None or seen.outputs.features is None:
            found.append((np.nan, np.nan))
            continue
        width = said.features.shape[1]
        parts = _parts(
            jnp.asarray(said.features[:number]),
            jnp.asarray(own.labels[:number]),
            jnp.asarray(seen.outputs.features[place][known, :width]),
            labels,
            len(cards[name].class_names),
            task.num_classes,
        )
        found.append((float(parts.distance), float(parts.conditional_entropy)))
    return np.asarray(found)


_parts = jax.jit(scores.otce_parts, static_argnums=(4, 5))


def own_examples(card: faculty.Card, data_dir: str | None, image_size: int) -> data.Split:
    """Random images of the task that a teacher was taught, with its labels."""
    whole = _teachers_half(card.source_task, data_dir, image_size)
    part = data.restrict(whole, card.class_names).train
    chosen = np.random.default_rng(0).permutation(len(part))[:_EXAMPLES]
    return part.rows(chosen)


@functools.lru_cache(maxsize=16)
def _teachers_half(source: str, data_dir: str | None, image_size: int) -> data.Task:
    # A file's task is called as the file is.
    file = Path(data_dir or ".") / f"{source}.npz"
    name = file.name if file.exists() else source
    return _task.halves(_task.load(name, data_dir, image_size))[0]


def fitted(
    parts: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """OTCE of each task, with the weights that foretell the truth of the other tasks best.

    Args:
        parts: `otce_parts` of the teachers of each task.
        truth: What each teacher was worth, by task.
    """

    def design(tasks: Sequence[str]) -> np.ndarray:
        rows = np.concatenate([parts[task] for task in tasks])
        return np.column_stack([rows, np.ones(len(rows))])

    found = {}
    for task in parts:
        others = [other for other in parts if other != task]
        if not others:
            found[task] = np.full(len(parts[task]), np.nan)
            continue
        rows, wanted = design(others), np.concatenate([truth[other] for other in others])
        known = np.isfinite(rows).all(axis=1)
        weights = np.linalg.lstsq(rows[known], wanted[known], rcond=None)[0]
        found[task] = design([task]) @ weights
    return found
