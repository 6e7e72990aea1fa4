"""One compiled training step for any student, teacher and objective, and the loop around it."""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fdjax import checkpoints, checks, regulation
from fdjax.objectives import Objective
from fdjax.types import Batch, Outputs, TrainableNetwork, Variables

Tree = Any
Teach = Callable[[Tree, Batch], Outputs]
Record = dict[str, Any]
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
    """

    step: Int[Array, ""]
    variables: Variables
    objective_params: Tree
    objective_state: Tree
    optimiser_state: Tree
    key: Array
    counts: Int[Array, " examples"] | None


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

    Returns:
        The state, in arrays of its own: those handed in stay the caller's.

    Raises:
        InputError: If there are no "params", the first batch does not fit student, teacher
            or `num_examples`, or the objective refuses teacher and student.
    """
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
            take part (`regulation.participates`), and are counted if the state has counts.
        weights: If given, weight of each example of the data, by `batch.indices`. They
            multiply the losses; the mean is still over the examples of the batch (that
            take part), so that a batch of little weight moves the student little.

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
                value = value * jnp.take(weights, batch.indices)
            loss = value.sum() / jnp.maximum(share.sum(), 1.0)
            return loss, (outputs, variables, objective_state, share)

        trained = (state.variables["params"], state.objective_params)
        (loss, extra), gradient = jax.value_and_grad(objective_value, has_aux=True)(trained)
        outputs, variables, objective_state, share = extra
        updates, optimiser_state = optimiser.update(gradient, state.optimiser_state, trained)
        params, objective_params = optax.apply_updates(trained, updates)
        counts = state.counts
        if confidence is not None and counts is not None:
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
    progress: bool = True,
) -> tuple[TrainState, list[Record]]:
    """Runs a step until `steps` are done, logging and saving on the way.

    Args:
        step: From `make_step`.
        state: From `init_state`; donated. Where a run is resumed it only gives the form.
        batches: `start -> iterator` of the batches from step `start` on.
        teacher: What the step's `teach` reads.
        steps: Steps of the whole run, those before a resume included.
        folder: Where `metrics.jsonl` and checkpoints go; nothing is written if None.
        resume: Go on from the latest checkpoint of `folder`, if there is one. The result is
            the same bit for bit as that of a run that was never interrupted.
        save_every: Steps between checkpoints; the last step is always saved.
        log_every: Steps between records of the metrics.
        progress: Whether to show a progress bar; only on a terminal.
        name: Shown beside the progress bar.

    Returns:
        The final state and the records.

    Raises:
        InputError: If `folder` holds a run and `resume` is off, more than `steps` are done, the
            batches end, the folder cannot be written, or a loss or parameter is not finite.
            What was saved before stays.
    """
    from tqdm import tqdm

    checks.positive("save_every", save_every)
    checks.positive("log_every", log_every)
    records: list[Record] = []
    if folder is not None:
        state, records = _open(Path(folder), state, resume)
    start = int(state.step)
    checks.require(
        start <= steps,
        f"`{name}` has {start} steps behind it, more than the {steps} asked for; raise `steps` or "
        "choose another folder.",
    )
    stream = batches(start)
    # Once and not at every step, should it come as NumPy arrays.
    teacher = jax.device_put(teacher)
    # A bar would fill a log file with lines: on a terminal only.
    silent = not (progress and sys.stderr.isatty())
    with tqdm(total=steps, initial=start, desc=name, disable=silent, leave=False) as bar:
        for done in range(start + 1, steps + 1):
            batch = next(stream, None)
            if batch is None:
                raise checks.InputError(
                    f"the batches of `{name}` end before step {done}; give an endless stream."
                )
            state, metrics = step(state, batch, teacher)
            bar.update()
            logs = done == steps or done % log_every == 0
            saves = done == steps or done % save_every == 0
            if not (logs or saves):
                continue
            record = _record(done, metrics)
            # The loss is of the parameters before the update: those kept are looked at too.
            checks.require(
                record["loss"] is not None and (not saves or _is_finite(state.variables)),
                f"`{name}` diverged: its loss or a parameter is not finite at step {done}; lower "
                "the learning rate or the weight of the teacher.",
            )
            if logs:
                records.append(record)
                bar.set_postfix(loss=f"{record['loss']:.3f}")
            if saves and folder is not None:
                _save(Path(folder), state, records)
    return state, records


def _record(step: int, metrics: dict[str, Array]) -> Record:
    """Metrics as JSON can hold them: a value that is not finite is None."""
    values = {key: float(value) for key, value in metrics.items()}
    return {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}


def _is_finite(tree: Tree) -> bool:
    """True if no array of the tree holds NaN or infinity."""
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


def _open(folder: Path, state: TrainState, resume: bool) -> tuple[TrainState, list[Record]]:
    """Restores the latest checkpoint and its records, or makes sure that there is none."""
    found = checkpoints.latest(folder / "checkpoints")
    if found is None:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return state, []
    checks.require(
        resume, f"{folder} holds a run already; go on with `resume` or choose another folder."
    )
    state = checkpoints.restore(folder / "checkpoints", state)
    path = folder / "metrics.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise checks.InputError(
            f"{path} cannot be read ({error}); restore it, empty it to go on without the earlier "
            "records, or choose another folder."
        ) from error
    # A kill between the two writes of `_save` leaves records that are newer than the checkpoint.
    return state, [record for record in records if record["step"] <= found]


def _save(folder: Path, state: TrainState, records: list[Record]) -> None:
    """Writes the records, whole and atomically, and then the checkpoint that needs them."""
    partial = folder / "metrics.jsonl.tmp"
    with _writing(folder):
        partial.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        partial.replace(folder / "metrics.jsonl")
    checkpoints.save(folder / "checkpoints", int(state.step), state)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write into one sentence."""
    try:
        yield
    except OSError as error:
        raise checks.InputError(
            f"cannot write to {folder}: {error.strerror or error}; choose a folder you may write "
            "to, with space left."
        ) from error
