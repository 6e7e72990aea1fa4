"""Which objective teaches best across label spaces, and does any do harm?

    python -m experiments.compare_objectives --root=runs/faculty

Trains a student for every task, teacher, objective and seed, and one alone for every task and
seed, all on one budget, and reports what each objective gained: in the mean, with the teacher
chosen by the transport score, from the leading teachers together, at worst, and in how many
pairs of task and teacher it did harm. Each finished student is a line of runs.jsonl: a run that
was killed goes on by the same command. To choose settings, judge by --judge=unlabelled, and
compare variants: --objectives=transport,transport:weight=auto,reference:form=soft. The objective
fine_tune, the teacher's own network with a new last layer, is the upper reference.

The defaults train at most 918 students from a faculty of twelve, of one to two seconds of a core
each on the digits; students who trust none of their teachers are trained once for all of these.
README.md beside this file is a study made with it: what to expect, and the flags.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import _cohort, _goals, _grid, _ledger, _run, _student, _task
from fdjax import checks, data, objectives, reports

DEFAULT = (
    *("reference", "beliefs", "pseudo_labels", "transport", "projected_kl", "uld"),
    *("extra_head", "feature_matching", "refilled_classifier", "gkd_classifier"),
)


@dataclasses.dataclass(frozen=True)
class Config(_grid.GridConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/compare_objectives", "Folder of results and report.")
    objectives: tuple[str, ...] = _run.flag(
        DEFAULT,
        "What students minimise beside cross-entropy, all but kd of those of distil_student; with "
        "settings as name:setting=value:setting=value. More may be named when a grid goes on.",
    )
    mixture: int = _run.flag(
        3, "Leading teachers that also teach together where the objective can; 1 for none.", low=1
    )


class Place(NamedTuple):
    """A task with what the faculty says of it.

    Attributes:
        name: Of the task.
        school: Its students' images, network and budget.
        seen: The teachers' outputs.
        scores: Transport score of each teacher.
    """

    name: str
    school: _student.School
    seen: _task.Observed
    scores: np.ndarray


def choices(config: Config) -> list[_goals.Choice]:
    """The student alone and the objectives to be compared with it.

    Raises:
        InputError: If one is unknown, stands twice, or is not for different label spaces.
    """
    found = [_goals.Choice(_grid.ALONE, "cross_entropy", {})]
    checks.require(bool(config.objectives), "--objectives is empty; name at least one.")
    for text in config.objectives:
        checks.require(
            text not in [choice.text for choice in found],
            f"--objectives names {text!r} twice; name each once ({_grid.ALONE!r} is always there).",
        )
        choice = _goals.parse(text)
        _goals.check_copies(choice, config)
        checks.require(
            choice.goal.hears != "namesake",
            f"the objective `{choice.name}` is for one label space; leave it out of --objectives.",
        )
        found.append(choice)
    return found


def jobs_of(config: Config, choice: _goals.Choice, place: Place) -> list[list[_grid.Job]]:
    """The students of one task and objective, in groups that share a compiled step."""
    hears = choice.goal.hears
    groups = [[_grid.NOBODY]] if hears == "nobody" else [list(place.seen.names)]
    if hears in ("summed", "together") and min(config.mixture, len(place.seen.names)) > 1:
        groups.append([_grid.MIXTURE])
    seeds = range(config.seed, config.seed + config.seeds)
    return [
        [_grid.Job(place.name, choice.text, teacher, seed) for teacher in group for seed in seeds]
        for group in groups
    ]


def train(
    config: Config,
    choice: _goals.Choice,
    place: Place,
    jobs: list[_grid.Job],
    ledger: _ledger.Ledger,
) -> None:
    """Trains those of the students that the ledger lacks, side by side."""
    waiting = [job for job in jobs if job not in ledger.values]
    if not waiting:
        return

    def pupil(job: _grid.Job) -> _cohort.Pupil:
        shares = {} if job.teacher == _grid.NOBODY else {job.teacher: 1.0}
        if job.teacher == _grid.MIXTURE:
            shares = _goals.mixture(place.scores, place.seen.names, config.mixture)
        return _cohort.Pupil(choice, shares, job.seed)

    _cohort.accuracies(
        place.school,
        place.seen,
        config.cost,
        [pupil(job) for job in waiting],
        f"{place.name} {choice.text}",
        lambda number, accuracy: ledger.add(waiting[number], accuracy),
    )


def run(config: Config) -> dict[str, Any]:
    """Trains the grid; returns what results.json holds."""
    _run.check(config)
    _student.check(config)
    wanted, configs = choices(config), _grid.task_configs(config)
    path = Path(config.workdir) / "runs.jsonl"
    ledger = _ledger.Ledger(path, _grid.Job, _grid.flags_of(config, ("workdir", "objectives")))
    tasks = {name: _task.target(one, judge=config.judge) for name, one in configs.items()}
    record = _run.Run(config)
    ledger.begin()
    jobs: list[_grid.Job] = []
    scores: dict[str, dict[str, float]] = {}
    for name, task in tasks.items():
        with record.stage("observe"):
            seen = _task.observe(config.root, task, config.teachers)
        with record.stage("score"):
            functions = {"transport": _task.score_functions(cost=config.cost)["transport"]}
            values = _task.score(seen, task, functions)["transport"]
        budget = _student.budget(config)
        school = _student.School(task, config.student, budget, objectives.cross_entropy())
        place = Place(name, school, seen, values)
        leading = _task.rank(values, seen.names)
        scores[name] = {teacher: float(values[seen.names.index(teacher)]) for teacher in leading}
        for choice in wanted:
            with record.stage(choice.text):
                for group in jobs_of(config, choice, place):
                    train(config, choice, place, group, ledger)
                    jobs += group
    pairs = _grid.gains({job: ledger.values[job] for job in jobs})
    results = {
        "objectives": [summary(pairs, choice.text, scores) for choice in wanted[1:]],
        "pairs": [pair._asdict() for pair in pairs],
        "alone": {
            name: [ledger.values[job] for job in jobs if job[:2] == (name, _grid.ALONE)]
            for name in tasks
        },
        "scores": scores,
        "tasks": {name: task.class_names for name, task in tasks.items()},
    }
    report(config, record, tasks, results)
    return record.finish(results)


def summary(
    pairs: list[_grid.Pair], objective: str, scores: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """How one objective did over all tasks; standard errors are over tasks.

    Args:
        pairs: Of all objectives.
        objective: The one to sum up.
        scores: Transport scores of the teachers of each task, best first.
    """
    own = [pair for pair in pairs if pair.objective == objective]
    single = [pair for pair in own if pair.teacher != _grid.MIXTURE]
    together = [pair.gain for pair in own if pair.teacher == _grid.MIXTURE]
    leading = {task: (next(iter(ranked)), _grid.NOBODY) for task, ranked in scores.items()}
    chosen = [pair.gain for pair in single if pair.teacher in leading[pair.task]]
    by_task = [np.mean([p.gain for p in single if p.task == task]) for task in scores]
    worst = min(single, key=lambda pair: pair.gain)
    return {
        "objective": objective,
        "gain": _grid.mean_and_error(by_task),
        "chosen": _grid.mean_and_error(chosen),
        "mixture": _grid.mean_and_error(together) if together else None,
        "worst": worst.gain,
        "worst_pair": f"{worst.teacher}, {worst.task}",
        "harmed": sum(pair.harmed for pair in single),
        "pairs": len(single),
    }


def report(
    config: Config, record: _run.Run, tasks: dict[str, data.Task], results: dict[str, Any]
) -> None:
    """Prints the tables and writes report.md with its picture."""

    def points(gain_and_error: tuple[float, float] | None) -> str | None:
        if gain_and_error is None:
            return None
        gain, error = (100 * number for number in gain_and_error)
        return f"{gain:+.1f}" if np.isnan(error) else f"{gain:+.1f} ± {error:.1f}"

    rows = [
        {
            "objective": row["objective"],
            "mean gain": points(row["gain"]),
            "chosen teacher": points(row["chosen"]),
            "mixture": points(row["mixture"]),
            "worst": points((row["worst"], np.nan)),
            "worst pair": row["worst_pair"],
            "harmed": row["harmed"],
            "pairs": row["pairs"],
        }
        for row in results["objectives"]
    ]
    by_pair: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in results["pairs"]:
        key = (pair["task"], pair["teacher"])
        score = results["scores"][pair["task"]].get(pair["teacher"])
        row = by_pair.setdefault(key, {"task": key[0], "teacher": key[1], "score": score})
        row[pair["objective"]] = points((pair["gain"], pair["error"]))
    alone = [
        {
            "task": name,
            "classes": ", ".join(task.class_names),
            "student alone": _student.mean_and_spread(results["alone"][name]),
            "chosen teacher": next(iter(results["scores"][name])),
        }
        for name, task in tasks.items()
    ]
    judges = "test images" if config.judge == "test" else "unlabelled training images"
    title = f"Gain over the student alone, in points of accuracy on {judges}"
    reports.print_table(rows, title)
    values = {
        "mean gain (points)": [100 * row["gain"][0] for row in results["objectives"]],
        "gain from the chosen teacher": [100 * row["chosen"][0] for row in results["objectives"]],
        "gain of the worst pair": [100 * row["worst"] for row in results["objectives"]],
    }
    sections: list[str | Path] = [
        f"`{_run.command_line('experiments.compare_objectives', config)}`",
        f"{title}: mean ± standard error over {len(tasks)} tasks, all teachers counting alike; "
        "with the teacher chosen by the transport score; with the leading "
        f"{config.mixture} together. A pair of teacher and task is harmed if it lost more than "
        f"{100 * _grid.HARM:g} points and more than one standard error over {config.seeds} seeds.",
        reports.table(rows),
        reports.plot_ranking(
            record.workdir / "gains.png", [row["objective"] for row in rows], values
        ),
        "## Tasks",
        f"{config.shots} labelled images a class; accuracy ± standard deviation over seeds.",
        reports.table(alone),
        "## Pairs",
        "Mean ± standard error over seeds.",
        reports.table(list(by_pair.values())),
    ]
    reports.write(record.workdir, "Objectives", sections)
    print(f"report: {record.workdir / 'report.md'}")


if __name__ == "__main__":
    _run.main(run, Config)
