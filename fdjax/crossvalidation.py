"""How much of a teacher's term helps, told by the labelled images that were left out."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fdjax import checks, crossfit, losses, trust
from fdjax.objectives import Objective
from fdjax.types import UNLABELLED, Batch, Network, Outputs, TrainableNetwork, Variables

Tree = Any

# A class to which a student gives less than this (in nats) counts as if it gave this: one label
# that is missed for certain must not decide alone.
_FLOOR = -30.0
# Nats an image by which predictions that say the same may differ, as the exponents are rounded.
_SAME = 1e-3


class Validation(NamedTuple):
    """How students did on labelled images that they did not see, by the weight of the term.

    Attributes:
        weights: The candidates, the smallest first.
        log_likelihood: Mean over the labelled images, in nats; -inf where training diverged.
        deficit: By how much it falls short of the best one.
        standard_error: Of the deficit, over the labelled images.
        accuracy: Share of the labelled images that are right.
    """

    weights: Float[np.ndarray, " weights"]
    log_likelihood: Float[np.ndarray, " weights"]
    deficit: Float[np.ndarray, " weights"]
    standard_error: Float[np.ndarray, " weights"]
    accuracy: Float[np.ndarray, " weights"]


class _Sizes(NamedTuple):
    """Numbers that a compiled program is made for."""

    steps: int
    batch_size: int
    unlabelled_batch: int
    at_once: int


class _Data(NamedTuple):
    """The images, which of them have a label, and in which fold; what the teacher says of each."""

    images: Array
    labels: Array
    known: Array
    fold: Array
    unlabelled: Array
    teacher: Outputs


class _Starts(NamedTuple):
    """The loss of the term, and of each fold: keys of start and batches, and the term's arrays."""

    loss: Callable[..., tuple[Array, Tree]]
    arrays: tuple[Array, Array, Tree]


def choose_weight(
    key: Array,
    student: TrainableNetwork,
    network: Network,
    start: Callable[[Array], Variables],
    optimiser: optax.GradientTransformation,
    term: Callable[[Int[Array, " examples"]], Objective],
    images: Float[Array, "examples height width channels"],
    labels: Int[Array, " examples"],
    teacher: Outputs,
    *,
    weights: Sequence[float] = (0.0, 0.03, 0.1, 0.3, 1.0),
    folds: int = 5,
    steps: int = 300,
    batch_size: int = 32,
    unlabelled_batch: int = 64,
    at_once: int = 1,
) -> tuple[float, Validation]:
    """Weight of a term beside cross-entropy, by cross-validation; zero unless the term helps.

    For every weight and fold a student is trained, all in one compiled program, on the labels of
    the other folds and by the term on those images and the unlabelled ones. It is judged by the
    log-likelihood of the labels of its own fold, of which it saw neither image nor label. The
    weights share starts and batches, so that they differ in nothing else. As a term also softens
    an overconfident student, which is no knowledge, the predictions of each weight are first
    raised to the one exponent that makes the labels most likely.

    Chosen is the smallest weight whose log-likelihood is within one standard error of the best:
    a term that does not help for certain does nothing.

    Args:
        key: Randomness of starts and batches.
        student: `(variables, images) -> (Outputs, variables)`, as in training.
        network: `(variables, images) -> Outputs`, the same network outside training.
        start: Fresh variables of the network from a key.
        optimiser: From optax.
        term: The objective, from labels of which those left out are -1. All that it learns from
            labels must come from these, or the labels left out judge themselves, and a teacher
            who knows nothing looks useful. It is called once a fold; its numbers must stand in
            its state, as in all objectives of this library, for the loss is compiled once (and
            not again for a later call, if it is the same function).
        images: Preprocessed images of the data.
        labels: Class of each image; -1 where unlabelled.
        teacher: What the teacher says of each image.
        weights: Candidates, >= 0, with zero among them.
        folds: Parts of the labelled images, >= 2.
        steps: Steps of each student.
        batch_size: Labelled images a step, drawn with replacement.
        unlabelled_batch: Unlabelled images a step, drawn with replacement; may be zero.
        at_once: Students trained side by side. One is best on a CPU, all of them (the number of
            weights times that of folds) on an accelerator.

    Returns:
        The weight, and how each candidate did.

    Raises:
        InputError: If zero is not among the weights, a class has fewer than two labelled images,
            unlabelled images are asked for where there are none, a number is out of range, the
            teacher does not fit the images, or the student diverges even without the term.

    References:
        Breiman et al., Classification and Regression Trees, 1984, section 3.4.3 (one standard
        error; here of the difference, image by image).
    """
    candidates = np.unique(np.asarray(weights, np.float64))
    checks.require(
        candidates.size > 0 and bool(np.isfinite(candidates).all() and candidates[0] == 0),
        f"`weights` must be numbers >= 0 with 0 among them, got {tuple(weights)}.",
    )
    sizes = _Sizes(steps, batch_size, unlabelled_batch, at_once)
    data = _data(images, labels, teacher, folds, sizes)
    of_fold = _starts(key, student, start, term, folds, sizes, data)
    log_probabilities = _train_and_judge(
        *(student, network, start, optimiser, of_fold.loss, sizes),
        *(jnp.asarray(candidates, jnp.float32), of_fold.arrays, data),
    )
    return _choose(candidates, log_probabilities, data.labels[data.known])


