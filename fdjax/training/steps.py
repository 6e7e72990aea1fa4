"""One compiled training step for any student, teacher and objective."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from fdjax import checks, regulation
from fdjax.objectives import Objective
from fdjax.types import Batch, Outputs, TrainableNetwork, Variables

Tree = Any
Teach = Callable[[Tree, Batch], Outputs]
Augment = Callable[[Array, Float[Array, "batch height width channels"]], Array]
Step = Callable[["TrainState", Batch, Tree], tuple["TrainState", dict[str, Array]]]


class TrainState(NamedTuple):
    """All that a run needs to go on, and all that a checkpoint holds.

    Attributes:
        step: Steps done.
        variables: The student's variables; "params" is trained.
        objective_params: What the objective trains beside the student.
        objective_state: What the objective remembers.
        optimiser_state: Of optax, over the pair of trained trees.
        key: Randomness of the next steps.
        counts: How often each example took part, see `regulation`; None if not counted.
        threshold: Confidence at which an example rests, where it changes; else None.
        seen: What the student last showed of each example; None if not remembered.
    """

    step: Int[Array, ""]
    variables: Variables
    objective_params: Tree
    objective_state: Tree
    optimiser_state: Tree
    key: Array
    counts: Int[Array, " examples"] | None
    threshold: Float[Array, ""] | None = None
    seen: regulation.Seen | None = None


def observed(teacher: Outputs, batch: Batch) -> Outputs:
    """Teaches from outputs computed beforehand: the rows of the batch."""
    # `take` gives NaN for a row that is not there; plain indexing would give the last row.
    return jax.tree.map(lambda rows: jnp.take(rows, batch.indices, axis=0), teacher)


def no_teacher(teacher: Tree, batch: Batch) -> Outputs:
    """For objectives that look at labels only."""
    return Outputs(jnp.zeros((batch.labels.shape[0], 1)))


def init_state(
    key: Array,
    variables: Variables,
    student: TrainableNetwork,
    teach: Teach,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    batch: Batch,
    teacher: Tree,
    *,
    num_examples: int = 0,
    confidence: float | regulation.Threshold | None = None,
    remembers: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
        key: Randomness of the run.
        variables: The student's variables, with a collection "params".
        student: As for `make_step`.
        teach: As for `make_step`.
        objective: As for `make_step`.
        optimiser: As for `make_step`.
        batch: A first batch, for shapes and for objectives that start from outputs.
        teacher: What `teach` reads.
        num_examples: Size of the data if participation is to be counted, else 0.
        confidence: As for the step; it matters where it is a `regulation.Threshold`.
        remembers: Whether the state remembers what the student shows of each example, as
            `make_compacted_step` wants it.

    Returns:
        The state, in arrays of its own: those handed in stay the caller's.

    Raises:
        InputError: If there are no "params", the first batch does not fit student, teacher
            or `num_examples`, or the objective refuses teacher and student.
    """
    checks.require(
        num_examples > 0 or not remembers,
        "to remember what the student shows of each example, give `num_examples`.",
    )
    checks.require(
        "params" in variables,
        'the student\'s variables must hold a collection "params": wrap them as {"params": ...}.',
    )
    init_key, key = jax.random.split(key)
    batch = jax.tree.map(jnp.asarray, batch)
    outputs, signal = _both_outputs(student, teach, variables, teacher, batch)
    checks.labels("labels", batch.labels, outputs.logits.shape[-1], unlabelled=True)
    checks.require(
        not bool(jnp.isnan(signal.logits).any()),
        "the teacher's logits hold NaN on the first batch; outputs computed beforehand must have "
        "one row for each example of the data.",
    )
    checks.require(
        num_examples == 0 or int(batch.indices.max()) < num_examples,
        f"`num_examples` is {num_examples}, but the first batch has the example "
        f"{int(batch.indices.max())}; give the size of the data.",
    )
    params, objective_state = objective.init(init_key, batch, outputs, signal)
    # Traced once for its checks, before anything of it is compiled.
    jax.eval_shape(objective.loss, params, objective_state, init_key, batch, outputs, signal)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        objective_params=params,
        objective_state=objective_state,
        optimiser_state=optimiser.init((variables["params"], params)),
        key=key,
        counts=jnp.zeros(num_examples, jnp.int32) if num_examples else None,
        threshold=(
            jnp.asarray(confidence.first, jnp.float32)
            if isinstance(confidence, regulation.Threshold)
            else None
        ),
        seen=regulation.never_seen(num_examples) if remembers else None,
    )
    # The step donates its state, and an optimiser may hold the very arrays it was given.
    return jax.tree.map(jnp.array, state)


