"""How many nats it takes to code the features, and how many once the class is known."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.scores._labelled import Labelled, labelled, scatter
from fdjax.types import TeacherOutputs


def _half_log_determinant(
    matrix: Float[Array, "size size"], rank: Float[Array, ""]
) -> Float[Array, ""]:
    """Half of log det(1 + matrix) of a positive semi-definite matrix of at most that rank."""
    # Rounding of a matrix with large entries must not make it indefinite, but where it cannot
    # outweigh the one a slack would only blur all the smaller eigenvalues. Where the matrix is
    # known to be zero the effect of the slack is known, too, and is taken away.
    norm = jnp.sqrt(jnp.sum(jax.lax.stop_gradient(matrix) ** 2))
    slack = jnp.maximum(8 * jnp.finfo(matrix.dtype).eps * norm - 0.5, 0.0)
    size = len(matrix)
    regular = matrix + (1 + slack) * jnp.eye(size, dtype=matrix.dtype)
    diagonal = jnp.diagonal(jnp.linalg.cholesky(regular))
    return jnp.sum(jnp.log(diagonal)) - (size - rank) / 2 * jnp.log1p(slack)


def _whole_rate(sample: Labelled, distortion: float) -> Float[Array, ""]:
    """Nats for all rows."""
    rows, columns = sample.features.shape
    # det(1 + F F') = det(1 + F' F): the smaller of the two.
    smaller = sample.features if columns <= rows else sample.features.T
    budget = distortion * jnp.maximum(sample.examples, 1.0)
    rank = jnp.minimum(sample.examples - 1, sample.width)
    return _half_log_determinant(scatter(smaller) / budget, rank)


def _mean_class_rate(sample: Labelled, distortion: float) -> Float[Array, ""]:
    """Nats for the rows of one class, mean over the classes, by the cheaper of two ways."""
    examples, features = sample.features.shape
    classes = sample.counts.shape[0]
    present = jnp.maximum(jnp.sum(sample.counts > 0), 1)
    budget = distortion * jnp.maximum(sample.counts, 1.0)
    rank = jnp.minimum(sample.counts, sample.width)
    by_examples = examples**2 * (2 * features + examples / 3)
    by_features = classes * features**2 * (2 * examples + features / 3)
    if by_examples < by_features:
        # The inner products within classes are one block-diagonal matrix: its determinant is
        # the product of theirs.
        within = scatter((sample.member * jax.lax.rsqrt(budget)).T)
        inner = within * scatter(sample.features.T)
        return _half_log_determinant(inner, jnp.sum(rank)) / present

    def of_class(one: tuple[Array, Array, Array]) -> Float[Array, ""]:
        member, budget, rank = one
        return _half_log_determinant(scatter(sample.features * member[:, None]) / budget, rank)

    return jnp.sum(jax.lax.map(of_class, (sample.member.T, budget, rank))) / present


def transrate(
    outputs: TeacherOutputs,
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    distortion: float = 1e-4,
) -> Float[Array, ""]:
    """TransRate: coding rate of the features less the mean rate of those of one class.

    With Z the n rows to be coded, the rate is 1/2 log det(1 + Z'Z / (n distortion)). The
    features are centred once, not in each class, and the mean over classes is plain, as in the
    reference code; other than there a class without an example does not count. Single precision
    agrees with double to 3e-4; where rows are repeated and their squares are 10^6 times the
    distortion or more, only to some per cent.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task.
        distortion: Squared error that the code may make, in squared units of the features,
            > 0.

    Returns:
        The score in nats, of either sign; NaN for a black box, features that do not vary and
        fewer than two classes.

    Raises:
        InputError: If `distortion` is not positive or a label is out of range.

    References:
        Huang et al., Frustratingly Easy Transferability Estimation, ICML 2022.
    """
    checks.positive("distortion", distortion)
    sample = labelled(outputs, labels, num_classes)
    whole = _whole_rate(sample, distortion)
    # Two factorisations that do not wait for each other hang XLA on two cores (jax 0.10.2): the
    # second is made to need the first.
    after = sample._replace(features=sample.features + 0.0 * whole)
    return jnp.where(sample.defined, whole - _mean_class_rate(after, distortion), jnp.nan)