def _data(images: Any, labels: Any, teacher: Outputs, folds: int, sizes: _Sizes) -> _Data:
    """The data as arrays, once it has been looked at."""
    for name in ("steps", "batch_size", "at_once"):
        checks.positive(name, getattr(sizes, name))
    extra = sizes.unlabelled_batch
    checks.require(extra >= 0, f"`unlabelled_batch` must be >= 0, got {extra}.")
    for leaf in jax.tree.leaves((labels, teacher)):
        checks.require(
            len(leaf) == len(images),
            f"there are {len(images)} images, but {len(leaf)} labels or outputs of the teacher.",
        )
    fold = crossfit.folds_of(labels, folds)
    known, unlabelled = np.flatnonzero(fold >= 0), np.flatnonzero(fold < 0)
    checks.require(len(known) > 0, "`labels` names no class; label some of the images.")
    checks.require(
        len(unlabelled) > 0 or extra == 0,
        "there is no unlabelled image; set `unlabelled_batch` to 0.",
    )
    return _Data(
        jnp.asarray(images),
        jnp.asarray(labels),
        jnp.asarray(known),
        jnp.asarray(fold[known]),
        jnp.asarray(unlabelled),
        jax.tree.map(jnp.asarray, teacher),
    )


def _starts(
    key: Array,
    student: TrainableNetwork,
    start: Callable[[Array], Variables],
    term: Callable[[Array], Objective],
    folds: int,
    sizes: _Sizes,
    data: _Data,
) -> _Starts:
    """What the students of each fold start from, the same for all weights."""
    start_keys, batch_keys, init_keys = (
        jax.random.split(own, folds) for own in jax.random.split(key, 3)
    )
    known, unlabelled = np.asarray(data.known), np.asarray(data.unlabelled)
    begun = []
    for left_out in range(folds):
        mine = np.asarray(data.fold) == left_out
        others = np.array(data.labels)
        others[known[mine]] = UNLABELLED
        objective = term(jnp.asarray(others))
        rows = np.append(
            np.resize(known[~mine], sizes.batch_size),
            np.resize(unlabelled, sizes.unlabelled_batch),
        )
        batch, signal = _batch(data, jnp.asarray(rows))
        outputs = _first_outputs(student, start, start_keys[left_out], batch.images)
        begun.append(objective.init(init_keys[left_out], batch, outputs, signal))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun)
    return _Starts(objective.loss, (start_keys, batch_keys, stacked))


def _batch(data: _Data, rows: Int[Array, " batch"]) -> tuple[Batch, Outputs]:
    """Rows of the data, and what the teacher says of them."""
    signal = jax.tree.map(lambda leaf: leaf[rows], data.teacher)
    return Batch(data.images[rows], data.labels[rows], rows), signal


