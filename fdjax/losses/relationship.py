"""Relationship matching: learning how a teacher's features relate images, whatever its labels."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax.losses.rivals import divergence

Comparison = Literal["tuples", "triplets"]


def _unit(vectors: Float[Array, "rows features"]) -> Float[Array, "rows features"]:
    """Rows of length one; a row of zeros (a dead ReLU) stays so, with zero gradient."""
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    some = square > 0
    return jnp.where(some, vectors * jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)


def _distances(features: Float[Array, "batch features"]) -> Float[Array, "batch batch"]:
    """Euclidean distance of all pairs of unit vectors; zero gradient between equal ones."""
    unit = _unit(features)
    inner = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
    length = jnp.sum(unit**2, axis=-1)
    square = length[:, None] + length - 2 * inner
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def _gaps(distances: Float[Array, "batch batch"]) -> Float[Array, "batch batch batch"]:
    """How much farther from anchor a the image n is than the image p, as [a, p, n]."""
    return distances[:, None, :] - distances[:, :, None]


def _semi_hard(
    distances: Float[Array, "batch batch"], labels: Int[Array, " batch"], margin: float
) -> Bool[Array, "batch batch batch"]:
    """True at [a, p, n] where p is of a's class, n is not, and n is farther by <= `margin`."""
    known = (labels >= 0)[:, None] & (labels >= 0)
    equal = labels[:, None] == labels
    positive = known & equal & ~jnp.eye(labels.shape[0], dtype=bool)
    gaps = _gaps(distances)
    near = (gaps > 0) & (gaps <= margin)
    return positive[:, :, None] & (known & ~equal)[:, None, :] & near


def refilled_relations(
    student_features: Float[Array, "batch student_features"],
    teacher_features: Float[Array, "batch teacher_features"],
    labels: Int[Array, " batch"],
    *,
    comparison: Comparison = "tuples",
    margin: float = 0.2,
    temperature: float = 4.0,
) -> Float[Array, ""]:
    """Stage 1 of ReFilled: the student orders semi-hard comparisons as the teacher does.

    On unit vectors with Euclidean distance d, an anchor a, a positive p of its class and
    the negatives n that the *student* puts farther than p, but by no more than `margin`:
    "tuples" compares softmax(-[d(a, p), d(a, n_1), ...] / temperature) of teacher and
    student; "triplets" compares sigmoid((d(a, n) - d(a, p)) / temperature) for each n.

    Which images are positive and negative are their labels' say, so only the labelled part
    of the batch takes part; unlabelled images (-1) change nothing.

    Args:
        student_features: Input of the student's last layer.
        teacher_features: Input of the teacher's, of any size.
        labels: Task labels.
        comparison: "triplets" is the authors' first, "tuples" their later and better form, which
            GKD has too (all mined negatives, masked, as ReFilled has them; GKD cuts each tuple
            to the length of the shortest).
        margin: Of the mining, > 0; 2, the largest distance, takes every farther negative.
        temperature: Softening of both sides, > 0 (the authors' tau_1).

    Returns:
        Mean divergence, in nats: over tuples with a mined negative, or over both outcomes of
        each triplet (as the authors' batch mean counts them). Zero if nothing was mined. The
        authors' weight is 1000. Takes memory for batch^3 numbers.

    Raises:
        InputError: If the batch has fewer than three images, or a setting is out of range.

    References:
        Ye, Lu, Zhan, Distilling Cross-Task Knowledge via Relationship Matching, CVPR 2020,
        stage 1 (their public code, which mines on the student); Generalized Knowledge
        Distillation via Relationship Matching, TPAMI 2022.
    """
    checks.choice("comparison", comparison, ("tuples", "triplets"))
    checks.positive("margin", margin)
    checks.positive("temperature", temperature)
    checks.require(
        labels.shape[0] >= 3,
        f"`refilled_relations` compares an image with two others, but the batch has "
        f"{labels.shape[0]}; raise the batch size.",
    )
    student, teacher = _distances(student_features), _distances(teacher_features)
    mined = _semi_hard(jax.lax.stop_gradient(student), labels, margin)
    if comparison == "triplets":
        wanted, got = _gaps(teacher) / temperature, _gaps(student) / temperature
        yes = jax.nn.sigmoid(wanted) * (jax.nn.log_sigmoid(wanted) - jax.nn.log_sigmoid(got))
        no = jax.nn.sigmoid(-wanted) * (jax.nn.log_sigmoid(-wanted) - jax.nn.log_sigmoid(-got))
        return jnp.sum(jnp.where(mined, yes + no, 0.0)) / (2 * jnp.maximum(mined.sum(), 1))

    def closeness(distances: Float[Array, "batch batch"]) -> Float[Array, "batch batch all"]:
        """Logits of the positive and of the mined negatives, for each anchor and positive."""
        negatives = jnp.where(mined, -distances[:, None, :], -jnp.inf)
        return jnp.concatenate([-distances[:, :, None], negatives], axis=-1) / temperature

    per_tuple = divergence(
        jax.nn.softmax(closeness(teacher)), jax.nn.log_softmax(closeness(student))
    )
    # A tuple of the positive alone has no divergence, but would dilute the mean.
    return per_tuple.sum() / jnp.maximum(mined.any(axis=-1).sum(), 1)


