"""LEEP with clusters of the feature space in the place of the teacher's labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax.scores._labelled import HIGHEST, Labelled, labelled, scatter
from fdjax.scores._predictions import leep
from fdjax.types import TeacherOutputs

KMEANS_STEPS = 10
EM_STEPS = 10
# Part of the mean variance that is added to every variance, so that a component of one
# example keeps a width that single precision can tell from zero.
SMALLEST_VARIANCE = 1e-4
# A quarter of the examples is the most components that there may be.
EXAMPLES_A_COMPONENT = 4


def principal_components(sample: Labelled, energy: float) -> Float[Array, "examples components"]:
    """Coordinates along the fewest principal axes that hold that part of the variance.

    All others are zero. There are as many columns as the smaller of examples and features.
    """
    features = sample.features
    if features.shape[1] <= features.shape[0]:
        variance, axes = jnp.linalg.eigh(scatter(features))
        coordinates = jnp.matmul(features, axes, precision=HIGHEST)
    else:
        variance, axes = jnp.linalg.eigh(scatter(features.T))
        coordinates = axes * jnp.sqrt(jnp.maximum(variance, 0.0))
    # In ascending order: an axis counts if those above it do not hold enough.
    above = jnp.sum(variance) - jnp.cumsum(variance)
    return jnp.where(above <= energy * jnp.sum(variance), coordinates, 0.0)


def _square_distances(
    points: Float[Array, "examples axes"], centres: Float[Array, "clusters axes"]
) -> Float[Array, "examples clusters"]:
    """Squared distances, less the squared length of the point."""
    inner = jnp.matmul(points, centres.T, precision=HIGHEST)
    return jnp.sum(centres**2, axis=1) - 2 * inner


def clusters(
    points: Float[Array, "examples axes"],
    known: Bool[Array, " examples"],
    active: Bool[Array, " clusters"],
) -> Float[Array, "examples clusters"]:
    """One-hot clusters by k-means from centres as far from one another as can be.

    Each centre starts at the example farthest from those before: nothing is drawn, and the
    order of the examples does not matter.
    """

    def farthest(place: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, distance = state
        centre = points[jnp.argmax(distance)]
        away = jnp.sum((points - centre) ** 2, axis=1)
        return centres.at[place].set(centre), jnp.where(known, jnp.minimum(distance, away), -1.0)

    start = jnp.where(known, jnp.sum(points**2, axis=1), -1.0)
    centres = jnp.zeros((active.shape[0], points.shape[1]), points.dtype)
    centres, _ = jax.lax.fori_loop(0, active.shape[0], farthest, (centres, start))

    def nearest(centres: Float[Array, "clusters axes"]) -> Float[Array, "examples clusters"]:
        distance = jnp.where(active, _square_distances(points, centres), jnp.inf)
        member = jax.nn.one_hot(jnp.argmin(distance, axis=1), active.shape[0], dtype=points.dtype)
        return member * known[:, None]

    def lloyd(_: Int[Array, ""], centres: Float[Array, "clusters axes"]) -> Array:
        member = nearest(centres)
        sums = jnp.matmul(member.T, points, precision=HIGHEST)
        count = member.sum(axis=0)[:, None]
        return jnp.where(count > 0, sums / jnp.maximum(count, 1.0), centres)

    return nearest(jax.lax.fori_loop(0, KMEANS_STEPS, lloyd, centres))


def expectation_maximisation(
    points: Float[Array, "examples axes"],
    posterior: Float[Array, "examples clusters"],
    floor: Float[Array, ""],
    steps: int,
) -> Float[Array, "examples clusters"]:
    """Posteriors after so many steps of a mixture of Gaussians with diagonal covariances.

    Args:
        points: What to cluster; axes that are zero everywhere have no effect.
        posterior: Where to start; zero rows take no part, zero columns stay zero.
        floor: Added to each variance, > 0.
        steps: Maximisations, each with the expectation that follows it.
    """
    known = posterior.sum(axis=1, keepdims=True) > 0

    def step(_: Int[Array, ""], posterior: Float[Array, "examples clusters"]) -> Array:
        count = posterior.sum(axis=0)
        weight = (posterior / jnp.where(count > 0, count, 1.0)).T
        means = jnp.matmul(weight, points, precision=HIGHEST)
        squares = jnp.matmul(weight, points**2, precision=HIGHEST)
        variance = jnp.maximum(squares - means**2, 0.0) + floor
        share = jnp.log(jnp.where(count > 0, count, 1.0))
        constant = jnp.sum(means**2 / variance + jnp.log(variance / floor), axis=1)
        square = jnp.matmul(points**2, (1 / variance).T, precision=HIGHEST)
        square -= 2 * jnp.matmul(points, (means / variance).T, precision=HIGHEST)
        logits = jnp.where(count > 0, share - (square + constant) / 2, -jnp.inf)
        return jnp.where(known, jax.nn.softmax(logits, axis=1), 0.0)

    return jax.lax.fori_loop(0, steps, step, posterior)


def nleep(
    outputs: TeacherOutputs,
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    components: int = 5,
    energy: float = 0.8,
) -> Float[Array, ""]:
    """N-LEEP: LEEP of the components of a Gaussian mixture fitted to the features.

    Features are reduced to the principal axes that hold most of their variance, then a mixture
    is fitted, started by k-means. Where this departs from the paper and its codes: covariances
    are diagonal along the principal axes, not full (with a few examples a component theirs are
    singular, the posteriors are one-hot and stay where k-means left them: values differ by
    less than from seed to seed); k-means starts from examples far apart instead of random
    ones, so that the score is the same every time; there is at most one component for four
    examples, for with one for each example every teacher has the best score.

    Clusters jump, so that no gradient is passed on: it is zero.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.
        components: Components for each class, >= 1.
        energy: Part of the variance to keep, in (0, 1].

    Returns:
        The score in nats, <= 0; NaN for a black box, features that do not vary, and fewer
        than two classes or eight examples.

    Raises:
        InputError: If a setting does not fit or a label is out of range.

    References:
        Li et al., Ranking Neural Checkpoints, CVPR 2021.
    """
    checks.require(components >= 1, f"`components` must be at least 1, got {components}.")
    checks.positive("energy", energy)
    checks.in_range("energy", energy, 0.0, 1.0)
    sample = labelled(outputs, labels, num_classes)
    points = jax.lax.stop_gradient(principal_components(sample, energy))
    known = sample.member.sum(axis=1) > 0
    most = jnp.minimum(
        components * jnp.sum(sample.counts > 0), sample.examples // EXAMPLES_A_COMPONENT
    )
    room = max(min(components * num_classes, labels.shape[0] // EXAMPLES_A_COMPONENT), 1)
    start = clusters(points, known, jnp.arange(room) < jnp.maximum(most, 1))
    axes = jnp.maximum(jnp.sum(jnp.any(points != 0, axis=0)), 1)
    variance = jnp.sum(points**2) / (jnp.maximum(sample.examples, 1.0) * axes)
    floor = SMALLEST_VARIANCE * jnp.where(variance > 0, variance, 1.0)
    posterior = expectation_maximisation(points, start, floor, EM_STEPS)
    score = leep(outputs._replace(probabilities=posterior), labels, num_classes)
    return jnp.where(sample.defined & (most > 1), score, jnp.nan)