@partial(jax.jit, static_argnums=(0, 1))
def _first_outputs(
    student: TrainableNetwork, start: Callable[[Array], Variables], key: Array, images: Array
) -> Outputs:
    """What a fresh student says."""
    return student(start(key), images)[0]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _train_and_judge(
    student: TrainableNetwork,
    network: Network,
    start: Callable[[Array], Variables],
    optimiser: optax.GradientTransformation,
    taught: Callable[..., tuple[Array, Tree]],
    sizes: _Sizes,
    weights: Array,
    of_fold: Any,
    data: _Data,
) -> Float[Array, "weights labelled classes"]:
    """Log-probabilities of each labelled image from the student that did not see it."""

    def one(weight: Array, left_out: Array) -> Array:
        start_key, batch_key, (own, state) = jax.tree.map(lambda leaf: leaf[left_out], of_fold)
        variables = start(start_key)
        odds = jnp.where(data.fold == left_out, -jnp.inf, 0.0)

        def loss(trained: Tree, carried: Tree, key: Array) -> tuple[Array, Tree]:
            (params, own), (variables, state) = trained, carried
            key, labelled_key, unlabelled_key = jax.random.split(key, 3)
            drawn = jax.random.categorical(labelled_key, odds, shape=(sizes.batch_size,))
            rows = data.known[drawn]
            if sizes.unlabelled_batch:
                count = (sizes.unlabelled_batch,)
                rows = jnp.append(rows, jax.random.choice(unlabelled_key, data.unlabelled, count))
            batch, signal = _batch(data, rows)
            outputs, updated = student({**variables, "params": params}, batch.images)
            told = losses.cross_entropy(outputs.logits, batch.labels).sum() / sizes.batch_size
            value, state = taught(own, state, key, batch, outputs, signal)
            return told + weight * value.mean(), (updated, state)

        (params, _), (variables, _) = crossfit.descend(
            loss,
            optimiser,
            (variables["params"], own),
            (variables, state),
            jax.random.split(batch_key, sizes.steps),
        )
        variables = {**variables, "params": params}
        return crossfit.log_probabilities(network, variables, data.images[data.known])

    folds = len(of_fold[0])
    runs = jnp.repeat(weights, folds), jnp.tile(jnp.arange(folds), len(weights))
    said = jax.lax.map(
        lambda pair: one(*pair), runs, batch_size=min(sizes.at_once, len(weights) * folds)
    )
    said = said.reshape(len(weights), folds, *said.shape[1:])
    return said[:, data.fold, jnp.arange(len(data.fold))]


@jax.jit
def _log_likelihoods(
    log_probabilities: Float[Array, "weights labelled classes"], labels: Int[Array, " labelled"]
) -> Float[Array, "weights labelled"]:
    """Of each label, by predictions raised to the best exponent of each weight."""

    def one(said: Array) -> Array:
        said = jnp.maximum(said, _FLOOR)
        exponent = trust.fit(said, jnp.zeros((0, *said.shape)), labels).belief
        tempered = jax.nn.log_softmax(exponent * said)
        return jnp.take_along_axis(tempered, labels[:, None], axis=1)[:, 0]

    return jax.vmap(one)(log_probabilities)


def _choose(
    weights: Float[np.ndarray, " weights"], log_probabilities: Array, labels: Array
) -> tuple[float, Validation]:
    """The smallest weight that does no worse than the best for certain."""
    each = np.array(_log_likelihoods(log_probabilities, labels), np.float64)
    finite = np.asarray(np.isfinite(each).all(axis=1))
    checks.require(
        bool(finite[0]), "the student diverges without any term; lower its learning rate."
    )
    each[~finite] = np.nan
    mean = np.where(finite, each.mean(axis=1), -np.inf)
    behind = each[np.argmax(mean)] - each
    deficit = np.where(finite, behind.mean(axis=1), np.inf)
    error = np.where(finite, behind.std(axis=1, ddof=1) / np.sqrt(len(labels)), np.inf)
    right = np.asarray(log_probabilities).argmax(axis=2) == np.asarray(labels)
    good = np.flatnonzero(finite & (deficit <= error + _SAME))
    return float(weights[good[0]]), Validation(weights, mean, deficit, error, right.mean(axis=1))
