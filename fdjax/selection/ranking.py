"""From scores to a ranking, and to the weights of several teachers."""

from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float

from fdjax import checks


def rank(
    scores: Float[Array | np.ndarray, " teachers"],
    names: Sequence[str],
    *,
    undefined: Literal["refuse", "last"] = "refuse",
) -> tuple[str, ...]:
    """Names of the teachers, best score first; equal scores keep the given order.

    Args:
        scores: Higher is better.
        names: Of the teachers.
        undefined: What becomes of teachers whose score is NaN: "refuse" raises, "last" puts them
            behind all others, in their order.

    Raises:
        InputError: If the numbers of scores and names differ, or a score is NaN (with "last": all
            are); it names the teachers.
    """
    checks.choice("undefined", undefined, ("refuse", "last"))
    checks.shape("scores", scores, (len(names),))
    values = np.asarray(scores)
    unknown = [name for name, missing in zip(names, np.isnan(values), strict=True) if missing]
    listed = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    checks.require(
        not unknown or (undefined == "last" and len(unknown) < len(names)),
        f"`scores` is NaN for {len(unknown)} of {len(names)} teachers ({listed}); leave them out "
        "or take a score that needs only predictions, such as leep: a black box has no score of "
        "features.",
    )
    # NaN sorts behind every number.
    return tuple(names[position] for position in np.argsort(-values, kind="stable"))


def mixture(scores: Float[Array, " teachers"], *, temperature: float) -> Float[Array, " teachers"]:
    """Weights of several teachers, softmax(scores / temperature).

    Args:
        scores: Higher is better; -inf leaves a teacher out.
        temperature: In units of the score, > 0; small means the best teacher alone.

    Returns:
        Weights that sum to one; under `jit` a NaN score makes them NaN.

    Raises:
        InputError: If a score is NaN or the temperature is not positive.
    """
    checks.positive("temperature", temperature)
    unknown = checks.is_concrete(scores) and bool(np.isnan(np.asarray(scores)).any())
    checks.require(not unknown, "`scores` holds NaN; leave those teachers out or set them to -inf.")
    return jax.nn.softmax(scores / temperature)
