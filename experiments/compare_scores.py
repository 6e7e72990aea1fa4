"""Which score foretells what a teacher will be worth to the student?

    python -m experiments.compare_scores --root=runs/faculty

For every task a student is taught by every teacher of a faculty, over several seeds: its gain over
the student alone is the truth. Then every score ranks the same teachers from the labelled images,
and the table says how well: weighted tau, tau, Spearman, Pearson, what is lost by taking the
teacher of the highest score (regret), and how many of the three best are among the first three
(recall), each with its standard error over tasks. Perceptrons of one task train side by side in
one compiled program, other students on threads (see `_cohort`). Each finished student is a line
of runs.jsonl: a run that was killed goes on by the same command, and more tasks, seeds or scores
train only what is missing. To choose settings, judge by --judge=unlabelled and compare variants:
--scores=transport,transport:cost=centres,transport:level=task,leep.

README.md beside this file is a study made with it: what to expect, and the flags.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import (
    _beyond,
    _cohort,
    _foretold,
    _goals,
    _grid,
    _ledger,
    _run,
    _settings,
    _student,
    _task,
)
from fdjax import checks, data, objectives, reports, scores

NOT_OF_A_STUDENT = ("workdir", "scores", "objective", "tasks", "num_tasks", "seeds")
"""Flags that change no student, or that its job names: one file may hold the students of more."""


@dataclasses.dataclass(frozen=True)
class Config(_grid.GridConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/compare_scores", "Folder of results and report.")
    objective: str = _run.flag(
        "reference",
        "By which teachers teach, one of those of distil_student that hear one; with settings as "
        "name:setting=value.",
    )
    scores: tuple[str, ...] = _run.flag(
        tuple(scores.SCORES),
        f"Of {', '.join(scores.SCORES)}, with settings as name:setting=value:setting=value; or, "
        f"of more than one teacher's outputs, {', '.join(_beyond.SCORES)}, the last with weights "
        "fitted to the other tasks.",
    )


class Place(NamedTuple):
    """A task with what the faculty says of it.

    Attributes:
        name: Of the task.
        task: Its images and labels.
        teachers: Their names.
        scores: Of each teacher, by the name of the score.
    """

    name: str
    task: data.Task
    teachers: tuple[str, ...]
    scores: dict[str, np.ndarray]


def functions_of(config: Config) -> dict[str, scores.ScoreFn]:
    """The scores of one teacher's outputs of a config by their texts, each with its settings.

    Raises:
        InputError: If one is unknown or stands twice, or a setting is not known to it.
    """
    checks.require(bool(config.scores), "--scores is empty; name at least one.")
    table, found = _task.score_functions(cost=config.cost), {}
    for text in config.scores:
        checks.require(
            config.scores.count(text) == 1, f"--scores names {text!r} twice; name each once."
        )
        if text in _beyond.SCORES:
            continue
        name = text.partition(":")[0]
        checks.choice("--scores", name, [*table, *_beyond.SCORES])
        checks.require(name in table, f"`{name}` has no settings; leave out those of {text!r}.")
        settings = _settings.read(text, _settings.defaults(table[name]))
        found[text] = functools.partial(table[name], **settings) if settings else table[name]
    return found


def train(
    config: Config, name: str, task: data.Task, seen: _task.Observed, ledger: _ledger.Ledger
) -> list[_grid.Job]:
    """The students of one task, of whom those are trained that the ledger lacks."""
    school = _student.School(
        task, config.student, _student.budget(config), objectives.cross_entropy()
    )
    seeds = range(config.seed, config.seed + config.seeds)
    alone = _goals.Choice(_grid.ALONE, "cross_entropy", {})
    kinds = [(alone, [_grid.NOBODY]), (_goals.parse(config.objective), list(seen.names))]
    jobs: list[_grid.Job] = []
    for choice, teachers in kinds:
        group = [_grid.Job(name, choice.text, t, seed) for t in teachers for seed in seeds]
        jobs += group
        waiting = [job for job in group if job not in ledger.values]
        if waiting:
            pupils = [
                _cohort.Pupil(choice, {} if choice is alone else {job.teacher: 1.0}, job.seed)
                for job in waiting
            ]

            def ended(place: int, accuracy: float, jobs: list[_grid.Job] = waiting) -> None:
                ledger.add(jobs[place], accuracy)

            title = f"{name} {choice.text}"
            _cohort.accuracies(school, seen, config.cost, pupils, title, ended)
    return jobs


def run(config: Config) -> dict[str, Any]:
    """Trains the students and judges the scores; returns what results.json holds."""
    _run.check(config)
    _student.check(config)
    functions, configs = functions_of(config), _grid.task_configs(config)
    hears = _goals.parse(config.objective).goal.hears
    checks.require(
        hears in ("one", "summed", "together"),
        f"the objective `{config.objective}` hears no teacher of another label space; choose one "
        "that does, such as reference.",
    )
    flags = _grid.flags_of(config, NOT_OF_A_STUDENT)
    ledger = _ledger.Ledger(Path(config.workdir) / "runs.jsonl", _grid.Job, flags)
    tasks = {name: _task.target(one, judge=config.judge) for name, one in configs.items()}
    record = _run.Run(config)
    ledger.begin()
    jobs: list[_grid.Job] = []
    places = []
    parts: dict[str, np.ndarray] = {}
    for name, task in tasks.items():
        with record.stage("observe"):
            seen = _task.observe(config.root, task, config.teachers)
        with record.stage("train"):
            jobs += train(config, name, task, seen, ledger)
        values: dict[str, np.ndarray] = {}
        for text, function in functions.items():
            with record.stage(text):
                values |= _task.score(seen, task, {text: function})
        if _beyond.ETRAN in config.scores:
            values[_beyond.ETRAN] = _beyond.etran(seen, task)
        if {_beyond.OTCE, _beyond.FITTED} & {*config.scores}:
            with record.stage(_beyond.OTCE):
                parts[name] = _beyond.otce_parts(config, seen, task)
            values[_beyond.OTCE] = -parts[name][:, 1]
        places.append(Place(name, task, seen.names, values))
    pairs = _grid.gains({job: ledger.values[job] for job in jobs})
    truth = {
        place.name: np.asarray([pair.gain for pair in pairs if pair.task == place.name])
        for place in places
    }
    if _beyond.FITTED in config.scores:
        fitted = _beyond.fitted(parts, truth)
        for place in places:
            place.scores[_beyond.FITTED] = fitted[place.name]
    found = {
        text: {
            place.name: _foretold.compare(place.scores[text], truth[place.name]) for place in places
        }
        for text in config.scores
    }
    limit = {name: _foretold.perfect(gain) for name, gain in truth.items()}
    results = {
        "scores": _foretold.summaries(found),
        "limit": _foretold.summaries({"(truth)": limit})[0],
        "tasks": [
            row(place, truth[place.name], [ledger.values[j] for j in jobs if is_alone(j, place)])
            for place in places
        ],
        "by_task": found,
        "pairs": [pair._asdict() for pair in pairs],
        "values": {place.name: dict(place.scores) for place in places},
        "teachers": {place.name: place.teachers for place in places},
    }
    report(config, record, places, truth, results)
    return record.finish(results)


def is_alone(job: _grid.Job, place: Place) -> bool:
    """Whether a student is one of those of a task without a teacher."""
    return job.task == place.name and job.objective == _grid.ALONE


def row(place: Place, gain: np.ndarray, alone: list[float]) -> dict[str, Any]:
    """What a task was like: its student alone, its best teacher, and how many are told apart."""
    first = next(iter(place.scores))
    chosen = _task.rank(place.scores[first], place.teachers)[0]
    best = int(np.argmax(gain))
    return {
        "task": place.name,
        "classes": len(place.task.class_names),
        "student alone": _student.mean_and_spread(alone),
        "different gains": len(np.unique(gain)),
        "lowest gain": f"{100 * gain.min():+.1f}",
        "median gain": f"{100 * np.median(gain):+.1f}",
        "best gain": f"{100 * gain[best]:+.1f}",
        "best teacher": place.teachers[best],
        f"gain of the first by {first}": f"{100 * gain[place.teachers.index(chosen)]:+.1f}",
        f"first by {first}": chosen,
    }


def cells(summary: _foretold.Summary) -> dict[str, Any]:
    """A row of the table."""

    def cell(mean_and_error: tuple[float, float], scale: float, digits: int) -> str | None:
        mean, error = (scale * number for number in mean_and_error)
        if np.isnan(mean):
            return None
        return f"{mean:.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")

    return {
        "score": summary.score,
        "weighted tau": cell(summary.weighted_tau, 1, 3),
        "behind the first": cell(summary.behind, 1, 3),
        "tau": cell(summary.tau, 1, 3),
        "Spearman": cell(summary.spearman, 1, 3),
        "Pearson": cell(summary.pearson, 1, 3),
        "regret@1 (points)": cell(summary.regret, 100, 1),
        f"recall@{_foretold.RECALLED}": cell(summary.recall, 1, 2),
        "no score": summary.unknown,
        "tasks": summary.tasks,
    }


def report(
    config: Config,
    record: _run.Run,
    places: list[Place],
    truth: dict[str, np.ndarray],
    results: dict[str, Any],
) -> None:
    """Prints the tables and writes report.md with its picture."""
    rows = [cells(summary) for summary in (*results["scores"], results["limit"])]
    title = f"Scores against the gain of students taught by {config.objective}"
    reports.print_table(rows, title)
    judges = "test images" if config.judge == "test" else "unlabelled training images"
    sections: list[str | Path] = [
        f"`{_run.command_line('experiments.compare_scores', config)}`",
        f"{len(places)} tasks, {config.shots} labelled images a class, {config.seeds} seeds; the "
        f"truth is the mean gain over the student alone in accuracy on {judges}. Mean ± standard "
        "error over tasks. `(truth)` is the truth itself with ties broken at random, the most that "
        "a score can reach. A teacher without a score counts as last.",
        reports.table(rows),
        reports.plot_foretold(
            record.workdir / "scores.png",
            {
                summary.score: {place.name: place.scores[summary.score] for place in places}
                for summary in results["scores"]
            },
            {name: 100 * gain for name, gain in truth.items()},
            ylabel="gain over the student alone [points]",
        ),
        "## Tasks",
        reports.table(results["tasks"]),
    ]
    reports.write(record.workdir, title, sections)
    print(f"report: {record.workdir / 'report.md'}")


if __name__ == "__main__":
    _run.main(run, Config)