# Outside `jit` each operation of the two networks would be compiled by itself.
@partial(jax.jit, static_argnums=(0, 1))
def _both_outputs(
    student: TrainableNetwork, teach: Teach, variables: Variables, teacher: Tree, batch: Batch
) -> tuple[Outputs, Outputs]:
    """What student and teacher say of a batch."""
    return student(variables, batch.images)[0], teach(teacher, batch)


class Lesson(NamedTuple):
    """What a student learns from in one step.

    Attributes:
        batch: Images that are back-propagated.
        signal: What the teacher says of them.
        key: For the objective.
        takes_part: Which of them take part, from what the student says of them.
        weights: Of each example of the data, or None.
    """

    batch: Batch
    signal: Outputs
    key: Array
    takes_part: Callable[[Outputs], Bool[Array, " batch"]]
    weights: Float[Array, " examples"] | None


class Descent(NamedTuple):
    """What a step of the optimiser gave.

    Attributes:
        state: The next state, but for its key, threshold and memory.
        outputs: Of the student before the step, on the batch.
        took_part: Which examples of the batch did.
        metrics: Of the step.
    """

    state: TrainState
    outputs: Outputs
    took_part: Bool[Array, " batch"]
    metrics: dict[str, Array]


def descend(
    student: TrainableNetwork,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    state: TrainState,
    lesson: Lesson,
) -> Descent:
    """One step of the optimiser on those of a batch that take part."""
    batch = lesson.batch

    def objective_value(trained: tuple[Tree, Tree]) -> Any:
        params, objective_params = trained
        outputs, variables = student({**state.variables, "params": params}, batch.images)
        per_example, objective_state = objective.loss(
            objective_params, state.objective_state, lesson.key, batch, outputs, lesson.signal
        )
        took_part = lesson.takes_part(outputs)
        share = took_part.astype(per_example.dtype)
        value = share * per_example
        if lesson.weights is not None:
            value = value * jnp.take(lesson.weights, batch.indices)
        loss = value.sum() / jnp.maximum(share.sum(), 1.0)
        return loss, (outputs, variables, objective_state, took_part)

    trained = (state.variables["params"], state.objective_params)
    (loss, extra), gradient = jax.value_and_grad(objective_value, has_aux=True)(trained)
    outputs, variables, objective_state, took_part = extra
    updates, optimiser_state = optimiser.update(gradient, state.optimiser_state, trained)
    params, objective_params = optax.apply_updates(trained, updates)
    labelled = batch.labels >= 0
    right = (jnp.argmax(outputs.logits, axis=-1) == batch.labels) & labelled
    metrics = {
        "loss": loss,
        "accuracy": right.sum() / jnp.where(labelled.any(), labelled.sum(), jnp.nan),
        "participants": took_part.sum(),
    }
    state = state._replace(
        step=state.step + 1,
        variables={**variables, "params": params},
        objective_params=objective_params,
        objective_state=objective_state,
        optimiser_state=optimiser_state,
    )
    return Descent(state, outputs, took_part, metrics)


