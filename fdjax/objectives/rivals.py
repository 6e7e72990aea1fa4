"""Objectives to compare with transport: by predictions, by a second head, by features, by none."""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks, losses
from fdjax.objectives.base import Objective, stateless
from fdjax.types import Batch, Outputs

Tree = Any
Linear: TypeAlias = dict[str, Array]
Side = Literal["student", "teacher"]


def features(outputs: Outputs, side: Side, objective: str) -> Float[Array, "batch features"]:
    """Features of one side.

    Raises:
        InputError: If that side shows its predictions only.
    """
    if outputs.features is None:
        raise checks.InputError(
            f"the objective `{objective}` needs features of the {side}, but it shows its "
            "predictions only; choose one that needs none, such as `transport`."
        )
    return outputs.features


def require_classes(teacher: Outputs, objective: str) -> None:
    """Refuses a teacher of one class, which is what stands in where there is no teacher."""
    checks.require(
        teacher.logits.shape[-1] > 1,
        f"the objective `{objective}` needs a teacher of two classes or more; give the outputs of "
        "one, or choose `pseudo_labels`, which needs none.",
    )


def _linear(key: Array, inputs: int, outputs: int) -> Linear:
    """A fresh linear layer."""
    kernel = jax.nn.initializers.lecun_normal()(key, (inputs, outputs))
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _apply(layer: Linear, inputs: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
    return inputs @ layer["kernel"] + layer["bias"]


def projected_kl(
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    temperature: float = 1.0,
    epsilon: float = 1.0,
) -> Objective:
    """Divergence from the teacher projected onto the task; see `losses.projected_kl`.

    The cost is carried in the state, as that of `transport` is.

    Raises:
        InputError: If the cost holds NaN or infinity, or a setting is not positive.
    """
    checks.finite("cost", cost)
    checks.positive("temperature", temperature)
    checks.positive("epsilon", epsilon)

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        value = losses.projected_kl(
            student.logits, teacher.logits, state, temperature=temperature, epsilon=epsilon
        )
        return value, state

    return Objective(init=lambda key, batch, student, teacher: ((), cost), loss=loss)


def uld(*, temperature: float = 1.0) -> Objective:
    """Universal logit distillation, by sorted predictions; see `losses.uld`.

    Raises:
        InputError: If `temperature` is not positive; later, if there is no teacher.
    """
    checks.positive("temperature", temperature)

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        require_classes(teacher, "uld")
        return losses.uld(student.logits, teacher.logits, temperature=temperature)

    return stateless(loss)


def extra_head(*, temperature: float = 4.0) -> Objective:
    """Distillation into a linear head over the teacher's labels; see `losses.extra_head`.

    The head stands on the student's features, is trained with the student and is thrown
    away afterwards. The student's own head learns nothing from it: add `cross_entropy`.

    Raises:
        InputError: If `temperature` is not positive; later, if the student shows no features
            or there is no teacher.
    """
    checks.positive("temperature", temperature)

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        require_classes(teacher, "extra_head")
        inputs = features(student, "student", "extra_head").shape[-1]
        return _linear(key, inputs, teacher.logits.shape[-1]), ()

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        head_logits = _apply(params, features(student, "student", "extra_head"))
        return losses.extra_head(head_logits, teacher.logits, temperature=temperature), state

    return Objective(init, loss)


def feature_matching(*, projector: Side = "student") -> Objective:
    """Squared distance of features through a learned linear projector.

    See `losses.feature_matching`. The student's own head learns nothing from it: add
    `cross_entropy`.

    Args:
        projector: Whose features are projected. "student" is the usual way: the student must
            hold all that the teacher knows. "teacher" is the inverted one: the projector may
            drop what the task does not need. Alone it is least where both sides are zero;
            cross-entropy beside it keeps the student's features from shrinking away.

    Raises:
        InputError: If `projector` is unknown; later, if a side shows no features.

    References:
        Romero et al., FitNets, ICLR 2015 (student); Auty, Miles, Kolbeinsson, Mikolajczyk,
        Learning to Project for Cross-Task Knowledge Distillation, 2024 (teacher; the squared
        distance on last features is our choice, theirs goes with several losses).
    """
    checks.choice("projector", projector, ("student", "teacher"))

    def sides(
        student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, "batch student_features"], Float[Array, "batch teacher_features"]]:
        return (
            features(student, "student", "feature_matching"),
            features(teacher, "teacher", "feature_matching"),
        )

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        own, given = sides(student, teacher)
        if projector == "teacher":
            return _linear(key, given.shape[-1], own.shape[-1]), ()
        layer = _linear(key, own.shape[-1], given.shape[-1])
        # A teacher's padded features are zero everywhere: with a projector of zeros they are met
        # from the start and never move the student. One at rest by chance learns from zero.
        active = jnp.any(given != 0, axis=0)
        return {**layer, "kernel": layer["kernel"] * active}, ()

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        own, given = sides(student, teacher)
        if projector == "student":
            own = _apply(params, own)
        else:
            given = _apply(params, given)
        return losses.feature_matching(own, given), state

    return Objective(init, loss)


def pseudo_labels(*, threshold: float = 0.95) -> Objective:
    """Self-training on the unlabelled images, without a teacher; see `losses.pseudo_labels`.

    Each unlabelled image weighs batch / unlabelled, so that the mean over the batch is the
    mean over its unlabelled images, those below the threshold included, as in FixMatch.
    Labelled images have their labels: add `cross_entropy`, without which nothing starts.

    Raises:
        InputError: If `threshold` is outside [0, 1].
    """
    checks.in_range("threshold", threshold, 0.0, 1.0)

    def loss(batch: Batch, student: Outputs, teacher: Outputs) -> Float[Array, " batch"]:
        unlabelled = batch.labels < 0
        share = batch.labels.shape[0] / jnp.maximum(unlabelled.sum(), 1)
        value = losses.pseudo_labels(student.logits, threshold=threshold)
        return jnp.where(unlabelled, share * value, 0.0)

    return stateless(loss)
