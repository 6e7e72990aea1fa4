"""A training step that back-propagates the few of many candidates that are worth it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fdjax import checks, regulation
from fdjax.objectives import Objective
from fdjax.training.steps import (
    Augment,
    Lesson,
    Step,
    Teach,
    TrainState,
    Tree,
    confidence_of,
    descend,
    refuse_stale_outputs,
    start_of_step,
    with_next_threshold,
)
from fdjax.types import Batch, TrainableNetwork


def make_compacted_step(
    student: TrainableNetwork,
    teach: Teach,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    *,
    slots: int,
    confidence: float | regulation.Threshold | None = None,
    select: regulation.Selection | None = None,
    weights: Float[Array, " examples"] | None = None,
    refresh_every: int = 1,
    augment: Augment | None = None,
) -> Step:
    """One jitted step `(state, batch, teacher) -> (state, metrics)` that spares the unused.

    The batch holds candidates. The student looks at them (a forward pass without gradient), the
    `slots` of highest priority become a batch of that fixed size, and only these are taught,
    by teacher and objective, and back-propagated. Slots that are left over have no weight;
    participants that find no slot are dropped, at random, and come again in the next epoch. Where
    all participants find one, the step is that of `make_step` with the same settings, but for
    losses that compare examples with each other (which see the few only), for running statistics
    of layers, and for losses that count the labelled examples of a batch.

    Args:
        student: As for `make_step`.
        teach: As for `make_step`.
        objective: As for `make_step`.
        optimiser: As for `make_step`.
        slots: Candidates that a step back-propagates, at most; its time falls with them.
        confidence: As for `make_step`.
        select: Instead of `confidence`, another way to choose; see `regulation.SELECTIONS`.
            Without either the slots are filled at random.
        weights: As for `make_step`; a candidate of weight zero is never used.
        refresh_every: Steps from one fresh look at the candidates to the next. In between they
            are judged by what the student showed of them when it last looked, or was taught
            them; one that it never looked at comes first. 1 is the exact rule; larger numbers
            spare the forward pass.
        augment: As for `make_step`; a memory is then of other changes of the same images.

    Returns:
        The step, for states made with `remembers` and `num_examples`. Metrics as those of
        `make_step`, "accuracy" and "participants" being of the examples used. All that are used
        are counted.

    Raises:
        InputError: If a setting is out of range, `confidence` and `select` are both given, or
            `augment` meets outputs computed beforehand; at the first step, if there are more
            slots than candidates or the state was made for another step.
    """
    checks.positive("slots", slots)
    checks.positive("refresh_every", refresh_every)
    checks.require(
        confidence is None or select is None,
        "`confidence` and `select` are two ways to choose; give one of them.",
    )
    refuse_stale_outputs(teach, augment)
    if confidence is not None:
        regulation.threshold(confidence)  # refuses a number out of range

    def prioritise(state: TrainState, key: Array, seen: regulation.Seen) -> Array:
        if confidence is not None:
            return regulation.regulated(key, seen, confidence=confidence_of(state, confidence))
        return (select or regulation.SELECTIONS["uniform"])(key, seen)

    def step(state: TrainState, batch: Batch, teacher: Tree) -> Any:
        memory, counts = _memory_of(state)
        key, loss_key, batch = start_of_step(state, batch, augment)
        seen = _look(student, state, batch, memory, refresh_every)
        priority = prioritise(state, jax.random.fold_in(loss_key, 1), seen)
        took_part = priority > -jnp.inf
        if weights is not None:
            known = jnp.take(weights, batch.indices)
            priority = jnp.where(known > 0, priority, -jnp.inf)
        rows, filled = regulation.compact(priority, slots)
        few = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), batch)
        signal = jax.lax.stop_gradient(teach(teacher, few))
        lesson = Lesson(few, signal, loss_key, lambda outputs: filled, weights)
        new_state, outputs, _, metrics = descend(student, objective, optimiser, state, lesson)
        memory = regulation.remember(memory, batch.indices, seen)
        before = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), seen)
        taught = regulation.look(outputs.logits, few.labels, outputs.features, before=before)
        new_state = new_state._replace(
            key=key,
            counts=regulation.count(counts, few.indices, filled),
            seen=regulation.remember(memory, few.indices, taught),
        )
        if confidence is None:
            return new_state, metrics
        new_state, told = with_next_threshold(new_state, confidence, seen.wrong, took_part)
        return new_state, metrics | told

    return jax.jit(step, donate_argnums=0)


def _look(
    student: TrainableNetwork,
    state: TrainState,
    batch: Batch,
    memory: regulation.Seen,
    refresh_every: int,
) -> regulation.Seen:
    """What the student shows of the candidates, or at most steps what it last showed."""
    remembered = jax.tree.map(lambda leaf: jnp.take(leaf, batch.indices, axis=0), memory)

    def afresh() -> regulation.Seen:
        # In training, as for the mask; that running statistics move is left to the descent.
        outputs, _ = student(state.variables, batch.images)
        return regulation.look(outputs.logits, batch.labels, outputs.features, before=remembered)

    if refresh_every == 1:
        return afresh()
    return jax.lax.cond(state.step % refresh_every == 0, afresh, lambda: remembered)


def _memory_of(state: TrainState) -> tuple[regulation.Seen, Array]:
    """What was seen of every example, and how often each took part."""
    if state.seen is None or state.counts is None:
        raise checks.InputError(
            "a compacted step needs a state with a memory; give `init_state` the size of the data "
            "as `num_examples`, and `remembers=True`."
        )
    return state.seen, state.counts