def make_step(
    student: TrainableNetwork,
    teach: Teach,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    *,
    confidence: float | regulation.Threshold | None = None,
    weights: Float[Array, " examples"] | None = None,
    augment: Augment | None = None,
) -> Step:
    """One jitted step `(state, batch, teacher) -> (state, metrics)`; it donates `state`.

    With `weights` the distillation is *significance-based*, with `confidence` *regulated*, with
    both *hybrid*. Those that do not take part are back-propagated all the same, with weight zero;
    `make_compacted_step` spares them.

    Args:
        student: `(variables, images) -> (Outputs, variables)`.
        teach: `(teacher, batch) -> Outputs`: `observed` for outputs computed beforehand, or
            a live forward pass with `teacher` its variables.
        objective: What is minimised.
        optimiser: From optax, for the student's and the objective's parameters.
        confidence: If given, only examples that the student gets wrong or is not as sure of
            take part (`regulation.participates`), and are counted if the state has counts. A
            number, or a `regulation.Threshold` that `init_state` is given too.
        weights: If given, weight of each example of the data, by `batch.indices`, such as its
            `regulation.significance`. They multiply the losses; the mean is still over the
            examples of the batch (that take part), so that a batch of little weight moves the
            student little.
        augment: `(key, images) -> images`, a random change of each batch, compiled into the
            step: student and teacher see the same changed images.

    Returns:
        The step. Metrics: "loss", "accuracy" on the labelled examples of the batch (NaN if
        there are none), "participants", and "threshold" under self-regulation.

    Raises:
        InputError: If `augment` meets outputs computed beforehand or a confidence is out of
            range; at the first step, if the state was not made for a threshold.
    """
    refuse_stale_outputs(teach, augment)
    if confidence is not None:
        regulation.threshold(confidence)  # refuses a number out of range

    def step(state: TrainState, batch: Batch, teacher: Tree) -> Any:
        key, loss_key, batch = start_of_step(state, batch, augment)
        signal = jax.lax.stop_gradient(teach(teacher, batch))

        def takes_part(outputs: Outputs) -> Bool[Array, " batch"]:
            if confidence is None:
                return jnp.ones(batch.labels.shape, bool)
            logits = jax.lax.stop_gradient(outputs.logits)
            now = confidence_of(state, confidence)
            return regulation.participates(logits, batch.labels, confidence=now)

        lesson = Lesson(batch, signal, loss_key, takes_part, weights)
        new_state, outputs, took_part, metrics = descend(
            student, objective, optimiser, state, lesson
        )
        new_state = new_state._replace(key=key)
        if confidence is None:
            return new_state, metrics
        if state.counts is not None:
            counts = regulation.count(state.counts, batch.indices, took_part)
            new_state = new_state._replace(counts=counts)
        wrong = regulation.look(outputs.logits, batch.labels).wrong
        new_state, told = with_next_threshold(new_state, confidence, wrong, took_part)
        return new_state, metrics | told

    return jax.jit(step, donate_argnums=0)


def refuse_stale_outputs(teach: Teach, augment: Augment | None) -> None:
    """Refuses an augmentation of images of which the teacher spoke beforehand."""
    checks.require(
        augment is None or teach is not observed,
        "outputs computed beforehand are of the images as they were, and not of those that "
        "`augment` gives; run the teacher live, by a `teach` of its own with its variables as "
        "`teacher`, or leave out the augmentation.",
    )


def start_of_step(
    state: TrainState, batch: Batch, augment: Augment | None
) -> tuple[Array, Array, Batch]:
    """The next state's key, the objective's key, and the batch as it is seen."""
    key, loss_key, *more = jax.random.split(state.key, 2 if augment is None else 3)
    if augment is not None:
        batch = batch._replace(images=augment(more[0], batch.images))
    return key, loss_key, batch


def confidence_of(
    state: TrainState, confidence: float | regulation.Threshold
) -> float | Float[Array, ""]:
    """The confidence of this step: a number, or of a threshold the value in the state.

    Raises:
        InputError: If the state was made without a threshold.
    """
    if not isinstance(confidence, regulation.Threshold):
        return confidence
    if state.threshold is None:
        raise checks.InputError(
            "the step has a threshold, but its state has no value of one; give `init_state` the "
            "`confidence` of the step."
        )
    return state.threshold


def with_next_threshold(
    state: TrainState,
    confidence: float | regulation.Threshold,
    wrong: Bool[Array, " batch"],
    took_part: Bool[Array, " batch"],
) -> tuple[TrainState, dict[str, Array]]:
    """The state with the confidence of the next step, and that of this one as a metric."""
    now = jnp.asarray(confidence_of(state, confidence), jnp.float32)
    if isinstance(confidence, regulation.Threshold):
        after = confidence.after(now, state.step, wrong.mean(), took_part.mean())
        state = state._replace(threshold=jnp.asarray(after, jnp.float32))
    return state, {"threshold": now}
