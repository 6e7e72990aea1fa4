"""Students of several methods and seeds, each trained once, written down, and set side by side."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import _grid, _ledger, _methods, _recipe, _run, _workshop
from fdjax import reports
from fdjax.types import Variables

TEACHER = "teacher"
"""Name of the row of a teacher."""

METHODS_HELP = (
    f"What students minimise: all, or {', '.join(_methods.EVERY)}, or another of these with +kd; "
    "settings as name:setting=value, where ce, kd and weight are the weights of cross-entropy, "
    "Hinton's distillation and the method. More may be named when a run goes on."
)


class Job(NamedTuple):
    """What names a number.

    Attributes:
        method: As the flag names it, or `_methods.ALONE`, or a row of reference.
        seed: Of the student.
        measure: What was measured of it.
    """

    method: str
    seed: int
    measure: str


Train = Callable[[int], Mapping[str, float]]
"""From a seed to what was measured of its student."""


class Entry(NamedTuple):
    """One row of the table.

    Attributes:
        prepare: Makes the function that trains; called only if a student is missing.
        seeds: Of its students.
    """

    prepare: Callable[[], Train]
    seeds: Sequence[int]


def ledger(config: Any, without: Iterable[str] = (), **more: Any) -> _ledger.Ledger:
    """The file of finished students in the workdir.

    Args:
        config: The flags; methods and number of seeds may change when a run goes on.
        without: Other flags on which no number depends.
        **more: Other things on which the numbers depend, such as digests of the data.

    Raises:
        InputError: If the file was begun with other flags.
    """
    free = {"workdir", "methods", "seeds", "data_dir", "save_epochs", *without}
    free |= {field.name for field in dataclasses.fields(_run.HostsConfig)}
    flags = {key: value for key, value in dataclasses.asdict(config).items() if key not in free}
    return _ledger.Ledger(Path(config.workdir) / "runs.jsonl", Job, flags | more)


def students(
    workshop: _workshop.Workshop,
    student: _workshop.Learner,
    methods: Sequence[_methods.Method],
    teachers: Callable[[], _methods.Teachers],
    measured: Callable[[Variables], Mapping[str, float]],
    folder: Path,
    *,
    form: str = "{}",
) -> dict[str, Entry]:
    """A row for each method.

    Args:
        workshop: Where the students are trained.
        student: Their network.
        methods: Of the rows.
        teachers: Trained when a student first wants them.
        measured: What is measured of a trained student.
        folder: Of the checkpoints.
        form: Of the rows' names, about that of the method.
    """

    def prepare(method: _methods.Method) -> Train:
        lesson = _methods.Lesson(method, _methods.Scene(workshop, student, teachers()))
        place = folder / _file_name(form.format(method.text))
        return lambda seed: measured(lesson.student(seed, place))

    return {
        form.format(method.text): Entry(functools.partial(prepare, method), seeds(workshop.config))
        for method in methods
    }


def check(
    workshop: _workshop.Workshop,
    student: _workshop.Learner,
    methods: Sequence[_methods.Method],
    teachers: _methods.Teachers,
) -> None:
    """Refuses methods that cannot work, by shapes alone.

    Args:
        workshop: Where students will be trained.
        student: Their network.
        methods: Of the students.
        teachers: With shapes for variables.

    Raises:
        InputError: As their objectives say.
    """
    for method in methods:
        _methods.Lesson(method, _methods.Scene(workshop, student, teachers)).check()


def alone(
    workshop: _workshop.Workshop,
    student: _workshop.Learner,
    measured: Callable[[Variables], Mapping[str, float]],
    folder: Path,
) -> dict[str, Entry]:
    """The row of the student that hears no teacher."""
    config = workshop.config

    def prepare() -> Train:
        rate = _recipe.student_rate(config)
        course = _workshop.labels_only(workshop, student, rate=rate, epochs=config.epochs)
        place, name = folder / _methods.ALONE, _methods.ALONE
        return lambda seed: measured(course.train(seed, place / f"seed-{seed}", name).variables)

    return {_methods.ALONE: Entry(prepare, seeds(config))}


def reference(
    name: str, seed: int, measured: Callable[[], Mapping[str, float]]
) -> dict[str, Entry]:
    """A row of one number a measure, such as a teacher's, that stands below the table."""
    return {name: Entry(lambda: lambda _: measured(), [seed])}


