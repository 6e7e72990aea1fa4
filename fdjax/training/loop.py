"""The loop around a training step: batches, records, checkpoints, and the best state so far."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fdjax import checkpoints, checks, processes, sharding
from fdjax.training.steps import Step, TrainState, Tree
from fdjax.types import Batch, Variables

Record = dict[str, Any]
Judge = Callable[[Variables], float]


class Best(NamedTuple):
    """The state of the highest judgement, and how long it has stood.

    Attributes:
        state: As it was judged; the first state before any judgement.
        value: Of the judge; minus infinity before any judgement.
        waited: Judgements since.
    """

    state: TrainState
    value: Any
    waited: Any


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
    judge: Judge | None = None,
    judge_every: int = 50,
    patience: int | None = None,
    name: str = "train",
    progress: bool = True,
) -> tuple[TrainState, list[Record]]:
    """Runs a step until `steps` are done, logging, judging and saving on the way.

    Where several processes are one program (`processes`) all of them call it alike, with state,
    batches and teacher on the devices of all (`sharding`); the first one's folder is used.

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
        judge: `variables -> value`, higher is better, such as the accuracy on images held out
            from training. It is asked every `judge_every` steps and after the last one; the
            state of the highest value is returned, the earliest of equals. It must be a
            function of the variables alone, and not keep them: the next step reuses their
            memory.
        judge_every: Steps between judgements.
        patience: The run ends early once this many judgements on end brought no higher value;
            never if None.
        name: Shown beside the progress bar.
        progress: Whether to show a progress bar; only on a terminal.

    Returns:
        The final state, or where there is a judge the best one, and the records; that of a step
        that was judged has the value as "judged".

    Raises:
        InputError: If `folder` holds a run and `resume` is off, more than `steps` are done, the
            batches end, the folder cannot be written, a loss, parameter or judgement is not
            finite, or there is patience without a judge. What was saved before stays.
    """
    from tqdm import tqdm

    checks.positive("save_every", save_every)
    checks.positive("log_every", log_every)
    checks.positive("judge_every", judge_every)
    if patience is not None:
        checks.positive("patience", patience)
    checks.require(
        judge is not None or patience is None,
        "`patience` counts judgements; give a `judge`, or leave it out.",
    )
    best = None if judge is None else Best(_copy(state), np.float64(-np.inf), np.int64(0))
    records: list[Record] = []
    if folder is not None:
        state, best, records = _open(Path(folder), state, best, resume)
    done = int(state.step)
    checks.require(
        done <= steps,
        f"`{name}` has {done} steps behind it, more than the {steps} asked for; raise `steps` or "
        "choose another folder.",
    )
    stream = batches(done)
    # Once and not at every step, should it come as NumPy arrays.
    teacher = jax.tree.map(jnp.asarray, teacher)
    # A bar would fill a log file with lines: on a terminal only.
    silent = not (progress and sys.stderr.isatty())
    over = done == steps or _has_lost_patience(best, patience)
    with tqdm(total=steps, initial=done, desc=name, disable=silent, leave=False) as bar:
        while not over:
            done += 1
            batch = next(stream, None)
            if batch is None:
                raise checks.InputError(
                    f"the batches of `{name}` end before step {done}; give an endless stream."
                )
            state, metrics = step(state, batch, teacher)
            bar.update()
            over = done == steps
            logs = over or done % log_every == 0
            saves = over or done % save_every == 0
            judges = judge is not None and (over or done % judge_every == 0)
            if not (logs or saves or judges):
                continue
            record = _record(done, metrics)
            # The loss is of the parameters before the update: those kept are looked at too.
            kept = saves or judges
            checks.require(
                record["loss"] is not None and (not kept or _is_finite(state.variables)),
                f"`{name}` diverged: its loss or a parameter is not finite at step {done}; lower "
                "the learning rate or the weight of the teacher.",
            )
            if judge is not None and best is not None and judges:
                record["judged"] = _value(judge, state, name)
                best = _better(best, state, record["judged"])
                over = over or _has_lost_patience(best, patience)
            if logs or judges:
                records.append(record)
                bar.set_postfix(loss=f"{record['loss']:.3f}")
            if (saves or over) and folder is not None:
                _save(Path(folder), state, best, records)
    return (state if best is None else best.state), records


def _copy(state: TrainState) -> TrainState:
    """The state in arrays of its own, which the next step does not donate."""
    return jax.tree.map(jnp.copy, state)


def _value(judge: Judge, state: TrainState, name: str) -> float:
    """What the judge gives for a state."""
    value = float(judge(state.variables))
    checks.require(
        math.isfinite(value),
        f"the judge of `{name}` gave {value} at step {int(state.step)}; it must give a finite "
        "number for every student.",
    )
    return value


def _better(best: Best, state: TrainState, value: float) -> Best:
    """The best of all states that were judged, this one included."""
    if value > best.value:
        return Best(_copy(state), np.float64(value), np.int64(0))
    return best._replace(waited=best.waited + 1)


def _has_lost_patience(best: Best | None, patience: int | None) -> bool:
    return best is not None and patience is not None and bool(best.waited >= patience)


def _record(step: int, metrics: dict[str, Array]) -> Record:
    """Metrics as JSON can hold them: a value that is not finite is None."""
    values = {key: float(value) for key, value in metrics.items()}
    return {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}


def _is_finite(tree: Tree) -> bool:
    """True if no array of the tree holds NaN or infinity."""
    return all(np.isfinite(sharding.on_host(leaf)).all() for leaf in jax.tree.leaves(tree))


def _open(
    folder: Path, state: TrainState, best: Best | None, resume: bool
) -> tuple[TrainState, Best | None, list[Record]]:
    """Restores the latest checkpoint and its records, or makes sure that there is none."""
    found = checkpoints.latest(folder / "checkpoints")
    if found is None:
        with checks.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return state, best, []
    checks.require(
        resume, f"{folder} holds a run already; go on with `resume` or choose another folder."
    )
    restored = checkpoints.restore(folder / "checkpoints", _whole(state, best))
    state, best = (restored, None) if best is None else (restored["last"], restored["best"])
    if not processes.is_first():  # it is not its folder that was read
        return state, best, []
    path = folder / "metrics.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        # A kill between the two writes of `_save` leaves records newer than the checkpoint.
        records = [record for record in records if record["step"] <= found]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise checks.InputError(
            f"{path} cannot be read ({error}); restore it, empty it to go on without the earlier "
            "records, or choose another folder."
        ) from error
    return state, best, records


def _save(folder: Path, state: TrainState, best: Best | None, records: list[Record]) -> None:
    """Writes the records, whole and atomically, and then the checkpoint that needs them."""
    partial = folder / "metrics.jsonl.tmp"
    with checks.writing(folder):
        partial.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        partial.replace(folder / "metrics.jsonl")
    checkpoints.save(folder / "checkpoints", int(state.step), _whole(state, best))


def _whole(state: TrainState, best: Best | None) -> Tree:
    """What a checkpoint holds: in one, so that a kill cannot part the best from the last."""
    return state if best is None else {"last": state, "best": best}
