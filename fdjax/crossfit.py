"""What students trained on the labels alone believe of every image, none judging its own label."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.types import Network, TrainableNetwork, Variables

Tree = Any

# Images that one forward pass of the trained students takes at a time.
_CHUNK = 512


def folds_of(labels: Any, folds: int) -> Int[np.ndarray, " examples"]:
    """Fold of each labelled example, the classes spread evenly; -1 for an unlabelled one.

    Raises:
        InputError: If there are fewer than two folds, or a class has fewer than two examples,
            so that one of its labels would be judged by a student that never saw the class.
    """
    checks.require(folds >= 2, f"`folds` must be at least 2, got {folds}.")
    labels = np.asarray(labels)
    fold = np.full(len(labels), -1)
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        checks.require(
            len(rows) >= 2,
            f"class {label} has one labelled example, but cross-fitting leaves out one and learns "
            "from another; label two or more of each class.",
        )
        # At most as many folds as examples; each class begins elsewhere, so that folds are even.
        fold[rows] = (np.arange(len(rows)) % min(folds, len(rows)) + int(label)) % folds
    return fold


def log_beliefs(
    key: Array,
    student: TrainableNetwork,
    network: Network,
    start: Callable[[Array], Variables],
    optimiser: optax.GradientTransformation,
    images: Float[Array, "examples height width channels"],
    labels: Int[Array, " examples"],
    *,
    folds: int = 5,
    steps: int = 300,
    batch_size: int = 32,
    at_once: int = 1,
) -> Float[Array, "examples classes"]:
    """Log-probabilities of cross-fitted students, in one compiled program.

    For every fold a student is trained on the labels of the other folds. A labelled example gets
    the prediction of the student that did not see its label; an unlabelled one the mean of all
    students' probabilities, which is also better than any of them.

    Args:
        key: Randomness of starts and batches.
        student: `(variables, images) -> (Outputs, variables)`, as in training.
        network: `(variables, images) -> Outputs`, the same network outside training.
        start: Fresh variables of the network from a key.
        optimiser: From optax.
        images: Preprocessed images of the data.
        labels: Class of each image; -1 where unlabelled.
        folds: Students, >= 2.
        steps: Steps of each student.
        batch_size: Labelled images a step, drawn with replacement.
        at_once: Students trained side by side. One is best on a CPU, where convolutions of
            several kernels at once are slow; all of them on an accelerator.

    Returns:
        The log-probabilities, to be used as `log_beliefs` of `objectives.reference`.

    Raises:
        InputError: If a class has fewer than two labelled examples or a number is out of range.
    """
    for name, number in (("steps", steps), ("batch_size", batch_size), ("at_once", at_once)):
        checks.positive(name, number)
    fold = folds_of(labels, folds)
    checks.require(bool((fold >= 0).any()), "`labels` names no class; label some of the images.")
    known = np.flatnonzero(fold >= 0)
    members = _train_and_predict(
        student,
        network,
        start,
        optimiser,
        (steps, batch_size, min(at_once, folds)),
        jax.random.split(key, folds),
        jnp.asarray(images),
        jnp.asarray(known),
        jnp.asarray(labels)[known],
        jnp.asarray(fold[known]),
    )
    mean = jax.nn.logsumexp(members, axis=0) - jnp.log(folds)
    own = members[jnp.asarray(np.maximum(fold, 0)), jnp.arange(len(fold))]
    return jnp.where(jnp.asarray(fold)[:, None] >= 0, own, mean)


def descend(
    value: Callable[[Tree, Tree, Array], tuple[Array, Tree]],
    optimiser: optax.GradientTransformation,
    trained: Tree,
    carried: Tree,
    keys: Array,
) -> tuple[Tree, Tree]:
    """Descends the gradient of a value, one step for each key, as one loop to be compiled.

    Args:
        value: `(trained, carried, key) -> (scalar, carried)`.
        optimiser: From optax.
        trained: Arrays that the optimiser moves.
        carried: Arrays that each step hands to the next.
        keys: Randomness of the steps.

    Returns:
        `trained` and `carried` after the last step.
    """

    def step(carry: Any, key: Array) -> Any:
        trained, carried, optimiser_state = carry
        gradient, carried = jax.grad(value, has_aux=True)(trained, carried, key)
        change, optimiser_state = optimiser.update(gradient, optimiser_state, trained)
        return (optax.apply_updates(trained, change), carried, optimiser_state), None

    first = (trained, carried, optimiser.init(trained))
    (trained, carried, _), _ = jax.lax.scan(step, first, keys)
    return trained, carried


def log_probabilities(
    network: Network, variables: Variables, images: Float[Array, "examples height width channels"]
) -> Float[Array, "examples classes"]:
    """What a network says of images, some at a time: the features of all at once may not fit."""
    extra = -len(images) % _CHUNK
    padded = jnp.pad(images, ((0, extra), (0, 0), (0, 0), (0, 0)))
    chunks = padded.reshape(-1, _CHUNK, *images.shape[1:])
    logits = jax.lax.map(lambda chunk: network(variables, chunk).logits, chunks)
    return jax.nn.log_softmax(logits.reshape(-1, logits.shape[-1])[: len(images)])


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _train_and_predict(
    student: TrainableNetwork,
    network: Network,
    start: Callable[[Array], Variables],
    optimiser: optax.GradientTransformation,
    sizes: tuple[int, int, int],
    keys: Array,
    images: Array,
    known: Array,
    labels: Array,
    fold: Array,
) -> Float[Array, "folds examples classes"]:
    steps, batch_size, at_once = sizes

    def one(left_out: Array, key: Array) -> Array:
        start_key, batch_key = jax.random.split(key)
        variables = start(start_key)
        odds = jnp.where(fold == left_out, -jnp.inf, 0.0)

        def loss(params: Tree, variables: Variables, step_key: Array) -> tuple[Array, Variables]:
            drawn = jax.random.categorical(step_key, odds, shape=(batch_size,))
            outputs, updated = student({**variables, "params": params}, images[known[drawn]])
            each = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels[drawn])
            return each.mean(), updated

        step_keys = jax.random.split(batch_key, steps)
        params, variables = descend(loss, optimiser, variables["params"], variables, step_keys)
        return log_probabilities(network, {**variables, "params": params}, images)

    numbers = jnp.arange(len(keys))
    return jax.lax.map(lambda pair: one(*pair), (numbers, keys), batch_size=at_once)
