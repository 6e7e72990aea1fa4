"""Distillation by Wasserstein distances: between predictions, and between feature maps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks
from fdjax import transport as ot
from fdjax.losses.decoupled import target_classes

HIGHEST = jax.lax.Precision.HIGHEST
_GUARD = 1e-8  # added to each marginal before a division, as the authors do
_VARIANCE = 1e-5  # added to each variance before the square root, as the authors do


def cka_distances(
    class_features: Float[Array, "classes samples features"], *, sharpness: float | None = None
) -> Float[Array, "classes classes"]:
    """How unlike two classes are to a teacher: one minus linear CKA of their features.

    The alternative is 1 - cosine of the rows of the teacher's last layer, which is
    `costs.between_vectors(rows, rows, centre=False)`.

    Args:
        class_features: The same number of feature vectors of each class, two or more. For a
            convolutional map every position may be one.
        sharpness: If given, each distance d becomes 1 - exp(-sharpness * d), > 0; in the
            paper 1, for one pair 2.

    Returns:
        A symmetric cost in [0, 1], zero on the diagonal. A class whose vectors are all the
        same has no direction: it is at distance one, or its sharpened value, from all.

    Raises:
        InputError: If the features hold NaN or infinity, there is one vector a class only, or
            `sharpness` is not positive.

    References:
        Lv, Yang, Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
        Distillation, NeurIPS 2024; Kornblith et al., Similarity of Neural Network
        Representations Revisited, ICML 2019 (CKA).
    """
    checks.shape("class_features", class_features, (None, None, None))
    checks.finite("class_features", class_features)
    checks.require(
        class_features.shape[1] > 1,
        "`class_features` needs two vectors of each class or more, got one.",
    )
    if sharpness is not None:
        checks.positive("sharpness", sharpness)
    centred = class_features - class_features.mean(axis=1, keepdims=True)

    def with_all(one: Float[Array, "samples features"]) -> Float[Array, " classes"]:
        cross = jnp.einsum("cnd,ne->cde", centred, one, precision=HIGHEST)
        return jnp.sum(cross**2, axis=(1, 2))

    squares = jax.lax.map(with_all, centred)  # the products of one class at a time
    own = jnp.sqrt(jnp.diagonal(squares))
    scale = own[:, None] * own
    similarity = jnp.where(scale > 0, squares / jnp.where(scale > 0, scale, 1.0), 0.0)
    distances = jnp.where(jnp.eye(len(own), dtype=bool), 0.0, jnp.clip(1 - similarity, 0.0, 1.0))
    return distances if sharpness is None else -jnp.expm1(-sharpness * distances)


def unfinished_cost(
    cost: Float[Array, "source target"],
    source: Float[Array, "batch source"],
    target: Float[Array, "batch target"],
    exists: Bool[Array, "batch target"],
    *,
    epsilon: float,
    iterations: int,
) -> Float[Array, " batch"]:
    """Cost of the plan that a fixed number of Sinkhorn iterations leaves, as WKD's code takes it.

    With few iterations the plan does not carry `source` to `target` yet, so this is no transport
    cost; it can be off by a quarter. `transport.sharp_cost` is the finished one. The gradient is
    that of the iterations.

    Args:
        cost: Price of moving mass from teacher class to student class.
        source: Teacher's masses.
        target: Student's masses.
        exists: Target classes that the first iteration starts from.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        iterations: How many, >= 1.
    """
    kernel = jnp.exp(-cost / epsilon)
    start = exists / exists.sum(axis=-1, keepdims=True)

    def iterate(_: Array, scalings: tuple[Array, Array]) -> tuple[Array, Array]:
        of_target, _ = scalings
        reached = jnp.matmul(of_target, kernel.T, precision=HIGHEST)
        of_source = source / (reached + _GUARD)
        reached = jnp.matmul(of_source, kernel, precision=HIGHEST)
        return target / (reached + _GUARD), of_source

    scalings = (start.astype(target.dtype), jnp.zeros_like(source))
    of_target, of_source = jax.lax.fori_loop(0, iterations, iterate, scalings)
    # The plans themselves, one class by class matrix an example, are never stored.
    priced = jnp.matmul(of_source, kernel * cost, precision=HIGHEST)
    return jnp.sum(of_target * priced, axis=-1)


def wkd_logits(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    labels: Int[Array, " batch"],
    cost: Float[Array, "source_classes target_classes"],
    *,
    gamma: float = 30.0,
    temperature: float = 2.0,
    epsilon: float = 0.05,
    iterations: int | None = 10,
) -> Float[Array, " batch"]:
    """Agreement on the label, plus transport of what is predicted of the other classes.

    Unlike a divergence the transport knows which classes are near: it costs little to take a
    cat for a lynx. The mass of the label is set aside and the rest renormalised.

    Args:
        student_logits: Over the task's classes.
        teacher_logits: Over the same classes.
        labels: Class of each example; an unlabelled one (-1) has loss zero.
        cost: Between classes, as `cka_distances` gives it; negative prices count as zero.
        gamma: Weight of the transport, >= 0; in the paper 10 to 30 with a temperature of 2 on
            ImageNet, 60 to 600 with 4 to 8 on CIFAR-100.
        temperature: Softening of both in the transport, > 0. The agreement on the label is
            at 1; there is no factor of its square.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        iterations: Sinkhorn iterations, >= 1, differentiated one by one: 10 in the authors'
            code and its published results, too few to converge. None for the transport cost
            itself, which `transport.sharp_cost` finds.

    Returns:
        -p(label) log q(label) + gamma * cost of each example, p being the teacher, q the
        student.

    Raises:
        InputError: If the label spaces differ in size, there are fewer than three classes, the
            cost does not fit or is not finite, or a label or setting is out of range.

    References:
        Lv, Yang, Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
        Distillation, NeurIPS 2024 (WKD-L).
    """
    checks.positive("temperature", temperature)
    checks.positive("epsilon", epsilon)
    checks.require(gamma >= 0, f"`gamma` must be >= 0, got {gamma}.")
    if iterations is not None:
        checks.positive("iterations", iterations)
    batch, classes = student_logits.shape
    checks.require(
        teacher_logits.shape == student_logits.shape,
        f"`wkd_logits` needs one label space, but the student has {classes} classes and the "
        f"teacher {teacher_logits.shape[-1]}; use the objective `transport`, which carries one "
        "label space to another.",
    )
    checks.require(
        classes > 2, f"`wkd_logits` needs three classes or more, got {classes}; use `kd`."
    )
    checks.shape("cost", cost, (classes, classes))
    checks.finite("cost", cost)
    checks.shape("labels", labels, (batch,))
    checks.labels("labels", labels, classes, unlabelled=True)
    is_label = target_classes(labels, classes)

    def others(logits: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
        return jax.nn.softmax(jnp.where(is_label, -jnp.inf, logits / temperature))

    source, target = others(teacher_logits), others(student_logits)
    # A class without mass takes no part, so one kernel serves every example although each
    # leaves out another class.
    cost = jnp.maximum(cost, 0.0) + _GUARD
    if iterations is None:
        carried = ot.sharp_cost(cost, source, target, epsilon=epsilon)
    else:
        carried = unfinished_cost(
            cost, source, target, ~is_label, epsilon=epsilon, iterations=iterations
        )
    log_student = jnp.where(is_label, jax.nn.log_softmax(student_logits), 0.0)
    agreement = jnp.sum(jax.nn.softmax(teacher_logits) * log_student, axis=-1)
    return jnp.where(labels >= 0, gamma * carried - agreement, 0.0)


def _cells(
    size: int, grid: int
) -> tuple[Int[np.ndarray, "grid longest"], Bool[np.ndarray, "grid longest"]]:
    """Positions in each cell of an axis, and which of them count; uneven cells overlap."""
    first = np.arange(grid) * size // grid
    length = -(-np.arange(1, grid + 1) * size // grid) - first
    steps = np.arange(length.max())
    return np.minimum(first[:, None] + steps, size - 1), steps < length[:, None]


def _gaussians(
    maps: Float[Array, "batch height width channels"], grid: int
) -> tuple[Float[Array, "batch grid grid channels"], Float[Array, "batch grid grid channels"]]:
    """Mean and standard deviation of each channel over the positions of each cell."""
    (rows, row_counts), (columns, column_counts) = (_cells(size, grid) for size in maps.shape[1:3])
    positions = maps[:, rows][:, :, :, columns]  # batch, grid, rows, grid, columns, channels
    counts = row_counts[:, :, None, None, None] & column_counts[:, :, None]
    mean = positions.mean(axis=(2, 4), where=counts)
    variance = positions.var(axis=(2, 4), ddof=1, where=counts)
    return mean, jnp.sqrt(variance + _VARIANCE)


def wkd_features(
    student_maps: Float[Array, "batch height width channels"],
    teacher_maps: Float[Array, "batch teacher_height teacher_width teacher_channels"],
    *,
    mean_weight: float = 2.0,
    grid: int = 1,
) -> Float[Array, " batch"]:
    """Wasserstein distance of Gaussians fitted to the positions of two maps.

    Each channel is one independent Gaussian, whose mean and deviation are taken over the
    positions of the image, or over those of each cell of a grid. Positions are not matched,
    so the maps may differ in height and width.

    Args:
        student_maps: Projected to the teacher's channels.
        teacher_maps: To be met.
        mean_weight: Weight of the means against the deviations, >= 0; in the paper 2 on
            ImageNet, 3 to 8 on CIFAR-100.
        grid: Cells along each side, >= 1; in the paper 1 or 4.

    Returns:
        Squared distance of each image, summed over channels, mean over cells.

    Raises:
        InputError: If the channels or the batches differ in size, a cell has one position
            only, or a setting is out of range.

    References:
        Lv, Yang, Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
        Distillation, NeurIPS 2024 (WKD-F).
    """
    checks.require(mean_weight >= 0, f"`mean_weight` must be >= 0, got {mean_weight}.")
    checks.positive("grid", grid)
    batch, channels = student_maps.shape[0], student_maps.shape[-1]
    checks.shape("student_maps", student_maps, (batch, None, None, channels))
    checks.require(
        teacher_maps.shape[0] == batch and teacher_maps.shape[-1] == channels,
        f"`wkd_features` compares maps of the same images and channels, got {batch} of "
        f"{channels} of the student and {teacher_maps.shape[0]} of {teacher_maps.shape[-1]} of "
        "the teacher; project the student's.",
    )
    for name, maps in (("student", student_maps), ("teacher", teacher_maps)):
        height, width = maps.shape[1:3]
        checks.require(
            math.ceil(height / grid) * math.ceil(width / grid) > 1,
            f"a grid of {grid} leaves cells of one position on the {name}'s map of {height} x "
            f"{width}, which have no deviation; choose a smaller `grid` or an earlier map.",
        )
    mean, deviation = _gaussians(student_maps, grid)
    wanted_mean, wanted_deviation = _gaussians(teacher_maps, grid)
    apart = mean_weight * (mean - wanted_mean) ** 2 + (deviation - wanted_deviation) ** 2
    return jnp.sum(apart, axis=-1).mean(axis=(1, 2))
