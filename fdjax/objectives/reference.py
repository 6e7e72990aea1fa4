"""Reference transport from one teacher or several, trusted as far as the labels bear it out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fdjax import belief, checks, costs, losses
from fdjax.objectives.base import Objective
from fdjax.trust import Trust
from fdjax.trust import fit as fit_trust
from fdjax.types import Batch, Outputs

Tree = Any

# How much of the surprise of the batches before is kept at each step.
_RECALL = 0.9
# Probability below which a target's surprise at a label grows no further; and a surprise that
# counts as none.
_RAREST = 1e-6


class ReferenceState(NamedTuple):
    """What the objective carries: numbers only, so that one step serves every teacher.

    Attributes:
        cost: Of each teacher.
        trust: In the belief and in each teacher.
        weight: Of the whole term.
        log_prior: Reference of the teachers' evidence; None for the belief itself.
        log_beliefs: Of each example of the data; None for the student's own at each step.
        step: How many there have been.
        surprise: Of the student and of the target at the labels of late, in nats; each a sum
            in which earlier batches count less.
    """

    cost: Float[Array, "teachers teacher_classes student_classes"]
    trust: Trust
    weight: Float[Array, ""]
    log_prior: Float[Array, " student_classes"] | None
    log_beliefs: Float[Array, "examples student_classes"] | None
    step: Int[Array, ""]
    surprise: Float[Array, "2"]


def _masses(
    logits: Float[Array, "batch labels"], teachers: int, temperature: float
) -> Float[Array, "teachers batch teacher_classes"]:
    """Predictions of teachers whose logits stand side by side; a silent teacher's are zero."""
    logits = logits.reshape(logits.shape[0], teachers, -1) / temperature
    speaks = jnp.isfinite(logits).any(axis=-1, keepdims=True)
    masses = jnp.where(speaks, jax.nn.softmax(jnp.where(speaks, logits, 0.0)), 0.0)
    return jnp.moveaxis(masses, 1, 0)


def target(
    state: ReferenceState, batch: Batch, student: Outputs, teacher: Outputs, *, temperature: float
) -> Float[Array, "batch student_classes"]:
    """What the student should believe of each image of the batch; no gradient flows through it."""
    if state.log_beliefs is None:
        own = jax.nn.log_softmax(jax.lax.stop_gradient(student.logits))
    else:
        own = jnp.take(state.log_beliefs, batch.indices, axis=0)
    # A belief without trust is no belief: zero times minus infinity would be NaN.
    own = jnp.where(state.trust.belief > 0, state.trust.belief * own, 0.0)
    against = own if state.log_prior is None else jnp.broadcast_to(state.log_prior, own.shape)
    masses = _masses(jax.lax.stop_gradient(teacher.logits), len(state.cost), temperature)
    updates = jax.vmap(belief.log_update, in_axes=(None, 0, 0))(against, masses, state.cost)
    return belief.pooled_target(own, updates, state.trust.teachers)


def _surprise(
    student_logits: Float[Array, "batch classes"],
    wanted: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
) -> Float[Array, "2"]:
    """Of student and target at the labels of a batch, in nats; no gradient flows through it."""
    student = jax.nn.log_softmax(jax.lax.stop_gradient(student_logits))
    target = jnp.log(jnp.maximum(wanted, _RAREST))
    known = (labels >= 0).astype(student.dtype)
    row = jnp.maximum(labels, 0)[:, None]
    each = [jnp.take_along_axis(said, row, axis=1)[:, 0] for said in (student, target)]
    return -jnp.stack([jnp.sum(known * one) for one in each]) + _RAREST


