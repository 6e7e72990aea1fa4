"""Prices between labels from their names."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fdjax import checks


def _namesakes(
    teacher_names: Sequence[str], student_names: Sequence[str]
) -> Bool[np.ndarray, "teacher_classes student_classes"]:
    """True where a teacher label and a student label are called the same."""

    def plain(names: Sequence[str]) -> list[str]:
        return ["".join(name.casefold().replace("_", " ").split()) for name in names]

    teacher, student = plain(teacher_names), plain(student_names)
    for place, name in enumerate(student):
        checks.require(
            name not in student[:place],
            f"`student_names` holds {student_names[place]!r} twice, but for case, spaces and "
            "underscores; name the classes apart.",
        )
    same = np.array([[theirs == ours for ours in student] for theirs in teacher], bool)
    checks.require(
        bool(same.any()),
        "`teacher_names` and `student_names` have no name in common; take a cost from data, such "
        "as `costs.from_predictions`.",
    )
    return same


def from_names(
    teacher_names: Sequence[str], student_names: Sequence[str]
) -> Float[Array, "teacher_classes student_classes"]:
    """Zero between labels of one name, one between all others.

    The cost of total variation where the two label spaces are the same. Its scale means nothing:
    find it from labelled examples by `calibrate`. All that it says of a teacher label without a
    namesake is that it says nothing.

    Args:
        teacher_names: Of the teacher's labels; several may have one name.
        student_names: Of the student's labels. Names are compared without regard to case,
            spaces and underscores.

    Returns:
        The cost, of zeros and ones.

    Raises:
        InputError: If no name is shared, or two student labels have one name.
    """
    return jnp.asarray(~_namesakes(teacher_names, student_names), jnp.float32)


def with_names(
    cost: Float[Array, "teacher_classes student_classes"],
    teacher_names: Sequence[str],
    student_names: Sequence[str],
    *,
    strength: float = 4.0,
) -> Float[Array, "teacher_classes student_classes"]:
    """Cost in which a teacher label of the same name as a student label speaks for it alone.

    The row of such a label becomes the surprise -log P(student | teacher) of a label that makes
    its namesake exp(strength) times as likely as each other class; all other rows stay. Few
    labelled examples tell little of a teacher label, and a name may tell more.

    Args:
        cost: In nats, as `from_predictions` and `calibrate` give it.
        teacher_names: Of the teacher's labels; rows of `cost` beyond them are padding.
        student_names: Of the student's labels, compared as in `from_names`.
        strength: Log-odds of the namesake against each other class, in nats, > 0. By default
            about what ten labelled examples of one class, all seen as one label, tell.

    Returns:
        The cost in nats.

    Raises:
        InputError: If no name is shared, two student labels have one name, there are more
            names than rows or columns, or `strength` is not positive.
    """
    checks.positive("strength", strength)
    checks.shape("cost", cost, (None, len(student_names)))
    checks.require(
        len(teacher_names) <= len(cost),
        f"`cost` has {len(cost)} rows, too few for {len(teacher_names)} `teacher_names`.",
    )
    same = _namesakes(teacher_names, student_names)
    same = np.pad(same, ((0, len(cost) - len(same)), (0, 0)))
    told = -jax.nn.log_softmax(jnp.where(same, strength, 0.0).astype(cost.dtype), axis=-1)
    return jnp.where(same.any(axis=1, keepdims=True), told, cost)
