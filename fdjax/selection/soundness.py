"""Teachers whose outputs are no predictions: found, named, and kept from spoiling the others."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from fdjax.selection.stacking import Faculty, as_buckets
from fdjax.types import TeacherOutputs

# Half precision rounds a softmax of a thousand labels by less than this.
MASS_TOLERANCE = 0.01


def is_sound(teacher: TeacherOutputs) -> Bool[Array, ""]:
    """Whether one teacher predicts a distribution for every example."""
    probabilities = jnp.asarray(teacher.probabilities)
    mass = probabilities.sum(axis=-1, dtype=jnp.promote_types(probabilities.dtype, jnp.float32))
    # A comparison with NaN is false.
    return (jnp.abs(mass - 1) <= MASS_TOLERANCE).all() & (probabilities >= 0).all()


def harmless(teacher: TeacherOutputs, sound: Bool[Array, ""]) -> TeacherOutputs:
    """The teacher itself if it is sound, else a black box that answers evenly.

    Some scores solve one problem for the whole faculty: what one teacher holds must not reach
    the others, nor keep them waiting.
    """
    even = 1.0 / max(teacher.probabilities.shape[-1], 1)

    def unless(array: Array | None, value: float) -> Array | None:
        return None if array is None else jnp.where(sound, array, value)

    return teacher._replace(
        probabilities=jnp.where(sound, teacher.probabilities, even),
        features=unless(teacher.features, jnp.nan),
        class_vectors=unless(teacher.class_vectors, jnp.nan),
    )


def _fault(probabilities: np.ndarray, features: np.ndarray | None) -> str | None:
    finite = np.isfinite(probabilities)
    if not finite.all():
        rows = np.flatnonzero(~finite.all(axis=-1))
        return f"probabilities of {len(rows)} examples are NaN or infinite (first: {rows[0]})"
    if (probabilities < 0).any():
        row = int(np.argmax((probabilities < 0).any(axis=-1)))
        return f"a probability of example {row} is negative ({probabilities[row].min():.3g})"
    mass = probabilities.sum(axis=-1, dtype=np.float64)
    wrong = np.abs(mass - 1) > MASS_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong))
        which = f"example {row}: {mass[row]:.4g}"
        return f"probabilities of {wrong.sum()} examples do not sum to one ({which})"
    if features is not None and 0 < np.isfinite(features).mean() < 1:
        row = int(np.argmax(~np.isfinite(features).all(axis=-1)))
        return f"features hold NaN or infinity (first in example {row})"
    return None


def faults(faculty: Faculty) -> dict[int, str]:
    """What is wrong with teachers' outputs, by the teacher's position; empty if nothing is.

    `score_faculty` gives NaN to a teacher whose probabilities are none, whatever the score, and
    one of features to a teacher whose features hold NaN; this says why. Features that are NaN
    throughout are those of a black box and no fault.

    Args:
        faculty: Teachers in any form. Read on the host.
    """
    found = {}
    for positions, part in zip(*as_buckets(faculty), strict=True):
        for place, position in enumerate(positions):
            features = None if part.features is None else np.asarray(part.features[place])
            fault = _fault(np.asarray(part.probabilities[place]), features)
            if fault is not None:
                found[position] = fault
    return dict(sorted(found.items()))