def reference(
    cost: Float[Array, "*teachers teacher_classes student_classes"],
    *,
    log_beliefs: Float[Array, "examples student_classes"] | None = None,
    trust: Trust | None = None,
    log_prior: Float[Array, " student_classes"] | None = None,
    temperature: float = 1.0,
    epsilon: float = 1.0,
    form: losses.Form = "hard",
    gate: losses.Gate = "none",
    level: float = 0.75,
    labelled: bool = False,
    only_trusted: bool = False,
    annealed: float = 0.0,
    fading: bool = False,
) -> Objective:
    """Cross-entropy to the belief updated by the teachers; see `losses.reference`.

    The mean over the batch is the mean over the images that are taught, however many others
    stand beside them.

    Args:
        cost: In nats where `epsilon` = 1. With an axis of teachers, the teacher's logits hold
            those of all teachers side by side, each padded with -inf to the labels of the cost.
        log_beliefs: Log-probabilities that did not hear the teachers, for each example of the
            data by `batch.indices`, as `crossfit.log_beliefs` makes them.
            The student's own at each step if None: it has heard the teachers before, and
            counts their evidence again at each step.
        trust: Exponents of the belief and of each teacher, from `trust.fit`; all one if None.
        log_prior: If given, the evidence of each teacher is taken against this prior, as
            `trust.fit` weighs it, and not label by label against the belief.
        temperature: Softening of the teachers, > 0.
        epsilon: Entropic regularisation in units of `cost`, > 0.
        form: "soft", "sharp" or "hard" target.
        gate: "none", "threshold" or "power" of the target's confidence.
        level: Of the gate.
        labelled: Whether labelled images are taught as well. Their label says more than a hard
            target; a soft one may still tell how like other classes they are.
        only_trusted: Whether the term is nothing where no teacher is trusted, and not the
            belief alone.
        annealed: Steps over which the target goes from soft to hard, whatever its `form`, see
            `losses.annealed`; 0 for the `form`.
        fading: Whether the term fades as the student overtakes the target: its weight is the
            student's surprise at the labels of late over the target's, at most one. The beliefs
            of a target are cross-fitted and a student remembers its labels, so it fades early.

    Raises:
        InputError: If a setting is out of range, an array holds NaN or does not fit.
    """
    checks.finite("cost", cost)
    checks.positive("epsilon", epsilon)
    checks.positive("temperature", temperature)
    checks.require(annealed >= 0, f"`annealed` must be >= 0, got {annealed}.")
    cost = cost / epsilon if cost.ndim == 3 else cost[None] / epsilon
    teachers, width, classes = cost.shape
    if trust is None:
        one = jnp.ones(())
        trust = Trust(one, jnp.ones(teachers), one)
    checks.shape("trust.teachers", trust.teachers, (teachers,))
    if log_prior is not None:
        checks.shape("log_prior", log_prior, (classes,))
    if log_beliefs is not None:
        checks.shape("log_beliefs", log_beliefs, (None, classes))
    heard = (trust.teachers > 0).any() | (not only_trusted)
    state = ReferenceState(
        *(cost, trust, heard.astype(cost.dtype), log_prior, log_beliefs),
        step=jnp.zeros((), jnp.int32),
        surprise=jnp.zeros(2),
    )

    def init(key: Array, batch: Batch, student: Outputs, teacher: Outputs) -> tuple[Tree, Tree]:
        checks.shape("teacher.logits", teacher.logits, (None, teachers * width))
        checks.shape("student.logits", student.logits, (None, classes))
        return (), state

    def loss(
        params: Tree, state: Tree, key: Array, batch: Batch, student: Outputs, teacher: Outputs
    ) -> tuple[Float[Array, " batch"], Tree]:
        wanted = target(state, batch, student, teacher, temperature=temperature)
        progress = jnp.minimum(state.step / annealed, 1.0) if annealed else None
        value = losses.gated(
            student.logits, wanted, form=form, gate=gate, level=level, progress=progress
        )
        taught = (batch.labels < 0) | labelled
        weight = state.weight * taught.size / jnp.maximum(taught.sum(), 1)
        surprise = _RECALL * state.surprise + _surprise(student.logits, wanted, batch.labels)
        if fading:
            weight = weight * jnp.clip(surprise[0] / surprise[1], 0.0, 1.0)
        state = state._replace(step=state.step + 1, surprise=surprise)
        return weight * jnp.where(taught, value, 0.0), state

    return Objective(init, loss)


