"""Teaching a student what it should believe once it has heard its teachers."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks
from fdjax.belief import reference_target

# Temperature of an annealed target at its coldest: nothing but an exact tie is left of the others.
_COLDEST = 1e-3

Form = Literal["soft", "sharp", "hard"]
Gate = Literal["none", "threshold", "power"]


def _always(confidence: Float[Array, " batch"], level: float) -> Float[Array, " batch"]:
    return jnp.ones_like(confidence)


def _threshold(confidence: Float[Array, " batch"], level: float) -> Float[Array, " batch"]:
    return (confidence > level).astype(confidence.dtype)


def _power(confidence: Float[Array, " batch"], level: float) -> Float[Array, " batch"]:
    return confidence**level


GATES: dict[str, Callable[[Array, float], Array]] = {
    "none": _always,
    "threshold": _threshold,
    "power": _power,
}
"""Weight in [0, 1] of an example by the confidence of its target and a level >= 0.

Confidence is the largest probability on a scale from 0 (no better than chance) to 1 (certain).
"""


def _soft(target: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    return target


def _sharp(target: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    return target**2 / jnp.sum(target**2, axis=-1, keepdims=True)


def _hard(target: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    return jax.nn.one_hot(jnp.argmax(target, axis=-1), target.shape[-1], dtype=target.dtype)


FORMS: dict[str, Callable[[Array], Array]] = {"soft": _soft, "sharp": _sharp, "hard": _hard}
"""What is made of a target: itself, its square (temperature one half), or its likeliest class."""


def annealed(
    target: Float[Array, "batch classes"], progress: float | Float[Array, ""]
) -> Float[Array, "batch classes"]:
    """A target on its way from itself to its likeliest class: its power 1 / (1 - progress).

    Args:
        target: A distribution for each example.
        progress: 0 leaves the target as it is, 1 is the likeliest class.
    """
    exponent = 1.0 / jnp.maximum(1.0 - progress, _COLDEST)
    # Zero to any power is zero; its logarithm would make 0 * inf of the gradient.
    logits = jnp.where(target > 0, jnp.log(jnp.where(target > 0, target, 1.0)), -jnp.inf)
    return jax.nn.softmax(exponent * logits, axis=-1)


def gated(
    student_logits: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    form: Form = "hard",
    gate: Gate = "none",
    level: float = 0.75,
    progress: float | Float[Array, ""] | None = None,
) -> Float[Array, " batch"]:
    """Cross-entropy of the student to a target of which only sure examples may count.

    Args:
        student_logits: Over the task's classes.
        target: A distribution for each example; no gradient flows through it.
        form: One of `FORMS`.
        gate: One of `GATES`.
        level: Of the gate: the confidence to be passed for "threshold", in [0, 1); the exponent
            of the confidence for "power". Unused for "none".
        progress: If given, the target is taught as `annealed` makes it and `form` is not used.

    Returns:
        Weight times cross-entropy of each example, in nats; zero where the gate is shut.

    Raises:
        InputError: If a shape does not fit, a name is unknown or the level is negative.
    """
    checks.choice("form", form, FORMS)
    checks.choice("gate", gate, GATES)
    checks.require(level >= 0, f"`level` must be >= 0, got {level}.")
    checks.shape("target", target, student_logits.shape)
    target = jax.lax.stop_gradient(target)
    classes = target.shape[-1]
    # One class leaves nothing to be sure of.
    confidence = (classes * target.max(axis=-1) - 1) / max(classes - 1, 1)
    weight = GATES[gate](jnp.clip(confidence, 0.0, 1.0), level)
    wanted = FORMS[form](target) if progress is None else annealed(target, progress)
    # A class without mass contributes nothing, even where the student's logit is -inf.
    log_student = jnp.where(wanted > 0, jax.nn.log_softmax(student_logits), 0.0)
    return -weight * jnp.sum(wanted * log_student, axis=-1)


def reference(
    student_logits: Float[Array, "batch student_classes"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    log_belief: Float[Array, "batch student_classes"] | None = None,
    temperature: float = 1.0,
    epsilon: float = 1.0,
    form: Form = "hard",
    gate: Gate = "none",
    level: float = 0.75,
) -> Float[Array, " batch"]:
    """Reference transport: cross-entropy to the belief updated by the teacher.

    The reference measure of the transport is what the student believes; see `fdjax.belief`.
    Taken from the student itself (the default) it holds what the teacher said in earlier steps,
    and evidence that is heard at each step is counted again at each step, until the student is
    sure of it: then a gate is needed. A belief that has not heard the teacher counts it once.

    Args:
        student_logits: Over the task's classes.
        teacher_logits: Over the teacher's classes; -inf for padding.
        cost: Price of teacher label to student label, in nats where `epsilon` = 1.
        log_belief: Reference measure, as log-probabilities; the student's own if None.
        temperature: Softening of the teacher, > 0.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        form: One of `FORMS`.
        gate: One of `GATES`.
        level: Of the gate, see `gated`.

    Returns:
        Loss of each example, in nats.

    Raises:
        InputError: If a shape or a setting does not fit.

    References:
        Reconstructed from Lu, Ye, Zhan, Selective Cross-Task Distillation, 2022 (transport
        between predictions); the reference measure is this library's own.
    """
    checks.positive("temperature", temperature)
    belief = jax.nn.log_softmax(student_logits) if log_belief is None else log_belief
    checks.shape("log_belief", belief, student_logits.shape)
    target = reference_target(
        jax.lax.stop_gradient(belief),
        jax.lax.stop_gradient(jax.nn.softmax(teacher_logits / temperature)),
        cost,
        epsilon=epsilon,
    )
    return gated(student_logits, target, form=form, gate=gate, level=level)
