"""Rivals of the transport loss: learning otherwise from a teacher of other classes, or alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks, costs
from fdjax.losses.classification import kd


def divergence(
    target: Float[Array, "*rows classes"], log_student: Float[Array, "*rows classes"]
) -> Float[Array, " *rows"]:
    """KL(target || student) of distributions, in nats; a class without target mass adds zero.

    Args:
        target: Probabilities; each row sums to one.
        log_student: Log-probabilities; may be -inf where the target has no mass.
    """
    some = target > 0
    gap = jnp.where(some, jnp.log(jnp.where(some, target, 1.0)) - log_student, 0.0)
    return jnp.sum(target * gap, axis=-1)


def projected_kl(
    student_logits: Float[Array, "batch student_classes"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    temperature: float = 1.0,
    epsilon: float = 1.0,
) -> Float[Array, " batch"]:
    """Divergence of the student from the teacher projected onto the task.

    The projection is `costs.predictor`: each teacher label sends its mass to the student's
    labels in proportion to exp(-cost / epsilon). With a cost from `costs.from_predictions`
    and `epsilon` = 1 it is the LEEP predictor sum_s p(s|x) P(c|s). The plain transport loss
    is least at the same student, but otherwise weighs the teacher's labels anew for each
    student: this is its rival with the coupling held fixed. It needs no label.

    Args:
        student_logits: Over the task's classes.
        teacher_logits: Over the teacher's classes; -inf for padding.
        cost: As for `losses.transport`; with `epsilon` = 1 in nats.
        temperature: Softening of both predictions, > 0. There is no factor of its square,
            as there is none in `losses.transport`.
        epsilon: In units of `cost`, > 0; at less than 1 the projection sharpens.

    Returns:
        KL(projected teacher || student) of each example, in nats.

    Raises:
        InputError: If the cost does not fit the logits or a setting is not positive.

    References:
        Nguyen et al., LEEP, ICML 2020, eq. 1-2 (the predictor; its use as a target is ours).
    """
    checks.positive("temperature", temperature)
    checks.shape("cost", cost, (teacher_logits.shape[-1], student_logits.shape[-1]))
    teacher = jax.nn.softmax(teacher_logits / temperature)
    target = costs.predictor(cost, teacher, epsilon=epsilon)
    return divergence(target, jax.nn.log_softmax(student_logits / temperature))


def uld(
    student_logits: Float[Array, "batch student_classes"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    *,
    temperature: float = 1.0,
) -> Float[Array, " batch"]:
    """Distance of the two predictions, each sorted from the most to the least likely label.

    Only how sure the teacher is counts, not of what: the sorted distance is the transport
    cost when every label costs the same to reach. It needs neither labels nor a cost.

    Args:
        student_logits: Over the task's classes.
        teacher_logits: Over any number of classes; -inf for padding. The shorter of the two
            sorted predictions is padded with zeros.
        temperature: Softening of both predictions, > 0; 1 in the paper.

    Returns:
        L1 distance of each example, in [0, 2]. The paper's weight beside cross-entropy is 1.5.

    Raises:
        InputError: If `temperature` is not positive.

    References:
        Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation
        Loss for LLMs, 2024 (one position of theirs is one image here).
    """
    checks.positive("temperature", temperature)
    longest = max(student_logits.shape[-1], teacher_logits.shape[-1])

    def ordered(logits: Float[Array, "batch classes"]) -> Float[Array, "batch longest"]:
        likely_first = jnp.sort(jax.nn.softmax(logits / temperature), axis=-1, descending=True)
        return jnp.pad(likely_first, ((0, 0), (0, longest - logits.shape[-1])))

    return jnp.sum(jnp.abs(ordered(student_logits) - ordered(teacher_logits)), axis=-1)


def extra_head(
    head_logits: Float[Array, "batch teacher_classes"],
    teacher_logits: Float[Array, "batch teacher_classes"],
    *,
    temperature: float = 4.0,
) -> Float[Array, " batch"]:
    """Hinton's distillation into a second head of the student, over the teacher's labels.

    The student's own head learns nothing from it, its features do. It needs no label.

    Args:
        head_logits: Of the second head.
        teacher_logits: Over the same classes. A class that is -inf for the whole batch is
            taken for padding, and left out of the head's prediction too.
        temperature: Softening of both, > 0.

    Returns:
        T^2 KL(teacher || head) of each example, in nats.

    Raises:
        InputError: If the number of classes differs or `temperature` is not positive.

    References:
        Borup, Phoo, Hariharan, Distilling from Similar Tasks for Transfer Learning on a
        Budget, ICCV 2023 (a head for each source model; the temperature is Hinton's).
    """
    checks.shape("head_logits", head_logits, teacher_logits.shape)
    exists = jnp.any(teacher_logits > -jnp.inf, axis=0)
    masked = jnp.where(exists, head_logits, -jnp.inf)
    return kd(masked, teacher_logits, temperature=temperature)


def feature_matching(
    student_features: Float[Array, "batch features"],
    teacher_features: Float[Array, "batch features"],
) -> Float[Array, " batch"]:
    """Squared distance of the student's features to the teacher's, one side being projected.

    Args:
        student_features: In the common space.
        teacher_features: In the common space.

    Returns:
        Sum over the features of the squared difference, for each example. It grows with
        their number and scale, so the weight must shrink with both.

    Raises:
        InputError: If the two are not of one size.

    References:
        Romero et al., FitNets, ICLR 2015, eq. 3 (there for a hidden layer).
    """
    checks.require(
        student_features.shape == teacher_features.shape,
        f"`feature_matching` compares features of one size, got {student_features.shape[-1]} of "
        f"the student and {teacher_features.shape[-1]} of the teacher; project one side, as the "
        "objective of this name does.",
    )
    return jnp.sum((student_features - teacher_features) ** 2, axis=-1)


def pseudo_labels(
    student_logits: Float[Array, "batch classes"], *, threshold: float = 0.95
) -> Float[Array, " batch"]:
    """Cross-entropy of the student's own predictions, where it is sure of them.

    The teacher-free rival: what unlabelled images give by themselves.

    Args:
        student_logits: Over the task's classes.
        threshold: Least probability, in [0, 1], of the most likely class at which it is
            taken for the label.

    Returns:
        Surprise in nats of the most likely class; zero for an example below the threshold.
        No gradient passes through the choice of label or example.

    Raises:
        InputError: If `threshold` is outside [0, 1].

    References:
        Sohn et al., FixMatch, NeurIPS 2020, eq. 4. There the label comes from a weakly and
        the prediction from a strongly augmented view; here one view gives both.
    """
    checks.in_range("threshold", threshold, 0.0, 1.0)
    log_probabilities = jax.nn.log_softmax(student_logits)
    belief = jax.lax.stop_gradient(log_probabilities)
    label = jnp.argmax(belief, axis=-1)
    chosen = jnp.take_along_axis(log_probabilities, label[:, None], axis=-1)[:, 0]
    return jnp.where(jnp.exp(belief.max(axis=-1)) >= threshold, -chosen, 0.0)
