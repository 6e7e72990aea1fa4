"""Whether weights and outputs can be those of the teacher that a card describes."""

import functools
import math
from collections.abc import Mapping

import jax
import numpy as np
from flax import linen as nn

from fdjax import checks, models
from fdjax.faculty.cards import Card, preprocessing_of
from fdjax.types import Variables


def network(card: Card) -> nn.Module:
    """The module of a teacher; equal for teachers of equal architecture and number of labels.

    Raises:
        InputError: If the card's architecture or an option is unknown.
    """
    try:
        return models.create(card.architecture, len(card.class_names), **card.options)
    except checks.InputError as error:
        raise checks.InputError(f"card of teacher {card.name!r}: {error}") from error


@functools.lru_cache(maxsize=256)
def _expected(model: nn.Module, image_shape: tuple[int, int, int]) -> Variables:
    """Shapes of the variables of a network."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda: models.initialise(model, key, image_shape))


def check_weights(card: Card, variables: Variables, what: str) -> None:
    """Refuses weights that are not of the card's network.

    The head above all: a loader that silently cuts or redraws it gives a teacher of noise.

    Args:
        card: Of the teacher.
        variables: Its weights.
        what: They are called in messages.

    Raises:
        InputError: Naming what does not fit.
    """
    given = preprocessing_of(card)
    image_shape = (given.height, given.width, given.channels)
    checks.require("params" in variables, f"{what}: there is no collection `params`.")
    rows = len(models.class_vectors(variables))
    checks.require(
        rows == len(card.class_names),
        f"{what}: the last layer has {rows} rows, but the card names {len(card.class_names)} "
        "classes; give the class names the network was trained with.",
    )
    expected = jax.tree_util.tree_leaves_with_path(_expected(network(card), image_shape))
    wanted = {jax.tree_util.keystr(keys): leaf.shape for keys, leaf in expected}
    found = {
        jax.tree_util.keystr(keys): np.shape(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    for name in sorted(set(wanted) | set(found)):
        have, want = found.get(name, "nothing"), wanted.get(name, "nothing")
        checks.require(
            have == want,
            f"{what}: {name} has shape {have}, but {card.architecture} with the card's options and "
            f"image size has {want}; mend `architecture`, `options` or `preprocessing`.",
        )


def check_outputs(card: Card, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses outputs whose shapes or values cannot be those of the teacher.

    Raises:
        InputError: Naming what does not fit.
    """
    teacher, classes = f"of teacher {card.name}", len(card.class_names)
    checks.require("probabilities" in arrays, f"the outputs {teacher} need `probabilities`.")
    for name, array in arrays.items():
        checks.choice(f"an output {teacher}", name, ("probabilities", "features", "class_vectors"))
        checks.require(
            array.dtype == np.float32, f"`{name}` {teacher} must be float32, got {array.dtype}."
        )
    probabilities = arrays["probabilities"]
    checks.shape(f"probabilities {teacher}", probabilities, (None, classes))
    for name, array in arrays.items():
        checks.require(
            bool(np.isfinite(array).all()),
            f"`{name}` {teacher} hold NaN or infinity; make them again.",
        )
    sums = probabilities.sum(axis=-1)
    checks.require(
        bool((probabilities >= 0).all()) and np.allclose(sums, 1.0, atol=1e-3),
        f"`probabilities` {teacher} must be at least 0 and sum to 1 for each example; "
        "hand in the softmax of its logits.",
    )
    features, vectors = arrays.get("features"), arrays.get("class_vectors")
    width = None
    if features is not None:
        checks.shape(f"features {teacher}", features, (len(probabilities), None))
        width = features.shape[1]
    if vectors is not None:
        checks.shape(f"class_vectors {teacher}", vectors, (classes, width))
    checks.require(math.prod(probabilities.shape) > 0, f"the outputs {teacher} are of no example.")