def _local_divergence(
    student_logits: Float[Array, "batch classes"],
    teacher_features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
    centres: Float[Array, "classes features"] | None,
    temperature: float,
    student_temperature: float,
) -> Float[Array, " batch"]:
    """KL(embedding-induced classifier || student) over the classes that the batch's labels name."""
    checks.positive("temperature", temperature)
    num_classes = student_logits.shape[-1]
    checks.labels("labels", labels, num_classes, unlabelled=True)
    member = jax.nn.one_hot(labels, num_classes, dtype=teacher_features.dtype)
    exact = jax.lax.Precision.HIGHEST
    if centres is None:  # sums serve as means: only their direction is used
        centres = jnp.matmul(member.T, teacher_features, precision=exact)
    checks.shape("centres", centres, (num_classes, teacher_features.shape[-1]))
    # A batch without labels names no class: all stand in below, so that nothing is NaN.
    named = member.sum(axis=0) > 0
    some = named.any()
    local = named | ~some
    scores = jnp.matmul(teacher_features, _unit(centres).T, precision=exact)
    target = jax.nn.softmax(jnp.where(local, scores, -jnp.inf) / temperature)
    log_student = jax.nn.log_softmax(
        jnp.where(local, student_logits, -jnp.inf) / student_temperature
    )
    return jnp.where(some, divergence(target, log_student), 0.0)


def refilled_classifier(
    student_logits: Float[Array, "batch classes"],
    teacher_features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
    centres: Float[Array, "classes features"] | None = None,
    *,
    temperature: float = 2.0,
) -> Float[Array, " batch"]:
    """Stage 2 of ReFilled: the student follows a nearest-centre classifier made of the teacher.

    The teacher's logit of a task class is the inner product of its features with the unit
    vector of the class centre. Both predictions are restricted to the classes that the
    labels of this batch name. The teacher's own head is not used.

    The authors know every label. Here unlabelled images (-1) take part with the classes that
    the labelled part of the batch names; a batch that names fewer than two teaches nothing.

    Args:
        student_logits: Over the task's classes.
        teacher_features: Input of the teacher's last layer.
        labels: Task labels, of which at least two classes should be known.
        centres: Class centres of the task in the teacher's features over the training set,
            from `costs.class_centres`, as in the authors' code; None for those of the
            labelled part of this batch, as in the paper's text.
        temperature: Softening of both, > 0 (the authors' tau_2).

    Returns:
        Divergence of each example, in nats, without a factor of temperature squared. The
        authors' weight beside cross-entropy is 100.

    Raises:
        InputError: If centres or labels do not fit, or `temperature` is not positive.

    References:
        Ye, Lu, Zhan, Distilling Cross-Task Knowledge via Relationship Matching, CVPR 2020,
        stage 2.
    """
    return _local_divergence(
        student_logits, teacher_features, labels, centres, temperature, temperature
    )


def gkd_classifier(
    student_logits: Float[Array, "batch classes"],
    teacher_features: Float[Array, "batch features"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    labels: Int[Array, " batch"],
    centres: Float[Array, "classes features"] | None = None,
    *,
    temperature: float = 1.0,
) -> Float[Array, " batch"]:
    """Stage 2 of weighted GKD: ReFilled's, trusting images that the teacher knows.

    The weight of an image is 2 sigmoid(-e), where e is the surprise of the teacher's own
    most likely label, scaled to [0, 1] over the batch: 1 where it is most sure, 0.54 where
    it is least. Only the teacher is softened. Without the weights, at temperature 1, GKD's
    loss is `refilled_classifier`.

    Args:
        student_logits: As for `refilled_classifier`.
        teacher_features: As for `refilled_classifier`.
        teacher_logits: Over the teacher's own classes; -inf for padding.
        labels: As for `refilled_classifier`, and so are unlabelled images.
        centres: As for `refilled_classifier`.
        temperature: Softening of the teacher, > 0.

    Returns:
        Weighted divergence of each example, in nats. The authors' weight is 1.

    Raises:
        InputError: If centres or labels do not fit, or `temperature` is not positive.

    References:
        Generalized Knowledge Distillation via Relationship Matching, TPAMI 2022 (the
        authors' public code, model `wgkd`).
    """
    surprise = -jax.nn.log_softmax(teacher_logits).max(axis=-1)
    spread = surprise.max() - surprise.min()
    scaled = (surprise - surprise.min()) / jnp.where(spread > 0, spread, 1.0)
    per_example = _local_divergence(
        student_logits, teacher_features, labels, centres, temperature, 1.0
    )
    return 2 * jax.nn.sigmoid(-scaled) * per_example
