"""A grid of students: of which tasks and teachers, and what each teacher was worth to them."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from experiments import _run, _student, _task
from fdjax import checks, data, faculty

ALONE, NOBODY, MIXTURE = "alone", "(none)", "(mixture)"

HARM = 0.005
"""A teacher did harm if the student lost more accuracy than this, and than a standard error."""


@dataclasses.dataclass(frozen=True)
class GridConfig(_student.BudgetConfig):
    """Flags of every experiment on several tasks."""

    root: str = _run.flag("runs/faculty", "Folder of the faculty.")
    tasks: tuple[str, ...] = _run.flag(
        (),
        "Tasks: DATASET:CLASS+CLASS is one task, DATASET alone makes --num_tasks draws of a "
        "random half of its classes and of labelled images, DATASET@SEED one of them; if empty, "
        "draws of --dataset.",
    )
    num_tasks: int = _run.flag(3, "Draws of each data set whose classes are not named.", low=1)
    teachers: tuple[str, ...] = _run.flag((), "Names of teachers; the whole faculty if empty.")
    seeds: int = _run.flag(3, "Students of each kind, from different seeds.", low=1)
    judge: _task.Judge = _run.flag(
        "test", "Images to judge by: test, or unlabelled training images to choose settings by."
    )


Grid = TypeVar("Grid", bound=GridConfig)


class Job(NamedTuple):
    """One student.

    Attributes:
        task: Name of its task.
        objective: As the flag names it, or `ALONE`.
        teacher: A name, `NOBODY` or `MIXTURE`.
        seed: Of the student.
    """

    task: str
    objective: str
    teacher: str
    seed: int


def task_configs(config: Grid) -> dict[str, Grid]:
    """Config of each task by the task's name.

    Raises:
        InputError: If two tasks have one name, or classes are named in two places.
    """
    checks.require(
        not (config.tasks and config.classes),
        "--classes goes with --dataset; name those of --tasks after a colon.",
    )
    found: dict[str, Grid] = {}
    for text in config.tasks or (config.dataset,):
        dataset, _, classes = text.partition(":")
        stem, one = Path(dataset).stem, dataclasses.replace(config, dataset=dataset)
        if classes:
            named = {
                f"{stem}:{classes}": dataclasses.replace(one, classes=tuple(classes.split("+")))
            }
        else:
            drawn, _, draw = dataset.rpartition("@")
            seeds: Sequence[int] = range(config.seed, config.seed + config.num_tasks)
            if drawn and draw.isdecimal():
                one, seeds = dataclasses.replace(one, dataset=drawn), [int(draw)]
                stem = Path(drawn).stem
            named = {f"{stem}@{seed}": dataclasses.replace(one, seed=seed) for seed in seeds}
        for name in named:
            checks.require(name not in found, f"--tasks names {name!r} twice; name each once.")
        found |= named
    return found


def flags_of(config: GridConfig, without: Collection[str]) -> dict[str, Any]:
    """All on which a student's accuracy depends but what names it, and the very teachers.

    Args:
        config: The flags.
        without: Those that change no student, or that each job names, so that a grid can be
            continued with more of them.
    """
    cards = faculty.cards(config.root)
    for name in config.teachers:
        checks.choice("--teachers", name, [card.name for card in cards])
    heard = [c for c in cards if c.name in config.teachers or not config.teachers]
    flags = {key: value for key, value in dataclasses.asdict(config).items() if key not in without}
    digest = data.digest(np.array([f"{card.name} {card.digest}" for card in heard]))
    return flags | {"faculty": digest[:16]}


class Pair(NamedTuple):
    """What a teacher was worth to the students of one task and objective.

    Attributes:
        task: Name of the task.
        teacher: A name, `NOBODY` or `MIXTURE`.
        objective: As the flag names it.
        gain: Mean over seeds of the accuracy above that of the student alone of the same seed.
        error: Standard error of that mean; NaN for one seed.
        harmed: Whether the loss is above `HARM` and above the error.
    """

    task: str
    teacher: str
    objective: str
    gain: float
    error: float
    harmed: bool


def gains(accuracy: Mapping[Job, float]) -> list[Pair]:
    """Gain of each task, objective and teacher, in the order of the students."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for job, value in accuracy.items():
        if job.objective != ALONE:
            alone = accuracy[job._replace(objective=ALONE, teacher=NOBODY)]
            key = (job.task, job.teacher, job.objective)
            found.setdefault(key, []).append(value - alone)
    pairs = []
    for (task, teacher, objective), differences in found.items():
        gain, error = mean_and_error(differences)
        harmed = gain < -HARM and not -gain <= error
        pairs.append(Pair(task, teacher, objective, gain, error, harmed))
    return pairs


def mean_and_error(values: Any) -> tuple[float, float]:
    """Mean and its standard error, NaN for one value."""
    values = np.asarray(values, np.float64)
    spread = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else float("nan")
    return float(values.mean()), float(spread)