def fill(
    record: _run.Run,
    book: _ledger.Ledger,
    entries: Mapping[str, Entry],
    measures: Sequence[str],
) -> None:
    """Trains the students that the ledger lacks, row by row; a line is added for each."""
    for name, entry in entries.items():
        missing = [
            seed
            for seed in entry.seeds
            if any(Job(name, seed, measure) not in book.values for measure in measures)
        ]
        if not missing:
            continue
        with record.stage(name):
            train = entry.prepare()
            for seed in missing:
                for measure, value in train(seed).items():
                    book.add(Job(name, seed, measure), value)


def value(book: _ledger.Ledger, name: str, seed: int, measure: str) -> float:
    """One number of the ledger."""
    return float(book.values[Job(name, seed, measure)])


def table(
    book: _ledger.Ledger, names: Iterable[str], config: Any, measures: Sequence[str]
) -> list[dict[str, Any]]:
    """Each row's measures, and the gain over the student alone of the same seed.

    Args:
        book: With the numbers of all rows.
        names: Of the rows; the student alone must be in the ledger.
        config: Whose seeds are asked for.
        measures: What was measured.
    """

    def of(name: str, measure: str) -> np.ndarray:
        return np.array([value(book, name, seed, measure) for seed in seeds(config)])

    found = []
    for name in names:
        row: dict[str, Any] = {"method": name}
        for measure in measures:
            row[measure] = list(of(name, measure))
            gain = of(name, measure) - of(_methods.ALONE, measure)
            row[f"{measure} gain"] = _grid.mean_and_error(gain)
        found.append(row)
    return found


def shown(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> list[dict[str, Any]]:
    """The table as readers see it: percent ± standard error, points ± standard error."""
    lines = []
    for row in rows:
        line = {"method": row["method"]}
        for measure in measures:
            line[f"{measure} (%)"] = _plus_minus(*_grid.mean_and_error(row[measure]), sign="")
            if row["method"] != _methods.ALONE:
                line[f"{measure}: gain (points)"] = _plus_minus(*row[f"{measure} gain"], sign="+")
        lines.append(line)
    return lines


def _plus_minus(mean: float, error: float, *, sign: str) -> str:
    text = f"{100 * mean:{sign}.1f}"
    return text if np.isnan(error) else f"{text} ± {100 * error:.1f}"


def report(
    module: str,
    config: Any,
    record: _run.Run,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    measures: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Prints the table and writes report.md with its picture.

    Args:
        module: Name of the experiment's module, for the command.
        config: Its flags.
        record: Of the run.
        title: Of the table.
        rows: From `table`.
        measures: Columns to show.
        notes: Sentences below the command.
    """
    lines = shown(rows, measures)
    reports.print_table(lines, title)
    picture = reports.plot_ranking(
        record.workdir / "methods.png",
        [row["method"] for row in rows],
        {f"{measure} (%)": [100 * np.mean(row[measure]) for row in rows] for measure in measures},
    )
    sections: list[str | Path] = [
        f"`{_run.command_line(module, config)}`",
        *notes,
        f"Mean ± standard error over {config.seeds} seeds; the gain is over the student alone of "
        "the same seed.",
        reports.table(lines),
        picture,
    ]
    reports.write(record.workdir, title, sections)
    print(f"report: {record.workdir / 'report.md'}")


def seeds(config: Any) -> range:
    """Seeds of the students."""
    return range(config.seed, config.seed + config.seeds)


def _file_name(method: str) -> str:
    """A folder's name for a method with its settings."""
    return re.sub(r"[^\w+.-]", "_", method)
