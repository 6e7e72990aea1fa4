"""One compiled training step for any student, teacher and objective, and the loop around it."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fdjax import checkpoints, checks, regulation
from fdjax.objectives import Objective
from fdjax.types import Batch, Outputs, TrainableNetwork, Variables

Tree = Any
Teach = Callable[[Tree, Batch], Outputs]
Record = dict[str, float | None]
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
        counts: How often each example took part; see `regulation`.
    """

    step: Int[Array, ""]
    variables: Variables
    objective_params: Tree
    objective_state: Tree
    optimiser_state: Tree
    key: Array
    counts: Int[Array, " examples"]


def observed(teacher: Outputs, batch: Batch) -> Outputs:
    """Teaches from outputs computed beforehand: the rows of the batch."""
    return jax.tree.map(lambda rows: rows[batch.indices], teacher)


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

    Raises:
        InputError: If there are no "params", or the objective refuses teacher and student.
    """
    checks.require(
        "params" in variables,
        'the student\'s variables must hold a collection "params": wrap them as {"params": ...}.',
    )
    init_key, key = jax.random.split(key)
    batch = jax.tree.map(jnp.asarray, batch)
    outputs, _ = student(variables, batch.images)
    signal = teach(teacher, batch)
    params, state = objective.init(init_key, batch, outputs, signal)
    # Run once for its checks of shapes and values, before anything is compiled.
    objective.loss(params, state, init_key, batch, outputs, signal)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        # The step donates its state: the caller keeps arrays of its own.
        variables=jax.tree.map(jnp.array, variables),
        objective_params=params,
        objective_state=jax.tree.map(jnp.array, state),
        optimiser_state=optimiser.init((variables["params"], params)),
        key=key,
        counts=jnp.zeros(num_examples, jnp.int32),
    )


def make_step(
    student: TrainableNetwork,
    teach: Teach,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    *,
    confidence: float | None = None,
    weights: Float[Array, " examples"] | None = None,
) -> Step:
    """One jitted step `(state, batch, teacher) -> (state, metrics)`; it donates `state`.

    Args:
        student: `(variables, images) -> (Outputs, variables)`.
        teach: `(teacher, batch) -> Outputs`: `observed` for outputs computed beforehand, or
            a live forward pass with `teacher` its variables.
        objective: What is minimised.
        optimiser: From optax, for the student's and the objective's parameters.
        confidence: If given, only examples that the student gets wrong or is not as sure of
            take part (`regulation.participates`), and are counted.
        weights: If given, weight of each example of the data, by `batch.indices`.

    Returns:
        The step. Metrics: "loss", "accuracy" on the labelled examples of the batch (NaN if
        there are none) and "participants".
    """

    def step(state: TrainState, batch: Batch, teacher: Tree) -> Any:
        key, loss_key = jax.random.split(state.key)
        signal = jax.lax.stop_gradient(teach(teacher, batch))

        def objective_value(trained: tuple[Tree, Tree]) -> Any:
            params, objective_params = trained
            outputs, variables = student({**state.variables, "params": params}, batch.images)
            per_example, objective_state = objective.loss(
                objective_params, state.objective_state, loss_key, batch, outputs, signal
            )
            share = jnp.ones_like(per_example)
            if confidence is not None:
                share = regulation.participates(outputs.logits, batch.labels, confidence=confidence)
                share = jax.lax.stop_gradient(share.astype(per_example.dtype))
            value = share * per_example
            if weights is not None:
                value = value * weights[batch.indices]
            loss = value.sum() / jnp.maximum(share.sum(), 1.0)
            return loss, (outputs, variables, objective_state, share)

        trained = (state.variables["params"], state.objective_params)
        (loss, extra), gradient = jax.value_and_grad(objective_value, has_aux=True)(trained)
        outputs, variables, objective_state, share = extra
        updates, optimiser_state = optimiser.update(gradient, state.optimiser_state, trained)
        params, objective_params = optax.apply_updates(trained, updates)
        counts = state.counts
        if confidence is not None:
            counts = regulation.count(counts, batch.indices, share > 0)
        labelled = batch.labels >= 0
        right = (jnp.argmax(outputs.logits, axis=-1) == batch.labels) & labelled
        metrics = {
            "loss": loss,
            "accuracy": right.sum() / jnp.where(labelled.any(), labelled.sum(), jnp.nan),
            "participants": share.sum(),
        }
        new_state = TrainState(
            step=state.step + 1,
            variables={**variables, "params": params},
            objective_params=objective_params,
            objective_state=objective_state,
            optimiser_state=optimiser_state,
            key=key,
            counts=counts,
        )
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def fit(
    step: Step,
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    teacher: Tree,
    *,
    steps: int,
    folder: str | Path | None = None,
    resume: bool = False,
    save_every: int = 500,
    log_every: int = 50,
    name: str = "train",
) -> tuple[TrainState, list[Record]]:
    """Runs a step until `steps` are done, logging and saving on the way.

    Args:
        step: From `make_step`.
        state: From `init_state`; donated.
        batches: `start -> iterator` of the batches from step `start` on.
        teacher: What the step's `teach` reads.
        steps: Steps of the whole run, those before a resume included.
        folder: Where `metrics.jsonl` and checkpoints go; nothing is written if None.
        resume: Go on from the latest checkpoint of `folder`, if there is one. The result is
            the same bit for bit as that of a run that was never interrupted.
        save_every: Steps between checkpoints; the last step is always saved.
        log_every: Steps between records of the metrics.
        name: Shown beside the progress bar.

    Returns:
        The final state and the records.

    Raises:
        InputError: If `folder` holds checkpoints and `resume` is off, or a loss is not finite.
    """
    from tqdm import tqdm

    records: list[Record] = []
    if folder is not None:
        state, records = _open(Path(folder), state, resume)
    start = int(state.step)
    stream = batches(start)
    # A bar would fill a log file with lines: on a terminal only.
    bar = tqdm(total=steps, initial=start, desc=name, disable=not sys.stderr.isatty(), leave=False)
    for done in range(start + 1, steps + 1):
        state, metrics = step(state, next(stream), teacher)
        bar.update()
        if done % log_every == 0 or done == steps:
            record = _record(done, metrics)
            checks.require(
                record["loss"] is not None,
                f"the loss of `{name}` is not finite at step {done}; lower the learning rate or "
                "the weight of the teacher.",
            )
            records.append(record)
            bar.set_postfix(loss=f"{record['loss']:.3f}")
        if folder is not None and (done % save_every == 0 or done == steps):
            _save(Path(folder), state, records)
    bar.close()
    return state, records


def _record(step: int, metrics: dict[str, Array]) -> Record:
    """Metrics as JSON can hold them: a value that is not finite is None."""
    values = {key: float(value) for key, value in metrics.items()}
    return {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}


def _open(folder: Path, state: TrainState, resume: bool) -> tuple[TrainState, list[Record]]:
    """Restores the latest checkpoint and its records, or makes sure that there is none."""
    found = checkpoints.latest(folder / "checkpoints")
    if found is None:
        return state, []
    checks.require(
        resume, f"{folder} holds a run already; go on with --resume or choose another folder."
    )
    state = checkpoints.restore(folder / "checkpoints", state)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return state, [record for record in records if record["step"] <= found]


def _save(folder: Path, state: TrainState, records: list[Record]) -> None:
    """Writes the records, whole and atomically, and then the checkpoint that needs them."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "metrics.jsonl.tmp"
    partial.write_text("".join(json.dumps(record) + "\n" for record in records))
    partial.replace(folder / "metrics.jsonl")
    checkpoints.save(folder / "checkpoints", int(state.step), state)