def trusted_reference(
    probabilities: Float[Array, "teachers examples teacher_classes"],
    labels: Int[Array, " examples"],
    log_beliefs: Float[Array, "examples student_classes"],
    *,
    smoothing: float = 1.0,
    penalty: float = 4.0,
    fitted: bool = True,
    own: bool = False,
    form: losses.Form = "hard",
    gate: losses.Gate = "threshold",
    level: float = 0.35,
    labelled: bool = False,
    only_trusted: bool = False,
    annealed: float = 0.0,
    fading: bool = False,
) -> Objective:
    """Reference transport with cost and trust from the labelled examples, the others taught.

    Trust calibrates the pool of belief and evidence on the labels; the gate then leaves alone the
    examples of which the pool is not sure, and with them the tasks of which neither student nor
    teachers know enough to teach. `penalty`, `form`, `gate` and `level` were chosen on the tuning
    tasks of experiments/README.md.

    Args:
        probabilities: What each teacher says of each example of the data.
        labels: Class of each example; unlabelled examples (-1) are only taught.
        log_beliefs: Log-probabilities of students trained on the labels alone; those of a
            labelled example from students that did not see its label, as `crossfit` makes them.
        smoothing: As for `costs.from_predictions`.
        penalty: As for `trust.fit`.
        fitted: Whether trust follows from the labels; every exponent is one if not.
        own: Whether the reference is the student's own belief at each step, as for `reference`
            without `log_beliefs`; those given then only tell how far to trust the teachers.
        form: As for `reference`.
        gate: As for `reference`.
        level: As for `reference`.
        labelled: As for `reference`.
        only_trusted: As for `reference`; then a student whom no teacher can help is trained on
            its labels alone, to the bit. Otherwise it learns from the cross-fitted beliefs.
        annealed: As for `reference`.
        fading: As for `reference`.

    Returns:
        The objective, for teacher outputs as `reference` wants them.

    Raises:
        InputError: If a label is out of range, a class is empty or a shape does not fit.
    """
    classes = log_beliefs.shape[-1]
    checks.shape("probabilities", probabilities, (None, len(labels), None))
    checks.shape("log_beliefs", log_beliefs, (len(labels), classes))
    checks.labels("labels", labels, classes, unlabelled=True)
    checks.every_class_present("labels", labels, classes)
    checks.positive("smoothing", smoothing)
    checks.require(penalty >= 0, f"`penalty` must be >= 0, got {penalty}.")
    known = np.flatnonzero(np.asarray(labels) >= 0)
    cost, trust, log_prior = _read(
        probabilities[:, known], labels[known], log_beliefs[known], smoothing, penalty
    )
    if not fitted:
        trust = jax.tree.map(jnp.ones_like, trust)
    return reference(
        cost,
        log_beliefs=None if own else log_beliefs,
        trust=trust,
        log_prior=log_prior,
        form=form,
        gate=gate,
        level=level,
        labelled=labelled,
        only_trusted=only_trusted,
        annealed=annealed,
        fading=fading,
    )


# Outside `jit` each operation would be compiled by itself.
@jax.jit
def _read(
    probabilities: Array, labels: Array, log_beliefs: Array, smoothing: Any, penalty: Any
) -> tuple[Array, Trust, Array]:
    """Cost of evidence of each teacher, trust, and prior from labelled examples."""
    classes = log_beliefs.shape[-1]
    log_prior = costs.log_prior(labels, classes)

    def one(seen: Array) -> tuple[Array, Array]:
        surprise = costs.from_predictions(seen, labels, classes, smoothing=smoothing)
        others = costs.leave_one_out_predictor(seen, labels, classes, smoothing=smoothing)
        return surprise + log_prior, jnp.log(others) - log_prior

    cost, updates = jax.vmap(one)(probabilities)
    return cost, fit_trust(log_beliefs, updates, labels, penalty=penalty), log_prior
